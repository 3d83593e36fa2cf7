"""Figure: excess risk of each component of a mixture against steps, linear experts."""

from precfm.report.figures.axes import letter, panels
from precfm.report.figures.style import Drawing
from precfm.report.figures.theory_lines import colour_legend, line_over_seeds, over_seeds, shades
from precfm.report.frames import Frames
from precfm.report.reads import LeftOutError, needed, reads

SEPARATION = 4.0  # of the mixture that is shown
ROUNDING = 1e-25  # relative excess risks below it are not drawn


@reads("mixture_linear.components")
def draw(frames: Frames) -> Drawing:
    """One panel per kind of experts, one line per component.

    Args:
        frames: needs `mixture_linear.components`.

    Raises:
        LeftOutError: there are no components, or none at this separation.
    """
    table = needed(frames, "mixture_linear.components")
    base = table[(table["ablation"] == "separation") & (table["level"] == SEPARATION)]
    if base.empty:
        raise LeftOutError("no mixture of separation 4 was run")
    regimes, components = list(base["regime"].unique()), sorted(base["component"].unique())
    colours = dict(zip(components, shades(len(components), first=1), strict=True))
    figure, axes = panels(1, len(regimes), height=2.2, sharey=True)
    for position, regime in enumerate(regimes):
        ax = axes[0, position]
        seen = base[(base["regime"] == regime) & (base["relative"] > ROUNDING)]
        for component, colour in colours.items():
            line_over_seeds(ax, seen[seen["component"] == component], "step", "relative", colour)
        ax.set(xscale="symlog", yscale="log", ylim=(1e-8, 2), xlabel="steps")
        ax.set_xlim(left=0)
        letter(ax, position, f"experts by {regime}")
    axes[0, 0].set_ylabel("excess risk, relative")
    kappas = base.groupby("component")["condition_number"].first()
    colour_legend(figure, [(f"kappa {kappas[component]:g}", colour) for component, colour in colours.items()])
    return Drawing(
        figure,
        "Excess risk of each component of a mixture, relative to its start, under gradient descent on linear experts; "
        f"geometric mean and 95% interval over {over_seeds(base)}.",
    )
