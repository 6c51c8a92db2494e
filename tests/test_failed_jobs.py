"""A job that fails takes no more than its own results: the rest is made, tables and report name what is missing.

The DAG is tried with the stub in the place of the stages, so that many failures are tried in little time; one study is
really run.
"""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jinja2
import polars as pl
import pytest
import recomputation as rc
import study as synthetic_study
import synthetic
import yaml
from conftest import REPOSITORY
from polars.testing import assert_frame_equal
from running import jobs, snakemake
from synthetic import STATISTICS, Design

from perfmis import status
from perfmis.after_failure import takes_what_exists
from perfmis.missing import CONTENTS, RECORD, Missing, Result
from perfmis.study import FIGURE_TABLES
from perfmis.vocabulary import BASE, ORGANISM
from snakemake_logger_plugin_perfmis.journal import path as journal

CONFIG = "failing.yaml"
ROOT = Path("results/observed")
OPTIONS = ("--keep-going", "--logger", "perfmis", "--rerun-incomplete")
MODELS = ("a", "b", "c")
FIGURES = list(range(1, 11))
TABLES = ("gaps", "profiles", "beliefs", "steering", "prompting", "calibration", "convergence", "published", "training")
TOLD = "error: told to fail"
ORGANISMS = {"organism", "screen_transcripts", "screen_outcomes"}
STEERING = {"vectors", "steering_transcripts", "steering_outcomes"}


def configuration(keep: Any) -> dict[str, Any]:
    """Return a study of three models and two training seeds, with two arms."""
    content = rc.observed_study()
    content |= {"models": {name: {"truth": "both"} for name in MODELS}, "screen": {"keep": keep, "minimum_gap": 10}}
    content["seeds"] = {"training": [0, 1], "evaluation": [0], "screen": [0]}
    return content


@pytest.fixture
def study(workdir: Callable[..., Path]) -> Callable[[Any, str], Path]:
    """Return a function that makes a folder in which nothing has run and stages that are named fail."""

    def make(keep: Any, failing: str) -> Path:
        folder = workdir(copied=("perfmis",))
        (folder / CONFIG).write_text(yaml.safe_dump(configuration(keep)))
        (folder / "fail").write_text(failing)
        return rc.with_stub(folder, MODELS)

    return make


def run(folder: Path, *options: str) -> Any:
    return rc.run(folder, CONFIG, options=(*OPTIONS, *options))


def made(folder: Path, since: int) -> Counter[str]:
    """Return the jobs that were finished by the runs after the first ``since``, by rule."""
    runs = status.runs(status.events(journal(folder / ROOT)))[since:]
    return Counter(job.rule for one in runs for job in one.jobs.values() if job.state == "finished")


def missing(folder: Path) -> dict[str, set[str]]:
    """Return what is said to be missing: by rule the other wildcards."""
    found: dict[str, set[str]] = {}
    for one in json.loads((folder / ROOT / RECORD).read_text()):
        found.setdefault(one["rule"], set()).add(" ".join(one["wildcards"].values()))
    return found


def complete(folder: Path) -> None:
    """The report's files are all there."""
    for name in [f"tables/{table}.csv" for table in TABLES] + [f"figures/fig{number}.pdf" for number in FIGURES]:
        assert (folder / ROOT / name).is_file(), name
    assert (folder / ROOT / "report/story.rst").is_file()
    assert (folder / ROOT / "transcripts.html").is_file()


def each(rules: set[str], cells: set[str]) -> dict[str, set[str]]:
    return dict.fromkeys(rules, cells)


CASES: Mapping[str, tuple[Any, str, dict[str, set[str]], dict[str, int]]] = {
    # keep, what fails, what is missing, and how many jobs the next run has beyond those
    "steering, an arm, beliefs": (
        list(MODELS),
        "steering:steering/b/seed0 sdf:arms/a/seed1/A1+ beliefs:beliefs/b/seed1",
        {
            "steering_transcripts": {"b 0"},
            "steering_outcomes": {"b 0"},
            "arm": {"a 1 A1+"},
            "beliefs": {"a 1", "b 1"},
            "transcripts": {"a 1"},
            "outcomes": {"a 1"},
            "prompting_transcripts": {"a 1"},
            "prompting_outcomes": {"a 1"},
        },
        {},
    ),
    "a base model, prompting": (
        list(MODELS),
        "tinyworld.base:models/c prompting:prompting/a/seed0",
        {
            "prompting_transcripts": {"a 0", "c 0", "c 1"},
            "prompting_outcomes": {"a 0", "c 0", "c 1"},
            "tiny_base": {"c"},
            "budget": {"c"},
            **each(ORGANISMS | STEERING | {"transcripts", "outcomes", "beliefs"}, {"c 0", "c 1"}),
            "arm": {f"c {seed} {arm}" for seed in (0, 1) for arm in ("A1+", "A1-")},
        },
        {},
    ),
    # The screen decides without it before any arm is trained; nor does the second seed wait for it, and neither is made
    # again. What rests on it was not known of when it failed.
    "an organism, where the screen decides": (
        "auto",
        "sdf:organisms/c/seed0 vectors:vectors/a/seed1",
        {
            **each(ORGANISMS, {"c 0"}),
            **each(STEERING, {"a 1"}),
        },
        {
            "arm": 2,
            **dict.fromkeys(STEERING, 1),
            **dict.fromkeys(("transcripts", "outcomes", "beliefs", "prompting_transcripts", "prompting_outcomes"), 1),
        },
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_the_rest_is_made_and_the_next_run_makes_what_was_missing(study: Callable[[Any, str], Path], case: str) -> None:
    keep, failing, expected, more = CASES[case]
    folder = study(keep, failing)
    said = run(folder)
    assert said.returncode != 0
    assert TOLD in said.stderr
    assert missing(folder) == expected
    complete(folder)
    before = {path: path.read_bytes() for path in (folder / ROOT).rglob("*.parquet")}
    failures = [line for line in said.stderr.splitlines() if line.startswith("FAILED ")]
    assert len(failures) == len(failing.split()), "nothing is tried twice"

    # What fails again takes nothing else with it, and what was made of the rest stands.
    again = run(folder)
    assert again.returncode != 0
    assert made(folder, 1) == Counter()
    assert {path: path.read_bytes() for path in (folder / ROOT).rglob("*.parquet")} == before

    (folder / "fail").unlink()
    assert run(folder).returncode == 0
    now = made(folder, 2)
    complete(folder)
    assert not (folder / ROOT / RECORD).exists()
    cells = Counter({rule: len(cells) for rule, cells in expected.items()}) + Counter(more)
    assert Counter({rule: now[rule] for rule in now if not takes_what_exists(rule)}) == cells
    left = snakemake(folder, "--configfile", CONFIG, "--dry-run", "--quiet", "rules")
    assert jobs(left.stdout + left.stderr) == Counter()


# Tables, figures and the first page on a synthetic study of which results are taken away.

TRUTHS = {"expectation": "expectation", "consequence": "consequence", "both": "both", "neither": "neither"}
WHY = "job {} failed: error: {{x}}: the `vector` is *empty*"
LOST = (
    # rule, model, training seeds, the input that is taken away, and the rows of it
    ("steering_outcomes", "expectation", (0, 1), "steering", pl.lit(True)),
    ("prompting_outcomes", "expectation", (1,), "prompting", pl.col("seed") == 1),
    ("beliefs", "consequence", (0, 1), "beliefs", pl.lit(True)),
    ("outcomes", "both", (1,), "outcomes", (pl.col("seed") == 1) & ~pl.col("checkpoint").is_in([BASE, ORGANISM])),
    ("screen_outcomes", "neither", (0, 1), "outcomes", pl.col("checkpoint").is_in([BASE, ORGANISM])),
)


@pytest.fixture(scope="module")
def taken(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, list[dict[str, Any]]]]:
    """The folder of the study, with its tables, and what they were told is missing."""
    root = tmp_path_factory.mktemp("taken")
    design = Design(seeds=(0, 1), prompts=24)
    synthetic_study.write_inputs(root, TRUTHS, design, controls=3)
    results = []
    for rule, model, seeds, kind, gone in LOST:
        path = root / kind / f"{model}.parquet"
        left = pl.read_parquet(path).filter(~gone).drop("fingerprint")
        path.unlink()
        if left.height:
            synthetic.save(left, path)
        results += [
            Result(rule, {"model": model, "seed": str(seed)}, (), WHY.format(f"{rule} {model}")) for seed in seeds
        ]
    lost = Missing(results).rows(*CONTENTS)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(REPOSITORY)
        synthetic_study.make_tables(root, TRUTHS, resamples=100, missing=lost)
        yield root, lost


def table(root: Path, name: str, model: str) -> pl.DataFrame:
    """Return what the table says of a model, without the rows on what is missing."""
    frame = pl.read_parquet(root / f"tables/{name}.parquet")
    return frame.filter((pl.col("model") == model) & pl.col("missing").is_null())


@pytest.mark.parametrize(
    ("name", "model", "column", "found"),
    [
        ("steering", "expectation", "concept", []),
        ("steering", "consequence", "concept", ["consequence", "expectation"]),
        ("prompting", "expectation", "seeds", [1]),
        ("prompting", "consequence", "seeds", [2]),
        ("profiles", "expectation", "method", ["prompting", "prompting:organism", "sdf"]),
        ("profiles", "neither", "method", ["prompting", "prompting:organism", "sdf"]),
        ("convergence", "expectation", "steering:in", ["missing"]),
        ("convergence", "both", "steering:in", ["not tested"]),
        ("beliefs", "consequence", "belief", []),
        # Arms are set against the organism of the same training seeds.
        ("gaps", "both", "seeds", [1]),
        ("gaps", "expectation", "seeds", [1, 2]),
        ("screen", "neither", "gap", []),
        ("screen", "both", "seed", [None, 0, 1]),
    ],
)
def test_tables_take_what_exists(
    taken: tuple[Path, list[dict[str, Any]]], name: str, model: str, column: str, found: list[Any]
) -> None:
    assert table(taken[0], name, model)[column].unique().sort().to_list() == found


def test_what_is_left_of_a_model_is_pooled_over_its_complete_seeds(taken: tuple[Path, list[dict[str, Any]]]) -> None:
    """The arms' change is that of the one seed that has both organism and arms, not a mean of unlike seeds."""
    gaps = table(taken[0], "gaps", "both").select("seed", "checkpoint", "gap", "change")
    pooled = gaps.filter(pl.col("seed").is_null()).drop("seed").sort("checkpoint")
    whole = gaps.filter(pl.col("seed") == 0).drop("seed").sort("checkpoint")
    assert_frame_equal(pooled, whole)
    assert set(gaps.filter(pl.col("seed") == 1)["checkpoint"]) == {BASE, ORGANISM}


def test_arms_whose_beliefs_are_missing_do_not_pass_for_checked(taken: tuple[Path, list[dict[str, Any]]]) -> None:
    gaps = table(taken[0], "gaps", "consequence")
    arms = gaps.filter(~pl.col("checkpoint").is_in([BASE, ORGANISM]))
    assert arms["warning"].str.contains("belief items missing").all()
    assert not gaps.filter(pl.col("checkpoint") == ORGANISM)["warning"].str.contains("missing").any()


@pytest.mark.parametrize(
    "name", ["gaps", "profiles", "beliefs", "steering", "prompting", "calibration", "convergence", "training"]
)
def test_tables_list_what_is_missing_with_the_error_line(taken: tuple[Path, list[dict[str, Any]]], name: str) -> None:
    root, lost = taken
    said = pl.read_csv(root / f"tables/{name}.csv", infer_schema=False).drop_nulls("missing")
    assert said["missing"].to_list() == [row["missing"] for row in lost]
    assert (
        said["missing"]
        .str.contains(
            "steering, training seed 0: job steering_outcomes expectation failed: error: {x}: the", literal=True
        )
        .any()
    )
    assert said["model"].to_list() == [row["model"] for row in lost]


@pytest.mark.parametrize("number", range(2, 11))
def test_figures_draw_what_is_there_and_name_what_is_missing(
    taken: tuple[Path, list[dict[str, Any]]], tmp_path: Path, number: int
) -> None:
    settings = {"statistics": STATISTICS, "models": TRUTHS, "minimum_gap": 5.0}
    files = [word for name in FIGURE_TABLES[number] for word in (f"--{name}", taken[0] / f"tables/{name}.parquet")]
    synthetic_study.run(f"figures.fig{number}", settings, *files, "--output", tmp_path / "figure.pdf")
    words = " ".join(re.findall(r"<text[^>]*>([^<]*)</text>", (tmp_path / "figure.svg").read_text()))
    assert "Missing, since jobs failed (see the tables): " in words
    assert "expectation (steering, training seed 0" in words


def test_first_page_lists_what_is_missing_and_is_no_template(
    taken: tuple[Path, list[dict[str, Any]]], tmp_path: Path
) -> None:
    root, lost = taken
    settings = {"models": TRUTHS, "statistics": STATISTICS, "missing": lost}
    files = [word for name in ("screen", "gaps", "profiles") for word in (f"--{name}", root / f"tables/{name}.parquet")]
    synthetic_study.run("story", settings, *files, "--output", tmp_path / "story.rst")
    page = jinja2.Template((tmp_path / "story.rst").read_text()).render()
    reason = "``job steering_outcomes expectation failed: error: {x}: the 'vector' is *empty*``"
    assert f"* ``expectation``: steering, training seed 0; steering, training seed 1. {reason}" in page
    assert page.index("What is missing") < page.index("What was planted")
