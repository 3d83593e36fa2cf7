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
SMALLEST = 6.8  # points: of ticks and legends; titles and axis labels are larger
BAND_FROM = 3  # seeds
INK = "#262626"
REFERENCE = "#8a8a8a"  # what others are compared with: matched baselines, targets, classes
FLOOR_LINE: dict[str, Any] = {"color": INK, "linestyle": (0, (5, 2)), "linewidth": 0.7}

# Any two are 10 or more apart in CIEDE2000, also with no red, green or blue cones; the marks tell them apart in grey.
_LOOKS = {
    "none": ("#000000", "o"),
    "scalar": ("#7f7f7f", "s"),
    "per_channel": ("#8c2d04", "D"),
    "whitening": ("#0072b2", "^"),
    "class_whitening": ("#88ccee", "v"),
    "normalizing_flow": ("#d55e00", "X"),
    "low_capacity_flow": ("#e69f00", "P"),
    "gaussian_skip": ("#332288", "<"),
    "mixture_skip": ("#cc79a7", ">"),
}
_SPARE_MARKS = "*hdp"
_TICKS = {
    "color": INK,
    "labelsize": SMALLEST,
    "major.width": 0.6,
    "minor.width": 0.4,
    "major.size": 2.8,
    "minor.size": 1.6,
}
_DASHES = {"": "-", "-P": (0, (4, 1.5)), "-F": (0, (1, 1.2))}


@dataclass(frozen=True)
class Drawing:
    """A figure with its caption: one paragraph, without the command that makes it.

    The caption's first sentence says what is compared, on which data and how many seeds: it serves as alternative text.
    """

    figure: Figure
    caption: str


@dataclass(frozen=True)
class MethodStyle:
    """How a method looks in every figure; a matched baseline is grey, with the mark of its method, hollow if wider."""

    label: str
    colour: str
    mark: str
    dashes: Any

    def line(self, **changes: Any) -> dict[str, Any]:
        """Keyword arguments for a line of this method."""
        hollow = self.dashes == _DASHES["-P"]
        style = {
            "color": self.colour,
            "linestyle": self.dashes,
            "marker": self.mark,
            "markersize": 3.8 if self.dashes == "-" else 3.2,
            "markerfacecolor": "white" if hollow else self.colour,
            "markeredgecolor": self.colour if hollow else "white",
            "markeredgewidth": 0.6 if hollow else 0.4,
            "linewidth": 1.1 if self.dashes == "-" else 0.7,
        }
        return {**style, **changes}


def method_styles(frames: Frames) -> dict[str, MethodStyle]:
    """The look of every method of an experiment, the same in all its figures.

    Methods without a colour of their own get, by their place among all methods of all frames, a colour that no other
    method of the experiment has, and then those of others with marks of their own.
    """
    tables = [table for table in frames.values() if "method" in table]
    methods = in_order(method for table in tables for method in table["method"].unique() if is_flow(method))
    bases = list(dict.fromkeys(split_matched(method)[0] for method in methods))
    unused = [look for name, look in reversed(_LOOKS.items()) if name not in bases]
    repeated = itertools.cycle([colour for colour, _ in reversed(_LOOKS.values())])
    spare = itertools.chain(unused, zip(repeated, itertools.cycle(_SPARE_MARKS)))
    looks = {base: _LOOKS.get(base) or next(spare) for base in bases}
    styles = {}
    for method in methods:
        base, suffix = split_matched(method)
        colour, mark = looks[base]
        styles[method] = MethodStyle(
            method_label(method), REFERENCE if suffix else colour, mark, _DASHES[suffix]
        )
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
        "legend.fontsize": SMALLEST,
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
