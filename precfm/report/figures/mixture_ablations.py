"""Figure: error of every component when weights or one component's conditioning vary, and the control of scale."""

from precfm.report.figures.axes import legend, letter, log_axes, name_lines, panels
from precfm.report.figures.style import Drawing
from precfm.report.figures.theory_lines import ERROR_LOW, level_entries, lines_over_seeds, over_seeds, shaded
from precfm.report.frames import Frames
from precfm.report.reads import needed, reads

# By ablation: the title of its panel, its horizontal axis, the column of that and the one that tells lines apart.
_PANELS = {
    "weights": ("weights vary", "weight of the last component", "level", "component"),
    "conditioning": ("conditioning varies", "$\\kappa$ of the last component", "level", "component"),
    "scale": ("scale controlled", "smallest variance", "smallest_variance", "kappa"),
}
_CONTROL_COLOURS = ("#d55e00", "#0072b2")
_MAPPED = "class_whitening"


@reads("mixture_ablations.components")
def draw(frames: Frames) -> Drawing:
    """One panel per ablation, one line per component; in the control of scale, one per condition number."""
    table = needed(frames, "mixture_ablations.components")
    table = table.assign(kappa=table["condition_number"].round(6), component=table["component"] + 1)
    components = shaded(sorted(table["component"].unique()))
    kappas = sorted(table[table["ablation"] == "scale"]["kappa"].unique())
    colours = {"component": components, "kappa": dict(zip(kappas, _CONTROL_COLOURS, strict=False))}
    mapped = table[(table["method"] == _MAPPED) & (table["component"] == max(components))]
    plain, shown = (
        table[table["method"] == "none"],
        [name for name in _PANELS if name in set(table["ablation"])],
    )
    figure, axes = panels(len(shown), height=2.4, sharey=True)
    for position, (ax, ablation) in enumerate(zip(axes, shown, strict=True)):
        title, label, x, hue = _PANELS[ablation]
        log_axes(ax, "y" if ablation == "weights" else "xy")
        for rows, line in ((mapped, ":"), (plain, "-")):
            rows = rows[rows["ablation"] == ablation]
            ends = lines_over_seeds(ax, rows, x, "log_error_low", hue, colours[hue], line)
        ax.set(xlabel=label, ylabel=ERROR_LOW if position == 0 else "")
        letter(ax, position, title)
    if kappas:
        name_lines(axes[-1], ends, "$\\kappa$ = {:g}")
    legend(figure, level_entries(components, "component {}"))
    dotted = " Dotted: the last component with per-class whitening." if len(mapped) else ""
    return Drawing(
        figure,
        "Which component of a mixture a label-conditional network without preconditioner misses, when the last "
        "component's weight or condition number varies: mean |ln variance ratio| over the lowest quartile of each "
        f"component's directions, {over_seeds(table)}, geometric means.{dotted} Scale controlled: one mixture of "
        "four components that crosses the condition number with the smallest variance.",
    )
