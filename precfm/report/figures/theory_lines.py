"""What the figures of the controlled experiments share: shades, means over seeds with intervals, colour legends."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from precfm.core.statistics import geometric_estimate, t_estimate
from precfm.report.figures.style import BAND_FROM

SHADES = ("#c7c7c7", "#8fb7d9", "#4c8fc4", "#1f6aa5", "#0d4375", "#05213d", "#000000")
WHITENED = "#0173b2"
ERROR_LOW = "error of low eigenvalues"


def shades(count: int, first: int = 0) -> list[str]:
    """Colours from light to dark, evenly over the scale from its entry `first` on."""
    places = np.linspace(first, len(SHADES) - 1, count).round().astype(int)
    return [SHADES[place] for place in places]


def line_over_seeds(ax: Axes, table: pd.DataFrame, x: str, y: str, colour: str, line: str = "-") -> None:
    """The mean over seeds as a line, its interval as bars; on the log scale where all values are positive.

    Args:
        ax: where to draw.
        table: one row for each x and seed.
        x: column of the horizontal axis.
        y: column of the values.
        colour: of line and bars.
        line: its style.
    """
    if table.empty:
        return
    estimator = geometric_estimate if (table[y] > 0).all() else t_estimate
    points = [(float(str(at)), estimator(group[y])) for at, group in table.groupby(x)]
    places, means = [at for at, _ in points], [estimate.value for _, estimate in points]
    ax.plot(places, means, color=colour, linestyle=line, marker="o", markersize=2.6, linewidth=1)
    for at, estimate in points:
        if estimate.n >= BAND_FROM:
            ax.plot([at, at], [estimate.low, estimate.high], color=colour, linewidth=0.7)


def colour_legend(figure: Figure, entries: Sequence[tuple[str, str]]) -> None:
    """One legend below the whole figure, of labels and colours."""
    handles = [Line2D([], [], color=colour, label=label) for label, colour in entries]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 7))


def mark(label: str, marker: str, colour: str, size: float) -> Line2D:
    """An entry of a legend of marks."""
    return Line2D([], [], linestyle="none", marker=marker, color=colour, markersize=size, label=label)


def over_seeds(table: pd.DataFrame) -> str:
    """The number of seeds, as a caption says it."""
    count = table["seed"].nunique()
    few = " (too few for an interval)" if count < BAND_FROM else ""
    return f"{count} seed{'s' if count != 1 else ''}{few}"
