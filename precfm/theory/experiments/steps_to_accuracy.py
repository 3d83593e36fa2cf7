"""Experiment: steps to a given accuracy against the condition number, measured directly (C2, C3, C4)."""

import itertools
import math
from dataclasses import asdict
from typing import Literal

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from precfm.core.seeds import derived_seed, generator_for
from precfm.datasets.synthetic import rotation
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
    """Count the steps until the excess risk has fallen to `fraction` of its start.

    Gradient descent starts from zero and runs on independent samples, a data set and a rotation for each
    seed, so that the counts scatter as they would in practice; stochastic descent draws fresh batches and
    starts with an excess risk that is equal in all directions and well above its noise floor. The step size
    is set from the largest variance of the inputs.

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
        stochastic_limit: largest kappa(Sigma_t) for stochastic descent without preconditioner, which is slow.
        seed: seed of everything.

    Returns:
        `steps`: one row per setting and seed (algorithm, preconditioned, path, target, t, condition_number,
        condition_number_t, seed, lowest, total: steps of the slowest direction and of the total, infinite where
        not reached; theory_lowest, theory_total; counts_lowest, counts_total: the goal is well above the noise
        floor).
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

        limit = math.inf if moved else stochastic_limit
        index = torch.tensor(np.flatnonzero(cells["condition_number_t"] <= limit))
        some, few = problems.part(index), closed.part(index)
        stochastic = preconditioned_stochastic_rate if moved else stochastic_rate
        rates = stochastic / few.variance.amax(-1)
        limits = (PATIENCE / stochastic * few.variance[:, -1] / few.variance[:, 0]).long() + 1
        generator = generator_for(seed, "batches", int(moved))
        advance = measured.stochastic_advance(some, rates, batch_size, generator)
        # Fresh batches lead to the best field of the law, which samples of exact second moments have too.
        exact = some.data(*(draws[index] for draws in measured.matched_normals(own, dim)))
        yardstick = measured.Yardstick.of(*exact, some.basis)
        start, errors = _far_start(few, some.basis)
        found = measured.steps_until(yardstick, start, advance, fraction, limits)
        arguments = (few.variance, errors, few.residual, rates, batch_size)
        theory = gaussian.stochastic_steps_to_fraction(*arguments, fraction, int(limits.max()))
        floor = gaussian.stochastic_floor(few.variance, few.residual, rates, batch_size)
        first = few.variance * errors
        above_floor = MARGIN * torch.stack([floor[:, 0], floor.sum(1)]) <= fraction * torch.stack(
            [first[:, 0], first.sum(1)]
        )
        frames.append(_frame(cells.iloc[index.numpy()], "stochastic", moved, found, theory, above_floor))
    return {"steps": pd.concat(frames, ignore_index=True)}


def _far_start(closed: gaussian.LinearProblem, basis: Tensor) -> tuple[Tensor, Tensor]:
    """Fields whose error has the same excess risk, the unexplained variance, along every direction.

    From a zero field the excess risk of the slowest direction may start below the noise floor of any
    practical step size (velocity on the linear path), and then no number of steps is enough.
    """
    excess = closed.residual.sum(-1, keepdim=True).expand_as(closed.variance)
    errors = excess / closed.variance
    fields = (basis * (closed.optimum + errors.sqrt())[:, None, :]) @ basis.mT
    return fields, errors


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
