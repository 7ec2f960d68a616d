"""How figures look: colours and markers that stay apart without colour vision, and sizes.

A figure is one panel, narrow enough to be read on a phone; the page puts several side by side.
"""

from __future__ import annotations

import io
import re
import unicodedata
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter

BASELINE_COLOR = "#000000"
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""Okabe and Ito, 2008, without yellow, which is too light for lines; the baseline is black."""
MARKERS = ("s", "^", "D", "v", "P", "X", "*")
LINES = ("--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (8, 2)))

WIDTH = 4.6  # inches
HEIGHT = 3.3
ROW = 0.34  # inches per row of a figure with a row per arm
DPI = 160

_RC: dict[str, Any] = {
    "font.size": 9,
    "font.family": "DejaVu Sans",
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "legend.handlelength": 3.2,
    "svg.hashsalt": "rllib_weighted",  # The same ids in every run.
    "text.parse_math": False,  # A "$" in a name is a "$".
}


@dataclass(frozen=True)
class Look:
    """Colour, marker and line of an arm, the same in every figure of its environment."""

    color: str
    marker: str
    line: Any


def looks(arms: Sequence[str], baseline: Sequence[str]) -> dict[str, Look]:
    """Returns the look of each arm of an environment; those of the baseline are black.

    The cycles have lengths without a common divisor, so that combinations repeat late.
    """
    found: dict[str, Look] = {}
    count = 0
    for arm in arms:
        if arm in baseline:
            number = sum(1 for other in found if other in baseline)
            line = "-" if number == 0 else LINES[(number - 1) % len(LINES)]
            found[arm] = Look(BASELINE_COLOR, "o", line)
        else:
            found[arm] = Look(
                COLORS[count % len(COLORS)],
                MARKERS[count % len(MARKERS)],
                LINES[count % len(LINES)],
            )
            count += 1
    return found


@dataclass(frozen=True)
class Drawing:
    """A finished figure.

    Attributes:
        name: Its file's name, without a suffix.
        env: The environment that it shows.
        section: The part of the report that it belongs to.
        title: What it shows.
        note: What has to be known to read it.
        png: The picture as PNG.
        svg: The picture as SVG.
    """

    name: str
    env: str
    section: str
    title: str
    note: str
    png: bytes
    svg: bytes


@contextmanager
def canvas(width: float = WIDTH, height: float = HEIGHT) -> Iterator[tuple[Figure, Axes]]:
    """Gives an empty figure with one panel, in our style."""
    with mpl.rc_context(cast(Any, _RC)), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure, figure.add_subplot()


def pictures(figure: Figure) -> tuple[bytes, bytes]:
    """Returns a figure as PNG and as SVG, the same bytes for the same figure."""
    png, svg = io.BytesIO(), io.BytesIO()
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # It is laid out: not once more for each file.
    figure.savefig(png, format="png", dpi=DPI, metadata={"Software": None})
    figure.savefig(svg, format="svg", metadata={"Date": None, "Creator": None})
    return png.getvalue(), svg.getvalue()


def step_axis(axes: Axes) -> None:
    """Labels the horizontal axis as environment steps."""
    axes.set_xlabel("environment steps (steps)")
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.set_xlim(left=0)


def legend_below(figure: Figure, looks: dict[str, Look], arms: Sequence[str]) -> None:
    """Puts the arms' names under a figure, one a line where they are long."""
    handles = [
        Line2D([], [], color=looks[arm].color, marker=looks[arm].marker, linestyle=looks[arm].line)
        for arm in arms
    ]
    names = [plain(arm, 60) for arm in arms]
    columns = 2 if max(map(len, names), default=0) <= 26 else 1
    figure.legend(handles, names, loc="outside lower center", ncols=columns)


def plain(text: str, longest: int = 40) -> str:
    """Returns text that a figure can show: one line, no control characters, not too long.

    Matplotlib leaves names that begin with an underscore out of legends.
    """
    shown = "".join("\ufffd" if unicodedata.category(c)[0] == "C" else c for c in text)
    shown = shown if len(shown) <= longest else shown[: longest - 1] + "…"
    return f" {shown}" if shown.startswith("_") else shown


def file_stem(*parts: str) -> str:
    """Returns a file's name made of words, safe on any file system."""
    return "_".join(re.sub(r"[^a-z0-9]+", "-", part.lower()).strip("-")[:40] for part in parts)
