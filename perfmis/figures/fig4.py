"""Stage `figures.fig4`: steering along the two concepts, what it does to compliance and to the scratchpads.

    python -m perfmis figures.fig4 --settings JSON --fingerprint HEX --steering TABLE --output fig4.pdf

Two rows per model: compliance per tier with the share of malformed answers, and how often scratchpads state
the + poles; one column per vector (two concepts, in and out of context). Grey marks at the largest
coefficients are random vectors of the same norm. Settings: ``statistics``, ``models``.
"""

from typing import Any

import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.patches import Patch

from perfmis.figures import style
from perfmis.figures.common import Inputs, Row, only

VECTORS = [(concept, context) for concept in ("expectation", "consequence") for context in ("in", "out")]
CONTEXTS = {"in": "in", "out": "out of"}


def _curve(axis: Axes, rows: list[Row], name: str, color: str, filled: bool, scale: float = 1.0) -> None:
    """Draw one measure of the real vector against the coefficient, with intervals."""
    alphas = [row["alpha"] for row in rows]
    values = [scale * row[name] for row in rows]
    ends = [style.errors(row[name], row[f"{name}_low"], row[f"{name}_high"]) for row in rows]
    line = "o-" if filled else "o--"
    style.point(
        axis, alphas, values, color, filled, fmt=line, yerr=scale * np.hstack(ends), markersize=3.5, linewidth=1
    )


def _controls(axis: Axes, rows: list[Row], names: list[str], width: float, scale: float = 1.0) -> None:
    """Draw the random vectors as grey marks, beside their coefficient so that they hide nothing."""
    for place, name in enumerate(names):
        for row in rows:
            outwards = 1 if row["alpha"] > 0 else -1
            x = row["alpha"] + outwards * width * (0.06 + 0.04 * place)
            axis.plot(x, scale * row[name], marker="_.."[place], color="#9A9A9A", markersize=4.5, zorder=1)


def compliance(axis: Axes, real: list[Row], controls: list[Row], color: str, width: float) -> None:
    """Draw compliance per tier, the share of malformed answers, and the random vectors."""
    axis.fill_between(
        [row["alpha"] for row in real],
        [100 * row["malformed"] for row in real],
        color=style.GREY,
        alpha=0.35,
        linewidth=0,
        zorder=0,
    )
    _controls(axis, controls, ["compliance_monitored", "compliance_unmonitored"], width)
    _curve(axis, real, "compliance_monitored", color, filled=True)
    _curve(axis, real, "compliance_unmonitored", color, filled=False)
    axis.set_ylim(-3, 103)


def scratchpad(axis: Axes, real: list[Row]) -> None:
    """Draw how often scratchpads state the + pole of either belief."""
    for concept, color in style.CONCEPT.items():
        _curve(axis, real, f"{concept}_rate", color, filled=True, scale=100)
    axis.set_ylim(-3, 103)


def main(argv: list[str]) -> None:
    """Run the stage."""
    inputs = Inputs(argv, __doc__, ["steering"])
    table = inputs.pooled("steering").sort("alpha")
    models = inputs.models_of(table)
    figure, axes = style.panels(
        8 * len(models),
        4,
        style.PAGE,
        {0: 1.5, 1: 1.5, 2: 1.12}.get(len(models), 0.98),
        sharex=True,
        sharey=True,
    )
    if not models:
        style.empty(axes[0], "no organism was steered")
    for number, model in enumerate(models):
        for column, (concept, context) in enumerate(VECTORS):
            upper, lower = axes[8 * number + column], axes[8 * number + 4 + column]
            own = table.filter(pl.col("model") == model)
            real = only(own, concept=concept, context=context, control=None)
            random = only(own.filter(pl.col("control").is_not_null()), concept=concept, context=context)
            if not real:
                continue
            width = real[-1]["alpha"] - real[0]["alpha"]
            compliance(upper, real, random, style.CONCEPT[concept], width)
            scratchpad(lower, real)
            lower.set_xticks([real[0]["alpha"], 0, real[-1]["alpha"]])
            if number == 0:
                upper.set_title(f"{concept} vector,\n{CONTEXTS[context]} context")
            if number == len(models) - 1:
                lower.set_xlabel("coefficient α")
        axes[8 * number].set_ylabel("comply (%)")
        axes[8 * number + 4].set_ylabel("+ stated (%)")
        offset = (-26, 4 if number else 22)
        look: dict[str, Any] = {"fontsize": 8, "fontstyle": "italic", "va": "bottom"}
        axes[8 * number].annotate(
            f"model: {model}", (0, 1), offset, xycoords="axes fraction", textcoords="offset points", **look
        )
    handles = [
        style.handle("monitored", style.BLACK, line="-"),
        style.handle("unmonitored", style.BLACK, filled=False, line="--"),
        Patch(facecolor=style.GREY, alpha=0.35, label="malformed"),
        style.handle("random vector, monitored", "#9A9A9A", "_"),
        style.handle("random vector, unmonitored", "#9A9A9A", "."),
        style.handle("scratchpad states expectation +", style.BLUE, line="-"),
        style.handle("scratchpad states consequence +", style.VERMILION, line="-"),
    ]
    rows = table.to_dicts()
    style.finish(
        figure,
        "Steering: compliance per tier (upper rows) and what the scratchpad says (lower rows)",
        handles,
        3,
        "α is in units of the residual stream's norm.",
        style.sizes([row["n"] for row in rows], [row["seeds"] for row in rows], inputs.confidence) if rows else "",
        inputs.missing,
    )
    style.save(figure, inputs.output, inputs.fingerprint)
