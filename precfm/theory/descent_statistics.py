"""Statistics of descent on linear fields: agreement with the closed forms, slopes of the steps (claims C1 to C4).

Names begin with their kind: `score_` for the score target, then `preconditioned_` behind P = Sigma_t^(-1/2). Each
function takes a table of an experiment and yields names of statistics, estimates, and notes.
"""

import math
from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd

from precfm.core.statistics import Estimate, slope, t_estimate

KAPPA_FROM = 10  # where the goal is well above the noise floor
ALGORITHMS = ("descent", "stochastic")


def identity(table: pd.DataFrame) -> Iterator[tuple[str, Estimate, str]]:
    """Excess risk = weighted trace: the largest relative error; of `linear_grid.identity`."""
    note = "difference of two losses on samples"
    yield _worst("identity_relative_error", table["relative_error"], table["seed"].nunique(), note)


def agreement(table: pd.DataFrame, kinds: Sequence[str] = ("",)) -> Iterator[tuple[str, Estimate, str]]:
    """Deviation of gradient descent and coverage of stochastic descent; of `linear_grid.agreement`."""
    for kind in kinds:
        rows = _of(table, kind)
        deviations = rows[rows["algorithm"] == "descent"]["worst_deviation"]
        if len(deviations):
            note = "excess risk of every direction, seed and step; cells are the observations"
            yield _worst(f"{kind}descent_relative_error", deviations, len(deviations), note)
        covered = rows[rows["algorithm"] == "stochastic"]["covered"]
        if len(covered) and not kind.startswith("score_"):
            note = "share of 95% intervals over seeds that hold the closed form; cells are the observations"
            yield f"{kind}stochastic_interval_coverage", t_estimate(covered), note


def slopes(table: pd.DataFrame, kinds: Sequence[str] = ("",)) -> Iterator[tuple[str, Estimate, str]]:
    """Mean over seeds of the slopes of ln steps against ln kappa; of `steps_to_accuracy.steps`.

    `<kind><algorithm>_steps_slope` is of the slowest direction, a row for each path; of gradient descent there is
    `<kind>descent_total_steps_slope_<path>` for the total excess risk.
    """
    for kind in kinds:
        rows = _of(table, kind)
        for algorithm in ALGORITHMS:
            name, about = f"{kind}{algorithm}_steps_slope", _about(table, kind, algorithm)
            for path, group in rows[rows["algorithm"] == algorithm].groupby("path"):
                yield from _slope(group, name, "lowest", f"{path} path; {about}")
        about = _about(table, kind, "descent")
        for path, group in rows[rows["algorithm"] == "descent"].groupby("path"):
            name = f"{kind}descent_total_steps_slope_{path}"
            yield from _slope(group, name, "total", f"{path} path; {about}")


def residual_bound(table: pd.DataFrame) -> Iterator[tuple[str, Estimate, str]]:
    """Measured steps over their bound, the largest; of `residual_linear.steps`."""
    note = "measured steps over the bound in the residual kappa, total excess risk"
    yield _worst("residual_bound_ratio", table["total"] / table["bound"], table["seed"].nunique(), note)


def seed_slopes(steps: pd.DataFrame, quantity: str) -> list[float]:
    """Slopes of ln steps against ln kappa(Sigma_t), one for each seed.

    Args:
        steps: rows of `steps_to_accuracy.steps` of one kind.
        quantity: `lowest`, `total`, or these with the prefix `theory_`.

    Returns:
        Slopes over kappa_t >= 10; seeds whose kappas span less than a factor of ten are left out.
    """
    fits = []
    for _, one in steps[_usable(steps, quantity)].groupby("seed"):
        kappa = one["condition_number_t"]
        if kappa.max() >= 10 * kappa.min():
            fits.append(slope(np.log(kappa), np.log(one[quantity])))
    return fits


def cells_used(steps: pd.DataFrame, quantity: str) -> tuple[int, int]:
    """How many of the cells with kappa_t >= 10 the slopes rest on, and how many there are.

    The others never reached their accuracy, or start too close to it to count.
    """
    return int(_usable(steps, quantity).sum()), int((steps["condition_number_t"] >= KAPPA_FROM).sum())


def _slope(
    group: pd.DataFrame, statistic: str, quantity: str, about: str
) -> Iterator[tuple[str, Estimate, str]]:
    fits, exact = seed_slopes(group, quantity), seed_slopes(group, f"theory_{quantity}")
    if fits:
        where = "slowest direction" if quantity == "lowest" else "total excess risk"
        closed = float(np.mean(exact)) if exact else math.nan
        used, total = cells_used(group, quantity)
        most = group[_usable(group, quantity)]["condition_number_t"].max()
        span = f"kappa_t from {KAPPA_FROM} to {most:.1e}; {used} of {total} cells"
        # z: the sign of a slope of zero is that of its rounding errors, which follow the order of the rows.
        note = f"{about}; {where}; {span}; closed form {closed:z.3f}"
        yield statistic, t_estimate(fits), note


def _about(table: pd.DataFrame, kind: str, algorithm: str) -> str:
    """Where the descent starts, and its step size beside that without P: what a reader of a slope has to know."""
    start = {"descent": "from a zero field", "stochastic": "from equal excess risk in all directions"}[
        algorithm
    ]
    rows = table[table["algorithm"] == algorithm].assign(mapped=table["preconditioned"].astype(bool))
    rates = rows.groupby("mapped")["relative_rate"].first()
    mapped = kind.endswith("preconditioned_")
    if mapped not in rates:
        return start
    size = f"step size {rates[mapped]:g} / lambda_max"
    if mapped and False in rates and rates[True] != rates[False]:
        size += f", {rates[False] / rates[True]:g} times smaller than without P"
    return f"{start}, {size}"


def _usable(steps: pd.DataFrame, quantity: str) -> "pd.Series[bool]":
    counts = steps[f"counts_{quantity.removeprefix('theory_')}"].astype(bool)
    reached = np.isfinite(steps[quantity]) & (steps[quantity] > 0)
    usable: pd.Series[bool] = counts & reached & (steps["condition_number_t"] >= KAPPA_FROM)
    return usable


def _worst(statistic: str, values: "pd.Series[float]", n: int, note: str) -> tuple[str, Estimate, str]:
    """A largest deviation: there is no sampling error, so that the interval is the value; NaN if one is NaN."""
    worst = float(values.max(skipna=False))
    return statistic, Estimate(worst, worst, worst, n), f"largest of all cases; {note}"


def _of(table: pd.DataFrame, kind: str) -> pd.DataFrame:
    target = "score" if kind.startswith("score_") else "velocity"
    preconditioned = table["preconditioned"].astype(bool) == kind.endswith("preconditioned_")
    return table[preconditioned & (table["target"] == target)]
