"""A run while it goes on: bars on a terminal, elsewhere a line now and then."""

import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from itertools import zip_longest
from typing import Any

from tqdm import tqdm

from precfm.core.errors import PrecfmError
from precfm.pipeline.estimates import duration, lanes
from precfm.pipeline.plan import Plan
from precfm.pipeline.status import Course, Running, Status

MOST_JOBS = 16  # that have a bar of their own
LOOKING = 0.02  # of the time at most: plans can be large, and the cores are the jobs'
WIDTH = 16
PLAIN = "{desc}"
BAR = f"|{{bar:{WIDTH}}}| {{n_fmt}}/{{total_fmt}}{{postfix}}  {{desc}}"  # names are longest, and may be cut


class Lines:
    """Plain lines for a log: one for the run, one for each job, as often as somebody would read them."""

    every = 60.0

    def show(self, status: Status) -> None:
        """Print how far it is."""
        print("\n".join([status.summary, *status.running_lines(), *status.time_left]), flush=True)

    def close(self, status: Status) -> None:
        """Nothing: whoever ran it says how it ended."""


class Bars:
    """A bar for the run and one below for each job, on standard error."""

    every = 1.0

    def __init__(self, jobs: int) -> None:
        self._failed: set[str] = set()
        self._whole = self._bar(0)
        self._jobs = [self._bar(1 + place) for place in range(min(jobs, MOST_JOBS))]

    @staticmethod
    def _bar(place: int) -> "tqdm[Any]":
        return tqdm(total=0, position=place, leave=place == 0, bar_format=PLAIN, dynamic_ncols=True)

    def show(self, status: Status) -> None:
        """Draw how far it is."""
        for name in status.failed.keys() - self._failed:
            self._whole.write(f"failed: {name}: {status.failed[name]}", file=sys.stderr)
        self._failed |= status.failed.keys()
        _draw(self._whole, status.experiment, status.finished, status.total, status.estimate.short)
        for bar, shown in zip_longest(self._jobs, [*status.running.items()][: len(self._jobs)]):
            _draw_job(bar, *(shown or ("", None)))

    def close(self, status: Status) -> None:
        """Keep the bar of the run alone, as it ended."""
        self.show(status)
        for bar in (*self._jobs, self._whole):
            bar.close()


def _draw(bar: "tqdm[Any]", text: str, done: int, total: int, said: str) -> None:
    bar.bar_format, bar.n, bar.total = BAR, done, total
    bar.set_description_str(text, refresh=False)
    bar.set_postfix_str(said)


def _draw_job(bar: "tqdm[Any]", name: str, job: Running | None) -> None:
    if job and job.training:
        course = job.training
        said = " ".join(filter(None, [course.rate, course.last]))
        _draw(bar, f"{name}, {course.name}", course.step, course.steps, said)
    else:
        bar.bar_format = PLAIN
        bar.set_description_str(f"{'':{WIDTH + 2}} {duration(job.seconds)}  {name}" if job else "")


@contextmanager
def shown(plan: Plan, cores: int, wanted: Collection[str]) -> Iterator[None]:
    """Show how a run goes on until the block ends; nothing where all that it shall make, by id, exists already."""
    if all(plan.nodes[name].exists for name in wanted):
        yield
        return
    ended = threading.Event()

    def wait(_: Status, seconds: float) -> bool:
        return ended.wait(seconds)

    def watched() -> None:
        with suppress(OSError, PrecfmError):  # a run never fails for want of a look at it
            follow(Course(plan, cores, wanted), lanes(plan, cores), wait)

    thread = threading.Thread(target=watched, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def watch(plan: Plan, cores: int) -> None:
    """Show an experiment until nobody works on it."""

    def wait(status: Status, seconds: float) -> bool:
        if status.is_going_on:
            time.sleep(seconds)
        return not status.is_going_on

    with suppress(KeyboardInterrupt):
        follow(Course(plan, cores), lanes(plan, cores), wait)


def follow(course: Course, jobs: int, wait: Callable[[Status, float], bool]) -> None:
    """Show how far an experiment is, on a terminal as bars, until it has ended.

    Args:
        course: of the experiment.
        jobs: at a time.
        wait: gets what was shown and the seconds to the next look, and says after them whether it has ended.
    """
    screen = Bars(jobs) if sys.stderr.isatty() else Lines()
    try:
        while True:
            began = time.process_time()
            found = course.look()
            screen.show(found)
            if wait(found, max(screen.every, (time.process_time() - began) / LOOKING)):
                break
    finally:
        screen.close(course.look())
