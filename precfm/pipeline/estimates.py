"""How long the rest of a run will take, by what jobs took: an estimate, which says what it rests on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from precfm.pipeline.costs import COSTS, Cost, expected_seconds
from precfm.pipeline.node import PUBLISHED
from precfm.pipeline.plan import Plan

HERE, THERE = "this machine", "the published run"
GPU_JOBS = 1  # at a time: `resources` in profiles/default


@dataclass(frozen=True)
class Estimate:
    """How long it takes to make what is missing.

    Attributes:
        seconds: until all is made, where artifacts without a record take no time; None if none has a record.
        cores: on so many.
        on_gpu: whether one GPU makes a part of it.
        times_from: how many artifacts each source of times decides, `HERE` or `THERE`.
        unknown: how many artifacts have no record.
    """

    seconds: float | None
    cores: int
    times_from: Mapping[str, int]
    unknown: int
    on_gpu: bool = False

    def sentence(self, experiment: str) -> str:
        """In words, with what it rests on."""
        known = sum(self.times_from.values())
        if self.seconds is None or known < self.unknown:
            return f"time left: unknown yet, since times are recorded for {known} of {known + self.unknown} artifacts"
        where = {HERE: "on this machine", THERE: f"in {PUBLISHED / experiment / COSTS}"}
        by = " and ".join(f"{where[place]} (for {count})" for place, count in self.times_from.items())
        about = f"more than {duration(self.seconds)}" if self.unknown else f"about {duration(self.seconds)}"
        without = f"; not counted, without a recorded time: {self.unknown}" if self.unknown else ""
        gpu = " and one GPU" if self.on_gpu else ""
        cores = "1 core" if self.cores == 1 else f"{self.cores} cores"
        return f"time left: {about} on {cores}{gpu}, by times recorded {by}{without}"

    @property
    def short(self) -> str:
        """In three words, or none where too little is known."""
        if self.seconds is None or sum(self.times_from.values()) < self.unknown:
            return ""
        return f"{'more than' if self.unknown else 'about'} {duration(self.seconds)} left"


class Done(NamedTuple):
    """How far a job is with an artifact.

    Attributes:
        seconds: since it began.
        share: of the work, from 0 to 1; None where nobody knows.
    """

    seconds: float = 0.0
    share: float | None = None

    def left(self, expected: float) -> float:
        """Seconds that are left of those that the whole was expected to take."""
        return max(0.0, expected - self.seconds) if self.share is None else expected * (1 - self.share)


def estimate(
    plan: Plan, missing: Mapping[str, Done], cores: int, costs: Sequence[tuple[str, Mapping[str, Cost]]]
) -> Estimate:
    """The time until all of a plan is made.

    Not less than the work shared by all cores, nor than the longest chain of artifacts that need each other, nor than
    what has to take turns on a GPU.

    Args:
        plan: all artifacts.
        missing: artifacts that are still to be made, by id.
        cores: that may be used.
        costs: sources of recorded times; the first one that knows an artifact's label decides, else one that knows its
            kind.
    """
    seconds: dict[str, float] = {}
    times_from = dict.fromkeys((place for place, _ in costs), 0)
    for node_id, done in missing.items():
        known = [
            (expected, place)
            for of_label in (True, False)  # labels of one kind can differ by a factor of a hundred
            for place, recorded in costs
            if (expected := expected_seconds(plan.nodes[node_id], recorded, of_label=of_label)) is not None
        ]
        if known:
            expected, place = known[0]
            seconds[node_id] = done.left(expected)
            times_from[place] += 1
    least = [sum(seconds.values()) / lanes(plan, cores), _longest_chain(plan, seconds)]
    if plan.device == "cuda":
        least.append(sum(taken for name, taken in seconds.items() if plan.nodes[name].on_device) / GPU_JOBS)
    return Estimate(
        seconds=max(least) if seconds else None,
        cores=cores,
        times_from={place: count for place, count in times_from.items() if count},
        unknown=len(missing) - len(seconds),
        on_gpu=plan.device == "cuda",
    )


def lanes(plan: Plan, cores: int) -> int:
    """How many jobs run at a time."""
    return max(1, cores // plan.threads)


def _longest_chain(plan: Plan, seconds: Mapping[str, float]) -> float:
    """Seconds of the longest way through the plan, whose parents stand before their children."""
    end: dict[str, float] = {}
    for node in plan.nodes.values():
        start = max((end[parent] for family in node.parents.values() for parent in family), default=0.0)
        end[node.id] = start + seconds.get(node.id, 0.0)
    return max(end.values(), default=0.0)


def duration(seconds: float) -> str:
    """Seconds in words, no more exact than an estimate is.

    Example:
        >>> [duration(value) for value in (8, 75, 1200, 7500, 200_000)]
        ['8 s', '75 s', '20 min', '2 h 5 min', '55 h 33 min']
    """
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"
