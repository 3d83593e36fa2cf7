"""Figure: the Fréchet distance against the training FLOPs of a run, the fit of its preconditioner included."""

from precfm.report.figures.axes import (
    FLOOR_ENTRY,
    TARGET_LINE,
    legend,
    letter,
    log_axes,
    method_curves,
    method_entries,
    panels,
)
from precfm.report.figures.shown import COURSES, compared_text, of_first_setting, that_fit
from precfm.report.figures.style import Drawing, method_styles
from precfm.report.formatting import count_text
from precfm.report.frames import Frames
from precfm.report.judges import by_judges
from precfm.report.reads import frame, needed, reads
from precfm.report.rows import RECORD_KEYS, at_final, baseline_of, groups, per_seed, with_common_end
from precfm.report.tables.time_to_quality import BASELINES, curves
from precfm.report.vocabulary import FLOOR, metric_text, space_label


@reads("records", "budgets")
def draw(frames: Frames) -> Drawing:
    """One panel per classifier and data set, one line per method."""
    records = of_first_setting(needed(frames, "records"), COURSES)
    rows, others = that_fit(
        with_common_end(curves({"records": records, "budgets": frame(frames, "budgets")})), 2
    )
    # Seeds may differ a little in what their fit cost: one place on the axis for all.
    rows["x"] = rows.groupby([*RECORD_KEYS, "method", "step"])["flops"].transform("mean")
    records = per_seed(records)
    floors = (
        by_judges(records[records["method"] == FLOOR])
        .groupby(["dataset", "space", "extractor"])["value"]
        .mean()
    )
    parts, styles = list(groups(rows, *RECORD_KEYS)), method_styles(frames)
    figure, axes = panels(len(parts), columns=2, height=2.4)
    for position, (ax, (about, group)) in enumerate(zip(axes, parts, strict=True)):
        dataset, metric, space, *_, extractor = about
        baseline = at_final(group[group["method"] == baseline_of(group, BASELINES)])["value"]
        target = baseline.mean() if len(baseline) else None
        method_curves(ax, group, styles, floor=floors.get((dataset, space, extractor)), target=target)
        log_axes(ax, "x")
        ax.set(xlabel="training FLOPs, preconditioner included", ylabel=metric_text(metric).head)
        letter(ax, position, f"{dataset}, {space_label(space)}")
    extra = ({"baseline at its end": TARGET_LINE} if baseline_of(rows, BASELINES) else {}) | (
        FLOOR_ENTRY if len(floors) else {}
    )
    legend(figure, method_entries(list(rows["method"]), styles) | extra)
    caption = (
        "Quality against the floating-point operations spent on training, those to fit the preconditioner included: "
        f"Fréchet distance of {compared_text(rows)}, {count_text(rows['n_generated'].max())} samples against "
        f"{count_text(rows['n_real'].max())} held-out images. Dotted: the baseline (scalar, else none) at its last "
        "checkpoint, the target of the table time_to_quality; dashed: the floor, the train split against the same "
        f"reference.{others}"
    )
    return Drawing(figure, caption)
