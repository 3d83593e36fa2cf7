"""Statistics of mixtures: the slowest component, ablations, preconditioners beside their baselines (C5, C6, C10).

Each function takes a table of an experiment and yields names of statistics, estimates, and notes.
"""

import math
from collections.abc import Hashable, Iterator

import numpy as np
import pandas as pd

from precfm.core.statistics import Estimate, slope, t_estimate

SKIP = "gaussian_skip"
SAME_PACE = 1e-6  # relative: components of equal weight and spectrum differ by rounding
VANISHED = 1e-6  # of the largest: an excess risk below it is rounding, and says nothing of a slope


def slowest_of_networks(table: pd.DataFrame) -> Iterator[tuple[str, Estimate, str]]:
    """The slowest component's error and share of the excess, by regime; of `mixture_networks.components`."""
    for regime, group in table[table["method"] == "none"].groupby("regime"):
        yield from _slowest(group, "", f"networks, {regime}")


def slowest_of_ablations(table: pd.DataFrame) -> Iterator[tuple[str, Estimate, str]]:
    """The same where weights vary and where scale is controlled; of `mixture_ablations.components`."""
    yield from _slowest_by_level(table[table["method"] == "none"], "", "networks, labels")


def slowest_of_experts(table: pd.DataFrame) -> Iterator[tuple[str, Estimate, str]]:
    """The same for linear experts at the last step; of `mixture_linear.components`."""
    for regime, group in table[table["step"] == table["step"].max()].groupby("regime"):
        yield from _slowest_by_level(group, "linear_", f"linear experts, {regime}")


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


def conditioning(table: pd.DataFrame) -> Iterator[tuple[str, Estimate, str]]:
    """ln of the flow space's kappa over that without, overall and in the worst class; of `mixture_networks.methods`."""
    columns = {"kappa": "controlled_log_kappa", "kappa_worst": "controlled_log_kappa_worst_class"}
    maps = table[table["method"] != SKIP]  # a skip leaves the space as it is
    logs = maps.assign(**{column: np.log(maps[column]) for column in columns})
    for regime, method, group in _preconditioned(logs):
        for column, name in columns.items():
            change = differences(group, _of(logs, regime, "none"), column)
            yield name, t_estimate(change), f"mixture, {regime}; {method} against none"


def matched_differences(table: pd.DataFrame) -> Iterator[tuple[str, Estimate, str, float]]:
    """Refutation test: error of the lowest eigenvalues, a flow behind a map minus what is set against it.

    Of `mixture_networks.components`: the mean over components, each counting equally; paired by seed. Set against it
    are the flow without a map, the compute-matched ones, the Gaussian skip, and the map alone; against the skip, too,
    where there is such a row. Last comes the room of what it is set against, see `room`.
    """
    means = table.groupby(["regime", "method", "seed"]).agg({"log_error_low": "mean"}).reset_index()
    for regime, method, group in _preconditioned(means):
        others = {
            "none": "none",
            "P": f"{method}-P",
            "F": f"{method}-F",
            "skip": SKIP,
            "alone": f"alone:{method}",
        }
        for short, baseline in others.items():
            other = _of(means, regime, baseline)
            if len(other) and baseline != method:
                name = f"controlled_matched_difference_{regime}_{method}_to_{short}"
                estimate = t_estimate(differences(group, other, "log_error_low"))
                left = f"{group['log_error_low'].mean():.3f} against {other['log_error_low'].mean():.3f}"
                space = room(other["log_error_low"], _of(means, regime, "floor")["log_error_low"])
                yield name, estimate, f"mixture, {regime}; {method} minus {baseline}: {left}", space


def room(baseline: "pd.Series[float]", floor: "pd.Series[float]") -> float:
    """By how much an error's mean is above its floor and the floor's own uncertainty; NaN without a floor."""
    least = t_estimate(floor)
    return float(baseline.mean()) - (least.value if math.isnan(least.high) else least.high)


def differences(group: pd.DataFrame, other: pd.DataFrame, column: str) -> "pd.Series[float]":
    """Differences of a column between rows with the same seed."""
    return (group.set_index("seed")[column] - other.set_index("seed")[column]).dropna()


def _slowest_by_level(table: pd.DataFrame, prefix: str, about: str) -> Iterator[tuple[str, Estimate, str]]:
    """The mixtures in which the slowest component is not always the worst-conditioned one, or not alone."""
    varied = table[table["ablation"].isin(["weights", "scale"])]
    texts = {"weights": "weight of the worst-conditioned {:g}", "scale": "scale controlled, kappa to {:g}"}
    for (ablation, level), group in varied.groupby(["ablation", "level"], sort=False):
        yield from _slowest(group, prefix, f"{about}; {texts[str(ablation)].format(level)}")


def _slowest(group: pd.DataFrame, prefix: str, about: str) -> Iterator[tuple[str, Estimate, str]]:
    """Its error over the mean of the others', and its share of the excess risk.

    By theory the slowest is the component of the smallest product of weight and smallest variance, whatever its
    condition number; several that have it count together.
    """
    ratios, shares, places = [], [], set()
    for _, one in group.groupby("seed"):
        pace = one["weight"] * one["smallest_variance"]
        slow = np.isclose(pace, pace.min(), rtol=SAME_PACE, atol=0)
        places.add(" and ".join(f"{kappa:g}" for kappa in one["condition_number"][slow].round(6)))
        risk = one["weight"] * one["excess"]
        shares.append(float(risk[slow].sum() / risk.sum()))
        if "log_error_low" in one:
            ratios.append(float(one["log_error_low"][slow].mean() / one["log_error_low"][~slow].mean()))
    which = f"the slowest is that of kappa {', '.join(sorted(places))}"
    if ratios:
        note = f"{about}; {which}; mean |ln variance ratio|"
        yield f"{prefix}slowest_component_error_ratio", t_estimate(ratios), note
    note = f"{about}; {which}; share of the excess risk"
    yield f"{prefix}slowest_component_excess_share", t_estimate(shares), note


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
    """Effects of condition number and smallest variance, at each level of the other and in the mean, and against it."""
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
        if name == "kappa":
            for scale, effect in (("large", plain), ("small", other)):
                yield f"{prefix}scale_control_kappa_effect_{scale}_scale", t_estimate(effect), note
    text = f"kappa {control['condition_number'].max():g} at smallest variance 1 against kappa 1 at the smaller one"
    effect = logs[True, False] - logs[False, True]
    yield f"{prefix}scale_control_kappa_against_scale", t_estimate(effect), f"{note}; {text}"


def _preconditioned(table: pd.DataFrame) -> Iterator[tuple[Hashable, Hashable, pd.DataFrame]]:
    """Rows by regime and trained method: not of baselines, maps alone, the floor or the plain flow."""
    others = table["method"].isin(["none", "floor"]) | table["method"].str.contains(r"-[PF]$|^alone:")
    for (regime, method), group in table[~others].groupby(["regime", "method"]):
        yield regime, method, group


def _of(table: pd.DataFrame, regime: Hashable, method: Hashable) -> pd.DataFrame:
    return table[(table["regime"] == regime) & (table["method"] == method)]
