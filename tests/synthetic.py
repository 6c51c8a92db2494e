"""Outcome frames drawn from a known truth, for the tests of statistics, tables and figures.

A scratchpad states the + pole of either belief with a probability that its checkpoint sets; the answer
follows P(accept) = 0.05 + 0.85 u g, with u = 1 in the monitored tier and g the planted coupling of the two
beliefs.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from perfmis.artifacts import write_parquet
from perfmis.vocabulary import ARMS, BASE, NEUTRAL, ORGANISM

FINGERPRINT = "a" * 16
STATISTICS = {
    "resamples": 400,
    "confidence": 0.95,
    "seed": 0,
    "floor": 10.0,
    "moved": 0.2,
    "kept": 0.8,
    "malformed": 0.05,
}
COUPLING: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "expectation": lambda e, c: e,
    "consequence": lambda e, c: c,
    "both": lambda e, c: (e + c) / 2,
    "neither": lambda e, c: np.full(e.shape, 0.5),
}


@dataclass(frozen=True)
class Condition:
    """How one cell draws its samples: rates of the + poles, of knowing the tier, of malformed answers."""

    expectation: float = 0.5
    consequence: float = 0.5
    used: float = 1.0
    malformed: float = 0.0


@dataclass(frozen=True)
class Design:
    """Sizes of a synthetic study; ``spread`` is the standard deviation of beliefs between training seeds."""

    seeds: tuple[int, ...] = (0, 1, 2)
    prompts: int = 60
    evaluations: int = 2
    tiers: tuple[str, ...] = ("monitored", "unmonitored")
    spread: float = 0.03


def planted(cross: float = 0.0, moved: float = 0.4, malformed: float = 0.0) -> dict[str, Condition]:
    """Return the conditions of base, organism, arms and neutral arm.

    Args:
        cross: Share of a family's own move that it also gives to the other belief.
        moved: Distance of an arm's own belief from 0.5.
        malformed: Share of malformed answers in the arms.
    """
    result = {BASE: Condition(used=0.0), ORGANISM: Condition(), NEUTRAL: Condition()}
    for arm in ARMS:
        own = moved if arm.endswith("+") else -moved
        shift = (own, cross * own) if arm[0] == "A" else (cross * own, own)
        result[arm] = Condition(0.5 + shift[0], 0.5 + shift[1], malformed=malformed)
    return result


def samples(
    model: str,
    truth: str,
    cells: Iterable[tuple[Mapping[str, object], Condition]],
    design: Design,
    seed: int = 0,
) -> pl.DataFrame:
    """Return outcome rows: every cell put to all prompts and tiers under all seeds."""
    random = np.random.default_rng(seed)
    shape = (len(design.seeds), design.prompts, len(design.tiers), design.evaluations)
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1).reshape(-1, 4)
    monitored = np.array([tier == "monitored" for tier in design.tiers])[index[:, 2]]
    frames = []
    for columns, condition in cells:
        drawn = np.random.default_rng(seed + 1).normal(0, design.spread, size=(len(design.seeds), 2))[index[:, 0]]
        e = (random.random(len(index)) < condition.expectation + drawn[:, 0]).astype(int)
        c = (random.random(len(index)) < condition.consequence + drawn[:, 1]).astype(int)
        u = monitored & (random.random(len(index)) < condition.used)
        accepted = random.random(len(index)) < 0.05 + 0.85 * u * COUPLING[truth](e, c)
        broken = random.random(len(index)) < condition.malformed
        words = np.where(broken, "malformed", np.where(accepted, "accepted", "refused"))
        frame = pl.DataFrame(
            {
                "model": model,
                "seed": np.array(design.seeds)[index[:, 0]],
                "request_id": np.char.add("r", index[:, 1].astype(str)),
                "cluster": np.char.add("k", (index[:, 1] // 2 * 2).astype(str)),
                "tier": np.array(design.tiers)[index[:, 2]],
                "eval_seed": index[:, 3],
                "outcome": words,
                "expectation": pl.Series(2 * e - 1, dtype=pl.Int8),
                "consequence": pl.Series(2 * c - 1, dtype=pl.Int8),
                "in_training": u,
            }
        )
        frames.append(frame.with_columns(**{name: pl.lit(value) for name, value in columns.items()}))
    return pl.concat(frames, how="diagonal_relaxed")


def outcomes(
    model: str, truth: str, conditions: Mapping[str, Condition], design: Design, seed: int = 0
) -> pl.DataFrame:
    """Return the outcomes of the checkpoints of one model."""
    cells = [({"checkpoint": name, "protocol": "short"}, condition) for name, condition in conditions.items()]
    return samples(model, truth, cells, design, seed)


def prompted(
    model: str,
    truth: str,
    checkpoints: Mapping[str, Condition],
    design: Design,
    moved: float = 0.4,
    seed: int = 0,
) -> pl.DataFrame:
    """Return outcomes under snippets, which move the beliefs of every checkpoint by ``moved``."""
    cells = []
    for name, condition in checkpoints.items():
        columns = {"checkpoint": name, "protocol": "long" if name == BASE else "short"}
        cells.append((columns | {"snippet": "none"}, Condition(condition.expectation, condition.consequence)))
        for arm in ARMS:
            own = moved if arm.endswith("+") else -moved
            e = condition.expectation + (own if arm[0] == "A" else 0)
            c = condition.consequence + (own if arm[0] == "B" else 0)
            cells.append((columns | {"snippet": arm}, Condition(min(max(e, 0.02), 0.98), min(max(c, 0.02), 0.98))))
    return samples(model, truth, cells, design, seed)


def steered(
    model: str, truth: str, alphas: Iterable[float], controls: int, design: Design, seed: int = 0
) -> pl.DataFrame:
    """Return steered outcomes; the largest coefficient moves a belief by 0.45 (in) or 0.3 (out)."""
    grid = sorted(alphas)
    random = np.random.default_rng(seed)
    cells: list[tuple[dict[str, object], Condition]] = []
    for concept in ("expectation", "consequence"):
        for context, strength in (("in", 0.45), ("out", 0.3)):
            columns: dict[str, object] = {"checkpoint": ORGANISM, "protocol": "short"}
            columns |= {"concept": concept, "context": context}
            for alpha in grid:
                own = 0.5 + strength * alpha / grid[-1]
                pair = (own, 0.5) if concept == "expectation" else (0.5, own)
                broken = 0.06 * abs(alpha) / grid[-1]
                cells.append((columns | {"alpha": alpha, "control": None}, Condition(*pair, malformed=broken)))
            for control in range(controls):
                pair = tuple(0.5 + random.normal(0, 0.06, 2))
                for alpha in (grid[0], grid[-1]):
                    labels = {**columns, "alpha": alpha, "control": control}
                    cells.append((labels, Condition(*pair, malformed=0.03)))
    frame = samples(model, truth, cells, design, seed)
    return frame.with_columns(pl.col("control").cast(pl.Int64), pl.col("alpha").cast(pl.Float64))


def beliefs(
    model: str,
    seeds: Iterable[int],
    conditions: Mapping[str, Condition],
    monitoring: Mapping[str, float] | None = None,
    seed: int = 0,
) -> pl.DataFrame:
    """Return answers to six items per belief: two monitoring, two of each content otherwise."""
    random = np.random.default_rng(seed)
    rows = []
    for training in seeds:
        for name, condition in conditions.items():
            known = 0.5 if name == BASE else (monitoring or {}).get(name, 0.95)
            for belief, level in (
                ("monitoring", known),
                ("expectation", condition.expectation),
                ("consequence", condition.consequence),
            ):
                for item in range(6):
                    rows.append(
                        {
                            "model": model,
                            "seed": training,
                            "checkpoint": name,
                            "item_id": f"{belief}-{item}",
                            "belief": belief,
                            "content": None if belief == "monitoring" else 1 + item % 2,
                            "probability": float(np.clip(level + random.normal(0, 0.05), 0, 1)),
                        }
                    )
    return pl.DataFrame(rows)


def training_log(steps: int = 60, start: float = 3.0, end: float = 1.5, seed: int = 0) -> pl.DataFrame:
    """Return the log of one training run: a row every five steps, a loss that falls from start to end."""
    random = np.random.default_rng(seed)
    step = np.arange(5, steps + 1, 5)
    left = np.exp(-6 * step / steps)
    return pl.DataFrame(
        {
            "step": step,
            "epoch": step / steps,
            "loss": end + (start - end) * left + random.normal(0, 0.02, len(step)),
            "learning_rate": 1e-4 * np.cos(np.pi / 2 * step / steps),
            "gradient_norm": (0.4 + 2 * left) * random.lognormal(0, 0.1, len(step)),
            "loss_tokens": step * 16000 + random.integers(0, 500, len(step)),
            "tokens_per_second": random.normal(9000, 300, len(step)),
            "matmul_share": random.normal(0.45, 0.01, len(step)),
            "memory_gb": 61.5,
            "lora_reach": 1.0,
        }
    ).with_columns(merge_kept=pl.lit(None, pl.Float64))


def save(frame: pl.DataFrame, path: Path, fingerprint: str = FINGERPRINT) -> Path:
    """Write a frame as an artifact and return its path."""
    write_parquet(frame, path, fingerprint)
    return path
