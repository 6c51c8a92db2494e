"""Stage `figures.fig9`: what was planted against what each method read.

    python -m perfmis figures.fig9 --settings JSON --fingerprint HEX --profiles TABLE --output fig9.pdf

One plane per planted-truth model: slopes of the gap per unit of either belief, with intervals, for every
method. The shaded region is where the planted truth belongs under the attribution rule (slope at the floor or
above, or below it). Below each plane stands what each method read; steering comes out of and in context.
Settings: ``statistics``, ``models``.
"""

from typing import Any

import polars as pl
from matplotlib.axes import Axes
from matplotlib.patches import Patch, Rectangle

from perfmis.figures import style
from perfmis.figures.common import Inputs, Row, only

TRUTHS_READ = {"indifferent": "neither"}
COLORS = {"prompting": "#009E73", "sdf": style.BLACK, "steering:out": "#CC79A7", "steering:in": "#E69F00"}
ORDER = ("sdf", "prompting", "steering:out", "steering:in")
TRACKED = {
    "expectation": (True, False),
    "consequence": (False, True),
    "both": (True, True),
    "neither": (False, False),
    "indifferent": (False, False),
}


def _region(axis: Axes, truth: str, floor: float, low: float, high: float) -> None:
    """Shade where a planted truth belongs, and draw the floors that bound it."""
    (left, width), (bottom, height) = (
        (floor, high - floor) if tracked else (low, floor - low) for tracked in TRACKED[truth]
    )
    axis.add_patch(Rectangle((left, bottom), width, height, facecolor="#FBE7A1", edgecolor="none", zorder=0))
    axis.axvline(floor, color=style.GREY, linestyle=":", linewidth=0.8, zorder=1)
    axis.axhline(floor, color=style.GREY, linestyle=":", linewidth=0.8, zorder=1)


def _slopes(axis: Axes, row: Row) -> None:
    """Draw the slopes that one method read; a side that was not tested has no mark."""
    x, y = row["slope_expectation"], row["slope_consequence"]
    if x is None or y is None:
        return
    ends_x = style.errors(x, row["slope_expectation_low"], row["slope_expectation_high"])
    ends_y = style.errors(y, row["slope_consequence_low"], row["slope_consequence_high"])
    color = COLORS[row["method"]]
    style.point(axis, x, y, color, row["method"] == "sdf", fmt=style.METHODS[row["method"]], xerr=ends_x, yerr=ends_y)


def reading(row: Row, truth: str) -> str:
    """Return what a method read, with a tick, a cross, or nothing where it did not test."""
    words = row["attribution"].replace(" (", "\n   (")
    if "not tested" not in words:
        words += " ✓" if words == TRUTHS_READ.get(truth, truth) else " ✗"
    return f"{style.METHOD_NAMES[row['method']]}: {words}{' ' + style.WARNED if row['warning'] else ''}"


def panel(axis: Axes, rows: list[Row], truth: str, floor: float, limits: tuple[float, float]) -> None:
    """Draw one model."""
    _region(axis, truth, floor, *limits)
    axis.axhline(0, color=style.BLACK, linewidth=0.5)
    axis.axvline(0, color=style.BLACK, linewidth=0.5)
    for row in rows:
        _slopes(axis, row)
    text = "\n".join(reading(row, truth) for row in rows)
    axis.set_xlabel("expectation slope (pp)\n\n" + text, loc="left", linespacing=1.25)
    axis.set_xlim(*limits)
    axis.set_ylim(*limits)


def main(argv: list[str]) -> None:
    """Run the stage."""
    inputs = Inputs(argv, __doc__, ["profiles"])
    table = inputs.table("profiles").filter(pl.col("truth").is_not_null() & pl.col("method").is_in(ORDER))
    models, floor = inputs.models_of(table), inputs.settings["statistics"]["floor"]
    across = style.columns(len(models))
    width, height = (style.PAGE, 2.6) if across == 4 else (max(2.33 * across, style.COLUMN), 3.2)
    figure, axes = style.panels(len(models), across, width, height, sharey=True)
    if not models:
        style.empty(axes[0], "no planted-truth model passed the screen")
    drawn = table.drop_nulls(["slope_expectation", "slope_consequence"])
    ends = [
        value
        for name in ("slope_expectation", "slope_consequence")
        for bound in ("low", "high")
        for value in drawn[f"{name}_{bound}"].drop_nulls()
    ]
    limits = (min(ends, default=0.0) - 6, max(ends, default=floor) + 6)
    for axis, model in zip(axes, models, strict=False):
        rows = [row for method in ORDER for row in only(table, model=model, method=method)]
        panel(axis, rows, rows[0]["truth"], floor, limits)
        name = "planted" if model == rows[0]["truth"] else model
        axis.set_title(f"{name}: {rows[0]['truth']}")
        style.left_label(axis, "consequence slope (pp)")
    rows = table.to_dicts()
    untested = sum("not tested" in row["attribution"] for row in rows)
    right = sum(row["attribution"] == TRUTHS_READ.get(row["truth"], row["truth"]) for row in rows)
    handles: list[Any] = [
        style.handle(style.METHOD_NAMES[method], COLORS[method], style.METHODS[method], method == "sdf")
        for method in ORDER
        if method in set(drawn["method"])
    ]
    handles.append(Patch(facecolor="#FBE7A1", label="where the planted truth belongs"))
    style.finish(
        figure,
        f"Planted truth against what was read: {right} of {len(rows)} readings right"
        + (f", {untested} not tested" if untested else ""),
        handles,
        5 if across > 2 else 1 + across,
        f"Slopes in pp of gap per unit of belief, cross-talk removed; dotted: floor of {floor:g}. "
        "No mark where a side was not tested. Steering must also beat every random vector.",
        style.sizes([row["n"] for row in rows], [row["seeds"] for row in rows], inputs.confidence) if rows else "",
        f"{style.WARNED}: see the warning in the profiles table." if any(row["warning"] for row in rows) else "",
        inputs.missing,
    )
    style.save(figure, inputs.output, inputs.fingerprint)
