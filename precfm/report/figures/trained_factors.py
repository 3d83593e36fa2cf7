"""Figure: low-eigenvalue error of trained networks, one factor at a time, with the solver's floor."""

from typing import Any

from precfm.report.figures.axes import legend, log_axes, panels
from precfm.report.figures.style import INK, REFERENCE, Drawing
from precfm.report.figures.theory_lines import ERROR_LOW, WHITENED, over_seeds
from precfm.report.frames import Frames
from precfm.report.reads import needed, reads

_LOOKS: dict[str, dict[str, Any]] = {
    "none": {"color": INK, "marker": "o"},
    "whitening": {"color": WHITENED, "marker": "^"},
    "alone:whitening": {"color": WHITENED, "marker": "x"},
    "exact:none": {"color": REFERENCE, "marker": "|", "markeredgewidth": 1.2},
}
_NAMES = {"alone:whitening": "whitening alone", "exact:none": "exact field"}


@reads("trained_factors.summary")
def draw(frames: Frames) -> Drawing:
    """One row per level of a factor, one mark per method and seed."""
    table = needed(frames, "trained_factors.summary")
    cells = (table["factor"] + ": " + table["level"].astype(str)).replace("base: base", "base")
    names = list(dict.fromkeys(cells))
    figure, (ax,) = panels(1, height=0.8 + 0.2 * len(names))
    log_axes(ax, "x")
    for method, look in _LOOKS.items():
        rows = table[table["method"] == method]
        places = cells[rows.index].map(names.index)
        ax.plot(rows["log_error_low"], places, linestyle="none", markersize=4, alpha=0.8, **look)
    ax.set_yticks(range(len(names)), names)
    ax.invert_yaxis()
    ax.set_xlabel(ERROR_LOW)
    entries = {_NAMES.get(method, method): look for method, look in _LOOKS.items()}
    legend(figure, entries, linestyle="none", markersize=4.5)
    return Drawing(
        figure,
        "Error of networks trained on Gaussian data with and without whitening, one factor at a time around the "
        f"base: mean |ln variance ratio| over the lowest quartile of directions, {over_seeds(table, 'a mark each')}. "
        "Exact field: the solver's floor.",
    )
