"""Time to quality in seconds: the time-to-quality table with measured wall times in place of FLOPs."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from precfm.report.selection import LeftOutError
from precfm.report.tables.time_to_quality import tidy


def seconds_to_quality(frames: Mapping[str, pd.DataFrame], runs: list[dict[str, Any]]) -> pd.DataFrame | None:
    """Seconds until each method's metric is at most that of the baseline at its last checkpoint.

    A checkpoint's time is that of fitting the preconditioner, and its share of the training. Both are wall times of
    whole jobs, on whatever else the machine did, so they are no part of any artifact.

    Args:
        frames: `records` and `budgets` of an experiment.
        runs: dataset, method, seed, fit_seconds and train_seconds of each flow.

    Returns:
        As the time-to-quality table, with `seconds` in place of `flops`; None if the experiment has none.
    """
    budgets = frames["budgets"].merge(pd.DataFrame(runs), on=["dataset", "method", "seed"])
    budgets["fit_flops"] = budgets["fit_seconds"]
    budgets["flops_per_step"] = budgets["train_seconds"] / budgets["steps"]
    try:
        return tidy({**frames, "budgets": budgets}).rename(columns={"flops": "seconds"})
    except LeftOutError:
        return None
