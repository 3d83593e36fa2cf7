"""Statistics of networks trained on Gaussians: what whitening changes, late changes, shares (C7, C9, C11).

Each function takes a table of an experiment and yields names of statistics, estimates, and notes.
"""

import math
from collections.abc import Hashable, Iterator

import numpy as np
import pandas as pd

from precfm.core.statistics import Estimate, geometric_estimate, t_estimate
from precfm.theory.mixture_statistics import differences, room


def whitening_by_factor(table: pd.DataFrame) -> Iterator[tuple[str, Estimate, str]]:
    """Error of the lowest eigenvalues, whitening minus none, by factor and level; of `trained_factors.summary`."""
    for _, estimate, note in _whitening(table):
        yield "controlled_log_error_low_difference", estimate, note


def whitening_by_budget(table: pd.DataFrame) -> Iterator[tuple[str, Estimate, str, float]]:
    """The same by recipe and length, the longest once more and beside whitening alone; of `trained_budgets.summary`.

    Last comes the room that the flow without a map leaves above what the solver makes of the exact field (`room`).
    """
    for recipe, level in table.groupby("level"):
        last = level[level["step"] == level["step"].max()]
        for step, estimate, note in _whitening(level):
            yield "controlled_log_error_low_difference", estimate, note, math.nan
            if step == last["step"].max():
                yield "controlled_final_log_error_low_difference", estimate, note, _room_of_plain(table, last)
        behind, alone = last[last["method"] == "whitening"], level[level["method"] == "alone:whitening"]
        estimate = t_estimate(differences(behind, alone, "log_error_low"))
        note = f"networks; {recipe}, {last['step'].max()} steps; flow behind whitening minus whitening alone"
        left = f"{behind['log_error_low'].mean():.3f} against {alone['log_error_low'].mean():.3f}"
        yield "controlled_final_log_error_low_difference_to_alone", estimate, f"{note}: {left}", math.nan


def fixed_horizons(table: pd.DataFrame) -> Iterator[tuple[str, Estimate, str, float]]:
    """What whitening gains at a short and at a long fixed horizon, by recipe; of `trained_budgets.summary`.

    The gain is the error of the lowest eigenvalues without minus that with whitening. Where whitening only speeds up,
    the gain shrinks with the horizon; where it avoids stagnation, it grows.
    """
    for recipe, level in table[table["step"] > 0].groupby("level"):
        errors = level.pivot_table(index="seed", columns=["method", "step"], values="log_error_low")
        gains = errors["none"] - errors["whitening"]
        first, last = gains.columns[0], gains.columns[-1]
        about = f"networks; {recipe}, a fixed set of data, {level['epochs'].max():g} passes at {last} steps"
        if last > first:
            note = f"{about}; gain of {gains[last].mean():.3f} minus that of {gains[first].mean():.3f} at {first} steps"
            yield f"horizon_gain_difference_{recipe}", t_estimate(gains[last] - gains[first]), note, math.nan
        space = _room_of_plain(table, level[level["step"] == last])
        yield (
            f"horizon_final_difference_{recipe}",
            t_estimate(-gains[last]),
            f"{about}; whitening minus none",
            space,
        )
        crossings = [_crossing(gain) for _, gain in gains.iterrows()]
        found = [step for step in crossings if math.isfinite(step)]
        note = f"{about}; step from which whitening is no better, {len(found)} of {len(crossings)} seeds get there"
        yield f"horizon_crossing_{recipe}", geometric_estimate(found), note, math.nan
    for name, estimate, note in _late_changes(table):
        yield name, estimate, note, math.nan


def _late_changes(table: pd.DataFrame) -> Iterator[tuple[str, Estimate, str]]:
    """What the last of the lengths still gains, and what remains."""
    floor = table[table["method"] == "exact:none"]["log_error_low"].mean()
    for (recipe, method), group in table[table["step"] > 0].groupby(["level", "method"]):
        wide = group.pivot_table(index="seed", columns="step", values="log_error_low")
        steps = list(wide.columns)
        note = f"networks; {recipe}, {method}, {steps[-1]} steps; the solver's floor is {floor:.3f}"
        yield "controlled_final_log_error_low", t_estimate(wide[steps[-1]]), note
        if len(steps) > 1:
            note = f"networks; {recipe}, {method}, from {steps[-2]} to {steps[-1]} steps"
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


def _room_of_plain(table: pd.DataFrame, last: pd.DataFrame) -> float:
    exact = table[table["method"] == "exact:none"].groupby("seed")["log_error_low"].mean()
    return room(last[last["method"] == "none"]["log_error_low"], exact)


def _crossing(gain: "pd.Series[float]") -> float:
    """The step at which a gain above zero first falls to zero, on a line between two lengths in ln(steps); else NaN."""
    steps, values = np.log(gain.index.to_numpy(dtype=float)), gain.to_numpy()
    falls = np.flatnonzero((values[:-1] > 0) & (values[1:] <= 0))
    if not len(falls):
        return math.nan
    at = falls[0]
    share = values[at] / (values[at] - values[at + 1])
    return float(np.exp(steps[at] + share * (steps[at + 1] - steps[at])))


def _explained(one: pd.DataFrame, factor: str) -> float:
    logs = np.log(one["log_error_low"])
    means = logs.groupby(one[factor]).transform("mean")
    total = float(((logs - logs.mean()) ** 2).sum())
    return float(((means - logs.mean()) ** 2).sum()) / total if total else math.nan
