"""Figure: low-eigenvalue error of trained networks, one factor at a time, with the solver's floor."""

import pandas as pd

from precfm.core.statistics import geometric_estimate
from precfm.report.figures.axes import panels
from precfm.report.figures.style import BAND_FROM, INK, REFERENCE, Drawing
from precfm.report.figures.theory_lines import ERROR_LOW, WHITENED, mark, over_seeds
from precfm.report.frames import Frames
from precfm.report.reads import frame, needed, reads

_LOOKS = {
    "none": ("none", INK, "o"),
    "whitening": ("whitening", WHITENED, "^"),
    "exact:none": ("exact field", REFERENCE, "|"),
}


@reads("trained_factors.summary", optional=("trained_budgets.summary",))
def draw(frames: Frames) -> Drawing:
    """One row per level of a factor, one mark per method; the base is the budget of the same number of steps.

    Args:
        frames: needs `trained_factors.summary`; `trained_budgets.summary` gives the base.

    Raises:
        LeftOutError: there is no summary.
    """
    factors, budgets = needed(frames, "trained_factors.summary"), frame(frames, "trained_budgets.summary")
    table = factors
    if not budgets.empty:
        base = budgets[budgets["step"].isin([0, *factors["step"].unique()])]
        table = pd.concat([base.assign(factor="", level="base"), factors])
    cells = list(table.groupby(["factor", "level"], sort=False))
    figure, axes = panels(1, 1, height=0.9 + 0.24 * len(cells))
    ax = axes[0, 0]
    for place, (_, cell) in enumerate(cells):
        for method, (_, colour, marker) in _LOOKS.items():
            one = cell[cell["method"] == method]
            if one.empty:
                continue
            estimate = geometric_estimate(one["log_error_low"])
            ax.plot([estimate.value], [place], marker=marker, color=colour, markersize=4)
            if estimate.n >= BAND_FROM:
                ax.plot([estimate.low, estimate.high], [place, place], color=colour, linewidth=0.8)
    names = [f"{factor}: {level}" if factor else level for (factor, level), _ in cells]
    ax.set_yticks(range(len(cells)), names)
    ax.invert_yaxis()
    ax.set(xscale="log", xlabel=ERROR_LOW)
    handles = [mark(label, marker, colour, 6.0) for label, colour, marker in _LOOKS.values()]
    figure.legend(handles=handles, loc="outside lower center", ncols=3)
    return Drawing(
        figure,
        "Mean |ln variance ratio| over the lowest quartile of directions; networks trained on Gaussian data, one "
        f"factor at a time around the base; geometric mean and 95% interval over {over_seeds(table)}. Exact field: "
        "the solver's floor.",
    )
