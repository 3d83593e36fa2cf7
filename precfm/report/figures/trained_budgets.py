"""Figure: low-eigenvalue error of trained networks against training steps: a plateau, or only a delay."""

import itertools

from precfm.report.figures.axes import letter, panels
from precfm.report.figures.style import FLOOR_LINE, INK, Drawing
from precfm.report.figures.theory_lines import ERROR_LOW, WHITENED, legend_below, lines_over_seeds, over_seeds
from precfm.report.frames import Frames
from precfm.report.reads import needed, reads

_COLOURS = {"none": INK, "whitening": WHITENED}
_ALONE = {"color": WHITENED, "linestyle": ":", "linewidth": 1.0}
_QUANTITIES = {"log_error_low": ERROR_LOW, "log_error": "error of all eigenvalues"}
_RECIPES = {"constant_ema": "constant rate, averaged weights", "cosine": "cosine to each horizon"}


@reads("trained_budgets.summary")
def draw(frames: Frames) -> Drawing:
    """One row of panels for the lowest eigenvalues and one for all, one column per recipe, one line per method."""
    table = needed(frames, "trained_budgets.summary")
    recipes = [name for name in _RECIPES if name in set(table["level"])]
    figure, axes = panels(len(_QUANTITIES), len(recipes), height=2.0, sharex=True, sharey="row")
    for position, ((column, text), recipe) in enumerate(itertools.product(_QUANTITIES.items(), recipes)):
        ax, rows = axes.flat[position], table[table["level"] == recipe]
        ax.set(xscale="log", yscale="log", ylabel=text if recipe == recipes[0] else "")
        ax.set_xlabel("training steps" if column == "log_error" else "")
        letter(ax, position, _RECIPES[recipe])
        lines_over_seeds(ax, rows[rows["step"] > 0], "step", column, "method", _COLOURS)
        ax.axhline(rows[rows["method"] == "exact:none"][column].mean(), **FLOOR_LINE)
        ax.axhline(rows[rows["method"] == "alone:whitening"][column].mean(), **_ALONE)
    entries = {method: {"color": colour} for method, colour in _COLOURS.items()}
    legend_below(figure, {**entries, "whitening alone": _ALONE, "solver's floor": FLOOR_LINE})
    return Drawing(
        figure,
        "Mean |ln variance ratio| of generated samples against training steps; geometric mean and 95% interval over "
        f"{over_seeds(table)}. With a cosine schedule each point is a training of its own. The floor: the exact field, "
        "as many samples.",
    )
