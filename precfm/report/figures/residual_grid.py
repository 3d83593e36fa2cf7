"""Figure: error of trained networks over residual condition number, width and weight decay."""

from precfm.report.figures.axes import letter, panels
from precfm.report.figures.style import Drawing
from precfm.report.figures.theory_lines import ERROR_LOW, colour_legend, line_over_seeds, over_seeds, shades
from precfm.report.frames import Frames
from precfm.report.reads import needed, reads


@reads("residual_networks.grid")
def draw(frames: Frames) -> Drawing:
    """One panel per weight decay, one line per width.

    Args:
        frames: needs `residual_networks.grid`.

    Raises:
        LeftOutError: there is no grid.
    """
    table = needed(frames, "residual_networks.grid")
    decays, widths = sorted(table["weight_decay"].unique()), sorted(table["width"].unique())
    colours = shades(len(widths), first=2)
    figure, axes = panels(1, len(decays), height=2.2, sharey=True)
    for position, decay in enumerate(decays):
        ax = axes[0, position]
        for width, colour in zip(widths, colours, strict=True):
            one = table[(table["weight_decay"] == decay) & (table["width"] == width)]
            line_over_seeds(ax, one, "residual_kappa", "log_error_low", colour)
        ax.set(xscale="log", yscale="log", xlabel="residual condition number")
        letter(ax, position, f"weight decay {decay:g}")
    axes[0, 0].set_ylabel(ERROR_LOW)
    colour_legend(figure, [(f"width {width}", colour) for width, colour in zip(widths, colours, strict=True)])
    return Drawing(
        figure,
        "Mean |ln variance ratio| over the lowest quartile of directions, trained networks on Gaussian data of the "
        f"residual condition number; geometric mean and 95% interval over {over_seeds(table)}.",
    )
