"""Figure: steps after an imperfect preconditioner, beside the bound in the residual condition number."""

from precfm.report.figures.axes import letter, panels
from precfm.report.figures.steps_against_kappa import QUANTITIES
from precfm.report.figures.style import INK, Drawing
from precfm.report.figures.theory_lines import mark
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
    """One panel per quantity, one mark per map, condition number and time.

    Args:
        frames: needs `residual_linear.steps`.

    Raises:
        LeftOutError: there are no steps.
    """
    table = needed(frames, "residual_linear.steps")
    kappas = sorted(table["condition_number"].unique())
    bound = table[["residual_kappa_t", "bound"]].sort_values("residual_kappa_t")
    figure, axes = panels(1, 2, height=2.4, sharey=True)
    for position, (quantity, text) in enumerate(QUANTITIES.items()):
        ax = axes[0, position]
        for kind, group in table.groupby("kind"):
            for kappa, colour in zip(kappas, _COLOURS, strict=False):
                one = group[group["condition_number"] == kappa]
                means = one.groupby(["level", "t"])[["residual_kappa_t", quantity]].mean()
                x, y = means["residual_kappa_t"], means[quantity].clip(lower=0.5)
                ax.plot(x, y, linestyle="none", marker=_MARKS[str(kind)], color=colour, markersize=3.4)
        ax.plot(bound["residual_kappa_t"], bound["bound"], color=INK, linewidth=0.9, zorder=0)
        ax.set(xscale="log", yscale="log", xlabel="residual condition number of Sigma_t")
        letter(ax, position, text)
    axes[0, 0].set_ylabel("steps to a tenth")
    handles = [mark(kind, marker, INK, 3.4) for kind, marker in _MARKS.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=5)
    return Drawing(
        figure,
        "Steps to a tenth of the excess risk after imperfect preconditioners of data with condition numbers "
        f"{', '.join(f'{kappa:g}' for kappa in kappas)} (colours), mean over seeds; counts below one half are drawn "
        "there. Line: the bound, which no start exceeds and the slowest direction attains.",
    )
