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
from precfm.report.vocabulary import FLOOR, is_flow, split_matched

LATE_CHECKPOINTS = 3
RANKED_METHODS = 8
EXACT = "exact: no randomness"
NO_HEADROOM = "no headroom above the floor"
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
    room = baseline - float(_logarithms(floor["value"], statistic.metric).mean())
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


def _mean_on_path(paths: pd.DataFrame, statistic: PathStatistic) -> pd.DataFrame:
    """Mean over the times of each run: dataset, method, seed, artifact, value; of several classes the worst."""
    chosen = paths[(paths["scope"] == ALL) == (statistic.scope == "all")]
    if statistic.quantity == "log_condition_number":
        chosen = chosen.assign(value=_logarithms(chosen["condition_number"], "a condition number"))
    else:
        chosen = chosen.assign(value=chosen["effective_rank"].astype(float))
    keys = ["dataset", "method", "seed", "artifact"]
    means = chosen.groupby([*keys, "scope"])["value"].mean().groupby(keys)
    worst = means.max() if statistic.quantity == "log_condition_number" else means.min()
    return worst.reset_index()


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
        if group["method"].nunique() >= RANKED_METHODS:
            logs = _logarithms(group[statistic.predictor], statistic.predictor)
            means = group.assign(quality=logs).groupby("method")[["quality", "value"]].mean()
            # Without their last digits, so that equal qualities tie instead of being ranked by rounding errors.
            estimate = rank_correlation(means["quality"].round(9), means["value"])
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
