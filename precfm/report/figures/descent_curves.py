"""Figure: excess risk of the slowest direction against steps, closed form as a line, measurement as points."""

import itertools
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from precfm.report.figures.axes import legend, letter, log_axes, panels
from precfm.report.figures.style import INK, Drawing
from precfm.report.figures.theory_lines import shaded
from precfm.report.frames import Frames
from precfm.report.reads import needed, reads

SHOWN_TIME = 0.99  # the time of the grid that is nearest to it is shown
LINES = 4  # at most so many condition numbers, evenly chosen
# With the limits of their axes.
ALGORITHMS = {"descent": ("GD", (1e-6, 4)), "stochastic": ("SGD", (5e-3, None))}
_DASHES = {False: "-", True: (0, (3, 1.5))}
_POINT: dict[str, Any] = {"linestyle": "none", "marker": "o", "markersize": 2.6, "elinewidth": 0.8}


@reads("linear_grid.curves")
def draw(frames: Frames) -> Drawing:
    """One row of panels per algorithm, one column per target, one line per kappa without and with preconditioner."""
    table = needed(frames, "linear_grid.curves")
    times = table["t"].unique()
    t, path = times[np.abs(times - SHOWN_TIME).argmin()], table["path"].iloc[0]
    chosen = table[(table["path"] == path) & (table["t"] == t) & (table["direction"] == "lowest")]
    targets = [name for name in ("velocity", "score") if name in set(chosen["target"])]
    kappas = sorted(chosen["condition_number"].unique())
    colours = shaded(kappas[:: -(-len(kappas) // LINES)])
    cells = list(itertools.product(ALGORITHMS, targets))
    figure, axes = panels(len(cells), columns=len(targets), height=2.1)
    for position, (ax, (algorithm, target)) in enumerate(zip(axes, cells, strict=True)):
        name, limits = ALGORITHMS[algorithm]
        log_axes(ax)
        part = chosen[(chosen["algorithm"] == algorithm) & (chosen["target"] == target)]
        for (kappa, mapped), one in part.sort_values("step").groupby(["condition_number", "preconditioned"]):
            if kappa in colours:
                _relative_curve(ax, one, colours[kappa], _DASHES[bool(mapped)])
        ax.set(ylim=limits, xlabel="steps", ylabel=f"excess risk, {name}" if target == targets[0] else "")
        letter(ax, position, f"{target}, {name}")
    entries = {f"$\\kappa$ = {kappa:g}": {"color": colour} for kappa, colour in colours.items()}
    legend(figure, entries | {"with P": {"color": INK, "linestyle": _DASHES[True]}})
    return Drawing(
        figure,
        "Excess risk of the direction of lowest variance under gradient descent and SGD, with and without the "
        f"preconditioner P = Σₜ^(-1/2), by condition number of Gaussian data (t = {t:g}, {path} path), relative to "
        "its start. Lines: closed form. Points: autograd on samples, mean and 95% t interval over "
        f"{int(chosen['n'].max())} seeds. Under SGD a direction that starts below its noise floor rises to it. "
        "Curves that coincide hide each other. What is below the frame is not shown.",
    )


def _relative_curve(ax: Axes, one: pd.DataFrame, colour: str, dashes: Any) -> None:
    """One setting: theory as a line, measurement as points with intervals, relative to the start."""
    start = one[one["step"] == 0][["theory", "mean"]].iloc[0]
    one = one[one["step"] > 0]
    ax.plot(one["step"], one["theory"] / start["theory"], color=colour, linewidth=1.0, linestyle=dashes)
    middle = one["mean"] / start["mean"]
    low = (middle - one["low"] / start["mean"]).clip(lower=0, upper=middle * 0.999)
    high = one["high"] / start["mean"] - middle
    ax.errorbar(one["step"], middle, yerr=[low, high], color=colour, **_POINT)
