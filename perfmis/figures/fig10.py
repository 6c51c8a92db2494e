"""Stage `figures.fig10`: training curves of the organisms and arms.

    python -m perfmis figures.fig10 --settings JSON --fingerprint HEX --curves TABLE --output fig10.pdf

One panel per model with the loss against the tokens that it was taken on, and below it the gradient norm; one
line per checkpoint: the mean over training seeds, in a band from the lowest to the highest of them. Long logs
are averaged over ``PARTS`` equal parts of a run. Settings: ``statistics``, ``models``.
"""

from typing import Any

import polars as pl
from matplotlib.axes import Axes
from matplotlib.ticker import EngFormatter, FuncFormatter, LogLocator, MaxNLocator, NullLocator

from perfmis.figures import style
from perfmis.figures.common import Inputs
from perfmis.vocabulary import ORGANISM, checkpoint_order

PARTS = 60
MEASURES = ("loss", "gradient_norm")


def look(checkpoint: str) -> tuple[str, str]:
    """Return colour and line of a checkpoint: full or pale for contents 1 and 2, broken for the - pole."""
    if checkpoint == ORGANISM:
        return style.BLACK, "-"
    colors = style.TINT if checkpoint[1] == "2" else style.FAMILY
    return colors[checkpoint[0]], "--" if checkpoint.endswith("-") else "-"


def averaged(rows: pl.DataFrame) -> pl.DataFrame:
    """Return the curve of one checkpoint of one model: mean and range over training seeds, part by part.

    Args:
        rows: Logged steps of all its training seeds.

    Returns:
        ``loss_tokens`` and, for each of ``MEASURES``, its mean (under its own name), ``_low`` and ``_high``.
    """
    part = (pl.col("step") * PARTS / pl.col("step").max()).ceil().alias("part")
    by_seed = rows.group_by(part, "seed", maintain_order=True).agg(pl.col("loss_tokens", *MEASURES).mean())
    measures = pl.col(MEASURES)
    ends = (measures.min().name.suffix("_low"), measures.max().name.suffix("_high"))
    curve = by_seed.group_by("part", maintain_order=True).agg(pl.col("loss_tokens").mean(), measures.mean(), *ends)
    return curve.sort("part")


def panel(axis: Axes, curves: dict[str, pl.DataFrame], measure: str) -> None:
    """Draw one measure of all checkpoints of a model; the organism lies on top."""
    if all(curve[measure].is_null().all() for curve in curves.values()):
        axis.text(0.5, 0.5, "not logged", ha="center", va="center", transform=axis.transAxes, color=style.GREY)
    for checkpoint, curve in curves.items():
        color, line = look(checkpoint)
        tokens, order = curve["loss_tokens"], 3 if checkpoint == ORGANISM else 2
        options: dict[str, Any] = {"color": color, "linewidth": 0.9, "zorder": order}
        if curve.height == 1:
            options |= {"marker": ".", "markersize": 3}
        axis.fill_between(tokens, curve[f"{measure}_low"], curve[f"{measure}_high"], color=color, alpha=0.15, lw=0)
        axis.plot(tokens, curve[measure], line, **options)


def axes_of(loss: Axes, gradient: Axes, most: float) -> None:
    """Set scales, limits and ticks of the two panels of a model; ``most`` is the largest number of tokens."""
    for axis in (loss, gradient):
        axis.set_xlim(0, most)
        axis.xaxis.set_major_locator(MaxNLocator(3))
        axis.xaxis.set_major_formatter(EngFormatter(sep=""))
    loss.tick_params(labelbottom=False)
    gradient.set_xlabel("loss tokens")
    gradient.set_yscale("log")
    gradient.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    gradient.yaxis.set_minor_locator(NullLocator())
    gradient.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    style.left_label(loss, "loss (nats)")
    style.left_label(gradient, "grad. norm")


def sentences(table: pl.DataFrame) -> list[str]:
    """Return the note: how many runs, what lines and bands are, and runs that learned nothing or diverged."""
    runs = table.group_by("model", "seed", "checkpoint").agg(
        rose=pl.col("loss").last().is_null() | (pl.col("loss").last() > pl.col("loss").first())
    )
    models, checkpoints, seeds = (runs[name].n_unique() for name in ("model", "checkpoint", "seed"))
    sizes = f"{models} model{'s' if models > 1 else ''}, {checkpoints} checkpoints"
    spread = (
        "1 training seed, so the spread between trainings is not shown."
        if seeds == 1
        else f"{seeds} training seeds; lines are means over seeds, bands reach from the lowest to the highest."
    )
    rose = int(runs["rose"].sum())
    return [
        f"n = {runs.height} training runs: {sizes}, {spread}",
        f"Long logs are averaged over {PARTS} equal parts of a run." if table["step"].n_unique() > PARTS else "",
        f"In {rose} of {runs.height} runs the loss did not fall." if rose else "",
    ]


def main(argv: list[str]) -> None:
    """Run the stage."""
    inputs = Inputs(argv, __doc__, ["curves"])
    table = inputs.table("curves")
    models = inputs.models_of(table)
    checkpoints = sorted(table["checkpoint"].unique(), key=checkpoint_order)
    across = style.columns(len(models))
    blocks = -(-max(len(models), 1) // max(across, 1))
    width = style.COLUMN if len(models) <= 1 else style.PAGE
    ratios = {"height_ratios": [1.5, 1] * blocks} if models else None
    figure, axes = style.panels(2 * blocks * across, across, width, 1.35, sharey="row", gridspec_kw=ratios)
    if not models:
        style.empty(axes[0], "no organism was kept")
    for axis in axes if models else ():
        axis.set_axis_off()
    for number, model in enumerate(models):
        place = 2 * across * (number // across) + number % across
        loss, gradient = axes[place], axes[place + across]
        own = table.filter(pl.col("model") == model)
        curves = {name: averaged(own.filter(pl.col("checkpoint") == name)) for name in own["checkpoint"].unique()}
        curves = {name: curves[name] for name in checkpoints if name in curves}
        for axis, measure in zip((loss, gradient), MEASURES, strict=True):
            axis.set_axis_on()
            panel(axis, curves, measure)
        axes_of(loss, gradient, max(table["loss_tokens"]))
        loss.set_title(model)
    handles = [style.handle(name.replace("-", "−"), look(name)[0], "", line=look(name)[1]) for name in checkpoints]
    style.finish(
        figure,
        "Training curves: loss and gradient norm",
        handles,
        4 if width == style.COLUMN else 10,
        *(sentences(table) if models else ()),
        inputs.missing,
    )
    style.save(figure, inputs.output, inputs.fingerprint)
