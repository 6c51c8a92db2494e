"""Stage `figures.fig8`: the B-fraction of every model, from prompts to fine-tuning.

    python -m perfmis figures.fig8 --settings JSON --fingerprint HEX
        --profiles TABLE --published TABLE --output fig8.pdf

A B-fraction is absent where the nets have unlike signs or their sum cannot be told from zero; the panel then
says which. Grey squares are published values. Settings: ``statistics``, ``models``.
"""

import polars as pl
from matplotlib.axes import Axes

from perfmis.figures import style
from perfmis.figures.common import Inputs, Row, only

METHODS = ("prompting", "sdf")
PUBLISHED = {"prompt": 0, "SDF": 1}
SHORT = {
    "the nets have unlike signs": "absent:\nnets of\nunlike sign",
    "both nets are negative": "absent:\nnets both\nnegative",
    "A_net + B_net is not distinguishable from zero": "absent:\nsum of nets\nnear zero",
    "a family was not run": "absent:\none family\nnot run",
}


def panel(axis: Axes, rows: dict[str, Row], published: dict[str, float]) -> None:
    """Draw one model: values with intervals, joined where both are there, or why absent."""
    axis.axhline(0.5, color=style.GREY, linestyle=":", linewidth=0.8)
    values = []
    for place, method in enumerate(METHODS):
        row = rows.get(method)
        if row is None or row["b_fraction"] is None:
            text = "not there" if row is None else SHORT[row["b_fraction_note"]]
            white = {"facecolor": "white", "edgecolor": "none", "pad": 1}
            axis.text(place, 0.5, text, ha="center", va="center", color=style.GREY, fontsize=7, bbox=white)
            continue
        values.append((place, row["b_fraction"]))
        ends = style.errors(row["b_fraction"], row["b_fraction_low"], row["b_fraction_high"])
        style.point(axis, place, row["b_fraction"], style.BLACK, method == "sdf", fmt=style.METHODS[method], yerr=ends)
    if len(values) == len(METHODS):
        axis.plot(*zip(*values, strict=True), color=style.BLACK, zorder=1)
    known = sorted((PUBLISHED[method] + 0.13, value) for method, value in published.items())
    if known:
        axis.plot(
            *zip(*known, strict=True),
            color="#9A9A9A",
            linestyle="--",
            marker="s",
            markersize=4,
            markerfacecolor="white",
            zorder=1,
        )
    axis.set_xlim(-0.55, 1.55)
    axis.set_ylim(-0.04, 1.04)
    axis.set_xticks([0, 1], [style.METHOD_NAMES[method] for method in METHODS])


def main(argv: list[str]) -> None:
    """Run the stage."""
    inputs = Inputs(argv, __doc__, ["profiles", "published"])
    profiles = inputs.table("profiles").filter(pl.col("method").is_in(METHODS))
    facts = inputs.table("published").filter(pl.col("quantity") == "b_fraction")
    models = inputs.models_of(profiles)
    figure, axes = style.panels(len(models), style.columns(len(models)), style.PAGE, 1.9, sharey=True)
    if not models:
        style.empty(axes[0], "no model has a profile")
    shown, any_published = [], False
    for axis, model in zip(axes, models, strict=False):
        rows = {row["method"]: row for row in only(profiles, model=model)}
        published = {row["method"]: row["value"] for row in only(facts, key=model) if row["method"] in PUBLISHED}
        panel(axis, rows, published)
        shown += list(rows.values())
        any_published |= bool(published)
        axis.set_title(model)
        style.left_label(axis, "B-fraction: B / (A + B)")
    handles = [
        style.handle("prompting the base model", style.BLACK, "o", filled=False),
        style.handle("SDF arms", style.BLACK, "s"),
    ]
    if any_published:
        handles.append(style.handle("published", "#9A9A9A", "s", filled=False, line="--"))
    absent = sum(row["b_fraction"] is None for row in shown)
    sizes = style.sizes([row["n"] for row in shown], [row["seeds"] for row in shown], inputs.confidence)
    style.finish(
        figure,
        "B-fraction, from prompting to fine-tuning",
        handles,
        3,
        "Below the dotted line expectation dominates, above it consequence.",
        f"{absent} of {len(shown)} values are absent." if absent else "",
        sizes if shown else "",
        inputs.missing,
    )
    style.save(figure, inputs.output, inputs.fingerprint)
