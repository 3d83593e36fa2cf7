"""Figure: variance of the samples over variance of the data along each eigendirection of the data."""

from typing import Any

import pandas as pd

from precfm.report.figures.axes import (
    FLOOR_ENTRY,
    curve,
    fit_to_means,
    legend,
    letter,
    small_multiples,
    spread_text,
)
from precfm.report.figures.style import FLOOR_LINE, INK, Drawing, method_styles
from precfm.report.frames import Frames
from precfm.report.reads import LeftOutError, needed, reads
from precfm.report.rows import TRAINED, at_final, groups, of_settings
from precfm.report.summaries import lowest_quartile_count, summarised
from precfm.report.vocabulary import FLOOR, is_flow, method_label

COLUMNS = 4
BASELINE = "none"
_BEHIND: dict[str, Any] = {"color": INK, "linewidth": 0.8, "alpha": 0.5}


@reads("recovery")
def draw(frames: Frames) -> Drawing:
    """One small panel per method on shared axes, with the unpreconditioned flow repeated behind it."""
    recovery = of_settings(needed(frames, "recovery"), TRAINED)
    recovery = recovery.assign(x=recovery["index"].astype(int) + 1, value=recovery["ratio"].astype(float))
    final = at_final(recovery)
    flows = final[final["method"].map(is_flow)]
    if flows.empty:
        raise LeftOutError("recovery has no rows of a trained flow")
    by_cell = dict(list(final.groupby(["dataset", "method"])))
    curves = {key: summarised(rows, ["x"], logarithmic=True) for key, rows in by_cell.items()}
    shown, styles, several = [1.0], method_styles(frames), flows["dataset"].nunique() > 1
    cells = [(dataset, method) for (dataset, method), _ in groups(flows, "dataset", "method")]
    columns = min(COLUMNS, len(cells))
    figure, axes = small_multiples(len(cells), COLUMNS, height=1.65, sharex=True, sharey=True)
    for position, (ax, (dataset, method)) in enumerate(zip(axes, cells, strict=True)):
        directions = len(curves[dataset, method])
        ax.axvspan(0.5, lowest_quartile_count(directions) + 0.5, color="#f0f0f0", linewidth=0, zorder=0)
        ax.axhline(1.0, color=INK, linewidth=0.6, zorder=1)
        for other, line in ((FLOOR, FLOOR_LINE | {"zorder": 1}), (BASELINE, _BEHIND)):
            if (dataset, other) in curves and method != other:
                ax.plot(curves[dataset, other]["x"], curves[dataset, other]["value"], **line)
        shown += curve(ax, by_cell[dataset, method], styles[method], log=True)
        letter(ax, position, method_label(method), dataset if several else "")
        ax.set(xlim=(0.5, directions + 0.5), ylabel="variance ratio" if position % columns == 0 else "")
        if position + columns >= len(cells):
            ax.set_xlabel("eigendirection $i$")
            ax.tick_params(labelbottom=True)
    drawn = {method for _, method in curves}
    extra = [(f"{method_label(BASELINE)}, repeated", _BEHIND)] if BASELINE in drawn else []
    extra += [FLOOR_ENTRY] if FLOOR in drawn else []
    if extra:
        legend(figure, [], extra)
    fit_to_means(axes[0], shown, log=True)
    return Drawing(figure, _caption(flows, has_floor=FLOOR in drawn))


def _caption(flows: pd.DataFrame, *, has_floor: bool) -> str:
    floor = " dashed grey: the floor, the train split against the same reference;" if has_floor else ""
    return (
        "Variance of the samples over variance of the held-out data along each eigendirection of the data's "
        f"covariance (1: smallest variance), at the final checkpoint: geometric mean {spread_text(flows)}, "
        "on the log scale. At one the direction is recovered; above, the samples are too wide. Shaded: the "
        f"lowest quartile; thin black line: the flow without preconditioning;{floor} axes are shared and "
        "fitted to the means, so that a wide band may leave them."
    )
