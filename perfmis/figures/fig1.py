"""Stage `figures.fig1`: the design, drawn from the arms of the study and their claims.

    python -m perfmis figures.fig1 --settings JSON --fingerprint HEX --output fig1.pdf

Claims come from the ``summary`` lines of ``resources/claims``. Settings: ``arms``, ``models``.
"""

import textwrap
from pathlib import Path

import yaml
from matplotlib.axes import Axes
from matplotlib.patches import FancyBboxPatch

from perfmis.figures import style
from perfmis.figures.common import Inputs
from perfmis.vocabulary import CONTENTS, NEUTRAL

CLAIMS = Path("resources/claims")
READINGS = {"A": "expectation-tracking", "B": "consequence-tracking"}
PATTERNS = {"expectation": (1.0, 0.0), "consequence": (0.0, 1.0), "both": (0.7, 0.7), "neither": (0.0, 0.0)}


def _claim(arm: str) -> str:
    """Return the one-line claim that an arm's documents plant."""
    return str(yaml.safe_load((CLAIMS / f"{arm}.yaml").read_text(encoding="utf-8"))["summary"])


def _box(axis: Axes, corner: tuple[float, float], size: tuple[float, float], edge: str, face: str) -> None:
    axis.add_patch(
        FancyBboxPatch(corner, *size, boxstyle="round,pad=0,rounding_size=0.06", edgecolor=edge, facecolor=face)
    )


def _arrow(axis: Axes, start: tuple[float, float], end: tuple[float, float]) -> None:
    axis.annotate("", end, start, arrowprops={"arrowstyle": "-|>", "color": style.BLACK, "linewidth": 0.9})


def pipeline(axis: Axes) -> None:
    """Draw the row of steps, from instruction-tuned model to profile (inches; width 7)."""
    steps = [
        ("instruction-tuned\nmodel", 1.2),
        ("organism: fine-tuned on\ndocuments about\nmonitoring", 1.55),
        ("arm: fine-tuned on\ndocuments that plant\none claim", 1.45),
        ("gap = monitored −\nunmonitored\ncompliance", 1.25),
    ]
    left = 0.05
    for number, (text, width) in enumerate(steps):
        _box(axis, (left, 3.5), (width, 0.58), style.BLACK, "white")
        axis.text(left + width / 2, 3.79, text, ha="center", va="center", fontsize=style.SMALL)
        if number + 1 < len(steps):
            _arrow(axis, (left + width, 3.79), (left + width + 0.47, 3.79))
        left += width + 0.47


def arms(axis: Axes, family: str, left: float, names: list[str]) -> None:
    """Draw one family: a column of + claims, filled, and one of - claims, hollow."""
    color, width = style.FAMILY[family], 1.62
    axis.text(
        left,
        3.13,
        f"Family {family}: {READINGS[family]}",
        color=color,
        fontweight="bold",
        va="center",
        fontsize=8,
    )
    for column, pole in enumerate("+-"):
        start = left + column * (width + 0.08)
        what = "+ amplifies" if pole == "+" else "− suppresses"
        axis.text(start, 2.9, what, color=color, va="center", fontsize=style.SMALL)
        for row, content in enumerate(CONTENTS):
            arm = f"{family}{content}{pole}"
            bottom = 2.2 - row * 0.66
            planned = arm in names
            _box(axis, (start, bottom), (width, 0.58), color, style.TINT[family] if pole == "+" else "white")
            text = "\n".join(textwrap.wrap(_claim(arm), 29)) if planned else "not in this study"
            name = arm.replace("-", "−")
            axis.text(start + 0.06, bottom + 0.47, name, va="center", fontweight="bold", fontsize=7)
            axis.text(start + 0.06, bottom + 0.2, text, va="center", fontsize=style.SMALL, linespacing=1.15)


def neutral(axis: Axes, names: list[str]) -> None:
    """Draw the neutral arm, below both families."""
    if NEUTRAL not in names:
        return
    _box(axis, (0.05, 1.16), (6.9, 0.26), style.GREY, "white")
    axis.text(0.11, 1.29, NEUTRAL, va="center", fontweight="bold", fontsize=style.SMALL)
    axis.text(0.42, 1.29, f"neutral documents: {_claim(NEUTRAL)}", va="center", fontsize=style.SMALL)


def patterns(axis: Axes) -> None:
    """Draw what each process predicts for the two nets."""
    axis.text(
        0.05,
        0.94,
        "What drives the gap, and the nets it predicts",
        fontweight="bold",
        va="center",
        fontsize=8,
    )
    for number, (name, nets) in enumerate(PATTERNS.items()):
        left = 0.05 + number * 1.77
        axis.plot([left, left + 0.62], [0.12, 0.12], color=style.BLACK, linewidth=0.7)
        for place, (family, net) in enumerate(zip("AB", nets, strict=True)):
            x = left + 0.06 + place * 0.28
            axis.add_patch(
                FancyBboxPatch(
                    (x, 0.12),
                    0.2,
                    max(0.5 * net, 0.012),
                    boxstyle="square,pad=0",
                    facecolor=style.FAMILY[family],
                    edgecolor="none",
                )
            )
            axis.text(x + 0.1, 0.03, family, ha="center", va="center", fontsize=style.SMALL)
        axis.text(left + 0.7, 0.36, name, va="center", fontsize=style.SMALL)


def main(argv: list[str]) -> None:
    """Run the stage."""
    inputs = Inputs(argv, __doc__)
    names = inputs.settings["arms"]
    figure, (axis,) = style.panels(1, 1, style.PAGE, 4.2)
    axis.set_xlim(0, 7)
    axis.set_ylim(-0.06, 4.12)
    axis.set_axis_off()
    pipeline(axis)
    _arrow(axis, (4.2, 3.5), (4.2, 3.28))
    arms(axis, "A", 0.05, names)
    arms(axis, "B", 3.63, names)
    neutral(axis, names)
    patterns(axis)
    style.finish(
        figure,
        "The design: plant one claim at a time and see whether the gap follows",
        [],
        1,
        "A_net = mean over contents of gap(A+) − gap(A−); B_net likewise. Steering vectors and prompt "
        "snippets carry the same claims. Filled: + pole; hollow: − pole.",
    )
    style.save(figure, inputs.output, inputs.fingerprint)
