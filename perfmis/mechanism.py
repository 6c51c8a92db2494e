"""Does an engine steer? Proved on the residual stream itself, before its samples count.

Whether a vector changes what a model says is a result. Whether it is added at all is not: at every block that is
steered, the stream has to move along the unit vector by alpha times its own norm, prompts in the same batch that are
not steered by nothing, and all prompts by nothing as soon as steering is off. An engine of which that does not hold
is refused.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from perfmis.engines.interface import Engine, Prompt, Steering, SteeringEngine
from perfmis.stage import Prose, UserError
from perfmis.subject import DistrustError, Guard

if TYPE_CHECKING:
    from perfmis.engines.displacement import Displacement

PROMPT_TOKENS = 32  # read of the prompt that is steered; the sum at a block knows nothing of what comes before
# Largest relative error of the coefficient that was applied, and the rounding of one sum as a share of the norm.
TOLERANCE = {"fp32": (1e-3, 2.0**-23), "bf16": (0.1, 2.0**-7)}
ADVICE: Prose = "the engine does not steer as it is told; choose another evaluation.engine, and report it"


@dataclass(frozen=True)
class Trial:
    """One steering that is tried.

    Attributes:
        labels: What it is called: ``concept``, ``context``, ``alpha``, ``control``.
        steering: What is added.
    """

    labels: dict[str, Any]
    steering: Steering

    def __str__(self) -> str:
        """Return its name, for messages."""
        control = self.labels["control"]
        vector = f"{self.labels['concept']}.{self.labels['context']}"
        return f"{vector}{'' if control is None else f', control {control}'} at {self.labels['alpha']:+g}"


def trials(conditions: Sequence[tuple[dict[str, Any], Steering | None]]) -> list[Trial]:
    """Return the strongest steering of each vector, control and sign."""
    strongest: dict[tuple[Any, ...], Trial] = {}
    for labels, steering in conditions:
        if steering is None:
            continue
        key = (labels["concept"], labels["context"], labels["control"], steering.alpha > 0)
        if key not in strongest or abs(steering.alpha) > abs(strongest[key].steering.alpha):
            strongest[key] = Trial(labels, steering)
    return list(strongest.values())


def judge(tried: Sequence[Trial | None], found: "Sequence[Displacement]", precision: str) -> list[dict[str, Any]]:
    """Return how exactly each trial was carried out.

    Args:
        tried: The trial of each prompt; None for a prompt that is not steered.
        found: What became of the prompts.
        precision: Of the engine, a key of `TOLERANCE`.

    Returns:
        One entry a trial and block: its labels, ``block``, ``applied`` (the coefficient measured along the vector) and
        ``relative_error`` (of the whole displacement).

    Raises:
        UserError: A trial was not carried out, or something was added elsewhere.
    """
    seen = {(d.prompt, d.block) for d in found}
    for index, trial in enumerate(tried):
        for block in trial.steering.vectors if trial else ():
            if (index, block) not in seen:
                raise UserError(f"steering: {trial}: block {block} ran without its hooks; {ADVICE}")
    result = []
    # Blocks that are steered first: what is missing there explains best what else is wrong.
    for d in sorted(found, key=lambda d: not _expected(tried[d.prompt], d.block)):
        trial = tried[d.prompt]
        if trial and _expected(trial, d.block):
            result.append({**trial.labels, "block": d.block, **_measured(trial, d, precision)})
        elif d.largest != 0:  # also NaN
            whose: Prose = (
                "a prompt that is not steered, in a batch with others that are" if trial is None else str(trial)
            )
            raise UserError(
                f"steering: {whose}: the stream moved after block {d.block}, where nothing is to be added; {ADVICE}"
            )
    return result


def _expected(trial: Trial | None, block: int) -> bool:
    return trial is not None and block in trial.steering.vectors


def _measured(trial: Trial, found: "Displacement", precision: str) -> dict[str, float]:
    vector, alpha = trial.steering.vectors[found.block].float().cpu(), trial.steering.alpha
    unit = vector / vector.norm()
    mean = found.mean if found.largest else unit * 0
    applied = float(mean @ unit)
    aside = float((mean - applied * unit).norm())
    relative, rounding = TOLERANCE[precision]
    along_is_right = abs(applied - alpha) <= relative * abs(alpha)
    if not (along_is_right and aside <= relative * abs(alpha) + rounding * (1 + abs(alpha))):
        raise UserError(
            f"steering: {trial}: after block {found.block} the stream moved by {applied:+.4g} of its norm along the "
            f"vector and by {aside:.4g} across it, not by {alpha:+g} and 0; {ADVICE}"
        )
    return {"applied": applied, "relative_error": float((mean - alpha * unit).norm()) / abs(alpha)}


def _moved(engine: SteeringEngine, prompt: Prompt) -> int | None:
    """Return a block at which a prompt that is not steered moves, or None."""
    return next((d.block for d in engine.displacements([prompt]) if d.largest != 0), None)


def proof(prompt: Prompt, tried: Sequence[Trial], precision: str, report: Callable[[dict[str, Any]], None]) -> Guard:
    """Return a guard that refuses an engine which does not steer, steers elsewhere, or does not stop.

    All trials are one small batch, between prompts that are not steered.

    Args:
        prompt: A prompt to try them on; its beginning is enough.
        tried: What to try.
        precision: Of the engine.
        report: Takes what was proved.

    Raises:
        UserError: On entry: the engine does not steer as it is told.
        DistrustError: On exit: steering was left on while samples were drawn.
    """
    plain = replace(prompt, tokens=prompt.tokens[:PROMPT_TOKENS], steering=None)
    batch = [None, *tried, None]

    @contextmanager
    def guard(engine: Engine) -> Iterator[None]:
        if not isinstance(engine, SteeringEngine):
            raise UserError("evaluation.engine: it cannot steer; choose transformers or vllm")
        steered = [replace(plain, steering=trial.steering if trial else None) for trial in batch]
        proved = judge(batch, engine.displacements(steered), precision)
        if (block := _moved(engine, plain)) is not None:
            raise UserError(f"steering: with steering off again the stream still moves after block {block}; {ADVICE}")
        worst = max(row["relative_error"] for row in proved)
        print(
            f"steering is proved for {len(tried)} vectors with their signs: relative error at most {worst:.1e}; rows "
            "that are not steered, and all rows afterwards, move by 0",
            file=sys.stderr,
        )
        report(
            {
                "precision": precision,
                "largest_relative_error": worst,
                "unsteered": 0.0,
                "afterwards": 0.0,
                "vectors": proved,
            }
        )
        yield
        if (block := _moved(engine, plain)) is not None:
            raise DistrustError(
                f"steering: the stream still moves after block {block} when nothing is steered, so "
                "steering was left on; samples of this run are not kept: rerun, and report it if it "
                "comes again"
            )

    return guard
