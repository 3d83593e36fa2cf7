"""Figure: error of trained networks over residual condition number, width and weight decay."""

from precfm.report.figures.axes import letter, log_axes, name_lines, panels
from precfm.report.figures.style import Drawing
from precfm.report.figures.theory_lines import ERROR_LOW, lines_over_seeds, over_seeds, shaded
from precfm.report.frames import Frames
from precfm.report.reads import needed, reads


@reads("residual_networks.grid")
def draw(frames: Frames) -> Drawing:
    """One panel per weight decay, one line per width."""
    table = needed(frames, "residual_networks.grid")
    decays, colours = sorted(table["weight_decay"].unique()), shaded(sorted(table["width"].unique()), first=2)
    figure, axes = panels(len(decays), height=2.3, sharey=True)
    for position, (ax, decay) in enumerate(zip(axes, decays, strict=True)):
        log_axes(ax)
        rows = table[table["weight_decay"] == decay]
        ends = lines_over_seeds(ax, rows, "residual_kappa", "log_error_low", "width", colours)
        ax.set(xlabel="residual condition number", ylabel=ERROR_LOW if position == 0 else "")
        letter(ax, position, f"weight decay {decay:g}")
    name_lines(ax, ends, "width {}")
    return Drawing(
        figure,
        "Error of trained networks against the condition number that a preconditioner leaves, by width and weight "
        "decay: mean |ln variance ratio| over the lowest quartile of directions of Gaussian data, "
        f"{over_seeds(table)}. Geometric means over seeds.",
    )
