"""Figure: the loss of every flow while it is trained."""

import numpy as np
import pandas as pd

from precfm.report.figures.axes import legend, letter, log_axes, method_curves, method_entries, panels
from precfm.report.figures.shown import COURSES, by_family, compared_text, family, of_first_setting, that_fit
from precfm.report.figures.style import Drawing, method_styles
from precfm.report.frames import CURVE_POINTS, Frames
from precfm.report.reads import needed, reads

MARKS = 16  # at most, of a curve, at about equal distances on a log axis


@reads("training")
def draw(frames: Frames) -> Drawing:
    """One panel per data set and family of methods."""
    curves = of_first_setting(needed(frames, "training"), COURSES).rename(
        columns={"step": "x", "loss": "value"}
    )
    curves, others = that_fit(_thinned(curves), curves["method"].map(family).nunique())
    parts, styles = list(by_family(curves)), method_styles(frames)
    figure, axes = panels(len(parts), height=2.3)
    for position, (ax, (dataset, name, rows)) in enumerate(zip(axes, parts, strict=True)):
        method_curves(ax, rows, styles)
        log_axes(ax, "x")
        ax.set(xlabel="training steps", ylabel="loss")
        letter(ax, position, name + (f", {dataset}" if curves["dataset"].nunique() > 1 else ""))
    legend(figure, method_entries(list(curves["method"]), styles))
    caption = (
        f"Loss of every flow in training: {compared_text(curves)}; each point is the mean over one of {CURVE_POINTS} "
        "equal spans of the steps. Each loss is in the units of its own space, so that it says how a training went and "
        f"not which method is better. Each panel has its own value axis, fitted to the means.{others}"
    )
    return Drawing(figure, caption)


def _thinned(curves: pd.DataFrame) -> pd.DataFrame:
    """The last point of each of `MARKS` spans of ln x, the same ones for all curves of a length."""
    keys = ["dataset", "method", "seed"]
    longest, shortest = (curves.groupby(keys)["x"].transform(name) for name in ("max", "min"))
    span = np.ceil(MARKS * np.log(curves["x"] / shortest) / np.maximum(np.log(longest / shortest), 1e-9))
    return curves.loc[curves["x"].groupby([*(curves[key] for key in keys), span]).idxmax()]
