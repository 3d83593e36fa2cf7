"""Statistics of networks trained on Gaussians: what whitening changes, late changes, shares (C7, C9, C11).

Each function takes a table of an experiment and yields names of statistics, estimates, and notes.
"""

import math
from collections.abc import Hashable, Iterator

import numpy as np
import pandas as pd

from precfm.core.statistics import Estimate, t_estimate
from precfm.theory.mixture_statistics import differences


def whitening_by_factor(table: pd.DataFrame) -> Iterator[tuple[str, Estimate, str]]:
    """Error of the lowest eigenvalues, whitening minus none, by factor and level; of `trained_factors.summary`."""
    for _, estimate, note in _whitening(table):
        yield "controlled_log_error_low_difference", estimate, note


def whitening_by_budget(table: pd.DataFrame) -> Iterator[tuple[str, Estimate, str]]:
    """The same by budget, with the last budget once more; of `trained_budgets.summary`."""
    for step, estimate, note in _whitening(table):
        yield "controlled_log_error_low_difference", estimate, note
        if step == table["step"].max():
            yield "controlled_final_log_error_low_difference", estimate, note


def late_changes(table: pd.DataFrame) -> Iterator[tuple[str, Estimate, str]]:
    """What the last doubling (or so) of the budget still gains, and what remains; of `trained_budgets.summary`."""
    floor = table[table["method"] == "exact:none"]["log_error_low"].mean()
    for method, group in table[table["step"] > 0].groupby("method"):
        wide = group.pivot_table(index="seed", columns="step", values="log_error_low")
        steps = list(wide.columns)
        note = f"networks; {method}, {steps[-1]} steps; the solver's floor is {floor:.3f}"
        yield "controlled_final_log_error_low", t_estimate(wide[steps[-1]]), note
        if len(steps) > 1:
            note = f"networks; {method}, from {steps[-2]} to {steps[-1]} steps"
            yield "controlled_late_change", t_estimate(wide[steps[-1]] - wide[steps[-2]]), note


def explained_shares(table: pd.DataFrame) -> Iterator[tuple[str, Estimate, str]]:
    """How much of the variation of the error kappa, width and weight decay explain; of `residual_networks.grid`."""
    note = "networks; share of the variance of ln error that the factor's means explain"
    for factor in ("residual_kappa", "width", "weight_decay"):
        shares = [_explained(one, factor) for _, one in table.groupby("seed")]
        yield f"controlled_share_{factor}", t_estimate(shares), note


def _whitening(table: pd.DataFrame) -> Iterator[tuple[Hashable, Estimate, str]]:
    for (factor, level, step), group in table[table["step"] > 0].groupby(["factor", "level", "step"]):
        whitened, plain = (group[group["method"] == method] for method in ("whitening", "none"))
        estimate = t_estimate(differences(whitened, plain, "log_error_low"))
        yield step, estimate, f"networks; {factor} {level}, {step} steps; whitening minus none"


def _explained(one: pd.DataFrame, factor: str) -> float:
    logs = np.log(one["log_error_low"])
    means = logs.groupby(one[factor]).transform("mean")
    total = float(((logs - logs.mean()) ** 2).sum())
    return float(((means - logs.mean()) ** 2).sum()) / total if total else math.nan
