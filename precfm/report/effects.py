"""From a claim's statistics to effects: one estimate per data set, method, baseline and space."""

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from precfm.core.statistics import Estimate, joint_estimate, rank_correlation
from precfm.report.bootstrap import Bootstrap
from precfm.report.claims import (
    Claim,
    EffectStatistic,
    LateSlopeStatistic,
    MetricStatistic,
    PathStatistic,
    RankCorrelationStatistic,
    Statistic,
    TheoryStatistic,
)
from precfm.report.formatting import number_text
from precfm.report.frames import STATISTICS, Frames
from precfm.report.judges import Place, meant, place_of, place_text, places
from precfm.report.predictor_values import FRAME_OF, RANKED_METHODS, beside_results
from precfm.report.reads import Declared, declared, frame, reads
from precfm.report.rows import ALL, RECORD_KEYS, pair, per_seed
from precfm.report.summaries import late_slopes, logarithms
from precfm.report.vocabulary import ALONE, FLOOR

_IN_SPACES = (MetricStatistic, LateSlopeStatistic, RankCorrelationStatistic)
EXACT = "exact: no randomness"
NO_HEADROOM = "no headroom above the floor"
NO_REPLICATES = "a run lacks replicates of the held-out rows"


@dataclass(frozen=True)
class Effect:
    """One estimate that bears on a claim.

    Attributes:
        statistic: what the claims file says about it.
        estimate: the effect with its interval; `p` is one-sided, against the null of the statistic's direction.
        name: the statistic's name, with the space it was taken in.
        dataset: data set; empty for theory.
        method: the preconditioner; empty if it is about all of them or about none.
        baseline: what it was compared with.
        note: a remark from the frame, behind `NO_HEADROOM` where it applies, or `EXACT`, `NO_HEADROOM`,
            `NO_REPLICATES`, or what a map does alone.
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
    columns = [chosen[name].astype(float) for name in ("value", "low", "high", "n", "room")]
    for value, low, high, n, room, note in zip(*columns, chosen["note"].fillna(""), strict=True):
        most = statistic.supported_range[1]
        full = most is not None and room < -most  # never where there is no floor
        about = f"{NO_HEADROOM}; {note}" if full else str(note)
        estimate = Estimate(value, low, high, int(n))
        yield Effect(statistic, estimate, statistic.name, method=statistic.method, note=about)


@reads("path_conditioning")
def _paths(claim: Claim, statistic: PathStatistic, frames: Frames) -> Iterator[Effect]:
    """What has no randomness counts once, however many seeds it stands for."""
    values = _mean_on_path(frame(frames, "path_conditioning"), statistic)
    artifacts = values.set_index(["dataset", "method", "seed"])["artifact"]
    for method, baseline in _comparisons(claim, statistic):
        pairs = pair(values, method, baseline, ["dataset"])
        runs = list(zip(pairs["dataset"], pairs["seed"], strict=True))
        pairs["fits"] = [
            (artifacts[data, method, seed], artifacts[data, baseline, seed]) for data, seed in runs
        ]
        for dataset, group in pairs.groupby("dataset", sort=True):
            fits = group.drop_duplicates("fits")
            note = EXACT if len(fits) == 1 < len(group) else ""
            logarithm = statistic.quantity == "log_condition_number"
            floor = statistic.floor.get(str(dataset), 0.0)  # however well a map does
            if logarithm and group["value_baseline"].mean() - floor < statistic.needed:
                note = NO_HEADROOM
            estimate = joint_estimate(fits["value"] - fits["value_baseline"], **_test(statistic))
            yield Effect(statistic, estimate, statistic.name, str(dataset), method, baseline, note)


@reads("records", optional=("bootstrap",))
def _metrics(claim: Claim, statistic: MetricStatistic, frames: Frames) -> Iterator[Effect]:
    records, replicates = per_seed(frame(frames, "records")), frame(frames, "bootstrap")
    values = _chosen(records, statistic)
    bootstrap = Bootstrap(replicates[replicates["metric"].isin({statistic.metric, *values["metric"]})])
    transform: Callable[[Any], Any] = np.asarray
    if statistic.effect == "log_ratio":
        values, transform = values.assign(value=logarithms(values["value"], statistic.metric)), np.log
    for method, baseline in _comparisons(claim, statistic):
        for about, pairs in _pairs(values, method, baseline):
            estimate = bootstrap.difference(
                about, method, baseline, pairs, transform=transform, **_test(statistic)
            )
            note = _alone(pairs) if baseline.startswith(ALONE) else ""
            if not _headroom(statistic, values, about, pairs):
                note = NO_HEADROOM
            if bootstrap.lack(about, method, baseline, pairs):
                note = NO_REPLICATES
            name = _name(statistic, place_text(str(about["metric"]), str(about["space"])))
            yield Effect(statistic, estimate, name, str(about["dataset"]), method, baseline, note)


@reads("records")
def _late_slopes(claim: Claim, statistic: LateSlopeStatistic, frames: Frames) -> Iterator[Effect]:
    records = _chosen(per_seed(frame(frames, "records")), statistic)
    for method, baseline in _comparisons(claim, statistic):
        both = records[records["method"].isin([method, baseline])]
        for about, pairs in _pairs(late_slopes(both, RECORD_KEYS, statistic.late_from), method, baseline):
            estimate = joint_estimate(pairs["value"] - pairs["value_baseline"], **_test(statistic))
            name = _name(statistic, place_text(str(about["metric"]), str(about["space"])))
            yield Effect(statistic, estimate, name, str(about["dataset"]), method, baseline)


def _comparisons(claim: Claim, statistic: Statistic) -> Iterator[tuple[str, str]]:
    """Every method of a claim beside each of its baselines."""
    for method in claim.methods:
        for baseline in claim.baselines_of(statistic, method):
            yield method, baseline


def _pairs(
    values: pd.DataFrame, method: str, baseline: str
) -> Iterator[tuple[dict[str, object], pd.DataFrame]]:
    """The pairs of each data set, space and protocol, and what these are."""
    for key, pairs in pair(values, method, baseline, RECORD_KEYS).groupby(RECORD_KEYS, sort=True):
        yield dict(zip(RECORD_KEYS, key, strict=True)), pairs


def _test(statistic: EffectStatistic) -> dict[str, Any]:
    """What an effect is tested against, and on which side."""
    return {"null": statistic.null, "alternative": "greater" if statistic.sign > 0 else "less"}


def _headroom(
    statistic: MetricStatistic, values: pd.DataFrame, about: Mapping[str, object], pairs: pd.DataFrame
) -> bool:
    """Whether the baseline leaves room for the smallest effect that matters above the floor's own uncertainty.

    Without a floor there is no limit.
    """
    if statistic.smallest_effect is None:
        return True
    floor_rows = values["method"] == FLOOR
    for key in ("dataset", "space", "extractor"):
        floor_rows &= values[key] == about[key]
    floor = joint_estimate(values.loc[floor_rows, "value"])
    if floor.n == 0:
        return True
    edge = floor.low if statistic.sign > 0 else floor.high
    level = pairs["value_baseline"].mean()
    room = statistic.sign * ((floor.value if math.isnan(edge) else edge) - level)
    return bool(room >= statistic.smallest_effect)


def _alone(pairs: pd.DataFrame) -> str:
    """What the flow leaves, and what its map does alone."""
    levels = (number_text(pairs[column].mean()) for column in ("value", "value_baseline"))
    return "{} against {} alone".format(*levels)


def _chosen(
    values: pd.DataFrame, statistic: MetricStatistic | LateSlopeStatistic | RankCorrelationStatistic
) -> pd.DataFrame:
    """The records of a statistic, on each data set in the spaces of the judges that it has."""
    wanted = {
        dataset: meant(statistic.metric, statistic.spaces, places(rows))
        for dataset, rows in values.groupby("dataset")
    }
    places_of_rows = zip(values["dataset"], values["metric"], values["space"], strict=True)
    chosen = [(metric, space) in wanted[dataset] for dataset, metric, space in places_of_rows]
    return values[pd.Series(chosen, index=values.index, dtype=bool)]


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
        dataset, metric, space, *_ = key
        if len(group) >= RANKED_METHODS:
            found = rank_correlation(group[statistic.predictor], group["value"])
            claimed = statistic.sign * found.value > 0
            estimate = replace(found, p=found.p / 2 if claimed else 1 - found.p / 2)
            yield Effect(
                statistic, estimate, _name(statistic, place_text(str(metric), str(space))), str(dataset)
            )


_EFFECTS: dict[str, Callable[[Claim, Any, Frames], Iterator[Effect]]] = {
    "theory": _theory,
    "metric": _metrics,
    "late_slope": _late_slopes,
    "path_conditioning": _paths,
    "rank_correlation": _rank_correlations,
}


def _name(statistic: Statistic, where: str) -> str:
    return f"{statistic.name} ({where})" if where else statistic.name


def names_of(statistic: Statistic, found: Collection[Place] = ()) -> tuple[str, ...]:
    """The names of a statistic's effects: one for each space.

    Args:
        statistic: of a claim.
        found: the metrics and spaces of the data set, whose judges may be others than those that the claim names.
    """
    if not isinstance(statistic, _IN_SPACES):
        return (statistic.name,)
    wanted = meant(statistic.metric, statistic.spaces, found)
    return tuple(_name(statistic, place_text(metric, space)) for metric, space in wanted)


def places_named(claim: Claim, names: Collection[str]) -> set[Place]:
    """The metrics and spaces that the names of a claim's effects on a data set tell."""
    found = set()
    for statistic in claim.statistics:
        if not isinstance(statistic, _IN_SPACES):
            continue
        for name in names:
            if name.startswith(f"{statistic.name} (") and name.endswith(")"):
                found.add(place_of(statistic.metric, name.removeprefix(f"{statistic.name} (")[:-1]))
    return found


def expected(
    claim: Claim, statistics: Sequence[Statistic], method: str, found: Collection[Place] = ()
) -> set[tuple[str, str]]:
    """Name and baseline of every effect that these statistics of a claim must have for a method on a data set."""
    return {
        (name, baseline)
        for statistic in statistics
        for name in names_of(statistic, found)
        for baseline in claim.baselines_of(statistic, method) or ("",)
    }
