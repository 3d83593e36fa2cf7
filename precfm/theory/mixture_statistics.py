"""Statistics of mixtures: the worst component, ablations, preconditioners beside their baselines (C5, C6, C10).

Each function takes a table of an experiment and yields names of statistics, estimates, and notes.
"""

import math
from collections.abc import Hashable, Iterator

import numpy as np
import pandas as pd

from precfm.core.statistics import Estimate, slope, t_estimate

VANISHED = 1e-6  # of the largest: an excess risk below it is rounding, and says nothing of a slope


def worst_component(table: pd.DataFrame) -> Iterator[tuple[str, Estimate, str]]:
    """Error of the last component over the mean of the others; of `mixture_networks.components`."""
    columns = {"log_error_low": "worst_component_error_ratio", "excess": "worst_component_excess_ratio"}
    for regime, group in table[table["method"] == "none"].groupby("regime"):
        for column, name in columns.items():
            errors = [_by_component(one, column) for _, one in group.groupby("seed")]
            ratios = [float(each[-1] / each[:-1].mean()) for each in errors]
            yield name, t_estimate(ratios), f"networks, {regime}; {column}"


def network_ablations(table: pd.DataFrame) -> Iterator[tuple[str, Estimate, str]]:
    """Ablations and control of scale for networks; of `mixture_ablations.components`."""
    plain = table[table["method"] == "none"]
    yield from _ablations(plain, "log_error_low", "", "networks, labels; mean |ln variance ratio|")
    yield from _scale_control(plain, "log_error_low", "", "networks, labels; ln ratio of errors")


def expert_ablations(table: pd.DataFrame) -> Iterator[tuple[str, Estimate, str]]:
    """The same for linear experts at the last step; of `mixture_linear.components`."""
    for regime, group in table[table["step"] == table["step"].max()].groupby("regime"):
        about = f"linear experts, {regime}"
        yield from _ablations(group, "excess", "linear_", f"{about}; excess risk")
        note = f"{about}; ln ratio of relative excess risks, lowest variance"
        yield from _scale_control(group, "lowest", "linear_", note)
        varied = group[group["ablation"] == "weights"]
        worst = varied[varied["component"] == varied["component"].max()]
        for level, rows in worst.groupby("level"):
            note = f"{about}; share of the total excess, weight {level:g}"
            yield "linear_worst_component_share", t_estimate(rows["share"]), note


def conditioning(table: pd.DataFrame) -> Iterator[tuple[str, Estimate, str]]:
    """ln of the flow space's kappa over that without, overall and in the worst class; of `mixture_networks.methods`."""
    columns = {"kappa": "controlled_log_kappa", "kappa_worst": "controlled_log_kappa_worst_class"}
    logs = table.assign(**{column: np.log(table[column]) for column in columns})
    for regime, method, group in _preconditioned(logs):
        for column, name in columns.items():
            change = differences(group, _of(logs, regime, "none"), column)
            yield name, t_estimate(change), f"mixture, {regime}; {method} against none"


def matched_differences(table: pd.DataFrame) -> Iterator[tuple[str, Estimate, str]]:
    """Refutation test: error of the lowest eigenvalues, preconditioner minus compute-matched baseline.

    Of `mixture_networks.components`: the mean over components, each counting equally; paired by seed.
    """
    means = table.groupby(["regime", "method", "seed"]).agg({"log_error_low": "mean"}).reset_index()
    for regime, method, group in _preconditioned(means):
        for baseline in ("none", f"{method}-P", f"{method}-F"):
            other = _of(means, regime, baseline)
            if len(other):
                name = f"controlled_matched_difference_{regime}_{method}_to_{baseline.split('-')[-1]}"
                estimate = t_estimate(differences(group, other, "log_error_low"))
                yield name, estimate, f"mixture, {regime}; {method} minus {baseline}"


def differences(group: pd.DataFrame, other: pd.DataFrame, column: str) -> "pd.Series[float]":
    """Differences of a column between rows with the same seed."""
    return (group.set_index("seed")[column] - other.set_index("seed")[column]).dropna()


def _by_component(one: pd.DataFrame, column: str) -> np.ndarray:
    return one.sort_values("component")[column].to_numpy()


def _ablations(
    table: pd.DataFrame, column: str, prefix: str, note: str
) -> Iterator[tuple[str, Estimate, str]]:
    """Share of runs in which the last component errs most, and the slope of its error against its kappa."""
    weights = table[table["ablation"] == "weights"]
    shares = []
    for _, of_seed in weights.groupby("seed"):
        errors = [_by_component(one, column) for _, one in of_seed.groupby("level")]
        shares.append(float(np.mean([each.argmax() == len(each) - 1 for each in errors])))
    if shares:
        yield f"{prefix}weights_varied_worst_share", t_estimate(shares), note
    varied = table[table["ablation"] == "conditioning"]
    fits = []
    for _, one in varied[varied["component"] == varied["component"].max()].groupby("seed"):
        seen = one[one[column] > VANISHED * one[column].max()]
        fits.append(slope(np.log(seen["condition_number"]), np.log(seen[column])))
    fits = [fit for fit in fits if math.isfinite(fit)]
    if fits:
        yield f"{prefix}conditioning_varied_error_slope", t_estimate(fits), note


def _scale_control(
    table: pd.DataFrame, column: str, prefix: str, note: str
) -> Iterator[tuple[str, Estimate, str]]:
    """Effects of the condition number and of the smallest variance, the mean over both levels of the other."""
    control = table[table["ablation"] == "scale"]
    if control.empty:
        return
    logs = control.assign(
        error=np.log(control[column]),
        bad=control["condition_number"] > 1 + 1e-9,
        small=control["smallest_variance"] < 1 - 1e-9,
    ).pivot_table(index="seed", columns=["bad", "small"], values="error")
    effects = {
        "kappa": (
            [logs[True, small] - logs[False, small] for small in (False, True)],
            ("smallest variance 1", f"{control['smallest_variance'].min():.2g}"),
        ),
        "variance": (
            [logs[bad, True] - logs[bad, False] for bad in (False, True)],
            ("kappa 1", f"{control['condition_number'].max():g}"),
        ),
    }
    for name, ((plain, other), (at_plain, at_other)) in effects.items():
        text = f"mean of {plain.mean():.2f} at {at_plain} and {other.mean():.2f} at {at_other}"
        yield f"{prefix}scale_control_{name}_effect", t_estimate((plain + other) / 2), f"{note}; {text}"


def _preconditioned(table: pd.DataFrame) -> Iterator[tuple[Hashable, Hashable, pd.DataFrame]]:
    """Rows by regime and preconditioner: not of baselines, the floor or the plain flow."""
    others = table["method"].isin(["none", "floor"]) | table["method"].str.contains(r"-[PF]$")
    for (regime, method), group in table[~others].groupby(["regime", "method"]):
        yield regime, method, group


def _of(table: pd.DataFrame, regime: Hashable, method: Hashable) -> pd.DataFrame:
    return table[(table["regime"] == regime) & (table["method"] == method)]
