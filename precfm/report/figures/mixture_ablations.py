"""Figure: error of every component when weights or one component's conditioning vary, and the control of scale."""

from precfm.report.figures.style import Drawing
from precfm.report.figures.theory_lines import (
    ERROR_LOW,
    legend_below,
    lines_over_seeds,
    log_panels,
    over_seeds,
    shaded,
)
from precfm.report.frames import Frames
from precfm.report.reads import needed, reads

_VARIED = {"weights": "weight of the worst component", "conditioning": "its condition number"}
_CONTROL_COLOURS = ("#029e73", "#de8f05")


@reads("mixture_ablations.components")
def draw(frames: Frames) -> Drawing:
    """One panel per ablation, one line per component; in the control of scale, one per condition number."""
    table = needed(frames, "mixture_ablations.components")
    table = table.assign(kappa=table["condition_number"].round(6))
    components = shaded(sorted(table["component"].unique()), first=1)
    worst = max(components)
    kappas = sorted(table[table["ablation"] == "scale"]["kappa"].unique())
    of_kappas = dict(zip(kappas, _CONTROL_COLOURS, strict=False))
    titles = [*(f"{ablation} vary" for ablation in _VARIED), *["scale controlled"] * bool(of_kappas)]
    figure, axes = log_panels(titles, height=2.2, x="smallest variance", y=ERROR_LOW)
    for method, line in {"none": "-", "class_whitening": ":"}.items():
        shown = {worst: components[worst]} if method == "class_whitening" else components
        of_method = table[table["method"] == method]
        for ax, (ablation, text) in zip(axes, _VARIED.items(), strict=False):
            ax.set(xscale="log" if ablation == "conditioning" else "linear", xlabel=text)
            rows = of_method[of_method["ablation"] == ablation]
            lines_over_seeds(ax, rows, "level", "log_error_low", "component", shown, line)
        rows = of_method[of_method["ablation"] == "scale"]
        lines_over_seeds(axes[-1], rows, "smallest_variance", "log_error_low", "kappa", of_kappas, line)
    names = {f"component {place}": component for place, component in enumerate(components, start=1)}
    entries = {
        name + (" (worst)" if component == worst else ""): components[component]
        for name, component in names.items()
    }
    entries |= {f"kappa {kappa:g}": colour for kappa, colour in of_kappas.items()}
    legend_below(figure, {label: {"color": colour} for label, colour in entries.items()})
    mapped = "class_whitening" in set(table["method"])
    dotted = " Dotted: with per-class whitening (the worst component)." if mapped else ""
    return Drawing(
        figure,
        "Label-conditional networks without preconditioner: mean |ln variance ratio| over the lowest quartile of each "
        f"component's directions; geometric mean and 95% interval over {over_seeds(table)}.{dotted} Scale controlled: "
        "one mixture of four components that crosses the condition number with the smallest variance.",
    )
