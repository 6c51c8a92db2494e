"""One look for all figures: colours, markers, type, and saving without timestamps.

Colours are those of Okabe and Ito, which colour-blind readers tell apart: blue for family A and expectation,
vermilion for family B and consequence. A filled mark is the + pole, a hollow one the - pole, so figures also
survive a print in grey. Widths are one column (3.4 in) or two (7 in); no type is smaller than 7 pt.
"""

import os
import textwrap
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from perfmis import carried

COLUMN, PAGE = 3.4, 7.0
SMALL = 7.0

BLUE, VERMILION, BLACK, GREY, PALE = "#0072B2", "#D55E00", "#222222", "#767676", "#E4E4E4"
FAMILY = {"A": BLUE, "B": VERMILION, "N": GREY}
TINT = {"A": "#A6CDE4", "B": "#F2C0A0", "N": "#CFCFCF"}
CONCEPT = {"expectation": BLUE, "consequence": VERMILION}
MODELS = ("#009E73", "#CC79A7", "#9A6A00", "#3A87C8", "#222222", "#B03A2E", "#6A51A3", "#4D4D4D")
METHODS = {"prompting": "o", "sdf": "s", "steering:out": "D", "steering:in": "v"}
METHOD_NAMES = {
    "prompting": "prompting",
    "sdf": "SDF",
    "steering:out": "steer out",
    "steering:in": "steer in",
}
WARNED = "!"

RC: Any = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 7.5,
    "axes.titlesize": 8.0,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 7.5,
    "axes.linewidth": 0.6,
    "axes.edgecolor": BLACK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "xtick.labelsize": SMALL,
    "ytick.labelsize": SMALL,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "legend.fontsize": SMALL,
    "legend.frameon": False,
    "legend.handletextpad": 0.5,
    "legend.borderpad": 0.2,
    "legend.labelspacing": 0.35,
    "legend.columnspacing": 1.2,
    "lines.linewidth": 1.1,
    "lines.markersize": 4.5,
    "hatch.linewidth": 0.5,
    "savefig.dpi": 300,
    "svg.fonttype": "none",
    "svg.hashsalt": "perfmis",
    "pdf.fonttype": 42,
    "figure.constrained_layout.use": True,
}


def columns(count: int, most: int = 4) -> int:
    """Return how many panels stand side by side: at most ``most``, and rows that are about equally full."""
    return -(-count // max(-(-count // most), 1))


def panels(count: int, across: int, width: float, height: float, **options: Any) -> tuple[Figure, list[Axes]]:
    """Return a figure with a grid of ``count`` panels in the shared style.

    Args:
        count: Number of panels (one where there is nothing to draw); unused places of the grid stay empty.
        across: Panels side by side.
        width: Width of the figure in inches.
        height: Height of one row of panels in inches.
        options: Passed on to ``matplotlib.pyplot.subplots``.
    """
    plt.rcParams.update(RC)
    count = max(count, 1)
    across = min(max(across, 1), count)
    rows = -(-count // across)
    figure, axes = plt.subplots(rows, across, figsize=(width, rows * height), squeeze=False, **options)
    flat = list(axes.flat)
    for axis in flat[count:]:
        axis.set_axis_off()
    return figure, flat[:count]


def finish(figure: Figure, title: str, handles: list[Any], columns: int, *sentences: str) -> None:
    """Set the title, one legend for all panels and the note below; the figure grows by as much.

    Args:
        figure: A figure of ``panels``.
        title: Its message.
        handles: Legend entries.
        columns: Columns of the legend.
        sentences: The note: sizes, intervals, marks; empty ones are left out.
    """
    heading = _wrapped(figure, title, 9.0, 0.63)
    note = _wrapped(figure, " ".join(sentence for sentence in sentences if sentence), SMALL, 0.53)
    below = (note.count("\n") + 1) * SMALL * 1.3 / 72 + 0.06
    keys = -(-len(handles) // columns) * SMALL * 1.6 / 72 + (0.08 if handles else 0.0)
    width, height = figure.get_size_inches()
    above = (heading.count("\n") + 1) * 0.19
    height += below + keys + above
    figure.set_size_inches(width, height)
    rect = (0.0, (below + keys) / height, 1.0, 1.0 - (below + keys + above) / height)
    figure.set_layout_engine("constrained", rect=rect)
    figure.suptitle(heading, x=0.01, y=1 - 0.04 / height, ha="left", va="top", fontsize=9.0, fontweight="bold")
    figure.text(0.01, 0.03 / height, note, va="bottom", fontsize=SMALL, color="#444444", linespacing=1.25)
    if handles:
        place = (0.0, below / height)
        entries = figure.legend(handles=handles, loc="lower left", ncols=columns, bbox_to_anchor=place)
        entries.set_in_layout(False)


def _wrapped(figure: Figure, text: str, size: float, letter: float) -> str:
    """Return text wrapped to the width of the figure; a letter is about ``letter`` of the type size wide."""
    width = 0.98 * figure.get_figwidth() * 72 / (letter * size)
    return "\n".join(textwrap.wrap(text, int(width)))


def sizes(n: list[int], seeds: list[int], confidence: float) -> str:
    """Return the sentence on prompts, training seeds and intervals."""
    prompts = " to ".join(str(number) for number in sorted({min(n), max(n)})) if n else "0"
    start = f"n = {prompts} prompts; "
    ends = f"{100 * confidence:g} % bootstrap intervals"
    if max(seeds, default=0) == 1:
        return f"{start}1 training seed, so the {ends} hold prompts only, not the spread between trainings."
    trained = " to ".join(str(number) for number in sorted({min(seeds), max(seeds)})) if seeds else "0"
    return f"{start}{trained} training seeds; {ends} over seeds and prompts."


def left_label(axis: Axes, text: str) -> None:
    """Set a y label, on the panels of the first column only."""
    place = axis.get_subplotspec()
    if place is not None and place.is_first_col():
        axis.set_ylabel(text)


def errors(value: float, low: float, high: float) -> np.ndarray:
    """Return the lengths of an error bar, (2, 1), never below zero."""
    return np.array([[max(value - low, 0.0)], [max(high - value, 0.0)]])


def point(axis: Axes, x: Any, y: Any, color: str, filled: bool = True, **options: Any) -> None:
    """Draw a mark, or a curve of marks, filled or hollow, with error bars (``xerr``, ``yerr``)."""
    look: dict[str, Any] = {
        "fmt": "o",
        "elinewidth": 0.9,
        "capsize": 0,
        "markeredgewidth": 0.9,
        "zorder": 3,
    } | options
    axis.errorbar(x, y, color=color, markerfacecolor=color if filled else "white", **look)


def handle(label: str, color: str, marker: str = "o", filled: bool = True, line: Any = "none") -> Line2D:
    """Return a legend entry."""
    face = color if filled else "white"
    return Line2D([], [], color=color, marker=marker, markerfacecolor=face, linestyle=line, label=label)


def empty(axis: Axes, text: str) -> None:
    """Say in a panel why it shows nothing."""
    axis.set_axis_off()
    axis.text(0.5, 0.5, text, ha="center", va="center", transform=axis.transAxes, color=GREY)


def settle(figure: Figure) -> None:
    """Lay the figure out and keep its places, rounded: the solver's last digits vary from run to run."""
    solver = figure.get_layout_engine()
    assert solver is not None
    solver.execute(figure)
    figure.set_layout_engine("none")
    for axis in figure.axes:
        axis.set_position(np.round(axis.get_position(original=True).bounds, 4).tolist())


def save(figure: Figure, output: Path, fingerprint: str) -> None:
    """Write ``output`` (PDF) with PNG and SVG beside it, which carries the fingerprint.

    Equal figures give equal bytes.
    """
    settle(figure)
    output.parent.mkdir(parents=True, exist_ok=True)
    metadata: dict[str, dict[str, Any]] = {
        "pdf": {"CreationDate": None, "Creator": "perfmis"},
        "svg": {"Date": None, "Creator": "perfmis"},
        "png": {"Software": "perfmis"},
    }
    for kind, entries in metadata.items():
        partial = output.with_suffix(f".{kind}.partial")
        figure.savefig(partial, format=kind, metadata=entries)
        target = output.with_suffix(f".{kind}")
        if kind == "svg":
            with partial.open("a") as file:
                file.write(carried.comment(target, fingerprint))
        os.replace(partial, target)
    plt.close(figure)
