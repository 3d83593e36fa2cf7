"""What the figures of the controlled experiments share: rows of log panels, means over seeds, colour legends."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from precfm.core.statistics import t_estimate
from precfm.report.figures.axes import letter, panels
from precfm.report.figures.style import BAND_FROM

SHADES = ("#c7c7c7", "#8fb7d9", "#4c8fc4", "#1f6aa5", "#0d4375", "#05213d", "#000000")
WHITENED = "#0173b2"
ERROR_LOW = "error of low eigenvalues"


def shaded(levels: Sequence[Any], first: int = 0) -> dict[Any, str]:
    """A colour for each level, from light to dark, evenly over `SHADES` from its entry `first` on."""
    places = np.linspace(first, len(SHADES) - 1, len(levels)).round().astype(int)
    return {level: SHADES[place] for level, place in zip(levels, places, strict=True)}


def log_panels(titles: Sequence[str], *, height: float, x: str, y: str) -> tuple[Figure, list[Axes]]:
    """A row of lettered panels with a logarithmic value axis that all share; titles, labels of both axes."""
    figure, axes = panels(1, len(titles), height=height, sharey=True)
    for position, (ax, title) in enumerate(zip(axes[0], titles, strict=True)):
        ax.set(yscale="log", xscale="log", xlabel=x, ylabel=y if position == 0 else "")
        letter(ax, position, title)
    return figure, list(axes[0])


def lines_over_seeds(
    ax: Axes, table: pd.DataFrame, x: str, y: str, hue: str, colours: Mapping[Any, str], line: str = "-"
) -> None:
    """Means over seeds as a line for each level of `hue`, their intervals as bars; geometric on a log axis.

    Args:
        ax: where to draw; its scale must be set before, since seaborn averages on it.
        table: one row for each x, level of `hue` and seed; those of levels without a colour are left out.
        x: column of the horizontal axis.
        y: column of the values.
        hue: column that tells the lines apart.
        colours: by its level.
        line: style of the lines.
    """
    rows = table[table[hue].isin(list(colours))]
    if rows.empty:
        return
    sns.lineplot(
        rows,
        x=x,
        y=y,
        hue=hue,
        palette=dict(colours),
        errorbar=interval,
        err_style="bars",
        err_kws={"linewidth": 0.7},
        linestyle=line,
        linewidth=1,
        marker="o",
        markersize=3.6,
        markeredgewidth=0,
        legend=False,
        ax=ax,
    )


def interval(values: "pd.Series[float]") -> tuple[float, float]:
    """The 95% t interval of one mean as seaborn asks for it; none for few seeds."""
    estimate = t_estimate(values)
    return (estimate.low, estimate.high) if estimate.n >= BAND_FROM else (np.nan, np.nan)


def legend_below(figure: Figure, entries: Mapping[str, Mapping[str, Any]], columns: int = 7) -> None:
    """One legend below the whole figure: by label, the arguments of a line or a mark."""
    handles = [Line2D([], [], label=label, **look) for label, look in entries.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), columns))


def colour_legend(figure: Figure, colours: Mapping[Any, str], text: str = "{}") -> None:
    """One legend below the whole figure: by level, its colour."""
    legend_below(figure, {text.format(level): {"color": colour} for level, colour in colours.items()})


def over_seeds(table: pd.DataFrame) -> str:
    """The number of seeds, as a caption says it."""
    count = table["seed"].nunique()
    few = " (too few for an interval)" if count < BAND_FROM else ""
    return f"{count} seed{'s' if count != 1 else ''}{few}"
