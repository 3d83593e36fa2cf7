"""What the experiments say about the claims: rows of statistics, named as `config/claims.yaml` asks for them."""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd

from precfm.core.statistics import Estimate, slope, t_estimate

Frames = Mapping[str, pd.DataFrame]
"""Tables by `<experiment>.<table>`, for example `linear_grid.agreement`; seeds of an experiment concatenated."""

COLUMNS = ("claim", "statistic", "value", "low", "high", "n", "note")
Row = dict[str, Any]

TABLE_ONLY = (
    "*_interval_coverage",  # the share of 95% intervals that hold the closed form: asked of the code, not the claim
    "score_*descent_relative_error",  # C2 and C3 decide by their own
    "residual_bound_ratio",  # a bound, kept by proof
    "worst_component_excess_ratio",  # C5 judges recovery; this is the same for the excess risk
    "linear_*",  # linear experts beside the networks that decide C5
    "controlled_log_kappa*",  # C6 is of real data: on a mixture, a preconditioner meets it by construction
    "controlled_log_error_low_difference",  # all factors, levels and budgets; the last budget's decides
    "controlled_final_log_error_low",  # what each method leaves: a number beside C9, no comparison
    "controlled_late_change",
    "controlled_matched_difference_*_to_none",  # C10 is of compute-matched baselines
    "controlled_matched_difference_labels_whitening_to_*",  # nor is it of plain whitening
    "controlled_matched_difference_marginal_whitening_to_*",
    "controlled_share_*",  # explained shares have no range that C11 asks for
)
"""Patterns of the statistics that stand in the theory table alone: `config/claims.yaml` names all others."""


def theory_statistics(frames: Frames) -> pd.DataFrame:
    """All statistics that the given tables support.

    Args:
        frames: tables by `<experiment>.<table>`; what is missing is left out.

    Returns:
        One row per statistic: claim, statistic, value, low, high, n, note.
    """
    claims: tuple[Callable[[Frames], list[Row]], ...] = (
        claim_c1,
        claim_c2,
        claim_c3,
        claim_c4,
        claim_c5,
        claim_c6,
        claim_c7,
        claim_c9,
        claim_c10,
        claim_c11,
    )
    return pd.DataFrame([row for claim in claims for row in claim(frames)], columns=list(COLUMNS))


def claim_c1(frames: Frames) -> list[Row]:
    """Excess risk = weighted trace: the largest relative error over all cases."""
    table = frames.get("linear_grid.identity")
    if table is None:
        return []
    return [
        _worst(
            "C1", "identity_relative_error", table["relative_error"], "difference of two losses on samples"
        )
    ]


def claim_c2(frames: Frames) -> list[Row]:
    """Contraction and steps without preconditioner, velocity target."""
    rows = _deviation(frames, "C2", "descent_relative_error", "velocity", preconditioned=False)
    rows += _coverage(frames, "C2", "stochastic_interval_coverage", "velocity", preconditioned=False)
    rows += _slopes(frames, "C2", "descent_steps_slope", "velocity", "descent", preconditioned=False)
    rows += _slopes(frames, "C2", "stochastic_steps_slope", "velocity", "stochastic", preconditioned=False)
    rows += _slopes(
        frames,
        "C2",
        "descent_total_steps_slope",
        "velocity",
        "descent",
        preconditioned=False,
        quantity="total",
    )
    return rows + _bound(frames)


def claim_c3(frames: Frames) -> list[Row]:
    """Contraction and steps with P = Sigma_t^(-1/2), velocity target."""
    rows = _deviation(frames, "C3", "preconditioned_descent_relative_error", "velocity", preconditioned=True)
    rows += _coverage(
        frames, "C3", "preconditioned_stochastic_interval_coverage", "velocity", preconditioned=True
    )
    for algorithm in ("descent", "stochastic"):
        name = f"preconditioned_{algorithm}_steps_slope"
        rows += _slopes(frames, "C3", name, "velocity", algorithm, preconditioned=True)
    return rows


def claim_c4(frames: Frames) -> list[Row]:
    """The same as C2 and C3 for the score target."""
    rows: list[Row] = []
    for preconditioned, prefix in ((False, "score_"), (True, "score_preconditioned_")):
        rows += _deviation(
            frames, "C4", f"{prefix}descent_relative_error", "score", preconditioned=preconditioned
        )
        for algorithm in ("descent", "stochastic"):
            name = f"{prefix}{algorithm}_steps_slope"
            rows += _slopes(frames, "C4", name, "score", algorithm, preconditioned=preconditioned)
    return rows


def claim_c5(frames: Frames) -> list[Row]:
    """Mixtures: the worst component's error, ablations and control, for networks and for linear experts."""
    rows: list[Row] = []
    table = frames.get("mixture_networks.components")
    if table is not None:
        for regime, group in table[table["method"] == "none"].groupby("regime"):
            for column, name in (
                ("log_error_low", "worst_component_error_ratio"),
                ("excess", "worst_component_excess_ratio"),
            ):
                ratios = [_worst_over_others(one, column) for _, one in group.groupby("seed")]
                rows.append(_row("C5", name, t_estimate(ratios), f"networks, {regime}; {column}"))
    table = frames.get("mixture_ablations.components")
    if table is not None:
        plain = table[table["method"] == "none"]
        rows += list(_ablations(plain, "log_error_low", "", "networks, labels; mean |ln variance ratio|"))
        rows += list(_scale_control(plain, "log_error_low", "", "networks, labels; ln ratio of errors"))
    table = frames.get("mixture_linear.components")
    if table is not None:
        for regime, group in table[table["step"] == table["step"].max()].groupby("regime"):
            rows += list(_ablations(group, "excess", "linear_", f"linear experts, {regime}; excess risk"))
            note = f"linear experts, {regime}; ln ratio of relative excess risks, lowest variance"
            rows += list(_scale_control(group, "lowest", "linear_", note))
            shares = group[(group["ablation"] == "weights")].groupby(["level", "seed"])
            worst = shares.apply(lambda one: one.set_index("component")["share"].sort_index().iloc[-1])
            for level, values in worst.groupby("level"):
                note = f"linear experts, {regime}; share of the total excess, weight {level:g}"
                rows.append(_row("C5", "linear_worst_component_share", t_estimate(values), note))
    return rows


def claim_c6(frames: Frames) -> list[Row]:
    """Controlled part of C6: ln of the flow space's kappa over that without, overall and in the worst class."""
    table = frames.get("mixture_networks.methods")
    rows: list[Row] = []
    if table is None:
        return rows
    for (regime, method), group in _preconditioned(table).groupby(["regime", "method"]):
        for column, name in (
            ("kappa", "controlled_log_kappa"),
            ("kappa_worst", "controlled_log_kappa_worst_class"),
        ):
            change = _paired(group, _of(table, regime, "none"), column, log=True)
            rows.append(_row("C6", name, t_estimate(change), f"mixture, {regime}; {method} against none"))
    return rows


def claim_c7(frames: Frames) -> list[Row]:
    """Controlled part of C7: error of the lowest eigenvalues, whitening minus none, by factor and level."""
    rows: list[Row] = []
    for experiment in ("trained_factors", "trained_budgets"):
        table = frames.get(f"{experiment}.summary")
        if table is None:
            continue
        for (factor, level, step), group in table[table["step"] > 0].groupby(["factor", "level", "step"]):
            change = _paired(
                group[group["method"] == "whitening"], group[group["method"] == "none"], "log_error_low"
            )
            note = f"networks; {factor} {level}, {step} steps; whitening minus none"
            estimate = t_estimate(change)
            rows.append(_row("C7", "controlled_log_error_low_difference", estimate, note))
            if experiment == "trained_budgets" and step == table["step"].max():
                rows.append(_row("C7", "controlled_final_log_error_low_difference", estimate, note))
    return rows


def claim_c9(frames: Frames) -> list[Row]:
    """Controlled part of C9: what the last doubling (or so) of the budget still gains, and what remains."""
    table = frames.get("trained_budgets.summary")
    if table is None:
        return []
    rows: list[Row] = []
    floor = table[table["method"] == "exact:none"]["log_error_low"].mean()
    for method, group in table[table["step"] > 0].groupby("method"):
        wide = group.pivot_table(index="seed", columns="step", values="log_error_low")
        steps = list(wide.columns)
        note = f"networks; {method}, {steps[-1]} steps; the solver's floor is {floor:.3f}"
        rows.append(_row("C9", "controlled_final_log_error_low", t_estimate(wide[steps[-1]]), note))
        if len(steps) > 1:
            gain = wide[steps[-1]] - wide[steps[-2]]
            note = f"networks; {method}, from {steps[-2]} to {steps[-1]} steps"
            rows.append(_row("C9", "controlled_late_change", t_estimate(gain), note))
    return rows


def claim_c10(frames: Frames) -> list[Row]:
    """Refutation test: error of the lowest eigenvalues, preconditioner minus compute-matched baseline.

    The mean over components, each counting equally; paired by seed.
    """
    table = frames.get("mixture_networks.components")
    if table is None:
        return []
    means = table.groupby(["regime", "method", "seed"]).agg({"log_error_low": "mean"}).reset_index()
    rows: list[Row] = []
    for (regime, method), group in _preconditioned(means).groupby(["regime", "method"]):
        for baseline in ("none", f"{method}-P", f"{method}-F"):
            other = _of(means, regime, baseline)
            if len(other):
                estimate = t_estimate(_paired(group, other, "log_error_low"))
                note = f"mixture, {regime}; {method} minus {baseline}"
                name = f"controlled_matched_difference_{regime}_{method}_to_{baseline.split('-')[-1]}"
                rows.append(_row("C10", name, estimate, note))
    return rows


def claim_c11(frames: Frames) -> list[Row]:
    """How much of the variation of the error the residual kappa, the width and the weight decay explain."""
    table = frames.get("residual_networks.grid")
    if table is None:
        return []
    rows: list[Row] = []
    for factor in ("residual_kappa", "width", "weight_decay"):
        shares = [_explained(one, factor) for _, one in table.groupby("seed")]
        note = "networks; share of the variance of ln error that the factor's means explain"
        rows.append(_row("C11", f"controlled_share_{factor}", t_estimate(shares), note))
    return rows


def _row(claim: str, statistic: str, estimate: Estimate, note: str) -> Row:
    return {
        "claim": claim,
        "statistic": statistic,
        "value": estimate.value,
        "low": estimate.low,
        "high": estimate.high,
        "n": estimate.n,
        "note": note,
    }


def _worst(claim: str, statistic: str, values: "pd.Series[float]", note: str) -> Row:
    """A largest deviation: there is no sampling error, so that the interval is the value; NaN if one is NaN."""
    worst = float(values.max(skipna=False))
    return _row(claim, statistic, Estimate(worst, worst, worst, len(values)), f"largest of all cases; {note}")


def _agreement(frames: Frames, algorithm: str, target: str, preconditioned: bool) -> pd.DataFrame | None:
    table = frames.get("linear_grid.agreement")
    if table is None:
        return None
    chosen = (table["algorithm"] == algorithm) & (table["target"] == target)
    rows = table[chosen & (table["preconditioned"].astype(bool) == preconditioned)]
    return rows if len(rows) else None


def _deviation(frames: Frames, claim: str, name: str, target: str, *, preconditioned: bool) -> list[Row]:
    table = _agreement(frames, "descent", target, preconditioned)
    if table is None:
        return []
    return [_worst(claim, name, table["worst_deviation"], "excess risk of every direction, seed and step")]


def _coverage(frames: Frames, claim: str, name: str, target: str, *, preconditioned: bool) -> list[Row]:
    table = _agreement(frames, "stochastic", target, preconditioned)
    if table is None:
        return []
    note = "share of 95% intervals over seeds that hold the closed form; cells are the observations"
    return [_row(claim, name, t_estimate(table["covered"]), note)]


def _slopes(
    frames: Frames,
    claim: str,
    name: str,
    target: str,
    algorithm: str,
    *,
    preconditioned: bool,
    quantity: str = "lowest",
) -> list[Row]:
    """One row for each path: the mean of the seeds' slopes."""
    table = frames.get("steps_to_accuracy.steps")
    if table is None:
        return []
    chosen = (table["algorithm"] == algorithm) & (table["target"] == target)
    table = table[chosen & (table["preconditioned"].astype(bool) == preconditioned)]
    rows = []
    for path, group in table.groupby("path"):
        fits, exact = seed_slopes(group, quantity), seed_slopes(group, f"theory_{quantity}")
        where = "slowest direction" if quantity == "lowest" else "total excess risk"
        if fits:
            closed = float(np.mean(exact)) if exact else math.nan
            used, total = cells_used(group, quantity)
            note = f"{path} path; {where}; kappa_t from 10; {used} of {total} cells; closed form {closed:.3f}"
            rows.append(_row(claim, name, t_estimate(fits), note))
    return rows


def seed_slopes(steps: pd.DataFrame, quantity: str) -> list[float]:
    """Slopes of ln steps against ln kappa(Sigma_t), one for each seed.

    Args:
        steps: rows of `steps_to_accuracy.steps` of one kind.
        quantity: `lowest`, `total`, or these with the prefix `theory_`.

    Returns:
        Slopes over kappa_t >= 10, where the goal is well above the noise floor; seeds whose kappas span less
        than a factor of ten are left out.
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
    return int(_usable(steps, quantity).sum()), int((steps["condition_number_t"] >= 10).sum())


def _usable(steps: pd.DataFrame, quantity: str) -> "pd.Series[bool]":
    counts = steps[f"counts_{quantity.removeprefix('theory_')}"].astype(bool)
    reached = np.isfinite(steps[quantity]) & (steps[quantity] > 0)
    usable: pd.Series[bool] = counts & reached & (steps["condition_number_t"] >= 10)
    return usable


def _bound(frames: Frames) -> list[Row]:
    table = frames.get("residual_linear.steps")
    if table is None:
        return []
    note = "measured steps over the bound in the residual kappa, total excess risk"
    return [_worst("C2", "residual_bound_ratio", table["total"] / table["bound"], note)]


def _worst_over_others(one: pd.DataFrame, column: str) -> float:
    errors = one.sort_values("component")[column].to_numpy()
    return float(errors[-1] / errors[:-1].mean())


def _ablations(table: pd.DataFrame, column: str, prefix: str, note: str) -> Iterator[Row]:
    """Share of runs in which the last component errs most, and the slope of its error against its kappa."""
    weights = table[table["ablation"] == "weights"]
    shares = []
    for _, of_seed in weights.groupby("seed"):
        errors = [one.sort_values("component")[column].to_numpy() for _, one in of_seed.groupby("level")]
        shares.append(float(np.mean([e.argmax() == len(e) - 1 for e in errors])))
    if shares:
        yield _row("C5", f"{prefix}weights_varied_worst_share", t_estimate(shares), note)
    varied = table[table["ablation"] == "conditioning"]
    worst = varied[varied["component"] == varied["component"].max()]
    fits = []
    for _, one in worst.groupby("seed"):
        # Excess risks that have vanished into rounding say nothing of a slope.
        seen = one[one[column] > 1e-6 * one[column].max()]
        fits.append(slope(np.log(seen["condition_number"]), np.log(seen[column])))
    fits = [fit for fit in fits if math.isfinite(fit)]
    if fits:
        yield _row("C5", f"{prefix}conditioning_varied_error_slope", t_estimate(fits), note)


def _scale_control(table: pd.DataFrame, column: str, prefix: str, note: str) -> Iterator[Row]:
    """Effects of the condition number and of the smallest variance, the mean over both levels of the other."""
    control = table[table["ablation"] == "scale"]
    if control.empty:
        return
    logs = control.assign(
        error=np.log(control[column]),
        bad=control["condition_number"] > 1 + 1e-9,
        small=control["smallest_variance"] < 1 - 1e-9,
    ).pivot_table(index="seed", columns=["bad", "small"], values="error")
    kappa = {small: logs[True, small] - logs[False, small] for small in (False, True)}
    variance = {bad: logs[bad, True] - logs[bad, False] for bad in (False, True)}
    kappa_text, variance_text = (
        f"mean of {effects[False].mean():.2f} at {plain} and {effects[True].mean():.2f} at {other}"
        for effects, plain, other in (
            (kappa, "smallest variance 1", f"{control['smallest_variance'].min():.2g}"),
            (variance, "kappa 1", f"{control['condition_number'].max():g}"),
        )
    )
    for name, effects, text in (("kappa", kappa, kappa_text), ("variance", variance, variance_text)):
        estimate = t_estimate((effects[False] + effects[True]) / 2)
        yield _row("C5", f"{prefix}scale_control_{name}_effect", estimate, f"{note}; {text}")


def _preconditioned(table: pd.DataFrame) -> pd.DataFrame:
    """Rows of preconditioners: not of baselines, the floor or the plain flow."""
    names = table["method"].isin(["none", "floor"]) | table["method"].str.contains(r"-[PF]$")
    return table[~names]


def _of(table: pd.DataFrame, regime: object, method: str) -> pd.DataFrame:
    return table[(table["regime"] == regime) & (table["method"] == method)]


def _paired(
    group: pd.DataFrame, other: pd.DataFrame, column: str, *, log: bool = False
) -> "pd.Series[float]":
    """Differences by seed, of the values or of their logarithms."""
    mine, theirs = group.set_index("seed")[column], other.set_index("seed")[column]
    if log:
        mine, theirs = np.log(mine), np.log(theirs)
    return (mine - theirs).dropna()


def _explained(one: pd.DataFrame, factor: str) -> float:
    logs = np.log(one["log_error_low"])
    means = logs.groupby(one[factor]).transform("mean")
    total = float(((logs - logs.mean()) ** 2).sum())
    return float(((means - logs.mean()) ** 2).sum()) / total if total else math.nan
