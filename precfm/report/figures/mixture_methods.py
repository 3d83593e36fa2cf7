"""Figure: the refutation test, preconditioners and compute-matched baselines, by component of a mixture."""

from typing import Any

import pandas as pd
from matplotlib.axes import Axes

from precfm.core.statistics import geometric_estimate
from precfm.report.figures.style import BAND_FROM, FLOOR_LINE, Drawing, MethodStyle, method_styles
from precfm.report.figures.theory_lines import ERROR_LOW, legend_below, log_panels, over_seeds
from precfm.report.frames import Frames
from precfm.report.reads import needed, reads
from precfm.report.vocabulary import FLOOR, in_order, is_flow, split_matched

SPACING = 0.07  # between the methods of a component


@reads("mixture_networks.components")
def draw(frames: Frames) -> Drawing:
    """One panel per regime, a group of marks per component, one mark per method."""
    table = needed(frames, "mixture_networks.components")
    regimes, styles = list(table["regime"].unique()), method_styles(frames)
    titles = ["conditioned on labels" if regime == "labels" else "without labels" for regime in regimes]
    figure, axes = log_panels(titles, height=3.3, x="condition number of the component", y=ERROR_LOW)
    for ax, regime in zip(axes, regimes, strict=True):
        part = table[table["regime"] == regime]
        methods = in_order(method for method in part["method"].unique() if is_flow(method))
        for place, method in enumerate(methods):
            shift = (place - (len(methods) - 1) / 2) * SPACING
            _marks(ax, part[part["method"] == method], _look(method, styles[method]), shift)
        ax.axhline(part[part["method"] == FLOOR]["log_error_low"].mean(), **FLOOR_LINE)
        kappas = part.groupby("component")["condition_number"].first()
        ax.set_xscale("linear")
        ax.set_xticks(range(len(kappas)), [f"{kappa:g}" for kappa in kappas])
    shown = {name: style for name, style in styles.items() if name in set(table["method"])}
    legend_below(figure, {style.label: _look(name, style) for name, style in shown.items()}, columns=2)
    return Drawing(
        figure,
        "Mean |ln variance ratio| over the lowest quartile of each component's directions: flows with a preconditioner "
        "or a Gaussian skip beside wider and longer flows without; geometric mean and 95% interval over "
        f"{over_seeds(table)}. Hollow: wider, bars: longer. Dashed: an independent draw of the law.",
    )


def _marks(ax: Axes, rows: pd.DataFrame, look: dict[str, Any], shift: float) -> None:
    """The mean of each component as a mark, its interval as a bar."""
    for place, (_, of_component) in enumerate(rows.groupby("component")):
        estimate = geometric_estimate(of_component["log_error_low"])
        ax.plot([place + shift], [estimate.value], **look)
        if estimate.n >= BAND_FROM:
            ax.vlines(place + shift, estimate.low, estimate.high, color=look["color"], linewidth=0.7)


def _look(method: str, style: MethodStyle) -> dict[str, Any]:
    """Filled marks for preconditioners, hollow ones for matched baselines: wider open, longer as a bar."""
    edge = {"markeredgecolor": style.colour, "markeredgewidth": 0.8}
    changes = {"-P": {"markerfacecolor": "white"}, "-F": {"marker": "_"}}.get(split_matched(method)[1], {})
    return style.line(linestyle="none", markersize=4.0, **edge, **changes)
