"""What all figures share: sizes, looks of the methods, intervals, legends, deterministic files."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import matplotlib as mpl
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogFormatterSciNotation, LogLocator, NullLocator
from numpy.typing import NDArray

from precfm.core.statistics import geometric_estimate, t_estimate
from precfm.report.formatting import seeds_text
from precfm.report.selection import Frames
from precfm.report.vocabulary import FLOOR, in_order, is_flow, method_label, split_matched

Images = Mapping[str, NDArray[np.uint8]]
P = ParamSpec("P")
R = TypeVar("R")

WIDTH = 6.75  # inches: the text width of a two-column paper
BAND_FROM = 3  # seeds
SPAN_FOR_LOG = 8.0  # a metric that falls by more is drawn on a log axis
INK = "#262626"
REFERENCE = "#8a8a8a"  # floors, targets, held-out data

# The colour-blind-safe palette of seaborn; "none" is black, the others stay apart in lightness too.
_PALETTE = sns.color_palette("colorblind").as_hex()
_COLOURS = {
    "none": "#000000",
    "scalar": _PALETTE[4],
    "per_channel": _PALETTE[5],
    "whitening": _PALETTE[0],
    "class_whitening": _PALETTE[9],
    "normalizing_flow": _PALETTE[3],
}
_SPARE_COLOURS = [_PALETTE[i] for i in (2, 1, 6, 8)]
_MARKS = {
    "none": "o",
    "scalar": "s",
    "per_channel": "D",
    "whitening": "^",
    "class_whitening": "v",
    "normalizing_flow": "X",
}
_SPARE_MARKS = ["P", "<", "*", ">"]
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
    methods: set[str] = set()
    for table in frames.values():
        if "method" in table.columns:
            methods.update(method for method in table["method"].unique() if is_flow(method))
    styles = {}
    others = [base for base in in_order(split_matched(m)[0] for m in methods) if base not in _COLOURS]
    for method in in_order(methods):
        base, suffix = split_matched(method)
        place = others.index(base) if base in others else 0
        turn, colour = divmod(place, len(_SPARE_COLOURS))  # where colours repeat, the marks differ
        styles[method] = MethodStyle(
            method_label(method),
            _COLOURS.get(base, _SPARE_COLOURS[colour]),
            _MARKS.get(base, _SPARE_MARKS[(colour + turn) % len(_SPARE_MARKS)]),
            _DASHES[suffix],
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
        "xtick.color": INK,
        "ytick.color": INK,
        "xtick.labelsize": 6.8,
        "ytick.labelsize": 6.8,
        "xtick.major.width": 0.6,
        "ytick.major.width": 0.6,
        "xtick.minor.width": 0.4,
        "ytick.minor.width": 0.4,
        "xtick.major.size": 2.8,
        "ytick.major.size": 2.8,
        "xtick.minor.size": 1.6,
        "ytick.minor.size": 1.6,
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


def published(function: Callable[P, R]) -> Callable[P, R]:
    """Draw under the settings of `publication`."""

    @wraps(function)
    def inside(*args: P.args, **kwargs: P.kwargs) -> R:
        with publication():
            return function(*args, **kwargs)

    return inside


def panels(
    rows: int, columns: int, *, height: float, arranged: bool = True, **options: Any
) -> tuple[Figure, Any]:
    """A figure with a grid of axes, made without the global figure list.

    Args:
        rows: rows of panels.
        columns: columns of panels.
        height: of one row, in inches.
        arranged: whether the space between panels is found automatically.
        options: further arguments of `Figure.subplots`.

    Returns:
        The figure and an array of axes, shape (rows, columns).
    """
    engine = ConstrainedLayoutEngine(w_pad=0.04, h_pad=0.04, wspace=0.03, hspace=0.04)
    figure = Figure(figsize=(WIDTH, rows * height), layout=engine if arranged else None)
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False, **options)
    for ax in axes.flat:
        sns.despine(ax=ax)
    return figure, axes


def letter(ax: Axes, position: int, text: str) -> None:
    """Title of a panel with its letter: (a) to (z), then (aa), (ab), ..."""
    turn, place = divmod(position, 26)
    first = chr(ord("a") + turn - 1) if turn else ""
    ax.set_title(f"({first}{chr(ord('a') + place)})  {text}")


def curve(
    ax: Axes, rows: pd.DataFrame, style: MethodStyle, *, log: bool = False, **changes: Any
) -> list[float]:
    """The mean over seeds as a line, with its interval as a band; below three seeds, each seed as a line.

    The interval of two seeds is so wide that it would hide everything else, and the two seeds say the same.

    Args:
        ax: where to draw.
        rows: columns x, seed, value.
        style: the method's look.
        log: take means and intervals on the log scale.
        changes: arguments of the line that differ from the style.

    Returns:
        The values that should stay in sight: means and single seeds.
    """
    means = curve_of(rows, log=log)
    ax.plot(means["x"], means["value"], **style.line(**changes))
    shown: list[float] = means["value"].tolist()
    if means["n"].max() >= BAND_FROM:
        banded = means[means["n"] >= BAND_FROM]
        ax.fill_between(
            banded["x"], banded["low"], banded["high"], color=style.colour, alpha=0.11, linewidth=0
        )
    elif means["n"].max() > 1:
        for _, of_seed in rows.sort_values("x").groupby("seed"):
            ax.plot(of_seed["x"], of_seed["value"], color=style.colour, linewidth=0.5, alpha=0.45, zorder=1.5)
        shown += rows["value"].tolist()
    return shown


def curve_of(rows: pd.DataFrame, *, log: bool = False) -> pd.DataFrame:
    """Mean and t interval over seeds at each x, on the log scale if asked: x, value, low, high, n."""
    estimator = geometric_estimate if log else t_estimate
    estimates = [(x, estimator(group["value"])) for x, group in rows.groupby("x", sort=True)]
    table = [(x, estimate.value, estimate.low, estimate.high, estimate.n) for x, estimate in estimates]
    return pd.DataFrame(table, columns=["x", "value", "low", "high", "n"])


def spread_text(rows: pd.DataFrame) -> str:
    """What a caption says about seeds and spread.

    Args:
        rows: with columns method and seed.
    """
    seeds = rows.groupby("method")["seed"].nunique()
    if seeds.max() >= BAND_FROM:
        return f"over {seeds_text(seeds)}, band: 95% t interval"
    return f"over {seeds_text(seeds)}" + (" (each one a thin line)" if seeds.max() > 1 else "")


def legend(
    figure: Figure, styles: Sequence[MethodStyle], extra: Sequence[tuple[str, dict[str, Any]]] = ()
) -> None:
    """One legend below the whole figure.

    Args:
        figure: the figure.
        styles: the methods to name.
        extra: further entries: label and arguments of the line.
    """
    handles = [Line2D([], [], label=style.label, **style.line()) for style in styles]
    handles += [Line2D([], [], label=label, **line) for label, line in extra]
    labels = [str(handle.get_label()) for handle in handles]
    columns = next(n for n in range(min(len(labels), 5), 0, -1) if n == 1 or _legend_width(labels, n) < WIDTH)
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, columnspacing=1.6)


def _legend_width(labels: Sequence[str], columns: int) -> float:
    """Inches that a legend takes, about: labels fill one column after the other."""
    longest = [max(map(len, part)) for part in np.array_split(np.array(labels), columns)]
    return sum(0.53 + 0.053 * letters for letters in longest)


def fit_to_means(ax: Axes, values: Sequence[float], *, log: bool) -> None:
    """Fit the value axis to these values, so that one wide interval does not flatten all lines."""
    low, high = min(values), max(values)
    if log:
        factor = max((high / low) ** 0.12, 1.05)
        ax.set_yscale("log")
        ax.set_ylim(low / factor, high * factor)
    else:
        room = 0.12 * (high - low) or 0.05 * abs(high) or 1.0
        ax.set_ylim(low - room, high + room)


def plain_log_ticks(ax: Axes) -> None:
    """Numbers such as 0.5, 1, 2 on a log axis that spans little, powers of ten on one that spans much."""
    low, high = ax.get_ylim()
    if high / low > 100:
        return
    ticks: Sequence[float] = (1, 2, 5)
    if high / low <= 8:
        ticks = (1, 1.5, 2, 3, 5, 7) if high / low > 1.8 else np.arange(1, 10, 0.2).tolist()
    ax.yaxis.set_major_locator(LogLocator(base=10, subs=ticks))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.yaxis.set_minor_locator(NullLocator())


def sparse_log_ticks(ax: Axes) -> None:
    """Powers of ten on the horizontal log axis, with 2 and 5 between them where it spans little."""
    low, high = ax.get_xlim()
    ax.xaxis.set_major_locator(LogLocator(base=10, subs=(1, 2, 5) if high / low < 30 else (1,)))
    ax.xaxis.set_major_formatter(
        LogFormatterSciNotation(base=10, labelOnlyBase=False, minor_thresholds=(10, 10))
    )
    ax.xaxis.set_minor_formatter(FuncFormatter(lambda value, _: ""))


FLOOR_LINE: dict[str, Any] = {"color": REFERENCE, "linestyle": (0, (5, 2)), "linewidth": 0.9}
FLOOR_ENTRY = (method_label(FLOOR), FLOOR_LINE)


def save(figure: Figure, stem: Path) -> None:
    """Write `<stem>.pdf` and `<stem>.png` (150 dpi), the same bytes every time: no dates, no versions."""
    with publication():
        figure.savefig(
            stem.with_name(stem.name + ".pdf"),
            metadata={"CreationDate": None, "Producer": None, "Creator": None},
        )
        figure.savefig(stem.with_name(stem.name + ".png"), dpi=150, metadata={"Software": None})
