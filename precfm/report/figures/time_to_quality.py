"""Figure: the Fréchet distance against the training FLOPs of a run, the fit of its preconditioner included."""

from precfm.report.figures.axes import (
    FLOOR_ENTRY,
    TARGET_LINE,
    legend,
    letter,
    method_curves,
    small_multiples,
    sparse_log_ticks,
    spread_text,
)
from precfm.report.figures.style import Drawing, method_styles
from precfm.report.frames import Frames
from precfm.report.reads import needed, reads
from precfm.report.rows import RECORD_KEYS, TRAINED, at_final, groups, of_settings, per_seed, with_common_end
from precfm.report.tables.time_to_quality import METRIC, baseline_of, curves
from precfm.report.vocabulary import FLOOR, in_order, metric_text, space_label

COLUMNS = 2


@reads("records", "budgets")
def draw(frames: Frames) -> Drawing:
    """One panel per setting and classifier, one line per method."""
    rows, styles = with_common_end(curves(frames)), method_styles(frames)
    # Seeds may differ a little in what their fit cost: one place on the axis for all.
    rows["x"] = rows.groupby([*RECORD_KEYS, "method", "step"])["flops"].transform("mean")
    records = per_seed(of_settings(needed(frames, "records"), TRAINED))
    of_floor = records[(records["method"] == FLOOR) & (records["metric"] == METRIC)]
    floors = of_floor.groupby(["dataset", "space", "extractor"])["value"].mean()
    parts, several = list(groups(rows, *RECORD_KEYS)), rows["dataset"].nunique() > 1
    figure, axes = small_multiples(len(parts), COLUMNS, height=2.3)
    for position, (ax, (about, group)) in enumerate(zip(axes, parts, strict=True)):
        dataset, _, space, *_, extractor = about
        baseline = at_final(group[group["method"] == baseline_of(group)])["value"]
        target = baseline.mean() if len(baseline) else None
        method_curves(ax, group, styles, floor=floors.get((dataset, space, extractor)), target=target)
        ax.set(
            xscale="log", xlabel="training FLOPs, preconditioner included", ylabel=metric_text(METRIC).head
        )
        sparse_log_ticks(ax)
        letter(ax, position, space_label(space), dataset if several else "")
    extra = [("baseline at its end", TARGET_LINE)] if baseline_of(rows) else []
    extra += [FLOOR_ENTRY] if len(floors) else []
    legend(figure, [styles[method] for method in in_order(rows["method"])], extra)
    caption = (
        "Fréchet distance against floating-point operations spent on training, those to fit the preconditioner "
        f"included: mean {spread_text(rows)}. Dotted: the baseline (scalar, else none) at its last "
        "checkpoint, the target of the table time_to_quality; dashed grey: the floor, the train split against the same "
        "reference."
    )
    return Drawing(figure, caption)
