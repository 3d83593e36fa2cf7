"""From a claim's statistics to effects: one estimate per data set, method, baseline and space."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd

from precfm.errors import PrecfmError
from precfm.report.claims import (
    Claim,
    LateSlopeStatistic,
    MetricStatistic,
    PathStatistic,
    RankCorrelationStatistic,
    Statistic,
    TheoryStatistic,
)
from precfm.report.selection import ALL, PROTOCOL, Frames, at_final, frame, pair, per_seed
from precfm.report.statistics import Estimate, rank_correlation, slope, t_estimate
from precfm.report.vocabulary import is_flow, split_matched

LATE_CHECKPOINTS = 3
RANKED_METHODS = 4
_RECORD_KEYS = ["dataset", "metric", "space", *PROTOCOL]


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
        note: a remark from the frame.
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
                differences = group["value"] - group["value_baseline"]
                estimate = t_estimate(differences, null=null_value(statistic))
                name = _name(statistic, str(named.get("space", "")))
                yield Effect(statistic, estimate, name, str(named["dataset"]), method, baseline)


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
        worst = _largest_on_path(frame(frames, "path_conditioning"), statistic.scope)
        return pair(worst, method, baseline, ["dataset"]), ["dataset"]
    values = _chosen(per_seed(frame(frames, "records")), statistic)
    values = values[values["method"].isin([method, baseline])]
    if isinstance(statistic, LateSlopeStatistic):
        values = _late_slopes(values, statistic)
    elif statistic.effect == "log_ratio":
        values = values.assign(value=_logarithms(values["value"], statistic.metric))
    return pair(values, method, baseline, _RECORD_KEYS), _RECORD_KEYS


def _chosen(
    values: pd.DataFrame, statistic: MetricStatistic | LateSlopeStatistic | RankCorrelationStatistic
) -> pd.DataFrame:
    return values[(values["metric"] == statistic.metric) & values["space"].isin(statistic.spaces)]


def _logarithms(values: pd.Series, what: str) -> pd.Series:
    numbers = values.astype(float)
    if (numbers <= 0).any():
        raise PrecfmError(f"{what} is {numbers.min():g}; its logarithm needs positive values")
    return numbers.map(math.log)


def _largest_on_path(paths: pd.DataFrame, scope: str) -> pd.DataFrame:
    chosen = paths[paths["scope"] == ALL] if scope == "all" else paths[paths["scope"] != ALL]
    largest = chosen.groupby(["dataset", "method", "seed"])["condition_number"].max().reset_index()
    return largest.assign(value=_logarithms(largest["condition_number"], "a condition number"))


def _late_slopes(values: pd.DataFrame, statistic: LateSlopeStatistic) -> pd.DataFrame:
    """Slope of ln(metric) per decade of steps for each seed, over the checkpoints that both methods share."""
    rows = []
    for _, group in values.groupby(_RECORD_KEYS, sort=True):
        runs = len(group[["method", "seed"]].drop_duplicates())
        reached = group.groupby("step").size()
        shared = [step for step in reached[reached == runs].index if step > 0]
        late = [step for step in shared if step >= statistic.late_from * max(shared)]
        if len(late) < LATE_CHECKPOINTS:
            continue
        for _, run in group[group["step"].isin(late)].groupby(["method", "seed"]):
            fitted = slope(np.log10(run["step"].astype(float)), _logarithms(run["value"], statistic.metric))
            rows.append({**run.iloc[0].drop("step").to_dict(), "value": fitted})
    return pd.DataFrame(rows, columns=[column for column in values.columns if column != "step"])


def _rank_correlations(statistic: RankCorrelationStatistic, frames: Frames) -> Iterator[Effect]:
    fitted = frame(frames, "preconditioners")
    if statistic.predictor not in fitted.columns:
        known = ", ".join(map(str, fitted.columns))
        raise PrecfmError(
            f"claims: predictor '{statistic.predictor}' is no column of preconditioners ({known})"
        )
    quality = fitted[["dataset", "method", "seed", statistic.predictor]]
    values = at_final(_chosen(per_seed(frame(frames, "records")), statistic))
    own = values["method"].map(lambda method: is_flow(method) and not split_matched(method)[1])
    both = values[own.astype(bool)].merge(quality, on=["dataset", "method", "seed"])
    for key, group in both.groupby(_RECORD_KEYS, sort=True):
        dataset, _, space, *_ = key
        for over, estimate in _both_ways(group, statistic.predictor):
            yield Effect(statistic, estimate, _name(statistic, f"{space}, over {over}"), str(dataset))


def _both_ways(group: pd.DataFrame, predictor: str) -> Iterator[tuple[str, Estimate]]:
    # Without their last digits, so that equal qualities tie instead of being ranked by rounding errors.
    group = group.assign(quality=_logarithms(group[predictor], predictor).round(9))
    within = [
        rank_correlation(of_seed["quality"], of_seed["value"]).value
        for _, of_seed in group.groupby("seed")
        if of_seed["method"].nunique() >= RANKED_METHODS
    ]
    known = [value for value in within if not math.isnan(value)]
    if known:
        yield "seeds", t_estimate(known)
    if group["method"].nunique() >= RANKED_METHODS:
        means = group.groupby("method")[["quality", "value"]].mean()
        yield "methods", rank_correlation(means["quality"], means["value"])


def _name(statistic: Statistic, where: str) -> str:
    return f"{statistic.name} ({where})" if where else statistic.name


def expected(claim: Claim, method: str) -> set[tuple[str, str]]:
    """Name and baseline of every deciding effect that a complete comparison of a method has."""
    names = set()
    for statistic in claim.statistics:
        if statistic.role != "decides":
            continue
        spaces: tuple[str, ...] = ("",)
        if isinstance(statistic, MetricStatistic | LateSlopeStatistic | RankCorrelationStatistic):
            spaces = statistic.spaces
        if isinstance(statistic, RankCorrelationStatistic):
            spaces = tuple(f"{space}, over {over}" for space in spaces for over in ("seeds", "methods"))
        baselines = [name.format(method=method) for name in claim.baselines] if method else [""]
        names |= {(_name(statistic, space), baseline) for space in spaces for baseline in baselines}
    return names
