"""Numbers made of rows: means with intervals, late slopes, training costs, logarithms."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict

import numpy as np
import pandas as pd

from precfm.core.errors import PrecfmError
from precfm.core.statistics import geometric_estimate, slope, t_estimate

LATE_CHECKPOINTS = 3  # a late slope rests on at least as many


def summarised(
    values: pd.DataFrame, keys: Sequence[str], logarithmic: "pd.Series[bool] | bool" = False
) -> pd.DataFrame:
    """Mean and 95% t interval of the column `value` in each group.

    Args:
        values: one value per seed or fit; columns `keys` and value.
        keys: the columns that tell groups apart.
        logarithmic: which rows are of groups that are averaged on the log scale.

    Returns:
        Columns `keys`, value, low, high, n, sorted by the keys.
    """
    rows = []
    for key, group in values.assign(logarithmic=logarithmic).groupby(list(keys), sort=True):
        estimator = geometric_estimate if group["logarithmic"].iloc[0] else t_estimate
        rows.append({**dict(zip(keys, key, strict=True)), **asdict(estimator(group["value"]))})
    return pd.DataFrame(rows, columns=[*keys, "value", "low", "high", "n"])


def condition_number(eigenvalues: "pd.Series[float]") -> float:
    """Largest over smallest; infinite where the smallest is not positive beyond the rounding error of the largest."""
    low, high = eigenvalues.min(), eigenvalues.max()
    return high / low if low > len(eigenvalues) * np.finfo(np.float64).eps * high else np.inf


def long_form(values: pd.DataFrame, keys: Sequence[str], quantities: Iterable[str]) -> pd.DataFrame:
    """Those of the quantities that are columns as rows: columns `keys`, quantity, value; without missing numbers."""
    names = [name for name in quantities if name in values.columns]
    return values.melt(keys, names, "quantity", "value").dropna(subset="value").astype({"value": float})


def with_training_flops(values: pd.DataFrame, budgets: pd.DataFrame) -> pd.DataFrame:
    """What each row's run had cost by its step: `flops`, the fit of the preconditioner and the steps of the flow.

    Args:
        values: with columns dataset, method, seed, step.
        budgets: the frame of that name; rows without a budget are left out.
    """
    costs = budgets[["dataset", "method", "seed", "fit_flops", "flops_per_step"]]
    merged = values.merge(costs, on=["dataset", "method", "seed"]).astype({"fit_flops": float, "step": float})
    flops = merged["fit_flops"] + merged["step"] * merged["flops_per_step"]
    return merged.drop(columns=["fit_flops", "flops_per_step"]).assign(flops=flops)


def late_slopes(values: pd.DataFrame, keys: Sequence[str], late_from: float) -> pd.DataFrame:
    """Slope of ln(value) per decade of steps for each run, over the late checkpoints that its group shares.

    Args:
        values: one positive value per run and checkpoint; columns `keys`, method, seed, step, value.
        keys: the columns that tell groups apart.
        late_from: late checkpoints are those from this share of the shared last step on.

    Returns:
        The columns of `values` but step, with value the slope, and first, last (steps) and checkpoints; groups
        with fewer than `LATE_CHECKPOINTS` late checkpoints are missing.

    Raises:
        PrecfmError: a value is not positive.
    """
    rows = []
    for _, group in values.groupby(list(keys), sort=True):
        runs = len(group[["method", "seed"]].drop_duplicates())
        reached = group.groupby("step").size()
        shared = [step for step in reached[reached == runs].index if step > 0]
        late = [step for step in shared if step >= late_from * max(shared)]
        if len(late) < LATE_CHECKPOINTS:
            continue
        about: dict[object, object] = {"first": min(late), "last": max(late), "checkpoints": len(late)}
        for _, run in group[group["step"].isin(late)].groupby(["method", "seed"]):
            fitted = slope(np.log10(run["step"].astype(float)), logarithms(run["value"], "a late value"))
            rows.append({**run.iloc[0].drop("step"), "value": fitted, **about})
    kept = [column for column in values.columns if column != "step"]
    return pd.DataFrame(rows, columns=[*kept, "first", "last", "checkpoints"])


def logarithms(values: pd.Series, what: str) -> pd.Series:
    """Natural logarithms.

    Raises:
        PrecfmError: a value is not positive; names `what`.
    """
    numbers = values.astype(float)
    if (numbers <= 0).any():
        raise PrecfmError(f"{what} is {numbers.min():g}; its logarithm needs positive values")
    return numbers.map(math.log)


def lowest_quartile_count(directions: int) -> int:
    """How many directions are the lowest quartile: a quarter of them, rounded up."""
    return -(-directions // 4)
