"""The time-to-quality table: training FLOPs until a method is as good as the baseline is at its end."""

import math

import numpy as np
import pandas as pd

from precfm.report.formatting import number_text, seeds_text
from precfm.report.frames import Frames
from precfm.report.judges import by_judges
from precfm.report.reads import LeftOutError, needed, reads, with_baseline
from precfm.report.rows import RECORD_KEYS, at_final, baseline_of, groups, per_seed, with_a_course
from precfm.report.summaries import with_training_flops
from precfm.report.tables.blocks import Block, Table, by_method, method_cells
from precfm.report.tables.metrics import extractor_text
from precfm.report.vocabulary import is_flow, method_label, metric_text, space_label

BASELINES = ("scalar", "none")  # the first that an experiment has: scalar is the fair one
NOT_REACHED = "not reached"


def curves(frames: Frames) -> pd.DataFrame:
    """The metric against the training FLOPs of each run, preconditioner included.

    Returns:
        Columns `RECORD_KEYS`, method, seed, step, value, flops; groups with at least two checkpoints.
    """
    budgets = needed(frames, "budgets")
    records = per_seed(needed(frames, "records"))
    chosen = (records["step"] > 0) & records["method"].map(is_flow)
    rows = with_training_flops(by_judges(records[chosen]), budgets)
    rows = with_a_course(rows)
    if rows.empty:
        raise LeftOutError("no run with a budget has its Fréchet distance at more than one checkpoint")
    return rows


def tidy(frames: Frames) -> pd.DataFrame:
    """Training FLOPs until each method's metric is at most that of the baseline at its last checkpoint.

    Seed by seed, against the baseline with the same seed, then the median over seeds; the baseline's own time is by
    the same rule, so that it may be shorter than its training.

    Returns:
        Columns `RECORD_KEYS`, baseline, method, flops (median; infinite: not reached by more than half of the seeds),
        at_most (the median rests on a seed that was there at its first checkpoint: a bound), ratio (median of method
        over baseline), reached (seeds), n (seeds).
    """
    rows = []
    for key, group in curves(frames).groupby(RECORD_KEYS, sort=True):
        baseline = baseline_of(group, BASELINES)
        if baseline is None:
            continue
        times = _times(group, baseline)
        for method, of_method in times.groupby("method"):
            flops = of_method["flops"]
            # Whether the median would change if seeds that were there at their first checkpoint had been there before.
            bound = of_method["at_most"] & (flops >= np.quantile(flops, 0.5, method="lower"))
            about = {**dict(zip(RECORD_KEYS, key, strict=True)), "baseline": baseline, "method": method}
            medians = {
                "flops": np.median(flops),
                "at_most": bound.any(),
                "ratio": np.median(of_method["ratio"]),
            }
            rows.append({**about, **medians, "reached": np.isfinite(flops).sum(), "n": len(of_method)})
    if not rows:
        raise LeftOutError(f"no setting has one of the methods {' and '.join(BASELINES)} to compare with")
    return pd.DataFrame(rows)


def _times(rows: pd.DataFrame, baseline: str) -> pd.DataFrame:
    """Method, seed, flops, at_most, ratio for each run whose seed the baseline has."""
    final = at_final(rows[rows["method"] == baseline])
    ends = dict(zip(final["seed"], final["value"].astype(float), strict=True))
    found = []
    for (method, seed), run in rows[rows["seed"].isin(list(ends))].groupby(["method", "seed"], sort=True):
        ordered = run.sort_values("flops")
        flops, values = ordered["flops"].to_numpy(), ordered["value"].to_numpy()
        found.append((method, seed, time_to(flops, values, ends[seed]), bool(values[0] <= ends[seed])))
    times = pd.DataFrame(found, columns=["method", "seed", "flops", "at_most"])
    of_baseline = times[times["method"] == baseline].set_index("seed")["flops"]
    return times.assign(ratio=times["flops"] / times["seed"].map(of_baseline))


def time_to(flops: np.ndarray, values: np.ndarray, target: float) -> float:
    """When a curve is at most the target for the first time, linear in log FLOPs between checkpoints.

    Args:
        flops: of the checkpoints, ascending, positive, shape (n,).
        values: at the checkpoints, shape (n,).
        target: the value.

    Returns:
        FLOPs: those of the first checkpoint if it is already there, infinity if none is.

    Example:
        >>> round(time_to(np.array([1.0, 100.0]), np.array([3.0, 1.0]), 2.0), 6)
        10.0
    """
    there = np.flatnonzero(values <= target)
    if not len(there):
        return math.inf
    after = int(there[0])
    if after == 0:
        return float(flops[0])
    before = after - 1
    share = (values[before] - target) / (values[before] - values[after])
    return float(flops[before] ** (1 - share) * flops[after] ** share)


@reads("records", "budgets", behind=with_baseline)
def build(frames: Frames) -> Table:
    """The table as it is printed: one block per setting and space."""
    data = tidy(frames)
    blocks = []
    for (dataset, metric, space, *_, extractor), rows in groups(data, *RECORD_KEYS):
        baseline = method_label(str(rows["baseline"].iloc[0]))
        reached = [f"{k} of {n}" for k, n in zip(rows["reached"], rows["n"], strict=True)]
        columns = {
            "seeds that reach it": by_method(rows, reached),
            "training FLOPs": by_method(rows, _texts(rows, "flops")),
            f"times {baseline}": by_method(rows, _texts(rows, "ratio")),
        }
        title = f"{dataset}: as good as {baseline} at its end, {space_label(space)}"
        note = f"{metric_text(metric).label} with {extractor_text(extractor)}."
        blocks.append(Block(title, method_cells(columns), note))
    caption = (
        "Training FLOPs, those to fit the preconditioner included, until the Fréchet distance is at most that of the "
        "baseline with the same seed at its last checkpoint: median over "
        f"{seeds_text(data['n'])}, linear in log FLOPs between checkpoints, and the median ratio to the baseline's own "
        "time by the same rule. '≤': it was there at its first checkpoint. 'not reached': not by more than half of the "
        "seeds. A first passage favours curves that scatter. The search of a tuned recipe, the optimizer and the "
        "pairing of optimal transport do not count."
    )
    return Table(data, blocks, caption)


def _texts(rows: pd.DataFrame, column: str) -> list[str]:
    """A column of times, infinite ones and bounds in words."""
    return [
        NOT_REACHED if math.isinf(value) else ("≤ " if at_most else "") + number_text(value)
        for value, at_most in zip(rows[column], rows["at_most"], strict=True)
    ]
