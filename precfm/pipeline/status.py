"""How far an experiment is: read from what lies on the disk, whoever makes it, here or on a cluster.

An artifact is made where its record is, and being made where a job holds its lock. A training writes its course into
the log of its job, by tqdm.
"""

import math
import re
import time
from collections import Counter
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from precfm.pipeline.costs import Cost, measured_costs, read_costs
from precfm.pipeline.estimates import HERE, THERE, Done, Estimate, duration, estimate
from precfm.pipeline.locks import is_being_made, is_being_run
from precfm.pipeline.node import PUBLISHED, RESULTS, Node
from precfm.pipeline.plan import KINDS, Plan

# Their jobs are one training each; others train several networks, or none.
ONE_TRAINING = frozenset({"classifiers", "encoders", "preconditioners", "flows"})
STALE = 900.0  # seconds; an older log is not of the job that holds the lock
COSTS_EVERY = 10.0  # seconds between two readings of what finished jobs took
_TAIL = 4096  # bytes of a log that hold its last line
_BAR = re.compile(
    r"(?P<name>[^\r\n]*?): +\d+%\|[^|\r\n]*\| (?P<step>\d+)/(?P<steps>\d+) "
    r"\[[\d:]+<[\d:?]+, +(?P<rate>[^,\]]+)(?:, (?P<last>[^\]]*))?\]"
)


@dataclass(frozen=True)
class Training:
    """The course of a training.

    Attributes:
        name: what is trained.
        step: steps taken.
        steps: steps in all.
        rate: in words, such as `135.26it/s`.
        last: the last metrics, such as `loss=0.19`; empty at the start.
    """

    name: str
    step: int
    steps: int
    rate: str
    last: str

    def __str__(self) -> str:
        return ", ".join(
            filter(None, [f"{self.name}: step {self.step} of {self.steps}", self.rate, self.last])
        )


@dataclass(frozen=True)
class Running:
    """A job that makes an artifact now.

    Attributes:
        seconds: since it began.
        training: its course; None of what is no training.
    """

    seconds: float
    training: Training | None

    def __str__(self) -> str:
        return duration(self.seconds) + (f", {self.training}" if self.training else "")


@dataclass(frozen=True)
class Status:
    """How far an experiment is.

    Attributes:
        experiment: its name.
        at_work: whether a run of it is going on.
        wanted: how many artifacts there shall be, by kind.
        made: how many of them are there.
        running: artifacts that a job is making now, by id.
        failed: artifacts that the last run could not make, by id with the reason.
        estimate: of the time left.
    """

    experiment: str
    at_work: bool
    wanted: Mapping[str, int]
    made: Mapping[str, int]
    running: Mapping[str, Running]
    failed: Mapping[str, str]
    estimate: Estimate

    @property
    def total(self) -> int:
        """How many artifacts there shall be."""
        return sum(self.wanted.values())

    @property
    def finished(self) -> int:
        """How many artifacts are there."""
        return sum(self.made.values())

    @property
    def is_going_on(self) -> bool:
        """Whether anybody works on it."""
        return self.at_work or bool(self.running)

    @property
    def summary(self) -> str:
        """One sentence."""
        missing = self.total - self.finished - len(self.running)
        counts = (
            f"{self.finished} of {self.total} artifacts made, {len(self.running)} running, {missing} missing"
        )
        return f"{self.experiment}: {counts}" + (f", {len(self.failed)} failed" if self.failed else "")

    def lines(self) -> list[str]:
        """All of it as text."""
        now = Counter(name.partition("/")[0] for name in self.running)
        lines = [f"{'':18}{'wanted':>8}{'made':>8}{'running':>8}{'missing':>8}"]
        for kind, wanted in self.wanted.items():
            made, running = self.made[kind], now[kind]
            lines.append(f"{kind:18}{wanted:8}{made:8}{running:8}{wanted - made - running:8}")
        lines += ["", self.summary, *self.running_lines()]
        lines += [f"  failed: {name}: {reason}" for name, reason in self.failed.items()]
        lines += self.time_left
        if self.is_going_on:
            lines.append("a run is going on")
        else:
            then = "goes on" if self.finished < self.total else "finds nothing to make"
            lines.append(f"nothing is running; `make reproduce EXPERIMENT={self.experiment}` {then}")
        return lines

    @property
    def time_left(self) -> list[str]:
        """A sentence; none where nothing is left to be made."""
        return [self.estimate.sentence(self.experiment)] if self.finished < self.total else []

    def running_lines(self) -> list[str]:
        """What each job does."""
        return [f"  {name}, {job}" for name, job in self.running.items()]

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


class Course:
    """What becomes of a plan while it is made: `look` again and again, which is cheap.

    Args:
        plan: all artifacts.
        cores: that may be used.
        wanted: the ids of those that shall be made; None for all.
    """

    def __init__(self, plan: Plan, cores: int, wanted: Collection[str] | None = None) -> None:
        self._plan, self._cores = plan, cores
        self._wanted = [node for node in plan.nodes.values() if wanted is None or node.id in wanted]
        self._made: set[str] = set()
        self._published = read_costs(PUBLISHED / plan.experiment)
        self._measured: dict[str, Cost] = {}
        self._measured_with, self._measured_at = -1, -math.inf

    def look(self) -> Status:
        """How far it is now.

        Raises:
            OSError: results cannot be read.
        """
        plan = self._plan
        self._made |= {node.id for node in self._wanted if node.id not in self._made and node.exists}
        missing = [node for node in self._wanted if node.id not in self._made]
        running = {
            node.id: Running(_seconds(node), _training(node)) for node in missing if is_being_made(node)
        }
        left = {node.id: _done(node, running.get(node.id)) for node in missing}
        costs = [(HERE, self._costs()), (THERE, self._published)]
        wanted = Counter(node.kind for node in self._wanted)
        made = Counter(plan.nodes[name].kind for name in self._made)
        return Status(
            experiment=plan.experiment,
            at_work=is_being_run(plan.experiment),
            wanted={kind: wanted[kind] for kind in KINDS if wanted[kind]},
            made={kind: made[kind] for kind in KINDS if wanted[kind]},
            running=running,
            failed={name: why for name, why in _failures(plan).items() if name not in self._made},
            estimate=estimate(plan, left, self._cores, costs),
        )

    def _costs(self) -> dict[str, Cost]:
        now = time.monotonic()
        if len(self._made) != self._measured_with and now - self._measured_at > COSTS_EVERY:
            self._measured = measured_costs(self._plan)
            self._measured_with, self._measured_at = len(self._made), now
        return self._measured


def status(plan: Plan, cores: int) -> Status:
    """How far an experiment is, and how long the rest takes on so many cores."""
    return Course(plan, cores).look()


def _done(node: Node, job: Running | None) -> Done:
    """How far an artifact is."""
    if job is None:
        return Done()
    course = job.training if node.kind in ONE_TRAINING else None
    return Done(job.seconds, course.step / course.steps if course and course.steps else None)


def _seconds(node: Node) -> float:
    """How long ago a job began with an artifact: its folder is made first, and mostly filled at the end."""
    for part in (RESULTS / ".work" / "parts").glob(f"{node.kind}-{node.key}.part-*"):
        with suppress(FileNotFoundError):
            return max(0.0, time.time() - part.stat().st_mtime)
    return 0.0


def _logs(experiment: str) -> Path:
    return RESULTS / experiment / "records" / "logs"


def _training(node: Node) -> Training | None:
    """The last line of progress in the log of an artifact's own job; None if it has none."""
    log = _logs(node.experiment) / node.kind / f"{node.name}.log"
    with suppress(FileNotFoundError), log.open("rb") as file:
        if time.time() - log.stat().st_mtime < STALE:
            file.seek(max(0, log.stat().st_size - _TAIL))
            return last_progress(file.read().decode(errors="replace"))
    return None


def last_progress(text: str) -> Training | None:
    """The last line of tqdm in a text; None if there is none.

    Example:
        >>> print(last_progress("flow:  14%|#4   | 1400/10000 [00:10<01:03, 135.26it/s, loss=0.2349]"))
        flow: step 1400 of 10000, 135.26it/s, loss=0.2349
    """
    bars = list(_BAR.finditer(text))
    if not bars:
        return None
    found = bars[-1]
    return Training(
        found["name"].strip(), int(found["step"]), int(found["steps"]), found["rate"], found["last"] or ""
    )


def _failures(plan: Plan) -> dict[str, str]:
    """What the jobs of the last run said that failed."""
    said: dict[str, str] = {}
    for file in sorted(_logs(plan.experiment).glob("**/*.error")):
        with suppress(FileNotFoundError):  # a new run has begun
            for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
                name, _, reason = line.removeprefix("precfm: ").partition(": ")
                said[name] = reason
    return said
