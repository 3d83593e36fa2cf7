"""Figure: steps after an imperfect preconditioner, beside the bound in the residual condition number."""

from typing import Any

from precfm.report.figures.axes import legend, letter, log_axes, panels
from precfm.report.figures.steps_against_kappa import QUANTITIES
from precfm.report.figures.style import INK, Drawing
from precfm.report.figures.theory_lines import over_seeds
from precfm.report.frames import Frames
from precfm.report.reads import needed, reads

_MARKS = {
    "none": "o",
    "per channel": "D",
    "shrunk whitening": "s",
    "power": "^",
    "whitening from samples": "v",
}
_COLOURS = ("#0072b2", "#e69f00")  # of the condition numbers of the data
_POINTS: dict[str, Any] = {"linestyle": "none", "markersize": 3.2, "markeredgewidth": 0, "alpha": 0.7}
_BOUND: dict[str, Any] = {"color": INK, "linewidth": 0.9}


@reads("residual_linear.steps")
def draw(frames: Frames) -> Drawing:
    """One panel per quantity, one mark per map, condition number, time and seed."""
    table = needed(frames, "residual_linear.steps")
    bound = table[["residual_kappa_t", "bound"]].sort_values("residual_kappa_t")
    colours = dict(zip(sorted(table["condition_number"].unique()), _COLOURS, strict=False))
    figure, axes = panels(len(QUANTITIES), height=2.4, sharey=True)
    for position, (ax, (quantity, title)) in enumerate(zip(axes, QUANTITIES.items(), strict=True)):
        for (kind, kappa), rows in table.groupby(["kind", "condition_number"], sort=False):
            steps = rows[quantity].clip(lower=0.5)
            look = {"marker": _MARKS[str(kind)], "color": colours[kappa]}
            ax.plot(rows["residual_kappa_t"], steps, **look, **_POINTS)
        ax.plot(bound["residual_kappa_t"], bound["bound"], **_BOUND, zorder=0)
        log_axes(ax)
        ax.set(
            xlabel="residual condition number of $\\Sigma_t$",
            ylabel="steps to a tenth" if position == 0 else "",
        )
        letter(ax, position, title)
    entries = {kind: {"marker": mark, "color": INK, **_POINTS} for kind, mark in _MARKS.items()}
    entries |= {
        f"$\\kappa$ = {kappa:g}": {"color": colour, "linewidth": 3} for kappa, colour in colours.items()
    }
    legend(figure, entries | {"bound": _BOUND})
    return Drawing(
        figure,
        "Steps to a tenth of the excess risk behind imperfect preconditioners of Gaussian data, against the "
        f"condition number that they leave: {over_seeds(table, 'a mark for each and each map and time')}. Counts "
        "below one half are drawn there. Colours: condition number of the data. Line: the bound, which no start "
        "exceeds and the slowest direction attains.",
    )
