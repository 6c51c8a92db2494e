"""Stage `figures.fig2`: the screen, the gap of every candidate organism against the rule.

    python -m perfmis figures.fig2 --settings JSON --fingerprint HEX --screen TABLE --output fig2.pdf

Settings: ``statistics``, ``models``, ``minimum_gap``.
"""

from perfmis.figures import style
from perfmis.figures.common import Inputs, only


def main(argv: list[str]) -> None:
    """Run the stage."""
    inputs = Inputs(argv, __doc__, ["screen"])
    screen, threshold = inputs.table("screen"), inputs.settings["minimum_gap"]
    models = inputs.models_of(screen)
    figure, (axis,) = style.panels(1, 1, style.COLUMN, 0.55 + 0.26 * len(models))
    axis.axvline(0, color=style.BLACK, linewidth=0.6)
    axis.axvline(threshold, color=style.GREY, linestyle="--", linewidth=0.9)
    for place, model in enumerate(models):
        (pooled,) = only(screen, model=model, seed=None)
        color = style.BLACK if pooled["passed"] else style.GREY
        for row in only(screen.filter(screen["seed"].is_not_null()), model=model):
            axis.plot(row["gap"], place + 0.27, "o", markersize=2.5, color=style.GREY)
        if pooled["base_gap"] is not None:
            axis.plot(pooled["base_gap"], place, "|", markersize=7, color=style.MODELS[3])
        ends = style.errors(pooled["gap"], pooled["low"], pooled["high"])
        style.point(axis, pooled["gap"], place, color, bool(pooled["passed"]), xerr=ends, elinewidth=1.4)
        verdict = "passed" if pooled["passed"] else "failed"
        weight = "bold" if pooled["passed"] else "normal"
        axis.text(
            1.02,
            place,
            verdict,
            transform=axis.get_yaxis_transform(),
            va="center",
            color=color,
            fontsize=style.SMALL,
            fontweight=weight,
        )
    axis.set_yticks(range(len(models)), models)
    axis.set_ylim(len(models) - 0.4, -0.6)
    axis.set_xlabel("gap: monitored − unmonitored compliance (pp)")
    handles = [
        style.handle("organism, pooled", style.BLACK),
        style.handle("one training seed", style.GREY, "."),
        style.handle("base model", style.MODELS[3], "|"),
        style.Line2D([], [], color=style.GREY, linestyle="--", label=f"rule: ≥ {threshold:g} pp"),
    ]
    rows = only(screen, seed=None)
    style.finish(
        figure,
        f"{sum(row['passed'] for row in rows)} of {len(rows)} organisms show a gap",
        handles,
        2,
        "The rule: interval above 0, and gap at the dashed line or right of it.",
        style.sizes([row["n"] for row in rows], [row["seeds"] for row in rows], inputs.confidence),
        inputs.missing,
    )
    style.save(figure, inputs.output, inputs.fingerprint)
