"""Figure: every metric against the training steps of the flow, one small panel per metric and space."""

from collections.abc import Mapping

import pandas as pd
from matplotlib.axes import Axes

from precfm.report.figures.axes import (
    FLOOR_ENTRY,
    SPAN_FOR_LOG,
    curve,
    fit_to_means,
    legend,
    letter,
    plain_log_ticks,
    small_multiples,
    spread_text,
)
from precfm.report.figures.style import FLOOR_LINE, REFERENCE, Drawing, MethodStyle, method_styles
from precfm.report.frames import Frames
from precfm.report.reads import LeftOutError, needed, reads
from precfm.report.rows import TRAINED, groups, of_settings, per_seed
from precfm.report.vocabulary import FLOOR, in_order, is_flow, metric_text, space_label

COLUMNS = 3


@reads("records")
def draw(frames: Frames) -> Drawing:
    """Small multiples of the metrics that were taken at two checkpoints or more."""
    records = per_seed(of_settings(needed(frames, "records"), TRAINED))
    records = records.assign(x=records["step"].astype(int))
    flows = records[records["method"].map(is_flow)]
    keys = ["dataset", "metric", "space", "extractor"]
    parts = [(key, rows) for key, rows in groups(flows, *keys) if rows["x"].nunique() > 1]
    if not parts:
        raise LeftOutError("no metric was taken at more than one checkpoint")
    floors = records[records["method"] == FLOOR].groupby(keys)["value"].mean()
    styles = method_styles(frames)
    figure, axes = small_multiples(len(parts), COLUMNS, height=1.85)
    several = len({key[0] for key, _ in parts}) > 1
    for position, (ax, (key, rows)) in enumerate(zip(axes, parts, strict=True)):
        dataset, metric, space, _ = key
        _panel(ax, rows, metric, floors.get(key), styles)
        letter(ax, position, space_label(space) + (f", {dataset}" if several else ""))
    shown = in_order(method for _, rows in parts for method in rows["method"])
    has_floor = any(key in floors.index for key, _ in parts)
    legend(figure, [styles[method] for method in shown], [FLOOR_ENTRY] if has_floor else [])
    caption = (
        f"Metrics against training steps of the flow: mean {spread_text(flows)} (ratios: on the log scale). "
        "Dashed grey: the floor, the train split against the same reference; dotted: the target of a ratio. "
        "Each panel has its own extractor and its own axis, fitted to the means: a wide band may leave it. "
        "Metrics taken only at the last checkpoint are in the metric table."
    )
    return Drawing(figure, caption)


def _panel(
    ax: Axes, rows: pd.DataFrame, metric: str, floor: float | None, styles: Mapping[str, MethodStyle]
) -> None:
    text = metric_text(metric)
    shown = []
    if floor is not None:
        ax.axhline(floor, zorder=1, **FLOOR_LINE)
        shown.append(floor)
    if text.better == "one":
        ax.axhline(1.0, color=REFERENCE, linestyle=":", linewidth=0.9, zorder=1)
        shown.append(1.0)
    for method in in_order(rows["method"]):
        shown += curve(ax, rows[rows["method"] == method], styles[method], log=text.multiplicative)
    log = text.multiplicative or (min(shown) > 0 and max(shown) / min(shown) > SPAN_FOR_LOG)
    fit_to_means(ax, shown, log=log)
    if log:
        plain_log_ticks(ax)
    steps = sorted(rows["x"].unique())
    ax.set_xscale("log")
    ax.set_xticks(steps, [f"{step / 1000:g}k" if step >= 1000 else str(step) for step in steps])
    ax.minorticks_off()
    ax.set_xlabel("training steps")
    ax.set_ylabel(text.head)
