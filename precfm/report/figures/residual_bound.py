"""Figure: steps after an imperfect preconditioner, beside the bound in the residual condition number."""

import seaborn as sns

from precfm.report.figures.steps_against_kappa import QUANTITIES
from precfm.report.figures.style import INK, Drawing
from precfm.report.figures.theory_lines import legend_below, log_panels
from precfm.report.frames import Frames
from precfm.report.reads import needed, reads

_MARKS = {
    "none": "o",
    "per channel": "D",
    "shrunk whitening": "s",
    "power": "^",
    "whitening from samples": "v",
}
_COLOURS = ("#0173b2", "#de8f05")  # of the condition numbers of the data


@reads("residual_linear.steps")
def draw(frames: Frames) -> Drawing:
    """One panel per quantity, one mark per map, condition number and time."""
    table = needed(frames, "residual_linear.steps")
    bound = table[["residual_kappa_t", "bound"]].sort_values("residual_kappa_t")
    keys = ["kind", "condition_number", "level", "t"]
    means = table.groupby(keys)[["residual_kappa_t", *QUANTITIES]].mean().clip(lower=0.5).reset_index()
    colours = dict(zip(sorted(means["condition_number"].unique()), _COLOURS, strict=False))
    titles, label = list(QUANTITIES.values()), "residual condition number of Sigma_t"
    figure, axes = log_panels(titles, height=2.4, x=label, y="steps to a tenth")
    for ax, quantity in zip(axes, QUANTITIES, strict=True):
        looks = {"hue": "condition_number", "palette": colours, "style": "kind", "markers": _MARKS, "s": 20}
        sns.scatterplot(means, x="residual_kappa_t", y=quantity, linewidth=0, legend=False, ax=ax, **looks)
        ax.plot(bound["residual_kappa_t"], bound["bound"], color=INK, linewidth=0.9, zorder=0)
    marks = {"linestyle": "none", "color": INK, "markersize": 3.4}
    legend_below(figure, {kind: {"marker": marker, **marks} for kind, marker in _MARKS.items()})
    return Drawing(
        figure,
        "Steps to a tenth of the excess risk after imperfect preconditioners of data with condition numbers "
        f"{', '.join(f'{kappa:g}' for kappa in colours)} (colours), mean over seeds; counts below one half are drawn "
        "there. Line: the bound, which no start exceeds and the slowest direction attains.",
    )
