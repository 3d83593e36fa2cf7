"""Figure: every metric against the training steps of the flow, one small panel per metric and space."""

from precfm.report.figures.axes import (
    FLOOR_ENTRY,
    legend,
    letter,
    method_curves,
    small_multiples,
    spread_text,
)
from precfm.report.figures.style import Drawing, method_styles
from precfm.report.frames import Frames
from precfm.report.reads import LeftOutError, needed, reads
from precfm.report.rows import TRAINED, groups, of_settings, per_seed, with_a_course, with_common_end
from precfm.report.vocabulary import FLOOR, in_order, is_flow, metric_text, space_label

COLUMNS = 3


@reads("records")
def draw(frames: Frames) -> Drawing:
    """Small multiples of the metrics that were taken at two checkpoints or more."""
    records = per_seed(of_settings(needed(frames, "records"), TRAINED))
    flows = with_common_end(with_a_course(records[records["method"].map(is_flow)]))
    flows = flows.assign(x=flows["step"].astype(int))
    keys = ["dataset", "metric", "space", "extractor"]
    if flows.empty:
        raise LeftOutError("no metric was taken at more than one checkpoint")
    parts, styles = dict(groups(flows, *keys)), method_styles(frames)
    floors = records[records["method"] == FLOOR].groupby(keys)["value"].mean()
    several = flows["dataset"].nunique() > 1
    figure, axes = small_multiples(len(parts), COLUMNS, height=1.85)
    for position, (ax, (key, rows)) in enumerate(zip(axes, parts.items(), strict=True)):
        dataset, metric, space, _ = key
        text, steps = metric_text(metric), sorted(rows["x"].unique())
        target = 1.0 if text.better == "one" else None
        method_curves(ax, rows, styles, floor=floors.get(key), target=target, log=text.multiplicative)
        ax.set_xscale("log")
        ax.set_xticks(steps, [f"{step / 1000:g}k" if step >= 1000 else str(step) for step in steps])
        ax.minorticks_off()
        ax.set(xlabel="training steps", ylabel=text.head)
        letter(ax, position, space_label(space), dataset if several else "")
    has_floor = any(key in floors.index for key in parts)
    legend(figure, [styles[method] for method in in_order(flows["method"])], [FLOOR_ENTRY] * has_floor)
    caption = (
        f"Metrics against training steps of the flow: mean {spread_text(flows)} (ratios: on the log scale). "
        "Dashed grey: the floor, the train split against the same reference; dotted: the target of a ratio. "
        "Each panel has its own extractor and its own axis, fitted to the means: a wide band may leave it. "
        "Metrics taken only at the last checkpoint are in the metric table."
    )
    return Drawing(figure, caption)
