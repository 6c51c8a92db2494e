"""Figures: written from a synthetic study, legible, without overlaps, equal on every run."""

import itertools
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pytest
import study
import synthetic
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox
from synthetic import FINGERPRINT, STATISTICS, Condition, Design

from perfmis.figures import fig10, style
from perfmis.stage import UserError
from perfmis.vocabulary import ARMS, BASE, NEUTRAL, ORGANISM

TABLES = {
    1: (),
    2: ("screen",),
    3: ("gaps", "published"),
    4: ("steering",),
    5: ("calibration", "profiles"),
    6: ("steering",),
    7: ("beliefs",),
    8: ("profiles", "published"),
    9: ("profiles",),
    10: ("curves",),
}
TINY: dict[str, str] = {"expectation": "expectation", "neither": "neither"}
LARGE: dict[str, str] = {"llama-3.1-405b": "both"}


@pytest.fixture(scope="module", autouse=True)
def _from_the_root() -> Iterator[None]:
    """Run from the root of the repository, as the workflow does; figure 1 reads resources there."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(Path(__file__).parent.parent)
        yield


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Planted-truth models under one training seed: a warned arm, an untested family, a rejected organism."""
    root, design = tmp_path_factory.mktemp("tiny"), Design(seeds=(0,), prompts=24)
    study.write_inputs(root, TINY, design, controls=3, steered=1)
    study.rejected(root, "indifferent", design)
    snippets = synthetic.prompted("neither", "neither", {BASE: Condition()}, design, moved=0.0)
    synthetic.save(snippets, root / "prompting" / "neither.parquet")
    study.make_tables(root, {**TINY, "indifferent": "indifferent"}, resamples=200)
    return root


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Published models under three training seeds, none of them with a known truth."""
    root = tmp_path_factory.mktemp("large")
    study.write_inputs(root, LARGE, Design(prompts=24), controls=10, steered=1)
    study.make_tables(root, dict.fromkeys(LARGE), resamples=200)
    return root


@pytest.fixture(scope="module")
def written(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All figures of the tiny study, as files."""
    folder = tmp_path_factory.mktemp("figures")
    for number in TABLES:
        draw(tiny, number, models_of(tiny), folder / f"fig{number}.pdf")
    return folder


def draw(root: Path, number: int, models: dict[str, str | None], output: Path) -> None:
    """Run one figure stage on the tables of a study."""
    settings = {
        "statistics": STATISTICS,
        "models": models,
        "arms": [*ARMS, NEUTRAL],
        "tiers": ["monitored", "unmonitored"],
        "compliance": "tag",
        "minimum_gap": 5.0,
    }
    tables = [word for name in TABLES[number] for word in (f"--{name}", root / "tables" / f"{name}.parquet")]
    study.run(f"figures.fig{number}", settings, *tables, "--output", output)


def models_of(root: Path) -> dict[str, str | None]:
    """Return the models of one of the two studies."""
    return {**TINY, "indifferent": "indifferent"} if "tiny" in root.name else dict.fromkeys(LARGE)


def drawn(root: Path, number: int, models: dict[str, str | None] | None = None) -> Figure:
    """Return the figure that a stage would save."""
    kept: list[Figure] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(style, "save", lambda figure, *_: kept.append(figure))
        draw(root, number, models_of(root) if models is None else models, Path("unwritten.pdf"))
    style.settle(kept[0])
    style.plt.close(kept[0])
    return kept[0]


def tick_labels_out_of_view(axis: Axes) -> set[int]:
    """Return the ids of tick labels that stand beyond the limits of an axis, or at an axis that is off."""
    view = axis.get_window_extent().padded(2)
    hidden = set()
    for labels, low, high, side in (
        (axis.get_xticklabels(which="both"), view.x0, view.x1, 0),
        (axis.get_yticklabels(which="both"), view.y0, view.y1, 1),
    ):
        for label in labels:
            centre = label.get_window_extent().get_points().mean(axis=0)[side]
            if not (axis.axison and low <= centre <= high):
                hidden.add(id(label))
    return hidden


def texts(figure: Figure) -> list[tuple[str, float, Bbox]]:
    """Return (text, size in points, box in pixels) of all that a reader sees."""
    figure.draw_without_rendering()
    hidden = set().union(*map(tick_labels_out_of_view, figure.axes))
    found = [text for text in figure.findobj(Text) if isinstance(text, Text) and id(text) not in hidden]
    return [
        (text.get_text(), float(text.get_fontsize()), text.get_window_extent())
        for text in found
        if text.get_visible() and text.get_text().strip()
    ]


@pytest.mark.parametrize("number", TABLES)
def test_figure_is_written_as_pdf_png_and_svg(written: Path, number: int) -> None:
    starts = {"pdf": b"%PDF", "png": b"\x89PNG", "svg": b"<?xml"}
    for kind, start in starts.items():
        content = (written / f"fig{number}.{kind}").read_bytes()
        assert content.startswith(start)
        assert len(content) > 5000
    assert "<text" in (written / f"fig{number}.svg").read_text()
    assert not list(written.glob("*.partial"))


@pytest.mark.parametrize("number", [4])
def test_figures_are_the_same_bytes_on_every_run(tiny: Path, written: Path, tmp_path: Path, number: int) -> None:
    draw(tiny, number, models_of(tiny), tmp_path / "again.pdf")
    for kind in ("pdf", "png", "svg"):
        assert (tmp_path / f"again.{kind}").read_bytes() == (written / f"fig{number}.{kind}").read_bytes()


@pytest.mark.parametrize("number", TABLES)
@pytest.mark.parametrize("which", ["tiny", "large"])
def test_text_is_large_enough_inside_the_figure_and_never_overlaps(
    request: pytest.FixtureRequest, number: int, which: str
) -> None:
    figure = drawn(request.getfixturevalue(which), number)
    written = texts(figure)
    assert min(size for _, size, _ in written) >= 7
    outside = [text for text, _, box in written if not figure.bbox.padded(1).containsx(box.x1)]
    assert outside == []
    clashes = []
    for (one, _, a), (other, _, b) in itertools.combinations(written, 2):
        common = Bbox.intersection(a, b)
        if common is not None and min(common.width, common.height) > 2:
            clashes.append((one, other))
    assert clashes == []
    note = " ".join(text for text, _, _ in written).replace("\n", " ")
    stated = "1 training seed" if which == "tiny" else "3 training seeds"
    assert stated in note or number == 1 or (number == 9 and which == "large")


def words(root: Path, number: int, models: dict[str, str | None] | None = None) -> str:
    """Return all that is written on a figure."""
    return "\n".join(text for text, _, _ in texts(drawn(root, number, models)))


def test_screen_figure_marks_who_passed(tiny: Path) -> None:
    written = words(tiny, 2).split("\n")
    assert written.count("passed") == 2
    assert written.count("failed") == 1
    assert "2 of 3 organisms show a gap" in written


def test_gaps_figure_marks_warned_arms_and_shows_published_bars_only_where_they_exist(tiny: Path, large: Path) -> None:
    planted, published = (words(root, 3) for root in (tiny, large))
    assert "published" not in planted
    assert "published organism" in published
    pooled = study.table(tiny, "gaps").filter(pl.col("seed").is_null())
    warned = pooled.filter((pl.col("warning") != "") & pl.col("checkpoint").is_in([*ARMS, NEUTRAL]))
    assert planted.split("\n").count(style.WARNED) == warned.height > 0


def test_beliefs_figure_counts_failed_checks(tiny: Path) -> None:
    assert "1 of 34 checks failed." in words(tiny, 7).replace("\n", " ")


def test_b_fraction_figure_says_what_is_absent(tiny: Path) -> None:
    written = words(tiny, 8)
    absent = study.table(tiny, "profiles").filter(
        pl.col("b_fraction").is_null() & pl.col("method").is_in(["sdf", "prompting"])
    )
    assert written.count("absent:") == absent.height > 0


def test_planted_truth_figure_labels_every_reading(tiny: Path) -> None:
    written = words(tiny, 9)
    assert "planted: expectation" in written
    assert "SDF: expectation ✓ !" in written
    assert "prompting: not tested !" in written
    assert "1 not tested" in written


def test_training_figure_counts_runs_and_those_whose_loss_did_not_fall(tiny: Path, tmp_path: Path) -> None:
    counted = "n = 20 training runs: 2 models, 10 checkpoints, 1 training seed"
    written = words(tiny, 10).replace("\n", " ")
    assert counted in written
    assert "did not fall" not in written
    curves = study.table(tiny, "curves").drop("fingerprint")
    worse = (pl.col("checkpoint") == "B1+") & (pl.col("step") == pl.col("step").max().over("checkpoint"))
    curves = curves.with_columns(loss=pl.when(worse).then(9.0).otherwise("loss"))
    synthetic.save(curves, tmp_path / "tables" / "curves.parquet")
    written = words(tmp_path, 10, models_of(tiny)).replace("\n", " ")
    assert counted in written
    assert "In 2 of 20 runs the loss did not fall." in written


def test_training_curves_are_means_over_seeds_in_their_range_and_short(large: Path) -> None:
    few = study.table(large, "curves").filter(checkpoint="A1+", step=5)
    curve = fig10.averaged(study.table(large, "curves").filter(checkpoint="A1+"))
    first = curve.row(0, named=True)
    assert curve.height == 6
    assert first["loss"] == pytest.approx(few["loss"].mean())
    assert (first["loss_low"], first["loss_high"]) == (few["loss"].min(), few["loss"].max())
    logs = [synthetic.training_log(5000, seed=seed).with_columns(seed=pl.lit(seed)) for seed in range(3)]
    curve = fig10.averaged(pl.concat(logs))
    assert curve.height == fig10.PARTS
    assert curve["loss_tokens"].is_sorted()


def test_training_figure_says_what_was_not_logged(tiny: Path, tmp_path: Path) -> None:
    curves = study.table(tiny, "curves").drop("fingerprint")
    lacking = pl.when(pl.col("model") != "neither").then("gradient_norm")
    synthetic.save(curves.with_columns(gradient_norm=lacking), tmp_path / "tables" / "curves.parquet")
    assert words(tmp_path, 10, models_of(tiny)).count("not logged") == 1


def test_training_figure_tells_all_checkpoints_apart() -> None:
    assert len({fig10.look(checkpoint) for checkpoint in (ORGANISM, *ARMS, NEUTRAL)}) == 10


def test_figures_say_so_when_there_is_nothing_to_draw(tiny: Path, tmp_path: Path) -> None:
    for name in ("steering", "profiles", "calibration", "beliefs", "published", "curves"):
        synthetic.save(study.table(tiny, name).drop("fingerprint").clear(), tmp_path / "tables" / f"{name}.parquet")
    sentences = {
        4: "no organism was steered",
        5: "no checkpoint was prompted",
        6: "no organism was steered",
        7: "no beliefs were scored",
        8: "no model has a profile",
        9: "no planted-truth model passed the screen",
        10: "no organism was kept",
    }
    for number, sentence in sentences.items():
        assert sentence in words(tmp_path, number, {"m": None})


def test_design_figure_draws_only_the_arms_of_the_study(tmp_path: Path) -> None:
    settings = {"arms": ["A1+", "A1-", "B1+", "B1-"], "models": {}, "statistics": STATISTICS}
    study.run("figures.fig1", settings, "--output", tmp_path / "fig1.pdf")
    written = (tmp_path / "fig1.svg").read_text()
    assert written.count("not in this study") == 4
    assert "neutral documents" not in written


def test_figures_refuse_tables_of_another_study(tiny: Path, tmp_path: Path) -> None:
    frame = study.table(tiny, "screen").drop("fingerprint")
    path = synthetic.save(frame, tmp_path / "screen.parquet", "b" * len(FINGERPRINT))
    with pytest.raises(UserError, match="made by other settings or code"):
        study.run("figures.fig2", {"models": {}, "minimum_gap": 5}, "--screen", path, "--output", tmp_path / "f.pdf")
    assert not (tmp_path / "f.pdf").exists()


def test_an_organism_alone_has_no_arms_to_draw(tmp_path: Path) -> None:
    design = Design(prompts=8, seeds=(0,))
    outcomes = synthetic.outcomes("m", "both", {BASE: Condition(used=0), ORGANISM: Condition()}, design)
    path = synthetic.save(outcomes, tmp_path / "m.parquet")
    settings = {
        "statistics": STATISTICS | {"resamples": 100},
        "models": {"m": None},
        "tiers": list(design.tiers),
        "compliance": "tag",
    }
    out = tmp_path / "tables"
    study.run("tables.beliefs", settings, "--beliefs", "--output", out / "beliefs.parquet")
    study.run(
        "tables.gaps",
        settings,
        "--outcomes",
        path,
        "--beliefs",
        out / "beliefs.parquet",
        "--output",
        out / "gaps.parquet",
    )
    study.run("tables.published", settings, "--source", study.PUBLISHED, "--output", out / "published.parquet")
    assert "no arm was trained" in words(tmp_path, 3, {"m": None})
