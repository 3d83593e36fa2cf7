"""What figures are composed of: panels, axes, curves over seeds, names beside lines, legends."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.ticker import Formatter, Locator, MaxNLocator, NullLocator

from precfm.report.figures.style import (
    BAND_FROM,
    FLOOR_LINE,
    INK,
    REFERENCE,
    SMALLEST,
    WIDTH,
    MethodStyle,
)
from precfm.report.summaries import summarised
from precfm.report.vocabulary import FLOOR, MATCHED, in_order, method_label, split_matched

Ends: TypeAlias = dict[Any, tuple[float, float, str]]
"""By what a line is of, the point where it ends and its colour."""

SPAN_FOR_LOG = 8.0  # a metric that falls by more is drawn on a log axis
FLOOR_ENTRY = {method_label(FLOOR): FLOOR_LINE}
TARGET_LINE: dict[str, Any] = {"color": REFERENCE, "linestyle": ":", "linewidth": 0.9}
RANK = "rank $i/d$, largest variance first"
_MATCHED = {"-P": "wider, same parameters", "-F": "longer, same training FLOPs"}


def panels(
    count: int, *, height: float, columns: int | None = None, arranged: bool = True, **options: Any
) -> tuple[Figure, list[Axes]]:
    """A figure with this many lettered panels, row by row, made without the global figure list.

    Args:
        count: of the panels.
        height: of one row, in inches.
        columns: in at most so many; none: 2 for four panels, else 3.
        arranged: whether the space between panels is found automatically.
        options: further arguments of `Figure.subplots`.
    """
    columns = min(columns or (2 if count == 4 else 3), count)
    rows = -(-count // columns)
    engine = ConstrainedLayoutEngine(w_pad=0.04, h_pad=0.04, wspace=0.03, hspace=0.04)
    figure = Figure(figsize=(WIDTH, rows * height), layout=engine if arranged else None)
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False, **options).flat
    for ax in axes:
        sns.despine(ax=ax)
    for ax in axes[count:]:
        ax.remove()
    return figure, list(axes[:count])


def letter(ax: Axes, position: int, text: str) -> None:
    """Title of a panel with its letter."""
    ax.set_title(f"({chr(ord('a') + position)})  {text}")


class _FewLogTicks(Locator):
    """Ticks at round numbers that leave room for their labels, whether a log axis spans a tenth or ten decades."""

    def __call__(self) -> Any:
        return self.tick_values(*self.axis.get_view_interval())  # type: ignore[union-attr]

    def tick_values(self, vmin: float, vmax: float) -> Any:
        level = self.axis.axis_name == "x"  # type: ignore[union-attr]
        apart = (vmax / vmin) ** (0.2 if level else 0.12)
        decades = 10.0 ** np.arange(np.floor(np.log10(vmin)), np.log10(vmax) + 1)
        rounds: list[Any] = [
            np.outer(decades, steps).ravel() for steps in ([1.0], [1.0, 3.0], [1.0, 2.0, 5.0])
        ]
        kept: list[Any] = []
        for ticks in (*rounds, MaxNLocator(4 if level else 6, steps=[1, 2, 5, 10]).tick_values(vmin, vmax)):
            kept = []
            for tick in ticks[(ticks >= vmin * (1 - 1e-9)) & (ticks <= vmax * (1 + 1e-9))]:
                if not kept or tick >= kept[-1] * apart:
                    kept.append(tick)
            if len(kept) > 2:
                break
        return kept


class _LogText(Formatter):
    """Plain numbers, or powers of ten where one tick is very small or large."""

    def __call__(self, x: float, pos: int | None = None) -> str:
        return self.format_ticks([x])[0]

    def format_ticks(self, values: Sequence[float]) -> list[str]:
        if all(1e-3 <= value < 2e4 for value in values):
            return [f"{value:.6g}" for value in values]
        powers = [int(np.floor(np.log10(value) + 1e-9)) for value in values]
        fronts = [f"{value / 10.0**power:.3g}" for value, power in zip(values, powers, strict=True)]
        times = ["" if front == "1" else f"{front}{{\\cdot}}" for front in fronts]
        return [f"${front}10^{{{power}}}$" for front, power in zip(times, powers, strict=True)]


def log_axes(ax: Axes, which: str = "xy") -> None:
    """Logarithmic axes with few labelled ticks."""
    for name in which:
        ax.set(**{f"{name}scale": "log"})
        axis = getattr(ax, f"{name}axis")
        axis.set_major_locator(_FewLogTicks())
        axis.set_major_formatter(_LogText())
        axis.set_minor_locator(NullLocator())


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
    for method in sorted(in_order(rows["method"]), key=lambda name: not split_matched(name)[1]):
        shown += curve(ax, rows[rows["method"] == method], styles[method], log=log)
    fit_to_means(ax, shown, log=log or (min(shown) > 0 and max(shown) / min(shown) > SPAN_FOR_LOG))


def curve(
    ax: Axes, rows: pd.DataFrame, style: MethodStyle, *, log: bool = False, **changes: Any
) -> list[float]:
    """The mean over seeds as a line, with its interval as a band; below three seeds, each seed as a line.

    The interval of two seeds is so wide that it would hide everything else, and the two seeds say the same.

    Args:
        ax: where to draw; the mean becomes its last line.
        rows: columns x, seed, value.
        style: the method's look.
        log: take means and intervals on the log scale.
        changes: arguments of the line that differ from the style.

    Returns:
        The values that should stay in sight: means and single seeds.
    """
    means = summarised(rows, ["x"], log)
    banded = means[means["n"] >= BAND_FROM]
    single = [] if len(banded) or means["n"].max() < 2 else [part for _, part in rows.groupby("seed")]
    if len(banded):
        ax.fill_between(
            banded["x"], banded["low"], banded["high"], color=style.colour, alpha=0.11, linewidth=0
        )
    for seed in single:
        ordered = seed.sort_values("x")
        look: dict[str, Any] = {
            "color": style.colour,
            "linewidth": 0.5,
            "alpha": 0.5,
            "marker": ".",
            "markersize": 1.0,
        }
        ax.plot(ordered["x"], ordered["value"], **look, zorder=1.5)
    ax.plot(means["x"], means["value"], **style.line(**changes))
    return [*means["value"], *(value for seed in single for value in seed["value"])]


def method_entries(methods: Sequence[str], styles: Mapping[str, MethodStyle]) -> dict[str, dict[str, Any]]:
    """Entries of a legend: a line for each method, and one for each kind of matched baseline."""
    entries = {
        styles[name].label: styles[name].line() for name in in_order(methods) if not split_matched(name)[1]
    }
    for suffix in MATCHED:
        if looks := [styles[name].line(marker="o") for name in methods if split_matched(name)[1] == suffix]:
            entries[_MATCHED[suffix]] = looks[0]
    return entries


def legend(figure: Figure, entries: Mapping[str, Mapping[str, Any]], **changes: Any) -> None:
    """One legend below the whole figure: by label, the arguments of a line or a mark."""
    handles = [Line2D([], [], label=label, **{**look, **changes}) for label, look in entries.items()]
    labels = list(entries)
    columns = next(n for n in range(min(len(labels), 7), 0, -1) if n == 1 or _legend_width(labels, n) < WIDTH)
    columns = -(-len(labels) // -(-len(labels) // columns))  # rows of equal length
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, columnspacing=1.4)


def _legend_width(labels: Sequence[str], columns: int) -> float:
    """Inches that a legend takes, about: labels fill one column after the other."""
    longest = [max(map(len, part)) for part in np.array_split(np.array(labels), columns)]
    return sum(0.5 + 0.053 * letters for letters in longest)


def name_lines(ax: Axes, ends: Ends, text: str = "{}", gap: float = 0.085) -> None:
    """Names to the right of the panel, moved apart where they would overlap, with hairlines to the ends of their lines.

    Args:
        ax: a panel with everything drawn.
        ends: of its lines.
        text: what the name is put into.
        gap: between names, in heights of the panel.
    """
    low, high = ax.get_ylim()  # also settles limits that are still to be fitted to the data
    to_axes = ax.transData + ax.transAxes.inverted()
    names = sorted(ends, key=lambda each: ends[each][1])
    heights = np.clip([to_axes.transform(ends[name][:2])[1] for name in names], 0, 0.96)
    for i in range(1, len(names)):
        heights[i] = max(heights[i], heights[i - 1] + gap)
    heights[-1:] = np.minimum(heights[-1:], max(0.96, gap * (len(names) - 1)))
    for i in range(len(names) - 2, -1, -1):
        heights[i] = min(heights[i], heights[i + 1] - gap)
    for name, height in zip(names, heights, strict=True):
        x, y, colour = ends[name]
        ax.annotate(
            text.format(name),
            (x, np.clip(y, low, high)),
            (1.05, height),
            textcoords="axes fraction",
            va="center",
            fontsize=SMALLEST,
            color=INK,
            arrowprops={
                "arrowstyle": "-",
                "color": colour,
                "linewidth": 0.5,
                "relpos": (0, 0.5),
                "shrinkB": 2,
            },
        )


def fit_to_means(ax: Axes, values: Sequence[float], *, log: bool) -> None:
    """Fit the value axis to these values, so that one wide interval does not flatten all lines."""
    low, high = min(values), max(values)
    if log:
        factor = max((high / low) ** 0.12, 1.05)
        log_axes(ax, "y")
        ax.set_ylim(low / factor, high * factor)
    else:
        margin = 0.12 * (high - low) or 0.05 * abs(high) or 1.0
        ax.set_ylim(low - margin, high + margin)
