"""Stage `figures.fig3`: the gap of every arm, beside the published bars.

    python -m perfmis figures.fig3 --settings JSON --fingerprint HEX
        --gaps TABLE --published TABLE --output fig3.pdf

One panel per model with arms. A bar is the mean over the two contents of a pole, marks are the contents with
their intervals; hatched bars are published values, which exist for some models and poles only. Settings:
``statistics``, ``models``.
"""

from typing import Any

import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.patches import Patch

from perfmis.figures import style
from perfmis.figures.common import Inputs, Row, only
from perfmis.vocabulary import BASE, CONTENTS, NEUTRAL, ORGANISM

POLES = ("A+", "A-", "B+", "B-")
MARKERS = {1: "o", 2: "s"}


def _published(published: pl.DataFrame, model: str) -> dict[str, float]:
    """Return the published gaps of a model by condition (``A+``, ``baseline``, ...), means over contents."""
    rows = only(published, key=model, quantity="gap", method="SDF")
    return {row["condition"]: row["value"] for row in rows if row["figure"] != "table"}


def _arm(axis: Axes, x: float, row: Row, marker: str) -> None:
    """Draw one arm: its gap with interval, and a mark when it carries a warning."""
    color, filled = style.FAMILY[row["checkpoint"][0]], not row["checkpoint"].endswith("-")
    ends = style.errors(row["gap"], row["low"], row["high"])
    style.point(axis, x, row["gap"], color, filled, fmt=marker, markersize=4, yerr=ends)
    if row["warning"]:
        axis.annotate(
            style.WARNED,
            (x, row["high"]),
            (0, 1),
            textcoords="offset points",
            ha="center",
            va="bottom",
            fontweight="bold",
            fontsize=9,
        )


def _bar(axis: Axes, x: float, gap: float, pole: str, width: float) -> None:
    color = style.TINT[pole[0]] if pole.endswith("+") or pole == NEUTRAL else "white"
    axis.bar(x, gap, width, color=color, edgecolor=style.FAMILY[pole[0]], linewidth=0.8, zorder=1)


def panel(axis: Axes, arms: dict[str, Row], organism: Row | None, published: dict[str, float]) -> None:
    """Draw one model: organism line and band (unless its samples are missing), bars per pole, marks per content."""
    if organism is not None:
        axis.axhspan(organism["low"], organism["high"], color=style.PALE, zorder=0)
        axis.axhline(organism["gap"], color=style.BLACK, linestyle="--", linewidth=0.9, zorder=2)
    if "baseline" in published:
        axis.axhline(published["baseline"], color=style.GREY, linestyle=":", linewidth=0.9, zorder=2)
    axis.axhline(0, color=style.BLACK, linewidth=0.6)
    groups = [pole for pole in POLES if any(f"{pole[0]}{c}{pole[1]}" in arms for c in CONTENTS)]
    groups += [NEUTRAL] if NEUTRAL in arms else []
    width = 0.4 if published else 0.6
    for place, pole in enumerate(groups):
        names = {1: NEUTRAL} if pole == NEUTRAL else {c: f"{pole[0]}{c}{pole[1]}" for c in CONTENTS}
        found = {content: arms[name] for content, name in names.items() if name in arms}
        shift = -0.2 if pole in published else 0.0
        _bar(axis, place + shift, float(np.mean([row["gap"] for row in found.values()])), pole, width)
        for content, row in found.items():
            offset = 0.0 if pole == NEUTRAL else (content - 1.5) * width / 2
            _arm(axis, place + shift + offset, row, MARKERS[content])
        if pole in published:
            look: dict[str, Any] = {
                "color": "white",
                "edgecolor": style.GREY,
                "hatch": "/////",
                "linewidth": 0.6,
            }
            axis.bar(place + 0.22, published[pole], 0.36, zorder=1, **look)
    axis.set_xticks(range(len(groups)), [group.replace("-", "−") for group in groups])
    axis.tick_params(axis="x", length=0)
    axis.margins(y=0.08)


def main(argv: list[str]) -> None:
    """Run the stage."""
    inputs = Inputs(argv, __doc__, ["gaps", "published"])
    gaps, published = inputs.pooled("gaps"), inputs.table("published")
    treated = gaps.filter(~pl.col("checkpoint").is_in([BASE, ORGANISM]))
    models = inputs.models_of(treated)
    figure, axes = style.panels(len(models), style.columns(len(models), 3), style.PAGE, 1.75, sharey=True)
    if not models:
        style.empty(axes[0], "no arm was trained")
    any_published = False
    for axis, model in zip(axes, models, strict=False):
        facts = _published(published, model)
        any_published |= bool(facts)
        arms = {row["checkpoint"]: row for row in only(treated, model=model)}
        protocol = next(iter(arms.values()))["protocol"]
        organism = next(iter(only(gaps, model=model, checkpoint=ORGANISM, protocol=protocol)), None)
        panel(axis, arms, organism, facts)
        axis.set_title(model)
        style.left_label(axis, "gap (pp)")
    handles: list[Any] = [
        style.handle("content 1, + arm", style.BLACK, "o"),
        style.handle("content 2, + arm", style.BLACK, "s"),
        style.handle("content 1, − arm", style.BLACK, "o", filled=False),
        style.handle("content 2, − arm", style.BLACK, "s", filled=False),
        Patch(facecolor=style.TINT["A"], edgecolor=style.BLUE, label="A: expectation"),
        Patch(facecolor=style.TINT["B"], edgecolor=style.VERMILION, label="B: consequence"),
        Patch(facecolor=style.TINT["N"], edgecolor=style.GREY, label="N0: neutral"),
        style.Line2D([], [], color=style.BLACK, linestyle="--", label="organism, with its interval"),
    ]
    if any_published:
        handles += [
            Patch(facecolor="white", edgecolor=style.GREY, hatch="/////", label="published, mean over contents"),
            style.Line2D([], [], color=style.GREY, linestyle=":", label="published organism"),
        ]
    rows = treated.to_dicts()
    warned = sum(bool(row["warning"]) for row in rows)
    style.finish(
        figure,
        "Gap after each second round of fine-tuning",
        handles,
        4,
        "Bars: mean over contents.",
        style.sizes([row["n"] for row in rows], [row["seeds"] for row in rows], inputs.confidence) if rows else "",
        f"{style.WARNED} marks {warned} of {len(rows)} arms with a warning in the gaps table." if warned else "",
        inputs.missing,
    )
    style.save(figure, inputs.output, inputs.fingerprint)
