"""Figure: the refutation test, preconditioners and compute-matched baselines, by component of a mixture."""

from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from precfm.core.statistics import geometric_estimate
from precfm.report.figures.axes import letter, panels
from precfm.report.figures.style import BAND_FROM, FLOOR_LINE, Drawing, MethodStyle, method_styles
from precfm.report.figures.theory_lines import ERROR_LOW, over_seeds
from precfm.report.frames import Frames
from precfm.report.reads import needed, reads
from precfm.report.vocabulary import FLOOR, in_order, split_matched

SPACING = 0.07  # between the methods of a component


@reads("mixture_networks.components")
def draw(frames: Frames) -> Drawing:
    """One panel per regime, a group of marks per component, one mark per method.

    Args:
        frames: needs `mixture_networks.components`.

    Raises:
        LeftOutError: there are no components.
    """
    table = needed(frames, "mixture_networks.components")
    regimes, components = list(table["regime"].unique()), sorted(table["component"].unique())
    styles = method_styles(frames)
    figure, axes = panels(1, len(regimes), height=3.3, sharey=True)
    for position, regime in enumerate(regimes):
        ax, part = axes[0, position], table[table["regime"] == regime]
        methods = in_order(method for method in part["method"].unique() if method != FLOOR)
        for place, method in enumerate(methods):
            shift = (place - (len(methods) - 1) / 2) * SPACING
            _marks(ax, part[part["method"] == method], method, styles[method], shift)
        ax.axhline(part[part["method"] == FLOOR]["log_error_low"].mean(), **FLOOR_LINE)
        kappas = part.groupby("component")["condition_number"].first()
        ax.set_xticks(range(len(components)), [f"{kappa:g}" for kappa in kappas])
        ax.set(yscale="log", xlabel="condition number of the component")
        letter(ax, position, f"conditioned on {regime}" if regime == "labels" else "unconditional")
    axes[0, 0].set_ylabel(ERROR_LOW)
    handles = [Line2D([], [], label=style.label, **_look(method, style)) for method, style in styles.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=2)
    return Drawing(
        figure,
        "Mean |ln variance ratio| over the lowest quartile of each component's directions: flows with a preconditioner "
        "beside wider and longer flows without; geometric mean and 95% interval over "
        f"{over_seeds(table)}. Hollow: wider, bars: longer. Dashed: an independent draw of the law.",
    )


def _marks(ax: Axes, rows: pd.DataFrame, method: str, style: MethodStyle, shift: float) -> None:
    """The mean of each component as a mark, its interval as a bar."""
    for place, (_, of_component) in enumerate(rows.groupby("component")):
        estimate = geometric_estimate(of_component["log_error_low"])
        ax.plot([place + shift], [estimate.value], **_look(method, style))
        if estimate.n >= BAND_FROM:
            x, y = [place + shift] * 2, [estimate.low, estimate.high]
            ax.plot(x, y, color=style.colour, linewidth=0.7)


def _look(method: str, style: MethodStyle) -> dict[str, Any]:
    """Filled marks for preconditioners, hollow ones for matched baselines: wider open, longer as a bar."""
    edge = {"markeredgecolor": style.colour, "markeredgewidth": 0.8}
    changes = {"-P": {"markerfacecolor": "white"}, "-F": {"marker": "_"}}.get(split_matched(method)[1], {})
    return style.line(linestyle="none", markersize=4.0, **edge, **changes)
