"""Figure: low-eigenvalue error of trained networks against training steps: a plateau, or only a delay."""

from precfm.report.figures.axes import letter, panels
from precfm.report.figures.style import FLOOR_LINE, INK, Drawing
from precfm.report.figures.theory_lines import (
    ERROR_LOW,
    WHITENED,
    colour_legend,
    lines_over_seeds,
    over_seeds,
)
from precfm.report.frames import Frames
from precfm.report.reads import needed, reads

_COLOURS = {"none": INK, "whitening": WHITENED}
_QUANTITIES = {"log_error_low": ERROR_LOW, "log_error": "error of all eigenvalues"}


@reads("trained_budgets.summary")
def draw(frames: Frames) -> Drawing:
    """One panel for the lowest eigenvalues and one for all, one line per method."""
    table = needed(frames, "trained_budgets.summary")
    exact = table[table["method"] == "exact:none"]
    figure, axes = panels(1, 2, height=2.3)
    for position, (ax, (column, text)) in enumerate(zip(axes[0], _QUANTITIES.items(), strict=True)):
        ax.set(xscale="log", yscale="log", xlabel="training steps", ylabel=text)
        letter(ax, position, text)
        lines_over_seeds(ax, table[table["step"] > 0], "step", column, "method", _COLOURS)
        if len(exact):
            ax.axhline(exact[column].mean(), **FLOOR_LINE)
    colour_legend(figure, _COLOURS)
    return Drawing(
        figure,
        "Mean |ln variance ratio| of generated samples against training steps, constant learning rate; geometric "
        f"mean and 95% interval over {over_seeds(table)}. Dashed: the solver's floor (exact field, as many samples).",
    )
