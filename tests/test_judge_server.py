"""A judge and a closed model behind a server that fails in every way: reruns complete, and nothing is paid twice."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fakeserver
import polars as pl
import pytest
import yaml
from answers import NOTED, transcripts
from conftest import REPOSITORY
from fakeserver import KEY, MODEL, FakeServer
from running import FINGERPRINT, stage
from test_judging import JUDGE, PATHS, STUDY, answer

from perfmis.artifacts import read_json

SERVING = {"engine": "api"}
CHAT = REPOSITORY / "resources" / "protocols" / "chat"


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeServer]:
    """The server; its key is in the environment and the SDK backs off for a millisecond."""
    import openai

    monkeypatch.setenv("PLANTED", KEY)
    monkeypatch.setattr(openai._base_client, "INITIAL_RETRY_DELAY", 0.001)
    with FakeServer() as server:
        yield server


@pytest.fixture
def reference(fake: FakeServer, tmp_path: Path) -> Path:
    """The server's reference, made by the stage `server_reference`."""
    prices = {"input": 1.0, "output": 10.0}
    server = {"provider": "openai", "model": MODEL, "base_url": f"{fake.url}/v1", "key": "PLANTED", "retries": 1}
    settings = {"model": "judge", "server": {**server, "prices": prices}}
    assert stage("server_reference", settings, "--output", tmp_path / "reference.json") == 0
    assert KEY not in (tmp_path / "reference.json").read_text()
    return tmp_path / "reference.json"


@pytest.fixture
def judge(tmp_path: Path, reference: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., pl.DataFrame]:
    """Return a function that runs the stage `judging` on the transcripts of `STUDY`."""
    original = fakeserver.completion

    def completion(prompt: str, how: str) -> dict[str, Any]:
        content = original(prompt, how)
        system = next(t for t in asked[prompt] if t["role"] == "system")
        content["choices"][0]["message"]["content"] = answer([system, {"role": "user", "content": prompt}], 0)
        return content

    asked: dict[str, list[dict[str, str]]] = {}
    prompt_of = fakeserver.prompt_of

    def remember(body: dict[str, Any]) -> str:
        asked[prompt_of(body)] = body["messages"]
        return prompt_of(body)

    monkeypatch.setattr(fakeserver, "prompt_of", remember)
    monkeypatch.setattr(fakeserver, "completion", completion)
    frame = transcripts([*STUDY.values()]).with_columns(
        sample=pl.Series(list(STUDY)), request_id=pl.lit("r0000"), fingerprint=pl.lit(FINGERPRINT)
    )
    frame.write_parquet(tmp_path / "transcripts.parquet")
    requests = {"request_id": ["r0000"], "text": ["Please do it."], "cluster": ["r0000"], "fingerprint": [FINGERPRINT]}
    pl.DataFrame(requests).write_parquet(tmp_path / "requests.parquet")
    (tmp_path / "noted.yaml").write_text(yaml.safe_dump(NOTED))

    def run(status: int = 0) -> pl.DataFrame:
        options = ["--protocols", tmp_path / "noted.yaml", "--rubrics", *PATHS, "--samples", tmp_path / "samples"]
        options += ["--base", reference, "--requests", tmp_path / "requests.parquet"]
        options += ["--transcripts", tmp_path / "transcripts.parquet", "--judgements", tmp_path / "judged.parquet"]
        assert stage("judging", {"judge": JUDGE | SERVING}, *options) == status
        return pl.DataFrame() if status else pl.read_parquet(tmp_path / "judged.parquet")

    return run


def test_a_judge_behind_a_server_is_asked_again_only_for_what_failed(
    fake: FakeServer, judge: Callable[..., pl.DataFrame], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run that meets a broken server ends in one line; the next asks for what failed and pays for nothing else."""
    whole = judge()
    paid = sum(fake.sold.values())
    assert whole.filter(sample=pl.lit("accepts")).height == 1
    (tmp_path / "samples").rename(tmp_path / "aside")
    fake.sold.clear()
    for number, prompt in enumerate(list(fake.bodies)):
        fake.script[prompt] += [["html", "shape", 500, 429][number % 4]] * 2
    (tmp_path / "judged.parquet").unlink()
    judge(1)
    assert "requests were not answered; rerun to ask for them again" in capsys.readouterr().err
    assert not (tmp_path / "judged.parquet").exists(), "an outage makes no table with gaps"
    assert sum(fake.sold.values()) < paid
    fake.script.clear()
    assert judge().equals(whole)
    assert sum(fake.sold.values()) == paid
    assert judge().equals(whole)
    assert sum(fake.sold.values()) == paid, "everything was in the store"
    assert KEY not in capsys.readouterr().err


def test_what_it_cost_is_recorded(fake: FakeServer, judge: Callable[[], pl.DataFrame], tmp_path: Path) -> None:
    judge()
    (record,) = (read_json(path) for path in (tmp_path / "samples" / "api" / "costs").iterdir())
    assert record["answered"] == sum(fake.sold.values())
    assert record["usd"] == pytest.approx(record["answered"] * (100 * 1.0 + 10 * 10.0) / 1e6)
    assert sum(estimate["usd"] for estimate in record["estimates"]) > record["usd"]


def test_a_closed_model_is_prompted_and_failures_make_no_table(
    fake: FakeServer, reference: Path, requests: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    snippets = yaml.safe_load((REPOSITORY / "resources" / "snippets" / "chat.yaml").read_text())
    protocol = tmp_path / "long.json"
    files = [CHAT / "short.yaml", CHAT / "long.yaml"]
    assert stage("composition", {"protocol": "long"}, "--files", *files, "--output", protocol) == 0
    settings = {
        "model": "closed",
        "seed": 0,
        "checkpoints": ["base"],
        "requests": 2,
        "snippets": list(snippets)[:2],
        "protocol": "long",
        "base_protocol": "long",
        "seeds": [0],
        "tiers": ["monitored", "unmonitored"],
        "temperature": None,
        "max_tokens": 20,
        "batch": 4,
        **SERVING,
    }
    options = ["--base", reference, "--requests", requests, "--protocols", protocol, "--samples", tmp_path / "samples"]
    options += ["--snippets", REPOSITORY / "resources" / "snippets" / "chat.yaml", "--output", tmp_path / "out.parquet"]
    first = f"[account: free tier]\n\n{pl.read_parquet(requests)['text'][0]}"
    fake.script[first] += [500] * 6  # with each of three snippets, and once more
    assert stage("prompting", settings, *options) == 1
    assert "3 requests were not answered; rerun" in capsys.readouterr().err
    assert not (tmp_path / "out.parquet").exists()
    assert stage("prompting", settings, *options) == 0
    table = pl.read_parquet(tmp_path / "out.parquet")
    assert table.height == sum(fake.sold.values()) == 3 * 2 * 2
    assert table["raw"].str.starts_with("answer to [account: ").all()
    assert "temperature" not in json.dumps(list(fake.bodies.values()))
