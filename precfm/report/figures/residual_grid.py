"""Figure: error of trained networks over residual condition number, width and weight decay."""

from precfm.report.figures.style import Drawing
from precfm.report.figures.theory_lines import (
    ERROR_LOW,
    colour_legend,
    lines_over_seeds,
    log_panels,
    over_seeds,
    shaded,
)
from precfm.report.frames import Frames
from precfm.report.reads import needed, reads


@reads("residual_networks.grid")
def draw(frames: Frames) -> Drawing:
    """One panel per weight decay, one line per width."""
    table = needed(frames, "residual_networks.grid")
    decays, colours = sorted(table["weight_decay"].unique()), shaded(sorted(table["width"].unique()), first=2)
    titles = [f"weight decay {decay:g}" for decay in decays]
    figure, axes = log_panels(titles, height=2.2, x="residual condition number", y=ERROR_LOW)
    for ax, decay in zip(axes, decays, strict=True):
        rows = table[table["weight_decay"] == decay]
        lines_over_seeds(ax, rows, "residual_kappa", "log_error_low", "width", colours)
    colour_legend(figure, colours, "width {}")
    return Drawing(
        figure,
        "Mean |ln variance ratio| over the lowest quartile of directions, trained networks on Gaussian data of the "
        f"residual condition number; geometric mean and 95% interval over {over_seeds(table)}.",
    )
