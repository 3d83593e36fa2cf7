"""How figures look: settings for print, the colour and mark of every method, files that are the same every time."""

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import seaborn as sns
from matplotlib.figure import Figure

from precfm.report.frames import Frames
from precfm.report.vocabulary import in_order, is_flow, method_label, split_matched

WIDTH = 6.75  # inches: the text width of a two-column paper
BAND_FROM = 3  # seeds
INK = "#262626"
REFERENCE = "#8a8a8a"  # floors, targets, held-out data
FLOOR_LINE: dict[str, Any] = {"color": REFERENCE, "linestyle": (0, (5, 2)), "linewidth": 0.9}

# The colour-blind-safe palette of seaborn; "none" is black, the others stay apart in lightness too.
_PALETTE = sns.color_palette("colorblind").as_hex()
_LOOKS = {
    "none": ("#000000", "o"),
    "scalar": (_PALETTE[4], "s"),
    "per_channel": (_PALETTE[5], "D"),
    "whitening": (_PALETTE[0], "^"),
    "class_whitening": (_PALETTE[9], "v"),
    "normalizing_flow": (_PALETTE[3], "X"),
}
_SPARE_COLOURS = [_PALETTE[i] for i in (2, 1, 6, 8)]
_SPARE_MARKS = ["P", "<", "*", ">"]
_TICKS = {
    "color": INK,
    "labelsize": 6.8,
    "major.width": 0.6,
    "minor.width": 0.4,
    "major.size": 2.8,
    "minor.size": 1.6,
}
_DASHES = {"": "-", "-P": (0, (4, 1.5)), "-F": (0, (1, 1.2))}


@dataclass(frozen=True)
class Drawing:
    """A figure with its caption: one paragraph, without the command that makes it."""

    figure: Figure
    caption: str


@dataclass(frozen=True)
class MethodStyle:
    """How a method looks in every figure: colour by method, dashes by kind of matched baseline."""

    label: str
    colour: str
    mark: str
    dashes: Any

    def line(self, **changes: Any) -> dict[str, Any]:
        """Keyword arguments for a line of this method."""
        style = {
            "color": self.colour,
            "linestyle": self.dashes,
            "marker": self.mark,
            "markersize": 3.4,
            "markeredgecolor": "white",
            "markeredgewidth": 0.4,
            "linewidth": 1.1,
        }
        return {**style, **changes}


def method_styles(frames: Frames) -> dict[str, MethodStyle]:
    """The look of every method of an experiment, the same in all its figures.

    Methods without a colour of their own get a spare one by their place among all methods of all frames.
    """
    tables = [table for table in frames.values() if "method" in table]
    methods = in_order(method for table in tables for method in table["method"].unique() if is_flow(method))
    looks, spare = dict(_LOOKS), itertools.count()
    styles = {}
    for method in methods:
        base, suffix = split_matched(method)
        if base not in looks:
            turn, place = divmod(next(spare), len(_SPARE_COLOURS))  # where colours repeat, the marks differ
            looks[base] = _SPARE_COLOURS[place], _SPARE_MARKS[(place + turn) % len(_SPARE_MARKS)]
        styles[method] = MethodStyle(method_label(method), *looks[base], _DASHES[suffix])
    return styles


@contextmanager
def publication() -> Iterator[None]:
    """Settings of every figure, in force only inside: sizes for print, nothing of the user's own."""
    settings = {
        **sns.axes_style("ticks"),
        "font.family": "DejaVu Sans",
        "mathtext.fontset": "dejavusans",
        "font.size": 7.5,
        "axes.titlesize": 7.5,
        "axes.labelsize": 7.5,
        "axes.titlelocation": "left",
        "axes.titlepad": 4.0,
        "axes.linewidth": 0.6,
        "axes.edgecolor": INK,
        "axes.labelcolor": INK,
        "text.color": INK,
        **{f"{axis}tick.{name}": value for axis in "xy" for name, value in _TICKS.items()},
        "legend.fontsize": 6.8,
        "legend.frameon": False,
        "legend.handlelength": 2.2,
        "pdf.fonttype": 42,
        "svg.hashsalt": "precfm",
        "savefig.dpi": 150,
        "figure.dpi": 150,
        "axes.formatter.useoffset": False,
    }
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(settings)
        yield


def save(figure: Figure, stem: Path) -> None:
    """Write `<stem>.pdf` and `<stem>.png` (150 dpi), the same bytes every time: no dates, no versions."""
    without = {"CreationDate": None, "Producer": None, "Creator": None}
    with publication():
        figure.savefig(stem.with_name(stem.name + ".pdf"), metadata=without)
        figure.savefig(stem.with_name(stem.name + ".png"), dpi=150, metadata={"Software": None})
