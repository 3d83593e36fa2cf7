"""Figure: the three sides of quality against the training steps of the flow."""

from precfm.core.metric_names import FRECHET_IN_COMPONENTS
from precfm.report.figures.axes import (
    FLOOR_ENTRY,
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
from precfm.report.judges import DISTANCES, FRECHET, judges_text, whitened_text
from precfm.report.reads import LeftOutError, needed, reads
from precfm.report.rows import groups, per_seed, with_a_course, with_common_end
from precfm.report.vocabulary import FLOOR, LIKELIHOOD, decoded, is_flow, is_judge, judge_label, metric_text

# The metrics by which claims are decided; against images as they are only where none are decoded.
SIDES = {
    (FRECHET, "latent-whitened"): "second moments, whitened",
    (FRECHET_IN_COMPONENTS, "latent-whitened"): "second moments, whitened",
    ("eigenvalue_log_error_low", "latent"): "second moments, lowest quarter",
    (LIKELIHOOD, "latent"): "likelihood",
}
_KEYS = ["dataset", "metric", "space", "extractor"]


def side(metric: str, space: str) -> str:
    """The side of a number, with the judge of the perceptual one; empty for what decides no claim."""
    if is_judge(space):
        return f"perceptual, {judge_label(space)}" if metric in DISTANCES else ""
    return SIDES.get((metric, space), "")


@reads("records")
def draw(frames: Frames) -> Drawing:
    """A panel for each number that the sides are judged by."""
    records = per_seed(of_first_setting(needed(frames, "records"), COURSES))
    records = records[[side(*key) != "" for key in zip(records["metric"], records["space"], strict=True)]]
    flows = with_common_end(with_a_course(records[records["method"].map(is_flow)]))
    if flows.empty:
        raise LeftOutError("no metric of the three sides was taken at more than one checkpoint")
    spaces = set(flows["space"])
    flows = flows[~flows["space"].isin([space for space in spaces if decoded(space) in spaces])]
    flows, others = that_fit(flows, len(flows.groupby(["metric", "space"])))
    parts, styles = dict(groups(flows.assign(x=flows["step"].astype(int)), *_KEYS)), method_styles(frames)
    floors = records[records["method"] == FLOOR].groupby(_KEYS)["value"].mean()
    figure, axes = panels(len(parts), height=2.1)
    for position, (ax, (key, rows)) in enumerate(zip(axes, parts.items(), strict=True)):
        _, metric, space, _ = key
        method_curves(ax, rows, styles, floor=floors.get(key))
        log_axes(ax, "x")
        ax.set(xlabel="training steps", ylabel=metric_text(metric).head)
        letter(ax, position, side(metric, space))
    legend(
        figure,
        method_entries(list(flows["method"]), styles)
        | (FLOOR_ENTRY if floors.index.isin(list(parts)).any() else {}),
    )
    caption = (
        f"The three sides of quality against the training steps of the flow: {compared_text(flows)}, "
        f"{count_text(flows['n_generated'].max())} samples against {count_text(flows['n_real'].max())} held-out "
        f"rows. Perceptual: {judges_text(flows)}, to held-out images that "
        "have gone through encoder and decoder where it says 'decoded'. Second moments: "
        f"{whitened_text(flows)}, and mean |ln variance ratio| along the quarter of directions with the smallest "
        "variance. Likelihood: of held-out rows, in data space. Dashed: the floor, the train split against the same "
        f"reference. Each panel has its own value axis, fitted to the means: a wide band may leave it.{others}"
    )
    return Drawing(figure, caption)
