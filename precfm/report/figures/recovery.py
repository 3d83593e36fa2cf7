"""Figure: variance of the samples over variance of the data, from the largest variance to the smallest."""

from collections.abc import Mapping

import numpy as np
import pandas as pd

from precfm.report.figures.axes import (
    FLOOR_ENTRY,
    RANK,
    legend,
    letter,
    method_curves,
    method_entries,
    panels,
)
from precfm.report.figures.shown import by_family, compared_text, family, of_first_setting, that_fit
from precfm.report.figures.style import FLOOR_LINE, Drawing, method_styles
from precfm.report.frames import Frames
from precfm.report.reads import LeftOutError, needed, reads
from precfm.report.rows import UNPRECONDITIONED, at_final, baseline_of, baseline_text
from precfm.report.summaries import logarithms, summarised
from precfm.report.vocabulary import FLOOR, is_flow

BINS = 16  # of neighbouring directions, whose single ratios scatter in the same way for all methods


@reads("recovery")
def draw(frames: Frames) -> Drawing:
    """One panel per family of methods, with the flow without preconditioning repeated in each."""
    ratios = binned(of_first_setting(needed(frames, "recovery")))
    flows = ratios[ratios["method"].map(is_flow)]
    if flows.empty:
        raise LeftOutError("recovery has no rows of a trained flow")
    flows, others = that_fit(flows, flows["method"].map(family).nunique())
    floors = summarised(ratios[ratios["method"] == FLOOR], ["dataset", "x"], logarithmic=True)
    parts, styles = list(by_family(flows)), method_styles(frames)
    baselines = {str(name): baseline_of(rows, UNPRECONDITIONED) for name, rows in flows.groupby("dataset")}
    figure, axes = panels(len(parts), height=2.5)
    for position, (ax, (dataset, name, rows)) in enumerate(zip(axes, parts, strict=True)):
        ax.axvspan(0.75, 1, color="#f0f0f0", linewidth=0, zorder=0)
        name_of_baseline = baselines[dataset]
        baseline = flows[(flows["dataset"] == dataset) & (flows["method"] == name_of_baseline)]
        method_curves(
            ax, pd.concat([rows[rows["method"] != name_of_baseline], baseline]), styles, target=1.0, log=True
        )
        floor = floors[floors["dataset"] == dataset]
        if len(floor):
            ax.plot(floor["x"], floor["value"], **FLOOR_LINE, zorder=1)
        ax.set(xlim=(0, 1), xlabel=RANK)
        ax.set_ylabel("variance ratio → 1" if position % 3 == 0 else "")
        letter(ax, position, name + (f", {dataset}" if flows["dataset"].nunique() > 1 else ""))
    legend(figure, method_entries(list(flows["method"]), styles) | (FLOOR_ENTRY if len(floors) else {}))
    caption = (
        "Variance of the samples over variance of the held-out data along the eigendirections of the data's "
        f"covariance, from the largest variance to the smallest: {compared_text(flows)}, at the final checkpoint. "
        "Of feature maps, whatever their rows, they are those of the channels at each spatial frequency. "
        f"Geometric means over {BINS} groups of neighbouring directions and over seeds. At one (dotted) the variance "
        "is recovered; above, the samples are too wide. Shaded: the lowest quarter of directions, by which recovery "
        f"is judged. {_in_every_panel(baselines)}ashed: the floor, the train split "
        f"against the same reference. Each panel has its own value axis, fitted to the means.{others}"
    )
    return Drawing(figure, caption)


def _in_every_panel(baselines: Mapping[str, str | None]) -> str:
    """Which flow every panel of a data set has; up to the first letter of 'dashed'."""
    texts = {name: baseline_text(method) for name, method in baselines.items() if method is not None}
    kinds = sorted(set(texts.values()))
    if not kinds:
        return "D"
    if len(texts) == len(baselines) and len(kinds) == 1:
        return f"The {kinds[0]} stands in every panel; d"
    of_each = [f"of {', '.join(name for name in texts if texts[name] == kind)} the {kind}" for kind in kinds]
    return f"In every panel stands {', '.join(of_each)}; d"


def binned(recovery: pd.DataFrame) -> pd.DataFrame:
    """Ratios at the final checkpoint, geometric means over at most `BINS` groups of neighbouring directions.

    Args:
        recovery: the frame of that name.

    Returns:
        Columns dataset, method, seed, x (the middle of the group as a share of all, largest variance
        first), value.
    """
    final = at_final(recovery)
    count = final.groupby("dataset")["index"].transform("max") + 1
    groups_of = np.minimum(count, BINS)
    middle = 1 - (final["index"] * groups_of // count + 0.5) / groups_of
    logs = final.assign(x=middle, value=logarithms(final["ratio"], "a variance ratio"))
    means: pd.DataFrame = logs.groupby(["dataset", "method", "seed", "x"])["value"].mean().reset_index()
    return means.assign(value=np.exp(means["value"]))
