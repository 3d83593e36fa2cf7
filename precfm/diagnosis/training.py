"""Recommendations that are measured: `precfm.select` within some minutes, with the skips among the candidates."""

import math
import time

from precfm.core.errors import PrecfmError
from precfm.core.seeds import derived_seed
from precfm.diagnosis.maps import TRIED
from precfm.diagnosis.recommendation import SKIPS
from precfm.diagnosis.rows import Parts
from precfm.preconditioned_flow import PreconditionedFlow
from precfm.preconditioners.fit_data import LabelledRows
from precfm.preconditioners.scalar import Scalar
from precfm.selection.candidates import Candidate
from precfm.selection.select import DEFAULT_SETTINGS, Selection, select
from precfm.selection.standings import rung_steps

SEEDS = 3  # of each candidate, the fewest that `select` takes
MOST_ROWS_THAT_JUDGE = (
    200  # the likelihood of so many rows costs about as much as a hundred or two training steps
)
FEWEST_ROWS_THAT_JUDGE = 40
SOLVER_STEPS = 16  # of the likelihood: the same for all, whose differences count
TIMED_STEPS = 20
PLANNED = 0.75  # of the minutes; the rest is for fits, for mapping all rows, and for skips, which are slower
FEWEST_STEPS = 50  # of the longest trainings; with fewer, flows have learned nothing that differs


def candidates(maps: list[str]) -> dict[str, Candidate]:
    """The maps that could be fitted, and the skips, from simple to complex."""
    simple = {name: Candidate(TRIED[name].spec) for name in maps}
    last = {name: simple.pop(name) for name in maps if TRIED[name].needs_labels}
    return {**simple, **SKIPS, **last}


def measure(parts: Parts, maps: list[str], minutes: float, seed: int) -> Selection:
    """Short paired trainings of about `minutes` in all, by the likelihood of held-out rows.

    At most half of the time is for likelihoods. How many rows judge, and after how many steps, depends on the machine,
    hence the choice may; `Selection.record` holds both.

    Raises:
        PrecfmError: the minutes are too few for `FEWEST_STEPS`.
    """
    started = time.perf_counter()
    data, contenders = parts.training_rows(), candidates(maps)
    step, row = _seconds(data, seed)
    rungs = rung_steps(len(contenders) - 1, 2**10)  # shares of the longest training
    sizes, left = [], len(contenders) - 1
    for position in range(len(rungs)):
        sizes.append(1 + left)
        left = left if position == 0 else math.ceil(left / 2)
    trainings = SEEDS * sum(size * rung / rungs[-1] for size, rung in zip(sizes, rungs, strict=True))
    scores = SEEDS * sum(sizes)
    spent = time.perf_counter() - started
    seconds = PLANNED * (60 * minutes - spent)
    rows = max(FEWEST_ROWS_THAT_JUDGE, min(MOST_ROWS_THAT_JUDGE, int(seconds / 2 / (scores * row))))
    steps = int((seconds - scores * rows * row) / (trainings * step))
    if steps < FEWEST_STEPS:
        fewest = scores * FEWEST_ROWS_THAT_JUDGE * row + FEWEST_STEPS * trainings * step
        needed = (fewest / PLANNED + spent) / 60
        raise PrecfmError(
            f"minutes: got {minutes:g}; at least {math.ceil(10 * needed) / 10:g} minutes are needed for "
            f"{len(contenders)} candidates of {SEEDS} seeds on this machine"
        )
    return select(
        *data,
        candidates=contenders,
        settings=DEFAULT_SETTINGS,
        validation=parts.second,  # of classes that are all in `data`
        budget_steps=min(steps, DEFAULT_SETTINGS.training.steps),
        num_seeds=SEEDS,
        validation_rows=rows,
        solver_steps=SOLVER_STEPS,
        seed=seed,
    )


def _seconds(data: LabelledRows, seed: int) -> tuple[float, float]:
    """How long one training step and the likelihood of one row take on this machine, once it is warm."""
    x, labels = data
    few, asked = x[:FEWEST_ROWS_THAT_JUDGE], None if labels is None else labels[:FEWEST_ROWS_THAT_JUDGE]
    flow = PreconditionedFlow.from_settings(DEFAULT_SETTINGS.shortened(TIMED_STEPS), Scalar().fit(x))
    times = [0.0, 0.0, 0.0]
    for _ in range(2):  # the first call of everything is slow, and does not count
        flow.prepare(x, labels, seed=derived_seed(seed, "timing"))
        times = [time.perf_counter()]
        flow.train(seed=seed, name="timing")
        times.append(time.perf_counter())
        flow.log_prob(few, asked, steps=SOLVER_STEPS)
        times.append(time.perf_counter())
    return (times[1] - times[0]) / TIMED_STEPS, (times[2] - times[1]) / len(few)
