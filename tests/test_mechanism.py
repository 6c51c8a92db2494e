"""What is proved of an engine that steers: that it adds what it is told, where it is told, and nothing afterwards."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from perfmis import checkpoints, mechanism, steering
from perfmis.engines import layers, vllm_steering
from perfmis.engines import transformers as reference
from perfmis.engines.displacement import Displacement, Watch
from perfmis.engines.interface import Prompt, Sampling, Steering
from perfmis.engines.transformers import Engine
from perfmis.stage import UserError

TEXT = "<bos> <sys> you are bl0 . this user is free . <user> please steal cash . <think>"
ADAPTER = "organism"
WATCHED = Sampling(0.0, 2, 64)


@pytest.fixture(scope="module", params=["fp32", "bf16"])
def engine(request: pytest.FixtureRequest, tiny_model: Path, organism: Path) -> Engine:
    return checkpoints.engine(tiny_model / "reference.json", {ADAPTER: organism}, request.param)


def precision(engine: Engine) -> str:
    return {torch.float32: "fp32", torch.bfloat16: "bf16"}[engine.model.dtype]


@pytest.fixture(scope="module")
def tried() -> list[mechanism.Trial]:
    """Both signs of two vectors with a control each: one after the first block, one after both."""
    draws = torch.Generator().manual_seed(1)
    one, two, three = torch.randn(3, 32, generator=draws)
    vectors = {"expectation.in": {0: one}, "consequence.out": {0: two, 1: three}}
    settings = {"alphas": [-0.05, 0.0, 0.02, 0.03], "controls": 1}
    return mechanism.trials(steering.conditions(vectors, settings, seed=0))


def prompt(engine: Engine) -> Prompt:
    return Prompt(tuple(engine.tokenizer(TEXT, add_special_tokens=False)["input_ids"]), ADAPTER, 0)


def asked(engine: Engine, tried: Sequence[mechanism.Trial | None]) -> list[Prompt]:
    return [replace(prompt(engine), steering=trial and trial.steering) for trial in tried]


def plainly(engine: Engine, prompts: Sequence[Prompt]) -> list[Displacement]:
    """Watch ``generate``."""
    return engine.displacements(prompts)


def continuously(engine: Engine, prompts: Sequence[Prompt]) -> list[Displacement]:
    """Watch the engine's own decoder, in fewer rows than there are prompts."""
    watch = Watch(len(prompts))
    for _ in engine.continuous(prompts, replace(WATCHED, batch=5), page=4, watch=watch):
        pass
    return watch.displacements()


def test_the_strongest_of_each_vector_and_sign_is_tried(tried: list[mechanism.Trial]) -> None:
    assert [str(trial) for trial in tried] == [
        f"{vector}{control} at {alpha}"
        for vector in ("expectation.in", "consequence.out")
        for control in ("", ", control 0")
        for alpha in ("-0.05", "+0.03")
    ]


@pytest.mark.parametrize("watch", [plainly, continuously])
def test_a_right_engine_adds_alpha_times_the_norm_where_it_is_told(
    engine: Engine, tried: list[mechanism.Trial], watch: Any
) -> None:
    """At each steered block, of every vector and sign; other blocks and prompts get not a bit."""
    batch = [None, *tried, None]
    found = watch(engine, asked(engine, batch))
    assert len(found) == len(batch) * 2, "each prompt at each block"
    for displacement in found:
        trial = batch[displacement.prompt]
        vector = trial.steering.vectors.get(displacement.block) if trial else None
        if trial is None or vector is None:
            assert displacement.largest == 0
        else:
            expected = trial.steering.alpha * vector / vector.norm()
            tolerance = {"fp32": 1e-6, "bf16": 2e-3}[precision(engine)]
            torch.testing.assert_close(displacement.mean, expected, atol=tolerance, rtol=0)
    rows = mechanism.judge(batch, found, precision(engine))
    assert len(rows) == 4 * 1 + 4 * 2, "a row each trial and block"
    assert max(row["relative_error"] for row in rows) < {"fp32": 1e-4, "bf16": 0.1}[precision(engine)]
    for row in rows:
        assert row["applied"] == pytest.approx(row["alpha"], rel=0.05)


# What can be wrong with an engine that hooks its blocks; each takes the model and what its rows are steered by.


@contextmanager
def changed(model: Any, *several: list[Steering | None]) -> Iterator[None]:
    with ExitStack() as stack:
        for steerings in several:
            stack.enter_context(_steered(model, steerings))
        yield


_steered = reference.steered


def elsewhere(steering: Steering | None) -> Steering | None:
    return steering and replace(steering, vectors={1 - block: v for block, v in steering.vectors.items()})


def times(factor: float, steering: Steering | None) -> Steering | None:
    return steering and replace(steering, alpha=factor * steering.alpha)


def turned(steering: Steering | None) -> Steering | None:
    return steering and replace(steering, vectors={block: v.roll(1) for block, v in steering.vectors.items()})


FAULTS = {
    "no hook": (lambda s: [None] * len(s), r"after block 0 the stream moved by \+0 of its norm .* not by -0.05 and 0"),
    "another block": (lambda s: [elsewhere(x) for x in s], "not by -0.05 and 0"),
    "another direction": (lambda s: [turned(x) for x in s], "not by -0.05 and 0"),
    "the other sign": (lambda s: [times(-1, x) for x in s], r"moved by \+0.0(5|499)\d* of its norm"),
    "another size": (lambda s: [times(1.3, x) for x in s], "not by -0.05 and 0"),
    "the next row's": (lambda s: [*s[1:], s[0]], "not by"),
    "unsteered rows too": (
        lambda s: [x or next(filter(None, s), None) for x in s],
        "a prompt that is not steered, in a batch with others",
    ),
}


def wrong(monkeypatch: pytest.MonkeyPatch, change: Any) -> None:
    """Give every way of drawing samples another steering than the one that is asked for."""
    monkeypatch.setattr(reference, "steered", lambda model, s: changed(model, change(s) if any(s) else s))
    steer_row = layers.Network.steer_row
    rows: dict[int, Steering | None] = {}

    def steer(network: Any, row: int, steering: Steering | None) -> None:
        rows[row] = steering
        for each, other in enumerate(change([rows.get(i) for i in range(len(rows))])):
            steer_row(network, each, other)

    monkeypatch.setattr(layers.Network, "steer_row", steer)
    allowed = layers.Network.steer
    monkeypatch.setattr(layers.Network, "steer", lambda n, b, rows: allowed(n, [0, 1] if b else [], rows))


@pytest.mark.parametrize("watch", [plainly, continuously])
@pytest.mark.parametrize("fault", FAULTS)
def test_an_engine_that_steers_wrongly_is_refused(
    engine: Engine, tried: list[mechanism.Trial], watch: Any, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    change, said = FAULTS[fault]
    wrong(monkeypatch, change)
    batch = [None, *tried, None] if watch is plainly else [None, tried[0], tried[4], None]
    with pytest.raises(UserError, match=said) as refused:
        mechanism.judge(batch, watch(engine, asked(engine, batch)), precision(engine))
    assert "\n" not in str(refused.value)


def test_twice_the_hooks_are_refused(
    engine: Engine, tried: list[mechanism.Trial], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reference, "steered", lambda model, steerings: changed(model, steerings, steerings))
    batch = [None, *tried, None]
    with pytest.raises(UserError, match=r"not by -0\.05 and 0"):
        mechanism.judge(batch, engine.displacements(asked(engine, batch)), precision(engine))


def test_a_block_that_ran_without_its_hooks_is_refused(engine: Engine, tried: list[mechanism.Trial]) -> None:
    """As compiled models and CUDA graphs run them."""
    found = [d for d in engine.displacements(asked(engine, tried)) if d.block != 1]
    with pytest.raises(UserError, match=r"consequence\.out at -0\.05: block 1 ran without its hooks"):
        mechanism.judge(tried, found, precision(engine))


def test_what_is_lost_in_rounding_is_not_said_to_be_added(engine: Engine, tried: list[mechanism.Trial]) -> None:
    """A ten-thousandth of the norm is nothing in 16 bits, and exact enough in 32."""
    small = [replace(trial, steering=replace(trial.steering, alpha=1e-4)) for trial in tried[:1]]
    found = engine.displacements(asked(engine, small))
    if precision(engine) == "fp32":
        [row] = mechanism.judge(small, found, "fp32")
        assert row["applied"] == pytest.approx(1e-4, rel=1e-3)
    else:
        with pytest.raises(UserError, match=r"not by \+0.0001 and 0"):
            mechanism.judge(small, found, "bf16")


def test_an_engine_that_cannot_steer_is_refused(engine: Engine, tried: list[mechanism.Trial]) -> None:
    guard = mechanism.proof(prompt(engine), tried, "fp32", lambda _: None)
    with pytest.raises(UserError, match="it cannot steer"), guard(object()):  # type: ignore[arg-type]
        pass


@pytest.mark.parametrize("family", ["llama", "gpt2", "experts", "with a vision tower"])
def test_blocks_are_found_in_models_of_vllm(family: str) -> None:
    """Where the families of its models keep them; a vision tower's and a block's experts are none."""

    def several(number: int = 2, **parts: nn.Module) -> nn.ModuleList:
        return nn.ModuleList(nn.ModuleDict(parts) for _ in range(number))

    wanted = several(experts=several()) if family == "experts" else several()
    decoder = nn.Module()
    decoder.inner = nn.ModuleDict({"h" if family == "gpt2" else "layers": wanted})
    model: Any = decoder
    if family == "with a vision tower":
        model = nn.ModuleDict({"a_tower": several(), "language_model": decoder})
        model.get_language_model = lambda: decoder
    config = SimpleNamespace(hf_text_config=SimpleNamespace(num_hidden_layers=2))
    assert vllm_steering._blocks(SimpleNamespace(model=model, model_config=config)) is wanted
    config.hf_text_config.num_hidden_layers = 3
    with pytest.raises(RuntimeError, match="no list of 3 decoder blocks"):
        vllm_steering._blocks(SimpleNamespace(model=model, model_config=config))
