"""The engine behind an API, against a server on loopback that misbehaves."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from fakeserver import CREATION, KEY, MODEL, FakeServer
from pydantic import ValidationError

from perfmis.artifacts import read_json, write_json
from perfmis.engines.api import batches, direct
from perfmis.engines.api.cost import estimate
from perfmis.engines.api.engine import ApiEngine, UnansweredError
from perfmis.engines.api.server import Prices, Server
from perfmis.engines.interface import Prompt, Sample, Sampling
from perfmis.stage import UserError

PROVIDERS = ("openai", "anthropic")
SAMPLING = Sampling(temperature=1.0, max_tokens=50, batch=4)


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave nothing of the user's environment, and back off for a millisecond."""
    import anthropic
    import openai

    for name in list(os.environ):
        if name.lower().endswith("_proxy") or name.startswith(("OPENAI_", "ANTHROPIC_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("PLANTED", KEY)
    for sdk in (anthropic, openai):
        monkeypatch.setattr(sdk._base_client, "INITIAL_RETRY_DELAY", 0.001)


@pytest.fixture
def fake() -> Iterator[FakeServer]:
    """The server."""
    with FakeServer() as server:
        yield server


def settings(fake: FakeServer, provider: str, **more: Any) -> Server:
    url = fake.url + ("/v1" if provider == "openai" else "")
    return Server(**{"provider": provider, "model": MODEL, "base_url": url, "key": "PLANTED", "retries": 3, **more})


def prompts(number: int, first: int = 0) -> list[Prompt]:
    return [Prompt((), None, i, None, ({"role": "user", "content": f"p{i}"},)) for i in range(first, first + number)]


Store = dict[str, Sample]


def content(prompt: Prompt) -> str:
    assert prompt.messages
    return prompt.messages[-1]["content"]


def fill(
    store: Store, engine: ApiEngine, asked: list[Prompt], sampling: Sampling = SAMPLING, stop: int = 10**9
) -> None:
    """Ask for what the store lacks, as a stage does; stop, as if interrupted, after some lists."""
    missing = [prompt for prompt in asked if content(prompt) not in store]
    with suppress(UnansweredError):
        for number, finished in enumerate(engine.sample(missing, sampling), 1):
            assert finished
            for index, sample in finished:
                assert content(missing[index]) not in store
                store[content(missing[index])] = sample
            if number == stop:
                return


def complete(store: Store, number: int) -> bool:
    return {name: sample.raw for name, sample in store.items()} == {f"p{i}": f"answer to p{i}" for i in range(number)}


@pytest.mark.parametrize("provider", PROVIDERS)
def test_samples_come_back_as_they_were_counted(fake: FakeServer, provider: str, tmp_path: Path) -> None:
    store: Store = {}
    fill(store, ApiEngine(settings(fake, provider), tmp_path), prompts(20))
    assert complete(store, 20)
    assert set(store.values()) == {Sample(f"answer to p{i}", 10, "stop", 100) for i in range(20)}
    assert fake.most <= SAMPLING.batch


@pytest.mark.parametrize("provider", PROVIDERS)
def test_requests_say_what_was_asked(fake: FakeServer, provider: str, tmp_path: Path) -> None:
    schema = {
        "type": "object",
        "properties": {"a": {"type": "boolean"}},
        "required": ["a"],
        "additionalProperties": False,
    }
    turns = ({"role": "system", "content": "be brief"}, {"role": "user", "content": "p"})
    server = settings(fake, provider, options={"output_config": {"effort": "low"}})
    engine = ApiEngine(server, tmp_path)
    list(engine.sample([Prompt((), None, 5, None, turns)], Sampling(None, 50, 4, schema)))
    list(engine.sample([Prompt((), None, 5, None, turns)], Sampling(0.5, 50, 4)))
    first, second = fake.bodies["p"]
    assert "temperature" not in first
    assert second["temperature"] == 0.5
    if provider == "openai":
        assert first["messages"] == list(turns)
        assert (first["max_completion_tokens"], first["seed"]) == (50, 5)
        assert first["response_format"]["json_schema"]["schema"] == schema
        assert "response_format" not in second
    else:
        assert first["messages"] == [turns[1]]
        assert (first["max_tokens"], first["system"]) == (50, "be brief")
        assert first["output_config"] == {"effort": "low", "format": {"type": "json_schema", "schema": schema}}
        assert second["output_config"] == {"effort": "low"}


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize(
    ("how", "raw", "finish"),
    [
        ("length", "answer to p0", "length"),
        ("refusal", "answer to p0", "filtered"),
        ("reasoning", "<think>let me see</think>answer to p0", "stop"),
        ("cut", "<think>let me see", "length"),
    ],
)
def test_endings(fake: FakeServer, provider: str, tmp_path: Path, how: str, raw: str, finish: str) -> None:
    fake.script["p0"] = [how]
    store: Store = {}
    fill(store, ApiEngine(settings(fake, provider), tmp_path), prompts(1))
    assert (store["p0"].raw, store["p0"].finish) == (raw, finish)


def test_withheld_answers_are_outcomes(fake: FakeServer, tmp_path: Path) -> None:
    fake.script = {"p0": ["declined"], "p1": [(400, "content_filter")], "p2": []}
    store: Store = {}
    fill(store, ApiEngine(settings(fake, "openai"), tmp_path), prompts(3))
    assert [store[f"p{i}"].finish for i in range(3)] == ["filtered", "filtered", "stop"]


@pytest.mark.parametrize("provider", PROVIDERS)
def test_passing_trouble_is_retried(fake: FakeServer, provider: str, tmp_path: Path) -> None:
    fake.script |= {"p0": [429, 429], "p1": [500, 503], "p2": ["half"], "p3": ["hang"], "p4": ["half", 429, 529]}
    store: Store = {}
    fill(store, ApiEngine(settings(fake, provider, timeout=0.3), tmp_path), prompts(8))
    assert complete(store, 8)
    assert fake.sold == Counter({f"p{i}": 1 for i in range(8)})


@pytest.mark.parametrize("provider", PROVIDERS)
def test_retry_after_is_honoured(fake: FakeServer, provider: str, tmp_path: Path) -> None:
    fake.script["p0"] = [429]
    fake.headers = {"Retry-After": "0.3"}
    fill({}, ApiEngine(settings(fake, provider), tmp_path), prompts(1))
    first, second = fake.times["p0"]
    assert second - first >= 0.3


@pytest.mark.parametrize("provider", PROVIDERS)
def test_what_fails_for_good_is_missing_and_drawn_by_the_next_run(
    fake: FakeServer, provider: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.script |= {
        "p0": [429] * 4,
        "p1": ["garbage"],
        "p2": ["shape"],
        "p3": ["html"],
        "p4": ["half"] * 4,
        "p5": [400],
    }
    store: Store = {}
    fill(store, ApiEngine(settings(fake, provider), tmp_path), prompts(10))
    assert set(store) == {"p6", "p7", "p8", "p9"}
    line = capsys.readouterr().err.splitlines()[-1]
    assert "6 requests failed" in line
    assert "3 × unreadable answer" in line
    assert "1 × 429 some_code" in line
    fill(store, ApiEngine(settings(fake, provider), tmp_path), prompts(10))
    assert complete(store, 10)
    assert set(fake.sold.values()) == {1}


@pytest.mark.parametrize("provider", PROVIDERS)
def test_an_interrupted_job_keeps_what_came(fake: FakeServer, provider: str, tmp_path: Path) -> None:
    store: Store = {}
    fill(store, ApiEngine(settings(fake, provider), tmp_path), prompts(40), stop=5)
    kept = dict(store)
    assert 5 <= len(kept) < 40
    fill(store, ApiEngine(settings(fake, provider), tmp_path), prompts(40))
    assert complete(store, 40)
    assert all(fake.sold[name] == 1 for name in kept)
    # At most what was in flight when the consumer left is asked again.
    assert fake.sold.total() <= 40 + SAMPLING.batch


@pytest.mark.parametrize("provider", PROVIDERS)
def test_many_failures_in_a_row_stop_the_job(
    fake: FakeServer, provider: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for i in range(200):
        fake.script[f"p{i}"] = [402]
    engine = ApiEngine(settings(fake, provider), tmp_path)
    fill({}, engine, prompts(200))
    record = engine.record()
    assert len(fake.times) == record["failed"]["402 some_code"] <= direct.IN_A_ROW + SAMPLING.batch
    assert record["unasked"] == 200 - len(fake.times)
    assert f"{record['unasked']} more were not sent" in capsys.readouterr().err


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("batch_endpoint", [False, True])
def test_a_refused_key_ends_the_job_and_is_never_shown(
    fake: FakeServer,
    provider: str,
    batch_endpoint: bool,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    caplog.set_level("DEBUG")
    monkeypatch.setenv("PLANTED", wrong := "sk-another-planted-key")
    engine = ApiEngine(settings(fake, provider, batch_endpoint=batch_endpoint), tmp_path, poll=0.01)
    with pytest.raises(UserError, match="PLANTED") as caught:
        fill({}, engine, prompts(50))
    said = str(caught.value) + capsys.readouterr().err + caplog.text + json.dumps(engine.record())
    assert wrong not in said
    assert list(tmp_path.glob("*.json")) == []


@pytest.mark.parametrize("provider", PROVIDERS)
def test_a_key_that_a_server_repeats_is_never_shown(
    fake: FakeServer,
    provider: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("DEBUG")
    fake.script["p0"] = [400]
    fill({}, ApiEngine(settings(fake, provider), tmp_path), prompts(3))
    said = capsys.readouterr().err
    assert "your key is ***" in said
    assert KEY not in said + caplog.text


@pytest.mark.parametrize("provider", PROVIDERS)
def test_an_unknown_model_ends_the_job(fake: FakeServer, provider: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"server\.model"):
        fill({}, ApiEngine(settings(fake, provider, model="other"), tmp_path), prompts(50))
    assert len(fake.times) <= SAMPLING.batch


def test_a_missing_key_is_named_before_anything_is_sent(fake: FakeServer, tmp_path: Path) -> None:
    server = Server(provider="anthropic", model=MODEL, base_url=fake.url)
    with pytest.raises(UserError, match="ANTHROPIC_API_KEY is not set"):
        fill({}, ApiEngine(server, tmp_path), prompts(1))
    with pytest.raises(ValidationError, match="limit needs prices"):
        Server(provider="openai", model=MODEL, limit=1)


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("batch_endpoint", [False, True])
def test_costs_are_estimated_before_and_recorded_after(
    fake: FakeServer, provider: str, batch_endpoint: bool, tmp_path: Path
) -> None:
    prices = Prices(input=2, output=10, cached=0.5, batch=0.5)
    server = settings(fake, provider, prices=prices, batch_endpoint=batch_endpoint)
    engine = ApiEngine(server, tmp_path, poll=0.01)
    fill({}, engine, prompts(5))
    record = engine.record()
    # Five requests of 60 fresh and 40 cached tokens read, and 10 generated.
    share = 0.5 if batch_endpoint else 1
    assert record["usd"] == pytest.approx(5 * (60 * 2 + 40 * 0.5 + 10 * 10) / 1e6 * share)
    assert (record["prompt_tokens"], record["cached_tokens"], record["output_tokens"]) == (500, 200, 50)
    assert record["answered"] == 5
    assert record["estimates"] == [estimate(prompts(5), SAMPLING, prices, batch_endpoint)]
    # "p0" is one token by the rule; at most 50 are generated.
    assert record["estimates"][0]["usd"] == pytest.approx(5 * (1 * 2 + 50 * 10) / 1e6 * share)


@pytest.mark.parametrize("batch_endpoint", [False, True])
def test_a_job_above_its_limit_sends_nothing(fake: FakeServer, batch_endpoint: bool, tmp_path: Path) -> None:
    prices = Prices(input=2, output=10)
    server = settings(fake, "openai", prices=prices, limit=0.002, batch_endpoint=batch_endpoint)
    with pytest.raises(UserError, match=r"server\.limit"):
        fill({}, ApiEngine(server, tmp_path, poll=0.01), prompts(5))
    assert not fake.sold
    fill({}, ApiEngine(server, tmp_path, poll=0.01), prompts(3))
    assert fake.sold.total() == 3


def batched(fake: FakeServer, provider: str, folder: Path) -> ApiEngine:
    return ApiEngine(settings(fake, provider, batch_endpoint=True), folder, poll=0.01)


@pytest.mark.parametrize("provider", PROVIDERS)
def test_batches(fake: FakeServer, provider: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "REQUESTS", 4)
    store: Store = {}
    fill(store, batched(fake, provider, tmp_path), prompts(10))
    assert complete(store, 10)
    assert [len(batch["requests"]) for batch in fake.batches.values()] == [4, 4, 2]
    assert set(fake.sold.values()) == {1}
    assert list(tmp_path.glob("*.json")) == []


@pytest.mark.parametrize("provider", PROVIDERS)
def test_equal_prompts_of_a_batch_share_a_sample(fake: FakeServer, provider: str, tmp_path: Path) -> None:
    (finished,) = batched(fake, provider, tmp_path).sample(prompts(2) + prompts(2), SAMPLING)
    assert {index: sample.raw[-2:] for index, sample in finished} == {0: "p0", 1: "p1", 2: "p0", 3: "p1"}
    assert fake.sold == Counter(p0=1, p1=1)


@pytest.mark.parametrize("provider", PROVIDERS)
def test_nobody_at_the_address(provider: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with FakeServer() as gone:
        pass
    engine = ApiEngine(settings(gone, provider), tmp_path)
    fill({}, engine, prompts(50))
    assert "cannot be reached" in capsys.readouterr().err
    assert engine.record()["unasked"] > 0
    with pytest.raises(UserError, match="cannot be reached"):
        fill({}, batched(gone, provider, tmp_path), prompts(3))


@pytest.mark.parametrize("provider", PROVIDERS)
def test_failed_entries_of_a_batch_are_missing_and_submitted_by_the_next_run(
    fake: FakeServer, provider: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.script |= {"p0": ["errored"], "p1": ["expired"], "p2": ["length"]}
    store: Store = {}
    fill(store, batched(fake, provider, tmp_path), prompts(6))
    assert set(store) == {"p2", "p3", "p4", "p5"}
    assert store["p2"].finish == "length"
    assert "2 requests failed" in capsys.readouterr().err
    fill(store, batched(fake, provider, tmp_path), prompts(6))
    assert len(store) == 6
    assert [len(batch["requests"]) for batch in fake.batches.values()] == [6, 2]


@pytest.mark.parametrize("provider", PROVIDERS)
def test_a_batch_of_an_interrupted_job_is_picked_up_by_whoever_needs_it(
    fake: FakeServer, provider: str, tmp_path: Path
) -> None:
    interrupt(fake, batched(fake, provider, tmp_path), prompts(6))
    assert set(fake.sold) == {f"p{i}" for i in range(6)}
    # Another job needs two of the six, and two that nobody asked for.
    other: Store = {}
    fill(other, batched(fake, provider, tmp_path), prompts(4, first=4))
    assert {name: sample.raw for name, sample in other.items()} == {f"p{i}": f"answer to p{i}" for i in range(4, 8)}
    store = {name: sample for name, sample in other.items() if name in ("p4", "p5")}
    fill(store, batched(fake, provider, tmp_path), prompts(6))
    assert complete(store, 6)
    assert fake.sold == Counter({f"p{i}": 1 for i in range(8)})
    assert list(tmp_path.glob("*.json")) == []


def interrupt(fake: FakeServer, engine: ApiEngine, asked: list[Prompt]) -> None:
    """Sample, with a SIGINT as soon as the batch was looked at."""

    def watch() -> None:
        while not any(batch["looks"] for batch in fake.batches.values()):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    fake.looks = None
    thread = threading.Thread(target=watch)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        fill({}, engine, asked)
    thread.join()
    fake.looks = 0


@pytest.mark.parametrize("provider", PROVIDERS)
def test_a_batch_accepted_without_a_word_is_found_and_not_submitted_twice(
    fake: FakeServer, provider: str, tmp_path: Path
) -> None:
    store: Store = {}
    fill(store, batched(fake, provider, tmp_path), prompts(3))
    fill(store, batched(fake, provider, tmp_path), prompts(6))
    fake.script[CREATION] = [503, 429, "half"]
    fill(store, batched(fake, provider, tmp_path), prompts(9))
    assert complete(store, 9)
    assert set(fake.sold.values()) == {1}
    assert len(fake.batches) == 3


@pytest.mark.parametrize("provider", PROVIDERS)
def test_a_job_killed_before_it_noted_the_batch_finds_it(fake: FakeServer, provider: str, tmp_path: Path) -> None:
    fake.script[CREATION] = ["half"]
    server = settings(fake, provider, batch_endpoint=True, retries=0)
    with pytest.raises(UserError, match="nothing is paid twice"):
        fill({}, ApiEngine(server, tmp_path, poll=0.01), prompts(5))
    (note,) = tmp_path.glob("*.json")
    assert json.loads(note.read_text())["batch"] is None
    for number in (1, 2, 3):
        fill({}, batched(fake, provider, tmp_path / "others"), prompts(number, first=10 * number))
    store: Store = {}
    fill(store, batched(fake, provider, tmp_path), prompts(5))
    assert complete(store, 5)
    assert len(fake.batches) == 4


def test_a_batch_that_fails_as_a_whole_is_missing(
    fake: FakeServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    interrupt(fake, batched(fake, "openai", tmp_path), prompts(3))
    fake.batches["batch-0"]["status"] = "failed"
    store: Store = {}
    fill(store, batched(fake, "openai", tmp_path), prompts(3))
    assert not store
    assert "3 × token_limit_exceeded (queue is full)" in capsys.readouterr().err
    fill(store, batched(fake, "openai", tmp_path), prompts(3))
    assert complete(store, 3)


KILLED = """
import sys
from pathlib import Path
from perfmis.engines.api.engine import ApiEngine
from perfmis.engines.api.server import Server
from perfmis.engines.interface import Prompt, Sampling
asked = [Prompt((), None, i, None, ({"role": "user", "content": f"p{i}"},)) for i in range(6)]
server = Server.model_validate_json(sys.argv[1])
list(ApiEngine(server, Path(sys.argv[2]), poll=0.01).sample(asked, Sampling(1.0, 50, 4)))
"""


@pytest.mark.parametrize("provider", PROVIDERS)
def test_a_killed_job_pays_for_its_batch_once(fake: FakeServer, provider: str, tmp_path: Path) -> None:
    fake.looks = None
    server = settings(fake, provider, batch_endpoint=True)
    words = [sys.executable, "-c", KILLED, server.model_dump_json(), str(tmp_path)]
    with subprocess.Popen(words, stderr=subprocess.DEVNULL) as process:
        while not any(batch["looks"] for batch in fake.batches.values()):
            assert process.poll() is None
            time.sleep(0.02)
        process.kill()
    (note,) = tmp_path.glob("*.json")
    assert json.loads(note.read_text())["batch"] == "batch-0"
    fake.looks = 1
    store: Store = {}
    fill(store, batched(fake, provider, tmp_path), prompts(6))
    assert complete(store, 6)
    assert fake.sold == Counter({f"p{i}": 1 for i in range(6)})


def test_two_notes_of_one_request(fake: FakeServer, tmp_path: Path) -> None:
    interrupt(fake, batched(fake, "openai", tmp_path), prompts(3))
    (note,) = tmp_path.glob("*.json")
    twin = json.loads(json.dumps(read_json(note)).replace(note.stem, "twin"))
    write_json(twin, tmp_path / "twin.json")
    store: Store = {}
    fill(store, batched(fake, "openai", tmp_path), prompts(4))
    assert complete(store, 4)
    assert set(fake.sold.values()) == {1}


def test_a_batch_that_the_server_dropped_is_submitted_again(fake: FakeServer, tmp_path: Path) -> None:
    interrupt(fake, batched(fake, "anthropic", tmp_path), prompts(3))
    fake.batches.clear()
    store: Store = {}
    fill(store, batched(fake, "anthropic", tmp_path), prompts(3))
    fill(store, batched(fake, "anthropic", tmp_path), prompts(3))
    assert complete(store, 3)


def test_settings_that_decide_samples() -> None:
    server = Server(provider="openai", model=MODEL)
    moved = Server(provider="openai", model=MODEL, base_url="http://elsewhere/v1", retries=1, batch_endpoint=True)
    assert server.identity() == moved.identity()
    assert server.identity() != Server(provider="openai", model=MODEL, options={"reasoning_effort": "low"}).identity()
