"""What figures are composed of: panels, curves over seeds, legends, log axes."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogFormatterSciNotation, LogLocator, NullLocator

from precfm.report.figures.style import BAND_FROM, FLOOR_LINE, REFERENCE, WIDTH, MethodStyle
from precfm.report.formatting import seeds_text
from precfm.report.summaries import summarised
from precfm.report.vocabulary import FLOOR, in_order, method_label

SPAN_FOR_LOG = 8.0  # a metric that falls by more is drawn on a log axis
FLOOR_ENTRY = (method_label(FLOOR), FLOOR_LINE)
TARGET_LINE: dict[str, Any] = {"color": REFERENCE, "linestyle": ":", "linewidth": 0.9}


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


def small_multiples(count: int, columns: int, *, height: float, **options: Any) -> tuple[Figure, list[Axes]]:
    """A figure with this many panels, row by row, in at most so many columns; see `panels`."""
    columns = min(columns, count)
    figure, axes = panels(-(-count // columns), columns, height=height, **options)
    for ax in axes.flat[count:]:
        ax.remove()
    return figure, list(axes.flat[:count])


def letter(ax: Axes, position: int, text: str, dataset: str = "") -> None:
    """Title of a panel with its letter: (a) to (z), then (aa), (ab), ...; with the data set where several are shown."""
    turn, place = divmod(position, 26)
    first = chr(ord("a") + turn - 1) if turn else ""
    ax.set_title(f"({first}{chr(ord('a') + place)})  {text}" + (f", {dataset}" if dataset else ""))


def method_curves(
    ax: Axes,
    rows: pd.DataFrame,
    styles: Mapping[str, MethodStyle],
    *,
    floor: float | None = None,
    target: float | None = None,
    log: bool = False,
) -> None:
    """The curves of all methods, on a value axis that is fitted to them and logarithmic where they span much.

    Args:
        ax: where to draw.
        rows: columns method, x, seed, value.
        styles: by method.
        floor: a dashed line.
        target: a dotted line.
        log: take means and intervals on the log scale.
    """
    shown = []
    for value, line in ((floor, FLOOR_LINE), (target, TARGET_LINE)):
        if value is not None:
            ax.axhline(value, zorder=1, **line)
            shown.append(value)
    for method in in_order(rows["method"]):
        shown += curve(ax, rows[rows["method"] == method], styles[method], log=log)
    fit_to_means(ax, shown, log=log or (min(shown) > 0 and max(shown) / min(shown) > SPAN_FOR_LOG))


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
    means = summarised(rows, ["x"], log)
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
        _plain_log_ticks(ax)
    else:
        margin = 0.12 * (high - low) or 0.05 * abs(high) or 1.0
        ax.set_ylim(low - margin, high + margin)


def _plain_log_ticks(ax: Axes) -> None:
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
