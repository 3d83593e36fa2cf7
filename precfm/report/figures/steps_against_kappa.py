"""Figure: steps to accuracy against kappa(Sigma_t), for the slowest direction and for the total."""

import itertools
from typing import Any

import numpy as np

from precfm.report.figures.axes import legend, letter, log_axes, panels
from precfm.report.figures.style import INK, REFERENCE, Drawing
from precfm.report.figures.theory_lines import over_seeds
from precfm.report.frames import Frames
from precfm.report.reads import needed, reads

QUANTITIES = {"lowest": "slowest direction", "total": "total excess risk"}
KAPPA_T = "condition number of $\\Sigma_t$"
_LOOKS: dict[tuple[str, bool], dict[str, Any]] = {  # by algorithm and whether it is preconditioned
    ("descent", False): {"color": INK, "marker": "o"},
    ("descent", True): {"color": "#0072b2", "marker": "^"},
    ("stochastic", False): {"color": "#e69f00", "marker": "s"},
    ("stochastic", True): {"color": "#d55e00", "marker": "v"},
}
_NAMES = ("GD", "GD, with P", "SGD", "SGD, with P")
_POINTS: dict[str, Any] = {"linestyle": "none", "markersize": 2.8, "markeredgewidth": 0, "alpha": 0.6}
_LINE: dict[str, Any] = {"color": REFERENCE, "linewidth": 0.9}


@reads("steps_to_accuracy.steps")
def draw(frames: Frames) -> Drawing:
    """One row of panels per quantity, one column per target, one mark per setting and seed."""
    table = needed(frames, "steps_to_accuracy.steps")
    line = np.geomspace(10, max(table["condition_number_t"].max(), 20), 50)
    targets = [name for name in ("velocity", "score") if name in set(table["target"])]
    cells = list(itertools.product(QUANTITIES, targets))
    figure, axes = panels(len(cells), columns=len(targets), height=2.0, sharex=True)
    for position, (ax, (quantity, target)) in enumerate(zip(axes, cells, strict=True)):
        counts = table[f"counts_{quantity}"].astype(bool) & np.isfinite(table[quantity])
        runs = table[counts & (table["target"] == target)]
        for (algorithm, mapped), look in _LOOKS.items():
            rows = runs[(runs["algorithm"] == algorithm) & (runs["preconditioned"].astype(bool) == mapped)]
            ax.plot(rows["condition_number_t"], rows[quantity], **look, **_POINTS)
        ax.plot(line, 1.15 * line, **_LINE, zorder=0)
        log_axes(ax)
        ax.set(
            xlabel=KAPPA_T if quantity == "total" else "",
            ylabel="steps to accuracy" if target == targets[0] else "",
        )
        letter(ax, position, f"{target}: {QUANTITIES[quantity]}")
    entries = {name: look | _POINTS for name, look in zip(_NAMES, _LOOKS.values(), strict=True)}
    legend(figure, entries | {"proportional to $\\kappa(\\Sigma_t)$": _LINE})
    return Drawing(
        figure,
        "Steps until the excess risk of linear regression on Gaussian data has fallen to the goal, with and without "
        "the preconditioner P, against the condition number of Σₜ: "
        f"{over_seeds(table, 'a mark for each and each condition number, t and path')}. Settings whose goal is "
        "within four times the noise floor of stochastic descent are left out.",
    )
