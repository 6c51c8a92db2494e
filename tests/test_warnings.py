"""What tables and the first page say of answers that cannot carry a number: malformed, untreated, without a control."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import study
import synthetic
from synthetic import STATISTICS, Condition, Design

from perfmis import story
from perfmis.tables import convergence, gaps, profiles, prompting, scorings, steering
from perfmis.vocabulary import ARMS, BASE, NEUTRAL, ORGANISM

Table = Callable[[pl.DataFrame], pl.DataFrame]
TIERS = ["monitored", "unmonitored"]
DESIGN = Design(prompts=16, seeds=(0, 1))
KEYS = ("seed", "request_id", "tier", "eval_seed")
NO_BELIEFS = pl.DataFrame(
    schema={"model": pl.String, "seed": pl.Int64, "checkpoint": pl.String, "belief": pl.String, "content": pl.Int64}
)


def hashed(outcomes: pl.DataFrame) -> pl.DataFrame:
    """Return outcomes with a hash of every text, no two of them the same."""
    return outcomes.with_columns(raw_sha256=pl.int_range(pl.len()).cast(pl.String))


def arms() -> pl.DataFrame:
    """Return the outcomes of base, organism and arms of one model."""
    return hashed(synthetic.outcomes("m", "both", synthetic.planted(), DESIGN))


def prompted() -> pl.DataFrame:
    """Return the outcomes of organism and arms under snippets."""
    conditions = {ORGANISM: Condition(), "A1+": Condition(0.9), NEUTRAL: Condition()}
    return hashed(synthetic.prompted("m", "both", conditions, DESIGN))


def steered() -> pl.DataFrame:
    """Return the outcomes of a steered organism."""
    return hashed(synthetic.steered("m", "both", (-0.03, 0.0, 0.03), 2, DESIGN))


def copied(outcomes: pl.DataFrame, treated: pl.Expr, plain: pl.Expr, but: int = 0) -> pl.DataFrame:
    """Return outcomes in which the treated cell answers as the plain one does, in all but some samples."""
    came = ("raw_sha256", "outcome", "expectation", "consequence", "in_training")
    answers = outcomes.filter(plain).select(*KEYS, *came)
    own = outcomes.filter(treated)
    same = own.drop(came).join(answers, on=KEYS, how="left").select(outcomes.columns)
    return pl.concat([outcomes.filter(~treated), own.head(but), same.tail(-but) if but else same])


def gap_rows(outcomes: pl.DataFrame) -> pl.DataFrame:
    return gaps.gaps(outcomes, NO_BELIEFS, ["m"], TIERS, STATISTICS).filter(pl.col("seed").is_null())


def scored_rows(outcomes: pl.DataFrame) -> pl.DataFrame:
    judged = outcomes.with_columns(tag=pl.col("outcome"), judge=pl.lit("accepted"))
    validation = pl.DataFrame(
        {"model": "m", "checkpoint": [BASE, ORGANISM, *ARMS, NEUTRAL], "rubric": "compliance", "status": "met"}
    )
    frame = scorings.scorings(judged, validation, ["m"], TIERS, STATISTICS)
    return frame.filter(pl.col("seed").is_null() & (pl.col("scoring") == "tag"))


def sdf_rows(outcomes: pl.DataFrame) -> pl.DataFrame:
    return pl.DataFrame([profiles.by_arms(outcomes, gap_rows(outcomes), STATISTICS)])


def prompting_rows(outcomes: pl.DataFrame, calibration: bool = False) -> pl.DataFrame:
    found = []
    for (checkpoint,), own in outcomes.group_by("checkpoint"):
        rows, profile = prompting.rows_of_checkpoint(own, STATISTICS, outcomes)
        found += [profile] if calibration else rows
        assert {row["checkpoint"] for row in rows} == {checkpoint}
    return pl.DataFrame(found)


def calibration_rows(outcomes: pl.DataFrame) -> pl.DataFrame:
    return prompting_rows(outcomes, calibration=True)


def snippet_rows(outcomes: pl.DataFrame) -> pl.DataFrame:
    return pl.DataFrame([profiles.by_snippets(outcomes, ORGANISM, STATISTICS)])


def steering_rows(outcomes: pl.DataFrame) -> pl.DataFrame:
    rows = pl.DataFrame(steering.rows_of_model(outcomes, STATISTICS), schema=steering.SCHEMA)
    return rows.filter(pl.col("seed").is_null())


def vector_rows(outcomes: pl.DataFrame) -> pl.DataFrame:
    return pl.DataFrame([profiles.by_vectors(outcomes, "in", STATISTICS)])


def converged(table: Table, outcomes: pl.DataFrame) -> pl.DataFrame:
    row = convergence.row_of_model("m", table(outcomes).with_columns(model=pl.lit("m"), truth=pl.lit(None)), 10.0)
    return pl.DataFrame([row], schema=convergence.SCHEMA)


def sdf_convergence(outcomes: pl.DataFrame) -> pl.DataFrame:
    return converged(sdf_rows, outcomes)


def vector_convergence(outcomes: pl.DataFrame) -> pl.DataFrame:
    return converged(vector_rows, outcomes)


ARM = pl.col("checkpoint") == "A1+"
IS_ORGANISM = pl.col("checkpoint") == ORGANISM
SNIPPET = IS_ORGANISM & (pl.col("snippet") == "B2-")
VECTOR = (
    (pl.col("concept") == "expectation")
    & (pl.col("context") == "in")
    & pl.col("control").is_null()
    & (pl.col("alpha") == 0.03)
)
UNSTEERED = (pl.col("concept") == "expectation") & (pl.col("context") == "in") & (pl.col("alpha") == 0)
ANY = pl.lit(True)
# Of each table: the outcomes it is made of, what is treated, what that is compared with, its row (or only one), and
# what the row says where the two answer alike.
SAME = "answers identical to the organism's in 100 % of samples"
SAME_TEXT = "answers identical to those without the snippet in 100 % of samples"
SAME_UNSTEERED = "answers identical to the unsteered organism's in 100 % of samples"
TABLES: dict[str, tuple[Table, Callable[[], pl.DataFrame], pl.Expr, pl.Expr, pl.Expr, str]] = {
    "gaps": (gap_rows, arms, ARM, IS_ORGANISM, ARM, SAME),
    "scorings": (scored_rows, arms, ARM, IS_ORGANISM, ARM, SAME),
    "profiles, sdf": (sdf_rows, arms, ARM, IS_ORGANISM, ANY, f"A1+: {SAME}"),
    "convergence, sdf": (sdf_convergence, arms, ARM, IS_ORGANISM, ANY, f"sdf: A1+: {SAME}"),
    "prompting": (prompting_rows, prompted, SNIPPET, IS_ORGANISM & (pl.col("snippet") == "none"), SNIPPET, SAME_TEXT),
    "prompting, arm": (
        prompting_rows,
        prompted,
        ARM & (pl.col("snippet") == "B2-"),
        SNIPPET,
        ARM & (pl.col("snippet") == "B2-"),
        SAME,
    ),
    "calibration": (
        calibration_rows,
        prompted,
        SNIPPET,
        IS_ORGANISM & (pl.col("snippet") == "none"),
        IS_ORGANISM,
        f"B2- short: {SAME_TEXT}",
    ),
    "calibration, arm": (
        calibration_rows,
        prompted,
        ARM & (pl.col("snippet") == "B2-"),
        SNIPPET,
        ARM,
        f"B2- short: {SAME}",
    ),
    "profiles, prompting": (
        snippet_rows,
        prompted,
        SNIPPET,
        IS_ORGANISM & (pl.col("snippet") == "none"),
        ANY,
        f"B2-: {SAME_TEXT}",
    ),
    "steering": (steering_rows, steered, VECTOR, UNSTEERED, VECTOR, SAME_UNSTEERED),
    "profiles, steering": (
        vector_rows,
        steered,
        VECTOR,
        UNSTEERED,
        ANY,
        f"expectation real 0.03: {SAME_UNSTEERED}",
    ),
    "convergence, steering": (
        vector_convergence,
        steered,
        VECTOR,
        UNSTEERED,
        ANY,
        f"expectation real 0.03: {SAME_UNSTEERED}",
    ),
}


def warning(frame: pl.DataFrame, chosen: pl.Expr) -> str:
    """Return the warning of the one row that is chosen."""
    [said] = frame.filter(chosen)["warning"].to_list()
    return str(said)


@pytest.mark.parametrize("name", TABLES)
def test_answers_as_without_treatment_are_a_warning(name: str) -> None:
    table, make, treated, plain, row, said = TABLES[name]
    outcomes = make()
    before = table(outcomes)
    assert "identical" not in " ".join(before["warning"])
    after = table(copied(outcomes, treated, plain))
    assert said in warning(after, row)
    others = after.filter(~row)["warning"].to_list()
    assert "identical" not in " ".join(others)
    # 19 of 20 may be chance; more is a treatment that did not arrive.
    samples = outcomes.filter(treated).height
    assert "identical" not in warning(table(copied(outcomes, treated, plain, but=samples // 20 + 1)), row)
    assert "identical" in warning(table(copied(outcomes, treated, plain, but=samples // 20 - 2)), row)


NOT_MOVED = "moved neither answers nor stated beliefs"


def unmoved(outcomes: pl.DataFrame, vectors: pl.Expr) -> pl.DataFrame:
    """Return steered outcomes in which some vectors change the words, and nothing that is read from them."""
    for concept in ("expectation", "consequence"):
        for context in ("in", "out"):
            group = (pl.col("concept") == concept) & (pl.col("context") == context)
            for alpha in (-0.03, 0.03):
                chosen = group & (pl.col("alpha") == alpha) & pl.col("control").is_null() & vectors
                if outcomes.filter(chosen).height:
                    outcomes = copied(outcomes, chosen, group & (pl.col("alpha") == 0))
    return hashed(outcomes)


@pytest.mark.parametrize(
    ("vectors", "untested"),
    [
        (ANY, {"not tested"}),
        (pl.col("concept") == "expectation", {"consequence (expectation not tested)"}),
        # One end is enough, where the organism already says what the other one would have it say.
        (pl.col("alpha") < 0, set()),
    ],
)
def test_a_vector_that_moves_nothing_has_tested_nothing(vectors: pl.Expr, untested: set[str]) -> None:
    """In every table of steering, and random vectors are none of it."""
    outcomes = unmoved(steered(), vectors)
    rows = steering_rows(outcomes)
    still = vectors & (pl.col("alpha") != 0) & pl.col("control").is_null()
    assert rows.filter(still)["warning"].to_list() == [f"not tested: {NOT_MOVED}"] * rows.filter(still).height
    assert "not tested" not in " ".join(rows.filter(~still)["warning"])
    [profile] = vector_rows(outcomes).to_dicts()
    assert {profile["attribution"]} - {"both", "neither", "expectation", "consequence"} == untested
    [moved] = [part for part in profile["warning"].split("; ") if NOT_MOVED in part]
    for concept, family in (("expectation", "A"), ("consequence", "B")):
        ends = rows.filter(still & (pl.col("context") == "in") & (pl.col("concept") == concept)).height
        assert moved.count(f"{concept} real") == ends
        assert (f"{family}: {concept} not moved as intended" in profile["warning"]) == (ends == 2)
    [compared] = vector_convergence(outcomes).to_dicts()
    assert NOT_MOVED in compared["warning"]


@pytest.mark.parametrize("name", TABLES)
def test_answers_none_of_which_can_be_read_are_a_warning(name: str) -> None:
    table, make, treated, _, row, _ = TABLES[name]
    outcomes = make()
    broken = outcomes.with_columns(outcome=pl.when(treated).then(pl.lit("malformed")).otherwise("outcome"))
    said = warning(table(broken), row)
    assert "malformed" in said
    assert "100 %" in said
    # One tier alone makes a gap that is nothing but its malformed answers.
    half = pl.when(treated & (pl.col("tier") == "unmonitored")).then(pl.lit("malformed")).otherwise("outcome")
    said = warning(table(outcomes.with_columns(outcome=half)), row)
    assert "malformed" in said
    assert "every answer of" in said


@pytest.mark.parametrize("name", ["gaps", "scorings", "profiles, sdf", "convergence, sdf"])
def test_arms_without_a_neutral_one_are_a_warning(name: str) -> None:
    table, make, _, _, row, _ = TABLES[name]
    assert "no neutral arm" not in " ".join(table(make())["warning"])
    frame = table(make().filter(pl.col("checkpoint") != NEUTRAL))
    assert "no neutral arm" in warning(frame, row)
    if "checkpoint" in frame.columns:
        rests = frame.filter(pl.col("warning").str.contains("no neutral arm"))
        assert set(rests["checkpoint"]) == set(ARMS)


def test_a_calibration_on_arms_without_a_neutral_one_is_a_warning() -> None:
    frame = calibration_rows(prompted().filter(pl.col("checkpoint") != NEUTRAL))
    assert "no neutral arm" in warning(frame, ARM)
    assert warning(frame, IS_ORGANISM) == ""


def test_calibration_has_the_share_of_malformed_answers() -> None:
    conditions = {ORGANISM: Condition(), NEUTRAL: Condition()}
    outcomes = synthetic.prompted("m", "both", conditions, DESIGN)
    broken = pl.col("snippet").is_in(["A1+", "A1-", "B1+"]) & IS_ORGANISM
    outcomes = outcomes.with_columns(outcome=pl.when(broken).then(pl.lit("malformed")).otherwise("outcome"))
    frame = calibration_rows(outcomes)
    assert frame.filter(IS_ORGANISM)["malformed"].to_list() == [pytest.approx(3 / 9)]
    assert frame.filter(~IS_ORGANISM)["malformed"].to_list() == [0.0]
    assert warning(frame, IS_ORGANISM).startswith("malformed up to 100 % (")


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tables of a study without neutral arm, whose arm A1+ answers as the organism does, prompted or not."""
    root = tmp_path_factory.mktemp("study")
    study.write_inputs(root, {"both": "both"}, replace(DESIGN, prompts=24), controls=2)
    for name in ("outcomes", "prompting"):
        path = root / name / "both.parquet"
        frame = hashed(pl.read_parquet(path).drop("fingerprint").filter(pl.col("checkpoint") != NEUTRAL))
        if name == "outcomes":
            frame = copied(frame, ARM, IS_ORGANISM)
        else:
            for snippet in ("none", *ARMS):
                same = pl.col("snippet") == snippet
                frame = copied(frame, ARM & same, IS_ORGANISM & same)
        synthetic.save(frame, path)
    study.make_tables(root, {"both": "both"}, resamples=100)
    return root / "tables"


def test_csvs_and_the_first_page_say_it(tables: Path) -> None:
    frames = {
        name: pl.read_parquet(tables / f"{name}.parquet") for name in ("screen", "gaps", "profiles", "calibration")
    }
    for name in ("gaps", "profiles", "calibration", "steering", "prompting", "convergence"):
        assert "warning" in pl.read_csv(tables / f"{name}.csv").columns
    assert "malformed" in pl.read_csv(tables / "calibration.csv").columns
    settings: dict[str, Any] = {"models": {"both": "both"}, "statistics": STATISTICS}
    page = story.story(frames["screen"], frames["gaps"], frames["profiles"], settings, frames["calibration"])
    assert f"* ``both`` A1+: {SAME}" in page
    assert "no neutral arm" in page
    assert "* ``both`` A1+, prompted: " in page
    assert page.count(SAME) >= 2
