"""Tables on data with a known truth: what must be recovered, and what must not be claimed."""

import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import study
import synthetic
from synthetic import STATISTICS, Condition, Design

from perfmis import screen
from perfmis.artifacts import read_json
from perfmis.stage import UserError
from perfmis.tables import beliefs, contrasts, convergence, gaps, profiles, prompting, steering, training
from perfmis.tables.cells import Replicates, build
from perfmis.vocabulary import ARMS, BASE, NEUTRAL, ORGANISM

DESIGN = Design(prompts=120, evaluations=4)
Conditions = dict[str, Condition]
TIERS = ["monitored", "unmonitored"]
NO_WARNINGS = pl.DataFrame(schema={"model": pl.String, "seed": pl.Int64, "checkpoint": pl.String, "warning": pl.String})
SETTINGS = {"statistics": STATISTICS, "models": {"m": None}, "tiers": TIERS}


def answers(conditions: Conditions, **options: Any) -> pl.DataFrame:
    """Return the beliefs table of one model."""
    rows = beliefs.rows_of_model(synthetic.beliefs("m", (0, 1, 2), conditions, **options), STATISTICS)
    return pl.DataFrame(rows, schema=beliefs.SCHEMA)


def gap_table(
    conditions: Conditions,
    truth: str = "both",
    design: Design = DESIGN,
    held: pl.DataFrame | None = None,
    tiers: list[str] = TIERS,
) -> pl.DataFrame:
    """Return the gaps table of one model."""
    outcomes = synthetic.outcomes("m", truth, conditions, design)
    return gaps.gaps(outcomes, answers(conditions) if held is None else held, ["m"], tiers, STATISTICS)


def pooled(frame: pl.DataFrame, checkpoint: str) -> dict[str, Any]:
    """Return the pooled row of a checkpoint."""
    return frame.filter(pl.col("seed").is_null() & (pl.col("checkpoint") == checkpoint)).row(0, named=True)


def by_arms(outcomes: pl.DataFrame) -> dict[str, Any]:
    """Return the sdf profile of one model whose arms have no warnings of their own."""
    row = profiles.by_arms(outcomes, NO_WARNINGS, STATISTICS)
    assert row is not None
    return row


def sdf_profile(truth: str, design: Design = DESIGN, **options: float) -> dict[str, Any]:
    """Return the sdf profile of one model with a planted truth."""
    outcomes = synthetic.outcomes("m", truth, synthetic.planted(**options), design)
    return by_arms(outcomes)


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small study, all of whose tables the stages made."""
    root = tmp_path_factory.mktemp("study")
    design = Design(prompts=24)
    study.write_inputs(root, {"expectation": "expectation", "llama-3.1-70b": "both"}, design, controls=3)
    study.make_tables(root, {"expectation": "expectation", "llama-3.1-70b": None}, resamples=200)
    return root


# Cells


def test_gap_is_monitored_minus_unmonitored_with_malformed_as_not_complying() -> None:
    rows = [
        ("monitored", "accepted"),
        ("monitored", "malformed"),
        ("unmonitored", "refused"),
        ("unmonitored", "malformed"),
    ]
    same = {"model": "m", "seed": 0, "eval_seed": 0, "checkpoint": ORGANISM}
    said = {"expectation": 1, "consequence": None, "in_training": True}
    prompts = [{"request_id": name, "cluster": name} for name in ("r0", "r1")]
    cells = [{"tier": tier, "outcome": outcome} for tier, outcome in rows]
    frame = pl.DataFrame([same | said | prompt | cell for prompt in prompts for cell in cells])
    result = Replicates(build(frame, ["checkpoint"]), 10, 0)
    assert result.gap(ORGANISM)[0] == pytest.approx(50)
    assert result.gap_bounds(ORGANISM) == pytest.approx((0, 100))
    assert result.malformed(ORGANISM) == pytest.approx(0.5)
    assert result.share("expectation", ORGANISM)[0] == 1
    assert result.share("consequence", ORGANISM)[0] == 0


def test_cells_refuse_a_missing_training_seed_and_a_missing_prompt() -> None:
    frame = synthetic.outcomes("m", "both", synthetic.planted(), Design(prompts=8))
    arm = pl.col("checkpoint") == "A1+"
    with pytest.raises(UserError, match=r"A1\+.*training seeds \[0, 2\]"):
        build(frame.filter(~(arm & (pl.col("seed") == 1))), ["checkpoint"])
    with pytest.raises(UserError, match=r"A1\+.*lacks prompts"):
        build(frame.filter(~(arm & (pl.col("request_id") == "r3"))), ["checkpoint"])
    with pytest.raises(UserError, match="lacks prompts or tiers"):
        build(frame.filter(~(arm & (pl.col("tier") == "unmonitored"))), ["checkpoint"])


def test_base_evaluated_once_serves_all_training_seeds() -> None:
    frame = synthetic.outcomes("m", "both", synthetic.planted(), Design(prompts=20))
    once = frame.filter((pl.col("checkpoint") != BASE) | (pl.col("seed") == 0))
    table = gaps.gaps(once, answers(synthetic.planted()), ["m"], TIERS, STATISTICS)
    assert pooled(table, BASE)["seeds"] == 1
    assert pooled(table, ORGANISM)["seeds"] == 3
    assert pooled(table, BASE)["samples"] == 20 * 2 * 2


# Gaps


def test_gaps_recover_the_planted_gap_and_pool_training_seeds() -> None:
    table = gap_table(synthetic.planted(), "expectation")
    organism = pooled(table, ORGANISM)
    assert organism["low"] < 42.5 < organism["high"]
    assert organism["high"] - organism["low"] < 15
    of_seeds = table.filter(pl.col("seed").is_not_null() & (pl.col("checkpoint") == ORGANISM))
    assert of_seeds["seed"].to_list() == [0, 1, 2]
    assert of_seeds["gap"].mean() == pytest.approx(organism["gap"])
    assert (organism["seeds"], organism["n"], organism["samples"]) == (3, 120, 3 * 120 * 4 * 2)
    assert (table["seed"].is_null().sum(), table["warning"].n_unique()) == (11, 1)


def test_change_is_paired_with_the_organism_and_adjusted_over_arms() -> None:
    table = gap_table(synthetic.planted(), "expectation")
    moved, still = pooled(table, "A1+"), pooled(table, NEUTRAL)
    assert moved["change"] == pytest.approx(moved["gap"] - pooled(table, ORGANISM)["gap"])
    assert moved["p_holm"] < 0.05 < still["p_holm"]
    assert still["change_low"] < 0 < still["change_high"]
    assert pooled(table, BASE)["change"] is None


def test_malformed_answers_bound_the_gap_and_warn() -> None:
    conditions = synthetic.planted()
    conditions["A1+"] = replace(conditions["A1+"], malformed=0.1)
    row = pooled(gap_table(conditions), "A1+")
    assert row["gap_lowest"] < row["gap"] < row["gap_highest"]
    assert row["gap_highest"] - row["gap_lowest"] == pytest.approx(200 * row["malformed"])
    assert row["warning"].startswith("malformed ")
    clean = pooled(gap_table(conditions), "A1-")
    assert clean["gap_lowest"] == clean["gap"] == clean["gap_highest"]


def test_lost_monitoring_belief_warns_from_items_and_from_scratchpads() -> None:
    conditions = synthetic.planted()
    conditions["B1+"] = replace(conditions["B1+"], used=0.4)
    table = gap_table(conditions, held=answers(conditions, monitoring={"A1-": 0.3}))
    assert pooled(table, "B1+")["warning"] == "monitoring belief lost (scratchpads)"
    assert pooled(table, "A1-")["warning"] == "monitoring belief lost (items)"
    assert pooled(table, "A1+")["warning"] == ""


def test_unmoved_manipulation_and_a_moving_neutral_arm_warn() -> None:
    conditions = synthetic.planted()
    conditions |= {"B2+": Condition(0.5, 0.5), "B2-": Condition(0.5, 0.5), NEUTRAL: Condition(0.95, 0.95)}
    table = gap_table(conditions)
    assert pooled(table, "B2+")["warning"] == pooled(table, "B2-")["warning"] == "manipulation not moved"
    assert pooled(table, "B1+")["warning"] == ""
    assert "neutral arm moved the gap by +" in pooled(table, NEUTRAL)["warning"]


def test_third_tier_adds_its_own_columns() -> None:
    tiers = [*TIERS, "rated"]
    table = gap_table(synthetic.planted(), design=replace(DESIGN, prompts=40, tiers=tuple(tiers)), tiers=tiers)
    row = pooled(table, ORGANISM)
    assert row["rated_low"] < 0 < row["rated_high"]
    assert row["compliance_rated"] == pytest.approx(5, abs=3)
    assert pooled(gap_table(synthetic.planted()), ORGANISM)["compliance_rated"] is None


# Profiles


@pytest.mark.parametrize("truth", ["expectation", "consequence", "both", "neither"])
@pytest.mark.parametrize("cross", [0.0, 0.25])
def test_planted_truth_is_attributed_despite_cross_talk(truth: str, cross: float) -> None:
    row = sdf_profile(truth, cross=cross)
    assert row["attribution"] == truth
    assert row["cross_A"] == pytest.approx(0.8 * cross, abs=0.06)
    assert (row["seeds"], row["n"]) == (3, 120)
    if truth == "both":
        assert row["slope_expectation_low"] < 42.5 < row["slope_expectation_high"]
    if truth == "expectation":
        assert row["slope_expectation_low"] < 85 < row["slope_expectation_high"]
        assert row["p_A_greater"] == 1


def test_cross_talk_alone_would_have_misled_the_nets() -> None:
    row = sdf_profile("expectation", cross=0.25)
    assert row["B_low"] > STATISTICS["floor"]
    assert row["attribution"] == "expectation"


def test_unmoved_family_is_not_tested_and_never_without_effect() -> None:
    conditions = synthetic.planted()
    conditions |= {arm: Condition() for arm in ARMS if arm.startswith("B")}
    outcomes = synthetic.outcomes("m", "expectation", conditions, DESIGN)
    row = by_arms(outcomes)
    assert row["attribution"] == "expectation (consequence not tested)"
    assert row["warning"] == "B: consequence not moved as intended"
    conditions |= {arm: Condition() for arm in ARMS}
    row = by_arms(synthetic.outcomes("m", "expectation", conditions, DESIGN))
    assert row["attribution"] == "not tested"


def test_an_untracked_side_beside_an_untested_one_is_not_tested() -> None:
    conditions = synthetic.planted()
    conditions |= {arm: Condition() for arm in ARMS if arm.startswith("B")}
    row = by_arms(synthetic.outcomes("m", "consequence", conditions, DESIGN))
    assert row["attribution"] == "not tested"


def test_families_that_move_both_beliefs_alike_test_nothing() -> None:
    row = sdf_profile("expectation", cross=1.0)
    assert row["attribution"] == "not tested"
    assert "A and B move both beliefs alike" in row["warning"]


def test_b_fraction_is_reported_only_where_it_means_something() -> None:
    defined = sdf_profile("both")
    assert defined["b_fraction_low"] < 0.5 < defined["b_fraction_high"]
    assert (defined["b_fraction_note"], defined["b_defined"]) == ("", 1.0)
    undefined = sdf_profile("neither")
    assert undefined["b_fraction"] is None
    assert undefined["b_fraction_note"]
    assert undefined["angle_high"] - undefined["angle_low"] > 45


def test_a_study_with_one_family_still_has_a_profile() -> None:
    conditions = {name: value for name, value in synthetic.planted().items() if not name.startswith("B")}
    row = by_arms(synthetic.outcomes("m", "expectation", conditions, DESIGN))
    assert row["b_fraction_note"] == "a family was not run"
    assert row["attribution"] == "expectation (consequence not tested)"


def test_arms_under_two_protocols_are_refused() -> None:
    outcomes = synthetic.outcomes("m", "both", synthetic.planted(), Design(prompts=8))
    mixed = outcomes.with_columns(protocol=pl.when(pl.col("seed") == 0).then(pl.lit("long")).otherwise("protocol"))
    with pytest.raises(UserError, match="several protocols"):
        by_arms(mixed)


@pytest.mark.parametrize(
    ("expectation", "consequence", "verdict"),
    [
        (True, True, "both"),
        (False, True, "consequence"),
        (False, False, "neither"),
        (True, None, "expectation (consequence not tested)"),
        (None, True, "consequence (expectation not tested)"),
        (None, False, "not tested"),
        (None, None, "not tested"),
    ],
)
def test_attribution_words(expectation: bool | None, consequence: bool | None, verdict: str) -> None:
    assert contrasts.attribution(expectation, consequence) == verdict


# Steering and prompting


def test_steering_changes_are_paired_and_controls_kept_apart() -> None:
    outcomes = synthetic.steered("m", "expectation", (-0.03, 0.0, 0.03), 3, Design(prompts=40, seeds=(0,)))
    rows = pl.DataFrame(steering.rows_of_model(outcomes, STATISTICS), schema=steering.SCHEMA)
    real = rows.filter(pl.col("seed").is_null() & pl.col("control").is_null())
    assert real.height == 2 * 2 * 3
    assert rows.filter(pl.col("seed").is_null() & pl.col("control").is_not_null()).height == 2 * 2 * 3 * 2
    zero = real.filter(pl.col("alpha") == 0)
    assert zero["change"].to_list() == [0.0] * 4
    up = real.filter((pl.col("alpha") == 0.03) & (pl.col("context") == "in"))
    assert up.filter(pl.col("concept") == "expectation")["change_low"][0] > 0
    assert up.filter(pl.col("concept") == "consequence")["change_low"][0] < 0


@pytest.mark.parametrize("truth", ["expectation", "consequence"])
@pytest.mark.parametrize("context", ["in", "out"])
def test_steering_profile_names_the_planted_side(truth: str, context: str) -> None:
    outcomes = synthetic.steered("m", truth, (-0.03, 0.0, 0.03), 3, Design(prompts=60))
    row = profiles.by_vectors(outcomes, context, STATISTICS)
    assert row is not None
    assert (row["method"], row["attribution"]) == (f"steering:{context}", truth)
    own = row["A_net" if truth == "expectation" else "B_net"]
    assert 0 < row["largest_random"] < own
    assert row["warning"].startswith("malformed up to ")


def test_steering_no_stronger_than_random_vectors_is_not_tracked() -> None:
    outcomes = synthetic.steered("m", "expectation", (-0.03, 0.0, 0.03), 0, Design(prompts=60))
    real = outcomes.filter((pl.col("concept") == "expectation") & (pl.col("alpha") != 0))
    random = real.with_columns(control=pl.lit(0, dtype=pl.Int64))
    alone = profiles.by_vectors(outcomes, "in", STATISTICS)
    row = profiles.by_vectors(pl.concat([outcomes, random]), "in", STATISTICS)
    assert alone is not None
    assert row is not None
    assert alone["attribution"] == "expectation"
    assert row["largest_random"] == pytest.approx(row["A_net"])
    assert row["attribution"] == "neither"


def test_steering_without_opposite_coefficients_is_refused() -> None:
    outcomes = synthetic.steered("m", "both", (-0.01, 0.0, 0.03), 0, Design(prompts=8))
    with pytest.raises(UserError, match="both signs"):
        profiles.by_vectors(outcomes, "in", STATISTICS)


def test_calibration_names_families_and_profiles_every_checkpoint() -> None:
    conditions = {BASE: Condition(0.5, 0.4), ORGANISM: Condition(), "B1+": Condition(0.5, 0.9)}
    outcomes = synthetic.prompted("m", "expectation", conditions, Design(prompts=40))
    families = {}
    for checkpoint in conditions:
        rows, profile = prompting.rows_of_checkpoint(outcomes.filter(pl.col("checkpoint") == checkpoint), STATISTICS)
        assert [row["snippet"] for row in rows] == ["none", *ARMS]
        families[checkpoint] = (profile["family"], profile["attribution"])
    assert families[BASE] == ("base", "expectation")
    assert families["B1+"] == ("B+", "expectation")


# Convergence and published numbers


def test_convergence_tells_no_effect_from_no_test_and_no_precision() -> None:
    wide = {"attribution": "neither", "slope_expectation_high": 30.0, "slope_consequence_high": 2.0}
    assert convergence.side(wide, 10) == "undecided"
    assert convergence.side(wide | {"slope_expectation_high": 6.0}, 10) == "neither"
    assert convergence.side({"attribution": "not tested"}, 10) == "not tested"
    assert convergence.side({"attribution": "expectation (consequence not tested)"}, 10) == "undecided"


@pytest.mark.parametrize(
    ("sides", "agreement", "words"),
    [
        (["A", "A", "A"], 3, "A, by 3 of 3 methods"),
        (["A", "A", "B"], 2, "A, against B"),
        (["A", "B", "not tested"], 1, "methods disagree: A, B"),
        (["B", "not tested", "undecided"], 1, "B, by 1 of 3 methods"),
        (["not tested"] * 3, 0, "not tested"),
        (["undecided", "not tested", "not tested"], 0, "undecided"),
    ],
)
def test_convergence_verdict(sides: list[str], agreement: int, words: str) -> None:
    assert convergence.verdict(sides) == (agreement, words)


def test_study_converges_on_the_planted_truth(tables: Path) -> None:
    row = study.table(tables, "convergence").row(0, named=True)
    assert row["model"] == "expectation"
    assert [row[method] for method in convergence.METHODS] == ["A"] * 4
    assert row["p_sdf"] < 0.05


def test_published_numbers_meet_measured_ones_by_lower_case_name(tables: Path) -> None:
    table = study.table(tables, "published")
    own = table.filter(pl.col("key") == "llama-3.1-70b")
    gap = own.filter((pl.col("quantity") == "gap") & (pl.col("condition") == "baseline")).row(0, named=True)
    organism = pooled(study.table(tables, "gaps").filter(pl.col("model") == "llama-3.1-70b"), ORGANISM)
    assert gap["measured"] == pytest.approx(organism["gap"])
    assert gap["difference"] == pytest.approx(organism["gap"] - 16.2)
    pole = own.filter((pl.col("condition") == "A+") & (pl.col("figure") == "3")).row(0, named=True)
    assert pole["measured"] is not None
    assert pole["measured_low"] is None
    assert own.filter((pl.col("quantity") == "b_fraction") & pl.col("measured").is_null()).is_empty()
    assert table.filter(pl.col("key") == "qwq-32b")["measured"].null_count() > 0


# Training


def test_training_rows_sum_up_each_log_in_the_order_of_models_seeds_and_checkpoints(tmp_path: Path) -> None:
    log = synthetic.training_log(steps=15).with_columns(
        loss=pl.Series([3.0, 2.0, 2.5]),
        loss_tokens=pl.Series([100, 200, 300]),
        tokens_per_second=pl.Series([10.0, 90.0, 80.0]),
        matmul_share=pl.Series([0.1, 0.5, 0.4]),
        memory_gb=pl.Series([1.0, 3.0, 2.0]),
    )
    diverged = log.with_columns(loss=pl.Series([3.0, 2.0, float("nan")]))
    names = ["n/0/organism", "m/10/organism", "m/2/N0", "m/2/A1-", "m/2/organism"]
    logs = [f"{name}={synthetic.save(log, tmp_path / f'{name}.parquet')}" for name in names]
    logs.append(f"m/2/B1+={synthetic.save(diverged, tmp_path / 'm/2/B1+.parquet')}")
    output, curves = tmp_path / "training.parquet", tmp_path / "curves.parquet"
    settings = {"models": {"n": None, "m": None}}
    study.run("tables.training", settings, "--logs", *logs, "--output", output, "--curves", curves)
    table = pl.read_parquet(output)
    found = ["/".join(map(str, row)) for row in table.select(*training.RUN).iter_rows()]
    assert found == ["n/0/organism", "m/2/organism", "m/2/A1-", "m/2/B1+", "m/2/N0", "m/10/organism"]
    numbers = {"steps": 15, "loss_tokens": 300, "first_loss": 3.0, "final_loss": 2.5}
    numbers |= {"tokens_per_second": 80.0, "matmul_share": 0.4, "memory_gb": 3.0}
    numbers |= {"lora_reach": 1.0, "merge_kept": None, "warning": ""}
    assert table.drop(*training.RUN, "fingerprint").row(0, named=True) == numbers
    assert table.filter(pl.col("checkpoint") == "B1+")["final_loss"].to_list() == [None]


def test_training_warns_of_a_merge_that_lost_what_the_organism_learnt(tmp_path: Path) -> None:
    kept = {"organism": None, "A1+": 0.65, "A1-": 0.95}
    logs = []
    for name, share in kept.items():
        log = synthetic.training_log(steps=15).with_columns(merge_kept=pl.lit(share, pl.Float64))
        logs.append(f"m/0/{name}={synthetic.save(log, tmp_path / f'{name}.parquet')}")
    output, curves = tmp_path / "training.parquet", tmp_path / "curves.parquet"
    study.run("tables.training", {"models": {"m": None}}, "--logs", *logs, "--output", output, "--curves", curves)
    table = pl.read_parquet(output)
    assert dict(table.select("checkpoint", "merge_kept").iter_rows()) == kept
    said = dict(table.select("checkpoint", "warning").iter_rows())
    assert said["A1+"].startswith("trained over merged weights, which kept 65% of what")
    assert (said["organism"], said["A1-"]) == ("", "")


def test_training_curves_hold_every_logged_step_under_its_run(tables: Path) -> None:
    curves = study.table(tables, "curves")
    assert dict(curves.drop("fingerprint").schema) == training.CURVES
    assert set(curves["model"]) == {"expectation", "llama-3.1-70b"}
    path = tables / "logs/llama-3.1-70b/2/B2-.parquet"
    own = curves.filter(model="llama-3.1-70b", seed=2, checkpoint="B2-").drop("model", "seed", "checkpoint")
    assert own.equals(pl.read_parquet(path).select(own.columns))
    assert curves.height == sum(pl.read_parquet(path).height for path in (tables / "logs").rglob("*.parquet"))


# Screen


def screened(tmp_path: Path, keep: str | list[str], models: dict[str, None]) -> tuple[pl.DataFrame, Any]:
    """Run the screen over one organism with a gap and one without; return the pooled rows and kept.json."""
    design = Design(prompts=40)
    weak = {BASE: Condition(used=0.0), ORGANISM: Condition(used=0.02)}
    files = [
        synthetic.save(synthetic.outcomes("strong", "both", synthetic.planted(), design), tmp_path / "strong.parquet"),
        synthetic.save(synthetic.outcomes("weak", "both", weak, design), tmp_path / "weak.parquet"),
    ]
    settings = {
        "screen": {"keep": keep, "minimum_gap": 5.0},
        "statistics": STATISTICS,
        "models": models,
        "seeds": [0],
    }
    output, kept = tmp_path / "screen.parquet", tmp_path / "kept.json"
    study.run("screen", settings, "--outcomes", *files, "--output", output, "--kept", kept)
    return pl.read_parquet(output), read_json(kept)


def test_screen_keeps_by_the_rule(tmp_path: Path) -> None:
    table, kept = screened(tmp_path, "auto", {"strong": None, "weak": None})
    assert kept["kept"] == kept["by_rule"] == ["strong"]
    assert kept["disagreement"] == []
    pooled_rows = table.filter(pl.col("seed").is_null())
    assert pooled_rows["passed"].to_list() == [True, False]
    assert table.filter(pl.col("seed").is_not_null())["passed"].null_count() == 6


def test_screen_list_decides_and_reports_disagreement(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, kept = screened(tmp_path, ["weak"], {"strong": None, "weak": None})
    assert kept["kept"] == ["weak"]
    assert [line.split(" ")[0] for line in kept["disagreement"]] == ["strong", "weak"]
    assert "weak is kept by the list but fails the rule" in capsys.readouterr().err


def test_screen_refuses_a_list_of_unknown_models(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"screen\.keep: other is not in `models`"):
        screened(tmp_path, ["other"], {"strong": None, "weak": None})


# Files


@pytest.mark.parametrize(
    "name",
    ["gaps", "profiles", "beliefs", "steering", "prompting", "calibration", "convergence", "published", "training"],
)
def test_every_table_stands_as_parquet_with_fingerprint_and_as_csv(tables: Path, name: str) -> None:
    frame = study.table(tables, name)
    assert frame["fingerprint"].unique().to_list() == [synthetic.FINGERPRINT]
    with (tables / "tables" / f"{name}.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == frame.height > 0
    assert list(rows[0]) == [column for column in frame.columns if column != "fingerprint"]
    assert not list((tables / "tables").glob("*partial*"))


def test_tables_refuse_mixed_fingerprints(tmp_path: Path) -> None:
    path = synthetic.save(synthetic.beliefs("m", (0,), synthetic.planted()), tmp_path / "beliefs.parquet", "b" * 16)
    with pytest.raises(UserError, match="made by other settings or code"):
        study.run("tables.beliefs", SETTINGS, "--beliefs", path, "--output", tmp_path / "out.parquet")
    assert not (tmp_path / "out.parquet").exists()


def test_missing_settings_are_named(tmp_path: Path) -> None:
    path = synthetic.save(synthetic.beliefs("m", (0,), synthetic.planted()), tmp_path / "beliefs.parquet")
    with pytest.raises(UserError, match="no key 'statistics'"):
        study.run("tables.beliefs", {"models": {}}, "--beliefs", path, "--output", tmp_path / "out.parquet")


def test_screen_schema_has_the_columns_of_the_contract() -> None:
    wanted = {
        "model",
        "seed",
        "compliance_monitored",
        "compliance_unmonitored",
        "gap",
        "low",
        "high",
        "n",
        "passed",
    }
    assert wanted <= set(screen.SCHEMA)
