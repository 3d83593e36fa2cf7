"""Figure: excess risk of each component of a mixture against steps, linear experts."""

from precfm.report.figures.style import Drawing
from precfm.report.figures.theory_lines import (
    colour_legend,
    lines_over_seeds,
    log_panels,
    over_seeds,
    shaded,
)
from precfm.report.frames import Frames
from precfm.report.reads import LeftOutError, needed, reads

SEPARATION = 4.0  # of the mixture that is shown
ROUNDING = 1e-25  # relative excess risks below it are not drawn


@reads("mixture_linear.components")
def draw(frames: Frames) -> Drawing:
    """One panel per kind of experts, one line per component."""
    table = needed(frames, "mixture_linear.components")
    base = table[(table["ablation"] == "separation") & (table["level"] == SEPARATION)]
    if base.empty:
        raise LeftOutError("no mixture of separation 4 was run")
    regimes, kappas = list(base["regime"].unique()), base.groupby("component")["condition_number"].first()
    colours = shaded(list(kappas.index), first=1)
    titles = [f"experts by {regime}" for regime in regimes]
    figure, axes = log_panels(titles, height=2.2, x="steps", y="excess risk, relative")
    for ax, regime in zip(axes, regimes, strict=True):
        ax.set(xscale="symlog", ylim=(1e-8, 2))
        rows = base[(base["regime"] == regime) & (base["relative"] > ROUNDING)]
        lines_over_seeds(ax, rows, "step", "relative", "component", colours)
        ax.set_xlim(left=0)
    colour_legend(figure, dict(zip(kappas, colours.values(), strict=True)), "kappa {:g}")
    return Drawing(
        figure,
        "Excess risk of each component of a mixture, relative to its start, under gradient descent on linear experts; "
        f"geometric mean and 95% interval over {over_seeds(base)}.",
    )
