"""From a claim's statistics to effects: one estimate per data set, method, baseline and space."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pandas as pd

from precfm.core.statistics import Estimate, rank_correlation, t_estimate
from precfm.report.claims import (
    Claim,
    LateSlopeStatistic,
    MetricStatistic,
    PathStatistic,
    RankCorrelationStatistic,
    Statistic,
    TheoryStatistic,
)
from precfm.report.frames import STATISTICS, Frames
from precfm.report.predictor_values import FRAME_OF, RANKED_METHODS, beside_results
from precfm.report.reads import Declared, declared, frame, reads
from precfm.report.rows import ALL, RECORD_KEYS, pair, per_seed
from precfm.report.summaries import late_slopes, logarithms
from precfm.report.vocabulary import FLOOR

EXACT = "exact: no randomness"
NO_HEADROOM = "no headroom above the floor"


@dataclass(frozen=True)
class Effect:
    """One estimate that bears on a claim.

    Attributes:
        statistic: what the claims file says about it.
        estimate: the effect with its interval; `p` is against the null of the statistic's direction.
        name: the statistic's name, with the space it was taken in.
        dataset: data set; empty for theory.
        method: the preconditioner; empty if it is about all of them or about none.
        baseline: what it was compared with.
        note: a remark from the frame, `EXACT` or `NO_HEADROOM`.
    """

    statistic: Statistic
    estimate: Estimate
    name: str
    dataset: str = ""
    method: str = ""
    baseline: str = ""
    note: str = ""


def effects(claim: Claim, frames: Frames) -> Iterator[Effect]:
    """All effects of a claim that the frames allow; what is missing is missing from the result.

    Args:
        claim: the claim.
        frames: data frames by name, see `precfm.report.frames.FRAMES`.
    """
    for statistic in claim.statistics:
        yield from _EFFECTS[statistic.kind](claim, statistic, Declared(frames, frames_of(statistic)))


def frames_of(statistic: Statistic) -> tuple[str, ...]:
    """The frames that a statistic is computed from; a rank correlation reads that of its predictor alone."""
    names = declared(_EFFECTS[statistic.kind])
    if isinstance(statistic, RankCorrelationStatistic):
        others = set(FRAME_OF.values()) - {FRAME_OF[statistic.predictor]}
        return tuple(name for name in names if name not in others)
    return names


@reads(STATISTICS)
def _theory(claim: Claim, statistic: TheoryStatistic, frames: Frames) -> Iterator[Effect]:
    rows = frame(frames, STATISTICS)
    chosen = rows[(rows["claim"] == claim.id) & (rows["statistic"] == statistic.name)]
    columns = [chosen[name].astype(float) for name in ("value", "low", "high", "n")]
    for value, low, high, n, note in zip(*columns, chosen["note"].fillna(""), strict=True):
        yield Effect(statistic, Estimate(value, low, high, int(n)), statistic.name, note=str(note))


@reads("path_conditioning")
def _paths(claim: Claim, statistic: PathStatistic, frames: Frames) -> Iterator[Effect]:
    """What has no randomness counts once, however many seeds it stands for."""
    values = _mean_on_path(frame(frames, "path_conditioning"), statistic)
    artifacts = values.set_index(["dataset", "method", "seed"])["artifact"]
    for method, baseline in _comparisons(claim):
        pairs = pair(values, method, baseline, ["dataset"])
        runs = list(zip(pairs["dataset"], pairs["seed"], strict=True))
        pairs["fits"] = [
            (artifacts[data, method, seed], artifacts[data, baseline, seed]) for data, seed in runs
        ]
        for dataset, group in pairs.groupby("dataset", sort=True):
            fits = group.drop_duplicates("fits")
            note = EXACT if len(fits) == 1 < len(group) else ""
            estimate = t_estimate(fits["value"] - fits["value_baseline"], null=null_value(statistic))
            yield Effect(statistic, estimate, statistic.name, str(dataset), method, baseline, note)


@reads("records")
def _metrics(
    claim: Claim, statistic: MetricStatistic | LateSlopeStatistic, frames: Frames
) -> Iterator[Effect]:
    records = _chosen(per_seed(frame(frames, "records")), statistic)
    for method, baseline in _comparisons(claim):
        values = records[records["method"].isin([method, baseline])]
        if isinstance(statistic, LateSlopeStatistic):
            values = late_slopes(values, RECORD_KEYS, statistic.late_from)
        elif statistic.effect == "log_ratio":
            values = values.assign(value=logarithms(values["value"], statistic.metric))
        for key, group in pair(values, method, baseline, RECORD_KEYS).groupby(RECORD_KEYS, sort=True):
            named, note = dict(zip(RECORD_KEYS, key, strict=True)), ""
            if isinstance(statistic, MetricStatistic) and statistic.effect == "log_ratio":
                note = _headroom_note(statistic, records, named, float(group["value_baseline"].mean()))
            estimate = t_estimate(group["value"] - group["value_baseline"], null=null_value(statistic))
            name = _name(statistic, str(named["space"]))
            yield Effect(statistic, estimate, name, str(named["dataset"]), method, baseline, note)


def _comparisons(claim: Claim) -> Iterator[tuple[str, str]]:
    """Every method of a claim beside each of its baselines."""
    for method in claim.methods:
        for baseline in claim.baselines:
            yield method, baseline.format(method=method)


def _headroom_note(
    statistic: MetricStatistic, records: pd.DataFrame, named: dict[str, object], baseline: float
) -> str:
    """`NO_HEADROOM` if the baseline (mean ln) is closer to the floor than the smallest effect that matters."""
    floor = records[records["method"] == FLOOR]
    for column in ("dataset", "space", "extractor"):
        floor = floor[floor[column] == named[column]]
    if floor.empty:
        return ""
    headroom = baseline - float(logarithms(floor["value"], statistic.metric).mean())
    return NO_HEADROOM if headroom < statistic.smallest_effect else ""


def null_value(statistic: Statistic) -> float:
    """The effect that is tested against: none, or the largest harmless change the wrong way."""
    if isinstance(statistic, TheoryStatistic):
        return math.nan
    margins = {"no_increase": statistic.smallest_effect, "no_decrease": -statistic.smallest_effect}
    return margins.get(statistic.direction, 0.0)


def _chosen(
    values: pd.DataFrame, statistic: MetricStatistic | LateSlopeStatistic | RankCorrelationStatistic
) -> pd.DataFrame:
    return values[(values["metric"] == statistic.metric) & values["space"].isin(statistic.spaces)]


def _mean_on_path(paths: pd.DataFrame, statistic: PathStatistic) -> pd.DataFrame:
    """Mean over the times of each run: dataset, method, seed, artifact, value; of several classes the worst."""
    chosen = paths[(paths["scope"] == ALL) == (statistic.scope == "all")]
    if statistic.quantity == "log_condition_number":
        chosen = chosen.assign(value=logarithms(chosen["condition_number"], "a condition number"))
    else:
        chosen = chosen.assign(value=chosen["effective_rank"].astype(float))
    keys = ["dataset", "method", "seed", "artifact"]
    means = chosen.groupby([*keys, "scope"])["value"].mean().groupby(keys)
    worst = means.max() if statistic.quantity == "log_condition_number" else means.min()
    return worst.reset_index()


@reads("records", optional=tuple(sorted(set(FRAME_OF.values()))))
def _rank_correlations(claim: Claim, statistic: RankCorrelationStatistic, frames: Frames) -> Iterator[Effect]:
    values = _chosen(per_seed(frame(frames, "records")), statistic)
    both = beside_results(values, frames, [statistic.predictor])
    for key, group in both.groupby(RECORD_KEYS, sort=True):
        dataset, _, space, *_ = key
        if len(group) >= RANKED_METHODS:
            estimate = rank_correlation(group[statistic.predictor], group["value"])
            yield Effect(statistic, estimate, _name(statistic, str(space)), str(dataset))


_EFFECTS: dict[str, Callable[[Claim, Any, Frames], Iterator[Effect]]] = {
    "theory": _theory,
    "metric": _metrics,
    "late_slope": _metrics,
    "path_conditioning": _paths,
    "rank_correlation": _rank_correlations,
}


def _name(statistic: Statistic, where: str) -> str:
    return f"{statistic.name} ({where})" if where else statistic.name


def expected(claim: Claim, dataset: str, method: str) -> set[tuple[str, str]]:
    """Name and baseline of every deciding effect that a method must have on a data set.

    Theory has no data set (an empty one), and a data set no theory: each has its own statistics.
    """
    names = set()
    for statistic in claim.statistics:
        if statistic.role != "decides" or isinstance(statistic, TheoryStatistic) == bool(dataset):
            continue
        spaces: tuple[str, ...] = ("",)
        if isinstance(statistic, MetricStatistic | LateSlopeStatistic | RankCorrelationStatistic):
            spaces = statistic.spaces
        baselines = [name.format(method=method) for name in claim.baselines] if method else [""]
        names |= {(_name(statistic, space), baseline) for space in spaces for baseline in baselines}
    return names
