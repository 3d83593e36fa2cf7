"""Figure: the refutation test, preconditioners and compute-matched baselines, by component of a mixture."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from precfm.report.figures.axes import legend, letter, log_axes, method_entries, panels
from precfm.report.figures.style import BAND_FROM, FLOOR_LINE, Drawing, MethodStyle, method_styles
from precfm.report.figures.theory_lines import ERROR_LOW, over_seeds
from precfm.report.frames import Frames
from precfm.report.reads import needed, reads
from precfm.report.summaries import summarised
from precfm.report.vocabulary import FLOOR, in_order, is_flow

SPACING = 0.07  # between the methods of a component
_REGIMES = {"labels": "conditioned on labels"}
_POINTS = {"linestyle": "none", "markersize": 4.4}


@reads("mixture_networks.components")
def draw(frames: Frames) -> Drawing:
    """One panel per regime, a group of marks per component, one mark per method."""
    table = needed(frames, "mixture_networks.components")
    regimes, styles = list(table["regime"].unique()), method_styles(frames)
    figure, axes = panels(len(regimes), height=3.0, sharey=True)
    for position, (ax, regime) in enumerate(zip(axes, regimes, strict=True)):
        log_axes(ax, "y")
        part = table[table["regime"] == regime]
        methods = in_order(method for method in part["method"].unique() if is_flow(method))
        for place, method in enumerate(methods):
            shift = (place - (len(methods) - 1) / 2) * SPACING
            _marks(ax, part[part["method"] == method], styles[method], shift)
        ax.axhline(part[part["method"] == FLOOR]["log_error_low"].mean(), **FLOOR_LINE)
        kappas = part.groupby("component")["condition_number"].first()
        ax.set_xticks(range(len(kappas)), [f"{kappa:g}" for kappa in kappas])
        ax.set(xlabel="condition number of the component", ylabel=ERROR_LOW if position == 0 else "")
        letter(ax, position, _REGIMES.get(regime, "without labels"))
    entries = {name: {**look, **_POINTS} for name, look in method_entries(list(styles), styles).items()}
    legend(figure, entries | {"floor": FLOOR_LINE})
    return Drawing(
        figure,
        "Which components of a Gaussian mixture flows behind a preconditioner or with a Gaussian skip recover, "
        "beside wider and longer flows without: mean |ln variance ratio| over the lowest quartile of each "
        "component's directions, "
        f"{over_seeds(table[table['method'] != FLOOR], 'geometric means with 95% t intervals')}. Grey marks have the "
        "shape of the method that they match: hollow with as many parameters, filled with as many training FLOPs. "
        "Dashed: an independent draw of the law.",
    )


def _marks(ax: Axes, rows: pd.DataFrame, style: MethodStyle, shift: float) -> None:
    """The mean of each component as a mark, its interval as a bar."""
    means = summarised(rows.assign(value=rows["log_error_low"]), ["component"], logarithmic=True)
    places = np.arange(len(means)) + shift
    seen = (means["n"] >= BAND_FROM).to_numpy()
    ax.vlines(places[seen], means["low"][seen], means["high"][seen], color=style.colour, linewidth=0.7)
    ax.plot(places, means["value"], **style.line(**_POINTS))
