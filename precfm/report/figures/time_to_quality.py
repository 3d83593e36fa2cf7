"""Figure: the Fréchet distance against the training FLOPs of a run, the fit of its preconditioner included."""

from typing import Any

import pandas as pd

from precfm.report.figures.axes import (
    FLOOR_ENTRY,
    SPAN_FOR_LOG,
    curve,
    fit_to_means,
    legend,
    letter,
    plain_log_ticks,
    small_multiples,
    sparse_log_ticks,
    spread_text,
)
from precfm.report.figures.style import FLOOR_LINE, REFERENCE, Drawing, method_styles
from precfm.report.frames import Frames
from precfm.report.reads import needed, reads
from precfm.report.rows import RECORD_KEYS, TRAINED, at_final, groups, of_settings, per_seed
from precfm.report.tables.time_to_quality import METRIC, baseline_of, curves
from precfm.report.vocabulary import FLOOR, in_order, metric_text, space_label

COLUMNS = 2
_TARGET: dict[str, Any] = {"color": REFERENCE, "linestyle": ":", "linewidth": 0.9}


@reads("records", "budgets")
def draw(frames: Frames) -> Drawing:
    """One panel per setting and classifier, one line per method."""
    rows = curves(frames)
    # Seeds may differ a little in what their fit cost: one place on the axis for all.
    rows["x"] = rows.groupby([*RECORD_KEYS, "method", "step"])["flops"].transform("mean")
    floors = _floors(frames)
    parts = list(groups(rows, *RECORD_KEYS))
    styles = method_styles(frames)
    figure, axes = small_multiples(len(parts), COLUMNS, height=2.3)
    several = rows["dataset"].nunique() > 1
    for position, (ax, (about, group)) in enumerate(zip(axes, parts, strict=True)):
        dataset, _, space, *_, extractor = about
        shown = []
        for method in in_order(group["method"]):
            shown += curve(ax, group[group["method"] == method], styles[method])
        baseline = baseline_of(group)
        if baseline is not None:
            ax.axhline(at_final(group[group["method"] == baseline])["value"].mean(), zorder=1, **_TARGET)
        floor = floors.get((dataset, space, extractor))
        if floor is not None:
            ax.axhline(floor, zorder=1, **FLOOR_LINE)
            shown.append(floor)
        log = min(shown) > 0 and max(shown) / min(shown) > SPAN_FOR_LOG
        fit_to_means(ax, shown, log=log)
        if log:
            plain_log_ticks(ax)
        ax.set_xscale("log")
        sparse_log_ticks(ax)
        ax.set_xlabel("training FLOPs, preconditioner included")
        ax.set_ylabel(metric_text(METRIC).head)
        letter(ax, position, space_label(space) + (f", {dataset}" if several else ""))
    extra = [("baseline at its end", _TARGET)] if baseline_of(rows) else []
    legend(
        figure,
        [styles[method] for method in in_order(rows["method"])],
        [*extra, *([FLOOR_ENTRY] if len(floors) else [])],
    )
    caption = (
        "Fréchet distance against floating-point operations spent on training, those to fit the preconditioner "
        f"included: mean {spread_text(rows)}. Dotted: the baseline (scalar, else none) at its last "
        "checkpoint, the target of the table time_to_quality; dashed grey: the floor, the train split against the same "
        "reference."
    )
    return Drawing(figure, caption)


def _floors(frames: Frames) -> pd.Series:
    records = per_seed(of_settings(needed(frames, "records"), TRAINED))
    floor = records[(records["method"] == FLOOR) & (records["metric"] == METRIC)]
    return floor.groupby(["dataset", "space", "extractor"])["value"].mean()
