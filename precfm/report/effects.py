"""From a claim's statistics to effects: one estimate per data set, method, baseline and space."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

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
from precfm.report.predictors import RANKED_METHODS, beside_results
from precfm.report.selection import ALL, RECORD_KEYS, Frames, frame, late_slopes, logarithms, pair, per_seed
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
        frames: data frames by name, see `precfm.report.selection.COLUMNS`.
    """
    for statistic in claim.statistics:
        if isinstance(statistic, TheoryStatistic):
            yield from _theory(claim.id, statistic, frame(frames, "theory_statistics"))
        elif isinstance(statistic, RankCorrelationStatistic):
            yield from _rank_correlations(statistic, frames)
        else:
            yield from _comparisons(claim, statistic, frames)


def _theory(claim: str, statistic: TheoryStatistic, rows: pd.DataFrame) -> Iterator[Effect]:
    chosen = rows[(rows["claim"] == claim) & (rows["statistic"] == statistic.name)]
    columns = [chosen[name].astype(float) for name in ("value", "low", "high", "n")]
    for value, low, high, n, note in zip(*columns, chosen["note"].fillna(""), strict=True):
        yield Effect(statistic, Estimate(value, low, high, int(n)), statistic.name, note=str(note))


def _comparisons(
    claim: Claim, statistic: MetricStatistic | LateSlopeStatistic | PathStatistic, frames: Frames
) -> Iterator[Effect]:
    for method in claim.methods:
        for baseline in (name.format(method=method) for name in claim.baselines):
            pairs, keys = _pairs(statistic, frames, method, baseline)
            for key, group in pairs.groupby(keys, sort=True):
                named = dict(zip(keys, key, strict=True))
                differences, note = group["value"] - group["value_baseline"], ""
                if isinstance(statistic, PathStatistic):
                    fits = group.drop_duplicates(["artifact", "artifact_baseline"])
                    note = EXACT if len(fits) == 1 < len(group) else ""
                    differences = differences[fits.index]
                elif isinstance(statistic, MetricStatistic) and statistic.effect == "log_ratio":
                    note = _headroom_note(statistic, frames, named, float(group["value_baseline"].mean()))
                estimate = t_estimate(differences, null=null_value(statistic))
                name = _name(statistic, str(named.get("space", "")))
                yield Effect(statistic, estimate, name, str(named["dataset"]), method, baseline, note)


def _headroom_note(
    statistic: MetricStatistic, frames: Frames, named: dict[str, object], baseline: float
) -> str:
    """`NO_HEADROOM` if the baseline (mean ln) is closer to the floor than the smallest effect that matters."""
    records = _chosen(per_seed(frame(frames, "records")), statistic)
    floor = records[records["method"] == FLOOR]
    for column in ("dataset", "space", "extractor"):
        floor = floor[floor[column] == named[column]]
    if floor.empty:
        return ""
    room = baseline - float(logarithms(floor["value"], statistic.metric).mean())
    return NO_HEADROOM if room < statistic.smallest_effect else ""


def null_value(statistic: Statistic) -> float:
    """The effect that is tested against: none, or the largest harmless change the wrong way."""
    if isinstance(statistic, TheoryStatistic):
        return math.nan
    margins = {"no_increase": statistic.smallest_effect, "no_decrease": -statistic.smallest_effect}
    return margins.get(statistic.direction, 0.0)


def _pairs(
    statistic: MetricStatistic | LateSlopeStatistic | PathStatistic,
    frames: Frames,
    method: str,
    baseline: str,
) -> tuple[pd.DataFrame, list[str]]:
    """Values of both by seed, ready to be subtracted, and the columns that tell effects apart."""
    if isinstance(statistic, PathStatistic):
        values = _mean_on_path(frame(frames, "path_conditioning"), statistic)
        artifacts = values.set_index(["dataset", "method", "seed"])["artifact"]
        pairs = pair(values, method, baseline, ["dataset"])
        for column, of in (("artifact", method), ("artifact_baseline", baseline)):
            keys = zip(pairs["dataset"], pairs["seed"], strict=True)
            pairs[column] = [artifacts[dataset, of, seed] for dataset, seed in keys]
        return pairs, ["dataset"]
    values = _chosen(per_seed(frame(frames, "records")), statistic)
    values = values[values["method"].isin([method, baseline])]
    if isinstance(statistic, LateSlopeStatistic):
        values = late_slopes(values, RECORD_KEYS, statistic.late_from)
    elif statistic.effect == "log_ratio":
        values = values.assign(value=logarithms(values["value"], statistic.metric))
    return pair(values, method, baseline, RECORD_KEYS), RECORD_KEYS


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


def _rank_correlations(statistic: RankCorrelationStatistic, frames: Frames) -> Iterator[Effect]:
    values = _chosen(per_seed(frame(frames, "records")), statistic)
    both = beside_results(values, frames, [statistic.predictor])
    for key, group in both.groupby(RECORD_KEYS, sort=True):
        dataset, _, space, *_ = key
        if len(group) >= RANKED_METHODS:
            estimate = rank_correlation(group[statistic.predictor], group["value"])
            yield Effect(statistic, estimate, _name(statistic, str(space)), str(dataset))


def _name(statistic: Statistic, where: str) -> str:
    return f"{statistic.name} ({where})" if where else statistic.name


def expected(claim: Claim, dataset: str, method: str) -> set[tuple[str, str]]:
    """Name and baseline of every deciding effect that a method must have on a data set.

    Theory has no data set (an empty one), and a data set no theory: each is judged by its own statistics.
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
