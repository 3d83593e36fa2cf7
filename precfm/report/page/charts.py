"""What the interactive charts of an experiment show: rows of its frames. `precfm.report.page.vega` draws them.

Every chart stands beside a static figure or table with the same numbers.
"""

from contextlib import suppress

import pandas as pd

from precfm.report.bases import basis_text
from precfm.report.figures.shown import COURSES, GEOMETRY, of_first_setting
from precfm.report.frames import Frames
from precfm.report.page.vega import Chart, lines, points
from precfm.report.reads import LeftOutError, frame, needed
from precfm.report.rows import ALL, per_seed, with_a_course, with_common_end
from precfm.report.summaries import summarised, with_training_flops
from precfm.report.vocabulary import DATA, FLOOR, is_flow, metric_text, space_label

_SIDES = ("perceptual", "second moments", "likelihood", "copying")


def charts(frames: Frames, sides: pd.DataFrame | None) -> list[Chart]:
    """The charts that the frames of an experiment have rows for.

    Args:
        frames: by name, see `precfm.report.frames.FRAMES`.
        sides: the numbers of the table of that name, if there is one.
    """
    found = []
    for make in (_training, _course, _spectra, _paths):
        with suppress(LeftOutError):
            found.append(make(frames))
    return found if sides is None else [*found, _sides(frames, sides)]


def _spectra(frames: Frames) -> Chart:
    spectra = of_first_setting(needed(frames, "spectra"), GEOMETRY)
    spectra = spectra[(spectra["scope"] == ALL) & spectra["space"].isin(["data", "flow"])]
    bases = basis_text(spectra)
    method = spectra["method"].where(spectra["space"] == "flow", DATA)
    rows = spectra.assign(
        method=method, value=spectra["eigenvalue"].astype(float), eigendirection=spectra["index"] + 1
    )
    rows = summarised(rows, ["dataset", "method", "eigendirection"], logarithmic=True)
    caption = (
        "Eigenvalues of the covariance over all classes, in ascending order: of the data, and of the space in which "
        f"each method's flow is trained. Geometric mean over fits with its 95% interval.{bases}"
    )
    return lines("figure spectra", caption, rows, frames, x=["eigendirection"], y="eigenvalue", log="y")


def _paths(frames: Frames) -> Chart:
    paths = of_first_setting(needed(frames, "path_conditioning"), GEOMETRY)
    paths = paths.assign(value=paths["condition_number"].astype(float), t=paths["t"].astype(float).round(4))
    worst = (
        paths[paths["scope"] != ALL]
        .groupby(["dataset", "method", "seed", "t"], as_index=False)["value"]
        .max()
    )
    both = [paths[paths["scope"] == ALL].assign(shown="all classes"), worst.assign(shown="worst class")]
    rows = summarised(pd.concat(both), ["dataset", "shown", "method", "t"], logarithmic=True)
    caption = (
        "Condition number κ(Σₜ) of the path from noise (t = 0) to data (t = 1) in the space in which each method's "
        f"flow is trained. Geometric mean over fits with its 95% interval.{basis_text(paths)}"
    )
    item = "figure path_conditioning"
    return lines(item, caption, rows, frames, x=["t"], y="κ(Σₜ)", log="y", choice="covariance of")


def _training(frames: Frames) -> Chart:
    curves = of_first_setting(needed(frames, "training"), COURSES).rename(columns={"step": "training steps"})
    losses = [name for name in ("loss", "validation_loss") if name in curves]
    keys = ["dataset", "method", "training steps"]
    rows = curves.melt(keys, losses, "shown").dropna(subset="value")
    rows = rows.assign(shown=rows["shown"].str.replace("_", " "))
    rows = summarised(rows, ["dataset", "shown", *keys[1:]])
    caption = (
        "Loss of every flow, mean over training seeds with its 95% interval; each point is the mean over a hundredth "
        "of the steps. Each loss is in the units of its own space, so that it says how a training went and not which "
        "method is better."
    )
    return lines("figure training_curves", caption, rows, frames, x=keys[2:], y="loss", choice="shown")


def _course(frames: Frames) -> Chart:
    records = per_seed(of_first_setting(needed(frames, "records"), COURSES))
    records = records.assign(shown=_written(records))
    flows = with_common_end(with_a_course(records[records["method"].map(is_flow)]))
    if flows.empty:
        raise LeftOutError("no metric was taken at more than one checkpoint")
    keys = ["dataset", "shown", "method", "step"]
    flops = (
        with_training_flops(flows, frame(frames, "budgets"))
        .groupby(keys)["flops"]
        .mean()
        .rename("training FLOPs")
    )
    floor = records[records["method"] == FLOOR].groupby(keys[:2])["value"].mean().rename("floor")
    rows = summarised(flows, keys).merge(flops, "left", left_on=keys, right_index=True)
    rows = rows.merge(floor, "left", left_on=keys[:2], right_index=True).rename(
        columns={"step": "training steps"}
    )
    caption = (
        "Each metric against training steps, or against training FLOPs with the fit of the map included: mean over "
        "training seeds with its 95% t interval. The dashed line is the floor, which a perfect flow would score."
    )
    across = ["training steps", "training FLOPs"]
    return lines("figure metrics_vs_steps", caption, rows, frames, x=across, log="x", choice="metric")


def _sides(frames: Frames, sides: pd.DataFrame) -> Chart:
    written = zip(sides["side"], _written(sides), strict=True)
    rows = sides.assign(shown=[f"{side}: {text}" for side, text in written])
    rows = rows.sort_values("side", key=lambda side: side.map(_SIDES.index), kind="stable")
    named = list(rows["shown"])
    first = [next((text for text in named if text.startswith(side)), named[0]) for side in _SIDES[1::-1]]
    caption = (
        "Two of the numbers of the table above against each other, every method a point with its 95% intervals; "
        "lower is better on every axis."
    )
    return points("table sides", caption, rows, frames, first=first)


def _written(rows: pd.DataFrame) -> list[str]:
    pairs = zip(rows["metric"], rows["space"], strict=True)
    return [f"{metric_text(metric).head}, {space_label(space)}" for metric, space in pairs]
