"""A whole synthetic study: raw artifacts of several models, and all tables made from them by the stages."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import polars as pl
import synthetic
from synthetic import FINGERPRINT, STATISTICS, Condition, Design

from perfmis.vocabulary import ARMS, BASE, NEUTRAL, ORGANISM

PUBLISHED = Path(__file__).parent.parent / "resources" / "published.csv"
TRUTHS: dict[str, str | None] = {
    "expectation": "expectation",
    "consequence": "consequence",
    "both": "both",
    "neither": "neither",
}
SCREEN = {"keep": "auto", "minimum_gap": 5.0}


def run(name: str, settings: Mapping[str, object], *options: object) -> None:
    """Run one stage as the workflow does."""
    content = json.dumps({"settings": settings, "upstream": [FINGERPRINT]})
    arguments = ["--settings", content, "--fingerprint", FINGERPRINT, *map(str, options)]
    import_module(f"perfmis.{name}").main(arguments)


def write_inputs(root: Path, truths: Mapping[str, str], design: Design, controls: int = 10, steered: int = 2) -> None:
    """Write outcomes, prompted and steered outcomes and belief answers of models with the given truths."""
    small = replace(design, prompts=max(design.prompts // 2, 8))
    for number, (model, truth) in enumerate(truths.items()):
        conditions = synthetic.planted(cross=0.15)
        if number == 0:
            conditions["A2-"] = replace(conditions["A2-"], used=0.5, malformed=0.09)
        frames = {
            "outcomes": synthetic.outcomes(model, truth, conditions, design, seed=10 * number),
            "prompting": synthetic.prompted(
                model, truth, {**conditions, BASE: Condition(0.5, 0.45)}, small, seed=10 * number + 3
            ),
            "beliefs": synthetic.beliefs(model, design.seeds, conditions, {"A2-": 0.6} if number == 0 else None),
        }
        if number < steered:
            alphas = (-0.03, -0.02, -0.01, 0.0, 0.01, 0.02, 0.03)
            frames["steering"] = synthetic.steered(model, truth, alphas, controls, small, seed=10 * number + 7)
        for name, frame in frames.items():
            synthetic.save(frame, root / name / f"{model}.parquet")
        write_logs(root, model, design.seeds)


def write_logs(root: Path, model: str, seeds: Iterable[int], steps: int = 60) -> None:
    """Write the training logs of one model; an arm starts where the organism ended and trains half as long."""
    for seed in seeds:
        organism = synthetic.training_log(steps, seed=seed)
        synthetic.save(organism, root / "logs" / model / str(seed) / f"{ORGANISM}.parquet")
        for number, arm in enumerate((*ARMS, NEUTRAL), 1):
            log = synthetic.training_log(steps // 2, 1.8, 1.2 + 0.03 * number, seed=100 * number + seed)
            synthetic.save(log, root / "logs" / model / str(seed) / f"{arm}.parquet")


def training_table(root: Path, settings: Mapping[str, object]) -> None:
    """Run the stage that reads the training logs."""
    paths = sorted((root / "logs").rglob("*.parquet"))
    logs = [f"{path.relative_to(root / 'logs').with_suffix('')}={path}" for path in paths]
    out = root / "tables"
    both = ["--output", out / "training.parquet", "--curves", out / "curves.parquet"]
    run("tables.training", settings, "--logs", *logs, *both)


def rejected(root: Path, model: str, design: Design) -> None:
    """Add a model whose organism shows no gap: base and organism only."""
    conditions = {BASE: Condition(used=0.0), ORGANISM: Condition(used=0.02)}
    frame = synthetic.outcomes(model, "neither", conditions, design, seed=99)
    synthetic.save(frame, root / "outcomes" / f"{model}.parquet")


def make_tables(
    root: Path, models: Mapping[str, str | None], resamples: int = 400, missing: Sequence[Mapping[str, object]] = ()
) -> None:
    """Run all table stages over the inputs in ``root``, of which some may be missing; tables go to ``root/tables``."""
    settings: dict[str, object] = {
        "statistics": STATISTICS | {"resamples": resamples},
        "models": dict(models),
        "tiers": ["monitored", "unmonitored"],
        "compliance": "tag",
        "screen": SCREEN,
        "seeds": [0, 1, 2],
        **({"missing": list(missing)} if missing else {}),
    }
    inputs = {
        name: sorted((root / name).glob("*.parquet")) for name in ("outcomes", "prompting", "beliefs", "steering")
    }
    out = root / "tables"
    gaps, profiles = out / "gaps.parquet", out / "profiles.parquet"
    run(
        "screen",
        settings,
        "--outcomes",
        *inputs["outcomes"],
        "--output",
        out / "screen.parquet",
        "--kept",
        out / "kept.json",
    )
    run("tables.beliefs", settings, "--beliefs", *inputs["beliefs"], "--output", out / "beliefs.parquet")
    run(
        "tables.gaps",
        settings,
        "--outcomes",
        *inputs["outcomes"],
        "--beliefs",
        out / "beliefs.parquet",
        "--output",
        gaps,
    )
    sources = {"--outcomes": "outcomes", "--prompting": "prompting", "--steering": "steering"}
    options = [word for option, name in sources.items() for word in (option, *inputs[name])]
    run("tables.profiles", settings, *options, "--gaps", gaps, "--output", profiles)
    run("tables.steering", settings, "--outcomes", *inputs["steering"], "--output", out / "steering.parquet")
    both = ["--output", out / "prompting.parquet", "--calibration", out / "calibration.parquet"]
    run("tables.prompting", settings, "--outcomes", *inputs["prompting"], *both)
    run("tables.convergence", settings, "--profiles", profiles, "--output", out / "convergence.parquet")
    measured = ["--gaps", gaps, "--profiles", profiles]
    run("tables.published", settings, "--source", PUBLISHED, *measured, "--output", out / "published.parquet")
    training_table(root, settings)


def table(root: Path, name: str) -> pl.DataFrame:
    """Return a table of the study."""
    return pl.read_parquet(root / "tables" / f"{name}.parquet")
