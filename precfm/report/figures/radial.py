"""Figure: radial power spectra of samples of feature maps over those of the data, by band of spatial frequencies."""

import itertools
import math

import numpy as np
import pandas as pd

from precfm.report.figures.axes import FLOOR_ENTRY, legend, letter, method_curves, method_entries, panels
from precfm.report.figures.shown import compared_text, of_first_setting, that_fit
from precfm.report.figures.style import FLOOR_LINE, Drawing, method_styles
from precfm.report.frames import Frames
from precfm.report.reads import LeftOutError, needed, reads
from precfm.report.rows import at_final
from precfm.report.summaries import logarithms, summarised
from precfm.report.vocabulary import FLOOR, is_flow, metric_text

# By column of `of_bands`, the axis' label and whether means over seeds are geometric.
_SHOWN = {"ratio": ("power ratio → 1", True), "log_error": ("|ln power ratio| ↓", False)}


@reads("radial")
def draw(frames: Frames) -> Drawing:
    """For each data set, the ratio of power in each band, and how far it is from one in each channel."""
    bands = of_bands(of_first_setting(needed(frames, "radial")))
    flows = bands[bands["method"].map(is_flow)]
    if flows.empty:
        raise LeftOutError("radial has no rows of a trained flow")
    flows, others = that_fit(flows, len(_SHOWN))
    datasets, styles = sorted(flows["dataset"].unique()), method_styles(frames)
    floors = bands[(bands["method"] == FLOOR) & bands["dataset"].isin(datasets)]
    figure, axes = panels(len(datasets) * len(_SHOWN), columns=len(_SHOWN), height=2.4)
    parts = itertools.product(datasets, _SHOWN.items())
    for position, (ax, (dataset, (column, (label, log)))) in enumerate(zip(axes, parts, strict=True)):
        rows, floor = (each[each["dataset"] == dataset] for each in (flows, floors))
        last = int(rows["x"].max())
        ax.axvspan(last + 0.5 - math.ceil((last + 1) / 4), last + 0.5, color="#f0f0f0", linewidth=0, zorder=0)
        method_curves(ax, rows.assign(value=rows[column]), styles, target=1.0 if log else None, log=log)
        if len(floor):
            means = summarised(floor.assign(value=floor[column]), ["x"], log)
            ax.plot(means["x"], means["value"], **FLOOR_LINE, zorder=1)
        ax.set(xlim=(-0.5, last + 0.5), xlabel="band of spatial frequencies, low to high", ylabel=label)
        name = "channels together" if log else "mean over channels"
        letter(ax, position, name + (f", {dataset}" if len(datasets) > 1 else ""))
    legend(figure, method_entries(list(flows["method"]), styles) | (FLOOR_ENTRY if len(floors) else {}))
    caption = (
        "Radial power spectrum of the samples over that of the held-out data, by band of spatial frequencies: "
        f"{compared_text(flows)}, at the final checkpoint. Left: geometric mean of the ratio over channels and seeds; "
        "at one (dotted) the power is recovered, above one the samples have too much. Right: mean of |ln ratio| over "
        "channels and seeds, in which channels with too much power and channels with too little do not cancel. "
        "Shaded: the highest quarter of bands; the mean of the right-hand panel over it is the metric "
        f"'{metric_text('band_log_error_high').label}'. Dashed: the floor, the train split against the same reference. "
        f"Each panel has its own value axis, fitted to the means.{others}"
    )
    return Drawing(figure, caption)


def of_bands(radial: pd.DataFrame) -> pd.DataFrame:
    """Means over channels of each run's ratios at its final checkpoint.

    Args:
        radial: the frame of that name.

    Returns:
        Columns dataset, method, seed, x (the band, 0 for the lowest frequencies), ratio (geometric mean), log_error
        (mean of |ln ratio|).
    """
    final = at_final(radial)
    logs = final.assign(x=final["band"].astype(int), log=logarithms(final["ratio"], "a ratio of power"))
    logs["log_error"] = logs["log"].abs()
    means = logs.groupby(["dataset", "method", "seed", "x"])[["log", "log_error"]].mean().reset_index()
    return means.assign(ratio=np.exp(means["log"])).drop(columns="log")
