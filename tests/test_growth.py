"""A study that grows, fails or is copied: only what is new is computed, and nothing stale passes for current.

The demo, somewhat smaller, is pretended to have run; what Snakemake would run next is asked of Snakemake itself. Which
samples an engine is asked for is counted on a real model.
"""

import os
import random
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import recomputation as rc
import torch
import yaml
from conftest import REPOSITORY
from running import jobs, snakemake, stage

from perfmis import vectors
from perfmis.engines.interface import Finished, Prompt, Sampling
from perfmis.engines.transformers import Engine

ARMS = ["A1+", "A1-", "A2+", "A2-", "B1+", "B1-", "N0"]
# Without one pair of arms, and with a list of models that go on, so that a dry-run sees beyond the screen.
STUDY: dict[str, Any] = {"arms": {"names": ARMS}, "screen": {"keep": ["expectation", "both"]}}
CONFIGS = ("config/demo.yaml", "study.yaml")
SCREENED = {"screen": 1, "fig2": 1}
PROFILES = {"table_profiles": 1, "table_convergence": 1, "fig5": 1, "fig8": 1, "fig9": 1, "story": 1}
STEERED = {"table_steering": 1, "fig4": 1, "fig6": 1} | PROFILES
PROMPTED = {"table_prompting": 1} | PROFILES
GAPS = {"table_gaps": 1, "table_published": 1, "fig3": 1, "page": 1} | PROMPTED
BELIEFS = {"table_beliefs": 1, "fig7": 1, "table_training": 1, "fig10": 1} | GAPS


def each(number: int, *rules: str) -> dict[str, int]:
    return dict.fromkeys(rules, number)


ASKED = ("transcripts", "outcomes", "prompting_transcripts", "prompting_outcomes")
STEERING = ("steering_transcripts", "steering_outcomes")
SCREENING = ("screen_transcripts", "screen_outcomes")
# What is added to the study of two kept models among five, seven arms and one seed; the jobs that are run then.
GROWTH: dict[str, tuple[dict[str, Any], dict[str, int]]] = {
    "two arms": (
        {"arms": {"names": [*ARMS, "B2+", "B2-"]}},
        each(2, "corpus", "budget", "beliefs", *ASKED) | each(4, "arm") | {"audit": 1, "fig1": 1} | BELIEFS,
    ),
    "a candidate": (
        {"models": {"new": {"truth": "both"}}},
        each(1, "tiny_base", "organism", *SCREENING) | SCREENED | BELIEFS | STEERED,
    ),
    "a kept model": (
        {"screen": {"keep": ["expectation", "both", "neither"]}},
        each(1, "budget", "beliefs", "vectors", *ASKED, *STEERING) | each(7, "arm") | SCREENED | BELIEFS | STEERED,
    ),
    "a training seed": (
        {"seeds": {"training": [0, 1]}},
        each(5, "organism", *SCREENING)
        | each(14, "arm")
        | each(2, "beliefs", "vectors", *ASKED, *STEERING)
        | SCREENED
        | BELIEFS
        | STEERED,
    ),
    "an evaluation seed": (
        {"seeds": {"evaluation": [0, 1, 2]}},
        # More samples to fit vectors on, hence other vectors.
        each(5, *SCREENING) | each(2, "vectors", *ASKED, *STEERING) | SCREENED | GAPS | STEERED,
    ),
    "requests": (
        {"requests": {"number": 120}},
        each(5, *SCREENING)
        | each(2, "vectors", *ASKED, *STEERING)
        | {"requests": 1, "audit": 1}
        | SCREENED
        | GAPS
        | STEERED,
    ),
    "an alpha": ({"steering": {"alphas": [-0.5, -0.25, 0.0, 0.25, 0.4, 0.5]}}, each(2, *STEERING) | STEERED),
    "prompted requests": (
        {"prompting": {"requests": 30}},
        each(2, "prompting_transcripts", "prompting_outcomes") | PROMPTED,
    ),
    # Both lie above nothing that changes, and the arms wait for their budget.
    "documents of the arms": (
        {"arms": {"sdf": {"documents": 200}}},
        each(2, "budget", "beliefs", *ASKED) | each(14, "arm") | BELIEFS,
    ),
}
CHEAP = ("two arms", "documents of the arms")


@pytest.fixture(scope="module")
def folder(workdir: Callable[..., Path]) -> Path:
    """A folder in which the study has been pretended to run."""

    def make(copied: Iterable[str]) -> Path:
        made = workdir(copied)
        (made / "study.yaml").write_text(yaml.safe_dump(STUDY))
        return made

    return rc.pretended(make, *CONFIGS)


def dry_run(folder: Path, change: dict[str, Any] | None = None) -> Counter[str]:
    """Return the jobs by rule that Snakemake would run with some more configuration."""
    (folder / "change.yaml").write_text(yaml.safe_dump(change or {}))
    said = snakemake(folder, "--configfile", *CONFIGS, "change.yaml", "--dry-run", "--quiet", "rules")
    assert said.returncode == 0, said.stderr
    return jobs(said.stdout + said.stderr) - Counter(all=1)


@pytest.mark.parametrize(
    "what", [name if name in CHEAP else pytest.param(name, marks=pytest.mark.slow) for name in GROWTH]
)
def test_growth_runs_what_is_new_and_what_is_read_from_it(folder: Path, what: str) -> None:
    change, new = GROWTH[what]
    assert dry_run(folder, change) == Counter(new)


@pytest.mark.slow
def test_what_a_server_costs_reruns_nothing_but_its_reference(
    workdir: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What its prices are, where it stands and how long it is waited for decide no answer; its model does."""
    monkeypatch.setenv("OPENAI_API_KEY", "none")

    def judged(**more: object) -> dict[str, Any]:
        server = {"provider": "openai", "model": "judge", **more}
        return STUDY | {"judge": {"api": server}, "prompting": {"closed": {"closed": server}}}

    def make(copied: Iterable[str]) -> Path:
        made = workdir(copied)
        (made / "study.yaml").write_text(yaml.safe_dump(judged()))
        return made

    folder = rc.pretended(make, *CONFIGS)
    cheaper = judged(prices={"input": 1.0, "output": 2.0}, limit=3.0, timeout=9.0, base_url="http://localhost")
    assert dry_run(folder, cheaper) == Counter(judge_model=1, closed_model=1)
    rerun = dry_run(folder, judged(options={"effort": "high"}))
    assert rerun > Counter(each(2, "judgements") | each(5, "screen_judgements") | each(1, "closed_transcripts"))


def clone(folder: Path, make: Callable[..., Path]) -> Path:
    """Return a folder with a copy of the results and none of what Snakemake knows of them; times are in no order."""
    other = make(copied=())
    for name in ("study.yaml", "kept", "blank.parquet"):
        if (folder / name).exists():
            shutil.copy(folder / name, other)
    shutil.copytree(folder / "results", other / "results")
    draws = random.Random(0)
    for path in (other / "results").rglob("*"):
        if path.name == "vectors.safetensors":
            os.truncate(path, 2 << 20)  # beyond the size up to which Snakemake compares contents
        os.utime(path, (draws.randrange(10**9), draws.randrange(10**9)))
    return other


def test_copied_results_are_not_computed_again(folder: Path, workdir: Callable[..., Path]) -> None:
    other = clone(folder, workdir)
    assert dry_run(other) == Counter()


def test_copied_results_of_other_settings_are_computed_again_and_the_rest_is_reused(
    folder: Path, workdir: Callable[..., Path]
) -> None:
    other = clone(folder, workdir)
    now = time.time()
    for path in (other / "results").rglob("*"):
        os.utime(path, (now, now))  # as if all were up to date
    change, new = GROWTH["an alpha"]
    assert dry_run(other, change) == Counter(new)


def test_a_look_at_copied_results_with_other_settings_leaves_them_current(
    folder: Path, workdir: Callable[..., Path]
) -> None:
    other = clone(folder, workdir)
    assert dry_run(other, GROWTH["an alpha"][0])
    assert dry_run(other) == Counter()


@pytest.mark.slow
def test_copied_results_of_a_study_whose_screen_decides_are_not_computed_again(workdir: Callable[..., Path]) -> None:
    other = clone(rc.pretended(workdir, "config/demo.yaml"), workdir)
    said = snakemake(other, "--configfile", "config/demo.yaml", "--dry-run", "--quiet", "rules")
    assert said.returncode == 0, said.stderr
    assert jobs(said.stdout + said.stderr) == Counter()


@contextmanager
def failing(folder: Path, stage: str) -> Iterator[None]:
    """Let a stage fail for a while."""
    (folder / "fail").write_text(stage)
    yield
    (folder / "fail").unlink()


def test_failed_job_leaves_nothing_below_it_that_passes_for_current(folder: Path) -> None:
    """Vectors change and cannot be made; neither then nor later is a table the last word that was read from the old."""
    source = folder / "perfmis/vectors.py"
    original = source.read_text()
    figure = "results/demo/figures/fig4.pdf"
    source.write_text(f"{original}\n\nEDITED = True\n")
    with failing(folder, "vectors"):
        assert rc.run(folder, *CONFIGS, options=["--keep-going"]).returncode != 0
        assert (folder / figure).exists()
    assert dry_run(folder) == Counter(each(2, "vectors", *STEERING) | STEERED)
    # Asked for alone, with what lies between deleted by the failure, the old figure does not pass either.
    assert rc.run(folder, *CONFIGS, options=["--", figure]).returncode == 0
    assert dry_run(folder) == Counter(PROFILES | {"fig6": 1})
    source.write_text(original)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Prompt]:
    """Prompts that the engine draws samples for; an engine's own trials are greedy."""
    prompts: list[Prompt] = []
    original = Engine.sample

    def sample(self: Engine, wanted: Sequence[Prompt], sampling: Sampling) -> Iterator[Finished]:
        if sampling.temperature:
            prompts.extend(wanted)
        return original(self, wanted, sampling)

    monkeypatch.setattr(Engine, "sample", sample)
    return prompts


SAMPLED: dict[str, Any] = {
    "model": "tiny",
    "seed": 0,
    "seeds": [0],
    "protocol": "short",
    "tiers": ["monitored", "unmonitored"],
    "engine": "transformers",
    "precision": "fp32",
    "quantization": None,
    "temperature": 1.0,
    "max_tokens": 4,
    "batch": 64,
    "date": "2024-07-26",
}
PROMPTS = {"requests": 3, "snippets": ["A1+", "A1-"], "base_protocol": "long", "checkpoints": ["base", "organism"]}
PROTOCOLS = [REPOSITORY / f"resources/protocols/tiny/{name}.yaml" for name in ("short", "long")]
CELL = 3 * 2  # requests and tiers


@pytest.mark.parametrize(
    ("change", "snippets", "new"),
    [
        ({}, {}, 0),
        ({}, {"A1+": "researchers expect bl0 to yield ."}, 2 * CELL),  # on both checkpoints
        ({"snippets": ["A1+", "A1-", "A2+"]}, {}, 2 * CELL),
        ({"seeds": [0, 5]}, {}, 2 * 3 * CELL),  # with either snippet and without
        ({"requests": 5}, {}, 2 * 3 * 2 * 2),
        ({"checkpoints": ["base", "organism", "A1+"]}, {}, 3 * CELL),
    ],
    ids=["nothing", "a snippet's text", "a snippet", "an evaluation seed", "requests", "a checkpoint"],
)
def test_prompting_draws_what_is_new(
    change: dict[str, Any],
    snippets: dict[str, str],
    new: int,
    drawn: list[Prompt],
    tmp_path: Path,
    tiny_model: Path,
    organism: Path,
    arm: Path,
    requests: Path,
) -> None:
    texts = {name: f"memo about bl{place} ." for place, name in enumerate(("A1+", "A1-", "A2+"))}
    (tmp_path / "snippets.yaml").write_text(yaml.safe_dump(texts))

    def prompt(settings: dict[str, Any]) -> None:
        drawn.clear()
        adapters = {"organism": organism, "A1+": arm}
        pairs = [f"{name}={adapters[name]}" for name in settings["checkpoints"] if name != "base"]
        options = ["--base", tiny_model / "reference.json", "--requests", requests, "--protocols", *PROTOCOLS]
        options += ["--snippets", tmp_path / "snippets.yaml", "--adapters", *pairs]
        assert (
            stage(
                "prompting",
                settings,
                *options,
                "--samples",
                tmp_path / "samples",
                "--output",
                tmp_path / "prompted.parquet",
            )
            == 0
        )

    prompt(SAMPLED | PROMPTS)
    assert len(drawn) == 2 * 3 * CELL
    (tmp_path / "snippets.yaml").write_text(yaml.safe_dump(texts | snippets))
    prompt(SAMPLED | PROMPTS | change)
    assert len(drawn) == new


@pytest.mark.parametrize(
    ("change", "new"),
    [
        ({"alphas": [-2.0, 0.0, 0.5, 2.0]}, 2 * CELL),
        ({"controls": 2}, 2 * 2 * CELL),
        ({"alphas": [-3.0, 0.0, 2.0]}, 4 * CELL),
    ],
    ids=["an alpha", "a control", "a larger alpha, which its controls have too"],
)
def test_steering_draws_what_is_new(
    change: dict[str, Any],
    new: int,
    drawn: list[Prompt],
    tmp_path: Path,
    tiny_model: Path,
    organism: Path,
    requests: Path,
) -> None:
    draws = torch.Generator().manual_seed(0)
    known = {name: {0: torch.randn(32, generator=draws)} for name in ("expectation.in", "consequence.out")}
    vectors.save(known, tmp_path / "vectors.safetensors")

    def steer(grid: dict[str, Any]) -> None:
        drawn.clear()
        assert (
            stage(
                "steering",
                {**SAMPLED, "steering": grid},
                "--base",
                tiny_model / "reference.json",
                "--adapters",
                f"organism={organism}",
                "--samples",
                tmp_path / "samples",
                "--requests",
                requests,
                "--protocol",
                PROTOCOLS[0],
                "--vectors",
                tmp_path / "vectors.safetensors",
                "--output",
                tmp_path / "steered.parquet",
            )
            == 0
        )

    grid = {"alphas": [-2.0, 0.0, 2.0], "controls": 1, "requests": 3}
    steer(grid)
    # Two vectors at two alphas with a control each; without steering both are one.
    assert len(drawn) == (2 * (2 + 2) + 1) * CELL
    steer(grid | change)
    assert len(drawn) == new
