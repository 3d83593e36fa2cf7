"""What the figures of the controlled experiments share: shades of a quantity, means over seeds, words for seeds."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from precfm.report.figures.axes import Ends, curve
from precfm.report.figures.style import BAND_FROM, MethodStyle

SHADES = ("#c7c7c7", "#8fb7d9", "#4c8fc4", "#1f6aa5", "#0d4375", "#05213d", "#000000")
MARKS = "os^Dv<>P"
WHITENED = "#0072b2"
ERROR_LOW = "error of low eigenvalues"


def shaded(levels: Sequence[Any], first: int = 1) -> dict[Any, str]:
    """A colour for each level, from light to dark, evenly over `SHADES` from its entry `first` on; one is black."""
    places = np.linspace(len(SHADES) - 1, first, len(levels)).round().astype(int)[::-1]
    return {level: SHADES[place] for level, place in zip(levels, places, strict=True)}


def lines_over_seeds(
    ax: Axes, table: pd.DataFrame, x: str, y: str, hue: str, colours: Mapping[Any, str], line: Any = "-"
) -> Ends:
    """Geometric means over seeds as a line for each level of `hue`, their intervals as bands, or each of two seeds.

    Args:
        ax: where to draw.
        table: one row for each x, level of `hue` and seed; those of levels without a colour are left out.
        x: column of the horizontal axis.
        y: column of the values.
        hue: column that tells the lines apart.
        colours: by its level.
        line: style of the lines.

    Returns:
        By level, where its line ends and its colour.
    """
    ends: Ends = {}
    for (level, colour), mark in zip(colours.items(), MARKS, strict=False):
        rows = table[table[hue] == level]
        if len(rows):
            look = MethodStyle(str(level), colour, mark, line)
            curve(ax, rows.assign(x=rows[x], value=rows[y]), look, log=True)
            ends[level] = (*np.asarray(ax.lines[-1].get_xydata())[-1], colour)
    return ends


def level_entries(colours: Mapping[Any, str], text: str) -> dict[str, dict[str, Any]]:
    """Entries of a legend for the lines of `lines_over_seeds`: what the text makes of each level, colour and mark."""
    looks = zip(colours.items(), MARKS, strict=False)
    return {
        text.format(level): {"color": colour, "marker": mark, "markersize": 3.8}
        for (level, colour), mark in looks
    }


def over_seeds(table: pd.DataFrame, shown: str = "") -> str:
    """Seeds and spread, as a caption says them; how the seeds are shown, where it is not as lines of their means."""
    count = table["seed"].nunique()
    few = "each one a thin line" if count > 1 else "without interval"
    shown = shown or ("band: 95% t interval" if count >= BAND_FROM else few)
    return f"{count} seed{'s' * (count != 1)} ({shown})"
