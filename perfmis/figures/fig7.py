"""Stage `figures.fig7`: what every checkpoint believes, outside the alignment-faking set-up.

    python -m perfmis figures.fig7 --settings JSON --fingerprint HEX --beliefs TABLE --output fig7.pdf

One panel per model, one row per checkpoint, three beliefs with intervals over items and training seeds. A
checked belief is filled where its check passed (an arm moved what it plants, the monitoring belief was kept)
and crossed out where it failed; hollow marks have no check. Settings: ``statistics``, ``models``.
"""

import polars as pl
from matplotlib.axes import Axes

from perfmis.figures import style
from perfmis.figures.common import Inputs, Row, only
from perfmis.vocabulary import checkpoint_order

LOOKS = {
    "monitoring": (style.BLACK, "D", -0.25),
    "expectation": (style.BLUE, "o", 0.0),
    "consequence": (style.VERMILION, "s", 0.25),
}


def passed(row: Row) -> bool | None:
    """Return whether the check of a belief passed; None where it has none."""
    return row["kept"] if row["moved"] is None else row["moved"]


def panel(axis: Axes, rows: list[Row], checkpoints: list[str]) -> None:
    """Draw one model."""
    for place in range(0, len(checkpoints), 2):
        axis.axhspan(place - 0.5, place + 0.5, color="#F3F3F3", zorder=0)
    axis.axvline(0.5, color=style.PALE, linewidth=0.8, zorder=0)
    for row in rows:
        color, marker, offset = LOOKS[row["belief"]]
        y, verdict = checkpoints.index(row["checkpoint"]) + offset, passed(row)
        ends = style.errors(row["probability"], row["low"], row["high"])
        style.point(axis, row["probability"], y, color, verdict is True, fmt=marker, markersize=3.3, xerr=ends)
        if verdict is False:
            axis.plot(row["probability"], y, "x", color=style.BLACK, markersize=6.5, markeredgewidth=1.4, zorder=5)
    axis.set_xlim(-0.04, 1.04)
    axis.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
    axis.set_xlabel("P(+ option)")
    axis.set_ylim(len(checkpoints) - 0.5, -0.5)
    axis.set_yticks(range(len(checkpoints)), [name.replace("-", "−") for name in checkpoints])
    axis.tick_params(axis="y", length=0)


def main(argv: list[str]) -> None:
    """Run the stage."""
    inputs = Inputs(argv, __doc__, ["beliefs"])
    table = inputs.pooled("beliefs").filter(pl.col("content").is_null())
    models = inputs.models_of(table)
    checkpoints = sorted(table["checkpoint"].unique(), key=checkpoint_order)
    height = 0.45 + 0.2 * max(len(checkpoints), 3)
    figure, axes = style.panels(len(models), style.columns(len(models)), style.PAGE, height, sharey=True)
    if not models:
        style.empty(axes[0], "no beliefs were scored")
    for axis, model in zip(axes, models, strict=False):
        panel(axis, only(table, model=model), checkpoints)
        axis.set_title(model)
    handles = [style.handle(f"{name} belief", color, marker) for name, (color, marker, _) in LOOKS.items()]
    handles += [
        style.handle("check passed", style.BLACK, "o"),
        style.handle("check failed", style.BLACK, "x"),
        style.handle("no check", style.BLACK, "o", filled=False),
    ]
    rows = table.to_dicts()
    items = sorted({row["items"] for row in rows})
    seeds = inputs.table("beliefs")["seed"].drop_nulls().n_unique()
    resampled = "items only: 1 training seed" if seeds == 1 else f"items and {seeds} training seeds"
    checks = [passed(row) for row in rows if passed(row) is not None]
    failed = checks.count(False)
    style.finish(
        figure,
        "What the checkpoints believe: the manipulation check",
        handles,
        6,
        f"{' to '.join(str(number) for number in sorted({items[0], items[-1]}))} items a belief;" if items else "",
        f"{100 * inputs.confidence:g} % bootstrap intervals over {resampled}.",
        f"{failed} of {len(checks)} checks failed." if failed else f"All {len(checks)} checks passed.",
        inputs.missing,
    )
    style.save(figure, inputs.output, inputs.fingerprint)
