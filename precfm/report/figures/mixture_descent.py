"""Figure: excess risk of each component of a mixture against steps, linear experts."""

from precfm.report.figures.axes import legend, letter, log_axes, panels
from precfm.report.figures.style import Drawing
from precfm.report.figures.theory_lines import level_entries, lines_over_seeds, over_seeds, shaded
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
    base = base.assign(kappa=base["component"].map(kappas))[
        (base["step"] > 0) & (base["relative"] > ROUNDING)
    ]
    colours = shaded(list(kappas))
    figure, axes = panels(len(regimes), height=2.3, sharey=True)
    for position, (ax, regime) in enumerate(zip(axes, regimes, strict=True)):
        log_axes(ax)
        rows = base[base["regime"] == regime]
        lines_over_seeds(ax, rows, "step", "relative", "kappa", colours)
        ax.set(ylim=(1e-8, 2), xlabel="steps", ylabel="excess risk, relative" if position == 0 else "")
        letter(ax, position, f"experts by {regime}")
    legend(figure, level_entries(colours, "$\\kappa$ = {:g}"))
    return Drawing(
        figure,
        "Excess risk of each component of a Gaussian mixture, by its condition number, under gradient descent on "
        f"linear experts: {over_seeds(base)}. Relative to the start; geometric means over seeds. What is below the "
        "frame is not shown.",
    )
