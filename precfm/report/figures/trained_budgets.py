"""Figure: low-eigenvalue error of trained networks against training steps: a plateau, or only a delay."""

import itertools
from typing import Any

from precfm.report.figures.axes import legend, letter, log_axes, panels
from precfm.report.figures.style import FLOOR_LINE, INK, Drawing
from precfm.report.figures.theory_lines import (
    ERROR_LOW,
    MARKS,
    WHITENED,
    level_entries,
    lines_over_seeds,
    over_seeds,
)
from precfm.report.frames import Frames
from precfm.report.reads import needed, reads

_COLOURS = {"none": INK, "whitening": WHITENED}
_ALONE: dict[str, Any] = {"color": WHITENED, "linestyle": ":", "linewidth": 1.0}
_POINTS: dict[str, Any] = {"linestyle": "none", "markersize": 3.4, "markeredgewidth": 0, "alpha": 0.7}
_QUANTITIES = {"log_error_low": ERROR_LOW, "log_error": "error of all eigenvalues"}
_RECIPES = {"constant_ema": "constant rate, averaged weights", "cosine": "cosine to each horizon"}


@reads("trained_budgets.summary")
def draw(frames: Frames) -> Drawing:
    """One row of panels for the lowest eigenvalues and one for all, one column per recipe, one line per method."""
    table = needed(frames, "trained_budgets.summary")
    recipes = [name for name in _RECIPES if name in set(table["level"])]
    cells = list(itertools.product(_QUANTITIES.items(), recipes))
    figure, axes = panels(len(cells), columns=len(recipes), height=2.0, sharex=True, sharey="row")
    for position, (ax, ((column, text), recipe)) in enumerate(zip(axes, cells, strict=True)):
        rows = table[table["level"] == recipe]
        log_axes(ax)
        runs = rows[rows["step"] > 0]
        if recipe == "cosine":  # each point is a training of its own
            for (name, colour), mark in zip(_COLOURS.items(), MARKS, strict=False):
                of_method = runs[runs["method"] == name]
                ax.plot(of_method["step"], of_method[column], color=colour, marker=mark, **_POINTS)
        else:
            lines_over_seeds(ax, runs, "step", column, "method", _COLOURS)
        ax.axhline(rows[rows["method"] == "exact:none"][column].mean(), **FLOOR_LINE)
        ax.axhline(rows[rows["method"] == "alone:whitening"][column].mean(), **_ALONE)
        ax.set(
            xlabel="training steps" if column == "log_error" else "",
            ylabel=text if recipe == recipes[0] else "",
        )
        letter(ax, position, _RECIPES[recipe])
    entries = level_entries(_COLOURS, "{}")
    legend(figure, {**entries, "whitening alone": _ALONE, "solver's floor": FLOOR_LINE})
    return Drawing(
        figure,
        "Whether the error of low eigenvalues stays or only falls later without preconditioning: mean |ln variance "
        f"ratio| of generated samples against training steps on Gaussian data, {over_seeds(table)}, geometric means. "
        "With a cosine schedule each mark is a training of its own. The floor: the exact field, as many samples.",
    )
