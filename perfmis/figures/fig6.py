"""Stage `figures.fig6`: do random vectors of the same norm change the gap as the real ones do?

    python -m perfmis figures.fig6 --settings JSON --fingerprint HEX --steering TABLE --output fig6.pdf

One panel per model: the change of the gap from coefficient 0, for each real vector at both ends of the grid,
and for its random controls. Settings: ``statistics``, ``models``.
"""

import polars as pl
import seaborn as sns
from matplotlib.axes import Axes

from perfmis.figures import style
from perfmis.figures.common import Inputs, only

LABELS = {
    ("expectation", "in"): "expect.\nin",
    ("expectation", "out"): "expect.\nout",
    ("consequence", "in"): "conseq.\nin",
    ("consequence", "out"): "conseq.\nout",
}


def panel(axis: Axes, own: pl.DataFrame) -> None:
    """Draw one model: controls as grey dots over their range, real vectors with intervals."""
    axis.axhline(0, color=style.BLACK, linewidth=0.6)
    controls = own.filter(pl.col("control").is_not_null()).with_columns(
        vector=pl.concat_str("concept", pl.lit("."), "context")
    )
    order = [f"{concept}.{context}" for concept, context in LABELS]
    if controls.height:
        for place, name in enumerate(order):
            changes = controls.filter(pl.col("vector") == name)["change"].to_list()
            if changes:
                axis.fill_between([place - 0.38, place + 0.38], min(changes), max(changes), color=style.PALE, zorder=0)
        data = {"vector": controls["vector"].to_list(), "change": controls["change"].to_list()}
        sns.swarmplot(data=data, x="vector", y="change", order=order, ax=axis, color=style.GREY, size=2.6, zorder=2)
    for place, (concept, context) in enumerate(LABELS):
        real = only(own, concept=concept, context=context, control=None)
        if not real:
            continue
        largest = max(row["alpha"] for row in real)
        for row in real:
            if abs(row["alpha"]) == largest:
                ends = style.errors(row["change"], row["change_low"], row["change_high"])
                x = place + (0.26 if row["alpha"] > 0 else -0.26)
                color = style.CONCEPT[concept]
                style.point(axis, x, row["change"], color, row["alpha"] > 0, fmt="D", markersize=4, yerr=ends)
    axis.set_xticks(range(len(LABELS)), list(LABELS.values()))
    axis.set_xlabel("")
    axis.set_ylabel("")


def main(argv: list[str]) -> None:
    """Run the stage."""
    inputs = Inputs(argv, __doc__, ["steering"])
    table = inputs.pooled("steering")
    models = inputs.models_of(table)
    width = style.COLUMN if len(models) <= 1 else style.PAGE
    figure, axes = style.panels(len(models), style.columns(len(models), 2), width, 1.9, sharey=True)
    if not models:
        style.empty(axes[0], "no organism was steered")
    for axis, model in zip(axes, models, strict=False):
        panel(axis, table.filter(pl.col("model") == model))
        axis.set_title(model)
        style.left_label(axis, "change of gap (pp)")
    rows = table.to_dicts()
    largest = max((row["alpha"] for row in rows), default=0.0)
    controls = [row["control"] for row in rows if row["control"] is not None]
    handles = [
        style.handle(f"real vector, α = +{largest:g}", style.BLACK, "D"),
        style.handle(f"real vector, α = −{largest:g}", style.BLACK, "D", filled=False),
        style.handle("random vector", style.GREY, "."),
    ]
    style.finish(
        figure,
        "Change of the gap under real and random vectors",
        handles,
        1 if width == style.COLUMN else 3,
        f"{1 + max(controls)} random vectors of matched norm per vector; grey boxes show their range."
        if controls
        else "",
        style.sizes([row["n"] for row in rows], [row["seeds"] for row in rows], inputs.confidence) if rows else "",
        inputs.missing,
    )
    style.save(figure, inputs.output, inputs.fingerprint)
