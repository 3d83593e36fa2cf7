"""Figure: error of every component when weights or one component's conditioning vary, and the control of scale."""

import pandas as pd
from matplotlib.axes import Axes

from precfm.report.figures.axes import letter, panels
from precfm.report.figures.style import Drawing
from precfm.report.figures.theory_lines import ERROR_LOW, colour_legend, line_over_seeds, over_seeds, shades
from precfm.report.frames import Frames
from precfm.report.reads import needed, reads

WHITENED_LINE = ":"
_VARIED = {"weights": "weight of the worst component", "conditioning": "its condition number"}
_CONTROL_COLOURS = ("#029e73", "#de8f05")


@reads("mixture_ablations.components")
def draw(frames: Frames) -> Drawing:
    """One panel per ablation, one line per component.

    Args:
        frames: needs `mixture_ablations.components`.

    Raises:
        LeftOutError: there are no components.
    """
    table = needed(frames, "mixture_ablations.components")
    plain, whitened = table[table["method"] == "none"], table[table["method"] == "class_whitening"]
    control = plain[plain["ablation"] == "scale"]
    components = sorted(plain["component"].unique())
    colours = dict(zip(components, shades(len(components), first=1), strict=True))
    worst = components[-1]
    figure, axes = panels(1, 2 if control.empty else 3, height=2.2, sharey=True)
    for position, (ablation, text) in enumerate(_VARIED.items()):
        ax = axes[0, position]
        varied = plain[plain["ablation"] == ablation]
        for component, colour in colours.items():
            one = varied[varied["component"] == component]
            line_over_seeds(ax, one, "level", "log_error_low", colour)
        one = whitened[(whitened["ablation"] == ablation) & (whitened["component"] == worst)]
        line_over_seeds(ax, one, "level", "log_error_low", colours[worst], WHITENED_LINE)
        ax.set(xscale="log" if ablation == "conditioning" else "linear", yscale="log", xlabel=text)
        letter(ax, position, f"{ablation} vary")
    axes[0, 0].set_ylabel(ERROR_LOW)
    entries = [
        (f"component {place}" + (" (worst)" if component == worst else ""), colour)
        for place, (component, colour) in enumerate(colours.items(), start=1)
    ]
    if not control.empty:
        entries += _scale_panel(axes[0, 2], control)
        _scale_panel(axes[0, 2], whitened[whitened["ablation"] == "scale"], WHITENED_LINE)
        letter(axes[0, 2], 2, "scale controlled")
    colour_legend(figure, entries)
    return Drawing(
        figure,
        "Label-conditional networks without preconditioner: mean |ln variance ratio| over the lowest quartile of each "
        f"component's directions; geometric mean and 95% interval over {over_seeds(plain)}. Dotted: with per-class "
        "whitening (the worst component). Scale controlled: one mixture of four components that crosses the condition "
        "number with the smallest variance.",
    )


def _scale_panel(ax: Axes, control: pd.DataFrame, line: str = "-") -> list[tuple[str, str]]:
    """Error against the smallest variance, a line for each condition number; entries of the legend."""
    kappas = control["condition_number"].round(6)
    colours = dict(zip(sorted(kappas.unique()), _CONTROL_COLOURS, strict=False))
    for kappa, colour in colours.items():
        line_over_seeds(ax, control[kappas == kappa], "smallest_variance", "log_error_low", colour, line)
    ax.set(xscale="log", yscale="log", xlabel="smallest variance")
    return [(f"kappa {kappa:g}", colour) for kappa, colour in colours.items()]
