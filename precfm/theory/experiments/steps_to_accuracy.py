"""Experiment: steps to a given accuracy against the condition number, measured directly (C2, C3, C4)."""

import itertools
from dataclasses import asdict
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from precfm.datasets.synthetic import rotation
from precfm.report.statistics import slope, t_estimate
from precfm.seeds import derived_seed, generator_for
from precfm.theory import gaussian, measured
from precfm.theory.settings import Setting, linear_problems, preconditioned

PATIENCE = 4.0  # in units of kappa / rate: four times what the slowest direction needs for a tenth
MARGIN = 4.0  # times the noise floor: closer to it, the moment of crossing is chance


def run(
    *,
    dim: int = 4,
    condition_numbers: tuple[float, ...] = (1.0, 10.0, 100.0, 1e3, 1e4, 1e5, 1e6),
    times: tuple[float, ...] = (0.5, 0.9, 0.99, 0.999),
    targets: tuple[Literal["velocity", "score"], ...] = ("velocity", "score"),
    paths: tuple[Literal["linear", "variance_preserving"], ...] = ("linear", "variance_preserving"),
    samples: int = 256,
    seeds: int = 5,
    fraction: float = 0.1,
    descent_rate: float = 0.5,
    batch_size: int = 32,
    stochastic_rate: float = 0.05,
    preconditioned_stochastic_rate: float = 0.005,
    stochastic_limit: float = 1e3,
    seed: int = 0,
) -> dict[str, pd.DataFrame]:
    """Count the steps until the excess risk has fallen to `fraction`, from a zero field.

    Gradient descent runs on independent samples, a data set and a rotation for each seed, so that the counts
    scatter as they would in practice; stochastic descent draws fresh batches. The step size is set from the
    largest variance of the inputs.

    Args:
        dim: dimension of the data.
        condition_numbers: condition numbers of the data (spectra of mean one).
        times: times t, below 1 for the score.
        targets: what is regressed.
        paths: probability paths.
        samples: size of each data set.
        seeds: number of data sets.
        fraction: accuracy, relative to the start.
        descent_rate: step size of gradient descent times the inputs' largest variance.
        batch_size: samples per step of stochastic descent.
        stochastic_rate: the same as `descent_rate`, for stochastic descent.
        preconditioned_stochastic_rate: the same with the preconditioner, where small steps (and so a low
            noise floor) cost little.
        stochastic_limit: largest kappa(Sigma_t) for stochastic descent, whose small steps take longer.
        seed: seed of everything.

    Returns:
        `steps`: one row per setting and seed (algorithm, preconditioned, path, target, t, condition_number,
        condition_number_t, seed, lowest, total, theory_lowest, theory_total; infinite where not reached;
        counts_lowest and counts_total: the goal is well above the noise floor), and `slopes`: of log steps
        against log kappa(Sigma_t) over kappa_t >= 10 (algorithm, preconditioned, path, target, quantity,
        value, low, high, n, theory).
    """
    settings = [
        Setting(*s) for s in itertools.product(paths, targets, times, condition_numbers) for _ in range(seeds)
    ]
    cells = pd.DataFrame([asdict(setting) for setting in settings])
    cells["seed"] = list(range(seeds)) * (len(settings) // seeds)
    bases = torch.stack([rotation(dim, derived_seed(seed, "basis", s)) for s in range(seeds)])
    problems, closed = linear_problems(settings, bases.repeat(len(settings) // seeds, 1, 1))
    cells["condition_number_t"] = (closed.variance[:, -1] / closed.variance[:, 0]).numpy()
    own = [derived_seed(seed, "data", int(s)) for s in cells["seed"]]
    normals = measured.independent_normals(own, samples, dim)
    zero = torch.zeros(len(cells), dim, dim, dtype=torch.float64)
    frames = []
    for moved in (False, True):
        if moved:
            problems, closed = preconditioned(problems, closed)
        x, y = problems.data(*normals)
        yardstick = measured.Yardstick.of(x, y)
        rates = descent_rate / yardstick.variances.amax(-1)
        limits = (
            PATIENCE / descent_rate * yardstick.variances.amax(-1) / yardstick.variances.amin(-1)
        ).long() + 1
        advance = measured.descent_advance(x, y, rates)
        found = measured.steps_until(yardstick, zero, advance, fraction, limits)
        errors = closed.optimum.square()
        exact_rates = descent_rate / closed.variance.amax(-1)
        theory = (
            gaussian.steps_to_fraction(closed.variance[:, 0], exact_rates, fraction),
            gaussian.steps_to_total_fraction(closed.variance, errors, exact_rates, fraction),
        )
        above_floor = torch.ones(2, len(cells), dtype=torch.bool)
        frames.append(_frame(cells, "descent", moved, found, theory, above_floor))

        index = torch.tensor(np.flatnonzero(cells["condition_number_t"] <= stochastic_limit))
        some, few = problems.part(index), closed.part(index)
        stochastic = preconditioned_stochastic_rate if moved else stochastic_rate
        rates = stochastic / few.variance.amax(-1)
        limits = (PATIENCE / stochastic * few.variance[:, -1] / few.variance[:, 0]).long() + 1
        advance = measured.stochastic_advance(
            some, rates, batch_size, generator_for(seed, "batches", int(moved))
        )
        # Fresh batches lead to the best field of the law, which samples of exact second moments have too.
        exact = some.data(*(draws[index] for draws in measured.matched_normals(own, dim)))
        yardstick = measured.Yardstick.of(*exact, some.basis)
        found = measured.steps_until(yardstick, zero[index], advance, fraction, limits)
        start = few.variance * few.optimum.square()
        arguments = (few.variance, few.optimum.square(), few.residual, rates, batch_size)
        theory = gaussian.stochastic_steps_to_fraction(*arguments, fraction, int(limits.max()))
        floor = gaussian.stochastic_floor(few.variance, few.residual, rates, batch_size)
        above_floor = MARGIN * torch.stack([floor[:, 0], floor.sum(1)]) <= fraction * torch.stack(
            [start[:, 0], start.sum(1)]
        )
        frames.append(_frame(cells.iloc[index.numpy()], "stochastic", moved, found, theory, above_floor))
    steps = pd.concat(frames, ignore_index=True)
    return {"steps": steps, "slopes": _slopes(steps)}


def _frame(
    cells: pd.DataFrame,
    algorithm: str,
    preconditioned: bool,
    found: tuple[Tensor, Tensor],
    theory: tuple[Tensor, Tensor],
    above_floor: Tensor,
) -> pd.DataFrame:
    return cells.assign(
        algorithm=algorithm,
        preconditioned=preconditioned,
        lowest=found[0].numpy(),
        total=found[1].numpy(),
        theory_lowest=theory[0].numpy(),
        theory_total=theory[1].numpy(),
        counts_lowest=above_floor[0].numpy(),
        counts_total=above_floor[1].numpy(),
    )


def _slopes(steps: pd.DataFrame) -> pd.DataFrame:
    """Slopes over the settings, one for each seed, then their mean with its interval."""
    rows: list[dict[str, Any]] = []
    keys = ["algorithm", "preconditioned", "path", "target"]
    wide = steps[steps["condition_number_t"] >= 10]
    for group, table in wide.groupby(keys, sort=True):
        for quantity in ("lowest", "total"):
            good = table[table[f"counts_{quantity}"] & np.isfinite(table[quantity])]
            good = good[np.isfinite(good[f"theory_{quantity}"])]
            fits, exact = [], []
            for _, one in good.groupby("seed"):
                if one["condition_number_t"].max() < 10 * one["condition_number_t"].min():
                    continue  # too short a range for a slope
                kappa = np.log(one["condition_number_t"])
                fits.append(slope(kappa, np.log(one[quantity])))
                exact.append(slope(kappa, np.log(one[f"theory_{quantity}"])))
            estimate = t_estimate([value for value in fits if np.isfinite(value)])
            rows.append(
                dict(zip(keys, group, strict=True))
                | {"quantity": quantity, "value": estimate.value, "low": estimate.low, "high": estimate.high}
                | {"n": estimate.n, "theory": float(np.mean(exact)) if exact else float("nan")}
            )
    return pd.DataFrame(rows)
