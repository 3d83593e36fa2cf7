"""Figure: excess risk of the slowest direction against steps, closed form as a line, measurement as points."""

import itertools
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from precfm.report.figures.axes import letter, panels
from precfm.report.figures.style import Drawing
from precfm.report.figures.theory_lines import colour_legend, shaded
from precfm.report.frames import Frames
from precfm.report.reads import needed, reads

SHOWN_TIME = 0.99  # the time of the grid that is nearest to it is shown
# With the limits of their axes.
ALGORITHMS = {"descent": ("GD", (1e-6, 4)), "stochastic": ("SGD", (1e-3, 30))}
_POINT: dict[str, Any] = {"linestyle": "none", "marker": "o", "markersize": 2.6, "elinewidth": 0.8}


@reads("linear_grid.curves")
def draw(frames: Frames) -> Drawing:
    """One row of panels per algorithm, one column per target without and with preconditioner, one line per kappa."""
    table = needed(frames, "linear_grid.curves")
    times = table["t"].unique()
    t, path = times[np.abs(times - SHOWN_TIME).argmin()], table["path"].iloc[0]
    chosen = table[(table["path"] == path) & (table["t"] == t) & (table["direction"] == "lowest")]
    targets = [name for name in ("velocity", "score") if name in set(chosen["target"])]
    columns = list(itertools.product(targets, (False, True)))
    colours = shaded(sorted(chosen["condition_number"].unique()))
    figure, axes = panels(2, len(columns), height=1.75, sharey="row")
    cells = itertools.product(ALGORITHMS, columns)
    for position, (ax, (algorithm, (target, preconditioned))) in enumerate(
        zip(axes.flat, cells, strict=True)
    ):
        part = chosen[(chosen["algorithm"] == algorithm) & (chosen["target"] == target)]
        part = part[part["preconditioned"].astype(bool) == preconditioned]
        for kappa, one in part.sort_values("step").groupby("condition_number"):
            _relative_curve(ax, one, colours[kappa])
        name, limits = ALGORITHMS[algorithm]
        ax.set(xscale="symlog", yscale="log", ylim=limits, xlabel="steps")
        ax.set_xlim(left=0)
        ax.set_ylabel(f"excess risk, {name}" if position % len(columns) == 0 else "")
        letter(ax, position, f"{target}, {'P' if preconditioned else 'no P'}")
    colour_legend(figure, colours, "kappa {:g}")
    return Drawing(
        figure,
        f"Excess risk of the direction of lowest variance relative to its start, at t = {t:g} on the {path} path. "
        "Lines: closed form. Points: autograd on samples, mean and 95% t interval over "
        f"{int(chosen['n'].max())} seeds. P is Sigma_t^(-1/2). What is outside of the frame is not shown.",
    )


def _relative_curve(ax: Axes, one: pd.DataFrame, colour: str) -> None:
    """One setting: theory as a line, measurement as points with intervals, relative to the start."""
    start = one[one["step"] == 0][["theory", "mean"]].iloc[0]
    ax.plot(one["step"], one["theory"] / start["theory"], color=colour, linewidth=1.0)
    middle = one["mean"] / start["mean"]
    low = (middle - one["low"] / start["mean"]).clip(lower=0, upper=middle * 0.999)
    high = one["high"] / start["mean"] - middle
    ax.errorbar(one["step"], middle, yerr=[low, high], color=colour, **_POINT)
