"""Figure: low-eigenvalue error of trained networks against training steps: a plateau, or only a delay."""

import math

from precfm.report.figures.axes import letter, panels
from precfm.report.figures.style import FLOOR_LINE, INK, Drawing
from precfm.report.figures.theory_lines import ERROR_LOW, WHITENED, colour_legend, line_over_seeds, over_seeds
from precfm.report.frames import Frames
from precfm.report.reads import needed, reads

_COLOURS = {"none": INK, "whitening": WHITENED}
_QUANTITIES = {"log_error_low": ERROR_LOW, "log_error": "error of all eigenvalues"}


@reads("trained_budgets.summary")
def draw(frames: Frames) -> Drawing:
    """One panel for the lowest eigenvalues and one for all, one line per method.

    Args:
        frames: needs `trained_budgets.summary`.

    Raises:
        LeftOutError: there is no summary.
    """
    table = needed(frames, "trained_budgets.summary")
    trained = table[table["step"] > 0]
    figure, axes = panels(1, 2, height=2.3)
    for position, (column, text) in enumerate(_QUANTITIES.items()):
        ax = axes[0, position]
        for method, colour in _COLOURS.items():
            line_over_seeds(ax, trained[trained["method"] == method], "step", column, colour)
        floor = table[table["method"] == "exact:none"][column].mean()
        if math.isfinite(floor):
            ax.axhline(floor, **FLOOR_LINE)
        ax.set(xscale="log", yscale="log", xlabel="training steps", ylabel=text)
        letter(ax, position, text)
    colour_legend(figure, list(_COLOURS.items()))
    return Drawing(
        figure,
        "Mean |ln variance ratio| of generated samples against training steps, constant learning rate; geometric "
        f"mean and 95% interval over {over_seeds(table)}. Dashed: the solver's floor (exact field, as many samples).",
    )
