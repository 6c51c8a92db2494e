"""Stage `figures.fig5`: prompts calibrated on arms of known family, and profiles from prompts to fine-tuning.

    python -m perfmis figures.fig5 --settings JSON --fingerprint HEX
        --calibration TABLE --profiles TABLE --output fig5.pdf

Left: one small plane per model, where each prompted checkpoint stands by its A_net and B_net. Right: for
every model the profile read from prompting its base and the one read from SDF, joined by an arrow. Settings:
``statistics``, ``models``.
"""

from typing import Any

import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from perfmis.figures import style
from perfmis.figures.common import Inputs, Row, only

FAMILIES: dict[str, tuple[str, str, bool]] = {
    "base": ("#56A868", "^", True),
    "organism": (style.BLACK, "P", True),
    "A+": (style.BLUE, "o", True),
    "A-": (style.BLUE, "o", False),
    "B+": (style.VERMILION, "s", True),
    "B-": (style.VERMILION, "s", False),
    "neutral": (style.GREY, "D", True),
}


def _nets(axis: Axes, row: Row, color: str, marker: str, filled: bool, size: float, fade: float) -> None:
    """Draw a profile in the plane of the nets, with intervals that stay in the background."""
    x = style.errors(row["A_net"], row["A_low"], row["A_high"])
    y = style.errors(row["B_net"], row["B_low"], row["B_high"])
    axis.errorbar(row["A_net"], row["B_net"], xerr=x, yerr=y, fmt="none", ecolor=color, alpha=fade, elinewidth=0.7)
    face = color if filled else "white"
    axis.plot(row["A_net"], row["B_net"], marker, color=color, markerfacecolor=face, markersize=size, zorder=4)


def _plane(axis: Axes) -> None:
    """Draw the axes through zero and the diagonal on which both nets are equal."""
    axis.axhline(0, color=style.PALE, linewidth=0.8, zorder=0)
    axis.axvline(0, color=style.PALE, linewidth=0.8, zorder=0)
    axis.axline((0, 0), slope=1, color=style.GREY, linestyle=":", linewidth=0.8, zorder=0)


def _layout(count: int) -> tuple[Figure, list[Axes], Axes]:
    """Return a figure with small panels, two a row, and one large panel at their right."""
    figure, _ = style.panels(0, 1, style.PAGE, 3.3 if count <= 4 else 4.4)
    figure.clear()
    left, right = list(figure.subfigures(1, 2, width_ratios=[1.08, 1.0], squeeze=False).flat)
    columns = 1 if count <= 1 else 2
    grid = left.subplots(-(-max(count, 1) // columns), columns, sharex=True, sharey=True, squeeze=False)
    axes = list(grid.flat)
    for axis in axes[count:]:
        axis.set_axis_off()
    return figure, axes, right.subplots()


def arrows(axis: Axes, pairs: list[tuple[str, Row | None, Row | None]]) -> None:
    """Draw each model's prompt profile, its SDF profile, and the way between them."""
    _plane(axis)
    for number, (_, prompt, sdf) in enumerate(pairs):
        color = style.MODELS[number % len(style.MODELS)]
        for row, method in ((prompt, "prompting"), (sdf, "sdf")):
            if row is not None:
                _nets(axis, row, color, style.METHODS[method], method == "sdf", 5.5, 0.55)
        if prompt is not None and sdf is not None:
            look: dict[str, Any] = {"arrowstyle": "-|>", "color": color, "shrinkA": 4, "shrinkB": 4}
            start, end = (prompt["A_net"], prompt["B_net"]), (sdf["A_net"], sdf["B_net"])
            axis.annotate("", end, start, arrowprops=look)
    axis.set_xlabel("A_net (pp)")
    axis.set_ylabel("B_net (pp)")
    axis.margins(0.08)
    corner: dict[str, Any] = {"transform": axis.transAxes, "color": style.GREY, "fontsize": style.SMALL}
    axis.text(0.02, 0.99, "consequence-sensitive", va="top", **corner)
    axis.text(0.99, 0.02, "expectation-sensitive", ha="right", **corner)


def _profile(profiles: pl.DataFrame, model: str, method: str) -> Row | None:
    """Return one profile, or None where it was not run or lacks a family."""
    found = [row for row in only(profiles, model=model, method=method) if row["angle"] is not None]
    return found[0] if found else None


def main(argv: list[str]) -> None:
    """Run the stage."""
    inputs = Inputs(argv, __doc__, ["calibration", "profiles"])
    calibration = inputs.table("calibration").filter(pl.col("angle").is_not_null())
    profiles = inputs.table("profiles")
    models = inputs.models_of(calibration)
    figure, small, large = _layout(len(models))
    if not models:
        style.empty(small[0], "no checkpoint was prompted")
    for number, (axis, model) in enumerate(zip(small, models, strict=False)):
        _plane(axis)
        for row in only(calibration, model=model):
            _nets(axis, row, *FAMILIES[row["family"]], size=4, fade=0.3)
        axis.set_title(model)
        axis.label_outer()
        if number % 2 == 0:
            axis.set_ylabel("B_net (pp)")
        if number >= len(models) - 2:
            axis.set_xlabel("A_net (pp)")
            axis.tick_params(labelbottom=True)
    pairs = [(m, _profile(profiles, m, "prompting"), _profile(profiles, m, "sdf")) for m in inputs.models_of(profiles)]
    arrows(large, pairs)
    large.set_title("From prompts (circle) to SDF (square)")
    present = set(calibration["family"])
    handles = [
        style.handle({"neutral": "N0"}.get(name, name).replace("-", "−"), color, marker, filled)
        for name, (color, marker, filled) in FAMILIES.items()
        if name in present
    ]
    handles += [
        style.Line2D([], [], color=style.MODELS[number % len(style.MODELS)], linewidth=2, label=model)
        for number, (model, _, _) in enumerate(pairs)
    ]
    rows = [*calibration.to_dicts(), *(row for _, *both in pairs for row in both if row is not None)]
    style.finish(
        figure,
        "Left: prompts read on checkpoints of known family. Right: prompt profile to SDF profile",
        handles,
        4 if len(handles) > 10 else 6,
        "Dotted: A_net = B_net.",
        style.sizes([row["n"] for row in rows], [row["seeds"] for row in rows], inputs.confidence) if rows else "",
        inputs.missing,
    )
    style.save(figure, inputs.output, inputs.fingerprint)
