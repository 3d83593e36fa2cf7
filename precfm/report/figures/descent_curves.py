"""Figure: excess risk of the slowest direction against steps, closed form as a line, measurement as points."""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from precfm.report.figures.axes import letter, panels
from precfm.report.figures.style import Drawing
from precfm.report.figures.theory_lines import colour_legend, shades
from precfm.report.frames import Frames
from precfm.report.reads import needed, reads

SHOWN_TIME = 0.99  # the time of the grid that is nearest to it is shown
ALGORITHMS = {
    "descent": ("GD", (1e-6, 4)),
    "stochastic": ("SGD", (1e-3, 30)),
}  # with the limits of their axes
_POINT: dict[str, Any] = {
    "linestyle": "none",
    "marker": "o",
    "markersize": 2.6,
    "capsize": 0,
    "elinewidth": 0.8,
}


@reads("linear_grid.curves")
def draw(frames: Frames) -> Drawing:
    """One row of panels per algorithm, one column per target without and with preconditioner, one line per kappa.

    Args:
        frames: needs `linear_grid.curves`.

    Raises:
        LeftOutError: there are no curves.
    """
    table = needed(frames, "linear_grid.curves")
    times = table["t"].unique()
    t, path = times[np.abs(times - SHOWN_TIME).argmin()], table["path"].iloc[0]
    chosen = table[(table["path"] == path) & (table["t"] == t) & (table["direction"] == "lowest")]
    chosen = chosen.assign(preconditioned=chosen["preconditioned"].astype(bool))
    targets = [name for name in ("velocity", "score") if name in set(chosen["target"])]
    columns = [(target, preconditioned) for target in targets for preconditioned in (False, True)]
    kappas = sorted(chosen["condition_number"].unique())
    colours = dict(zip(kappas, shades(len(kappas)), strict=True))
    figure, axes = panels(2, len(columns), height=1.75, sharey="row")
    for row, (algorithm, (name, limits)) in enumerate(ALGORITHMS.items()):
        axes[row, 0].set_ylabel(f"excess risk, {name}")
        for column, (target, preconditioned) in enumerate(columns):
            ax = axes[row, column]
            part = chosen[(chosen["algorithm"] == algorithm) & (chosen["target"] == target)]
            part = part[part["preconditioned"] == preconditioned]
            for kappa, colour in colours.items():
                _relative_curve(ax, part[part["condition_number"] == kappa].sort_values("step"), colour)
            ax.set(xscale="symlog", yscale="log", ylim=limits, xlabel="steps")
            ax.set_xlim(left=0)
            letter(ax, row * len(columns) + column, f"{target}, {'P' if preconditioned else 'no P'}")
    colour_legend(figure, [(f"kappa {kappa:g}", colour) for kappa, colour in colours.items()])
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
