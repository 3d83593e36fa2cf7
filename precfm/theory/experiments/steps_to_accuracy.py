"""Experiment: steps to a given accuracy against the condition number, measured directly (C2, C3, C4)."""

import math

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from precfm.core.options import Count, Fraction, Share, checked
from precfm.core.seeds import derived_seed, generator_for
from precfm.datasets.synthetic import rotation
from precfm.theory.convergence import (
    steps_to_fraction,
    steps_to_total_fraction,
    stochastic_floor,
    stochastic_steps_to_fraction,
)
from precfm.theory.linear_regression import LinearProblem, Target, first_and_total, symmetric
from precfm.theory.measured_descent import FixedSamples, FreshSamples, steps_until
from precfm.theory.option_types import ConditionNumber, Several
from precfm.theory.regression_grid import Regressions, grid
from precfm.theory.sampled_regression import (
    EmpiricalExcess,
    PathName,
    independent_normals,
    matched_normals,
)

PATIENCE = 4.0  # in units of kappa / rate: four times what the slowest direction needs for a tenth
MARGIN = 4.0  # times the noise floor: closer to it, the moment of crossing is chance


@checked
def run(
    *,
    dim: Count = 4,
    condition_numbers: Several[ConditionNumber] = (1.0, 10.0, 100.0, 1e3, 1e4, 1e5, 1e6),
    times: Several[Share] = (0.5, 0.9, 0.99, 0.999),
    targets: Several[Target] = ("velocity", "score"),
    paths: Several[PathName] = ("linear", "variance_preserving"),
    samples: Count = 256,
    seeds: Count = 5,
    fraction: Fraction = 0.1,
    descent_rate: Fraction = 0.5,
    batch_size: Count = 32,
    stochastic_rate: Fraction = 0.05,
    preconditioned_stochastic_rate: Fraction = 0.005,
    stochastic_limit: ConditionNumber = 1e3,
    seed: int = 0,
) -> dict[str, pd.DataFrame]:
    """Count the steps until the excess risk has fallen to `fraction` of its start.

    Gradient descent starts from zero and runs on independent samples, a data set and a rotation for each
    seed, so that the counts scatter as they would in practice; stochastic descent draws fresh batches and
    starts with an excess risk that is equal in all directions and well above its noise floor. The step size
    is set from the largest variance of the inputs.

    Args:
        samples: size of each data set.
        descent_rate: step size of gradient descent times the inputs' largest variance.
        stochastic_rate: the same as `descent_rate`, for stochastic descent.
        preconditioned_stochastic_rate: the same with the preconditioner, where small steps (and so a low
            noise floor) cost little.
        stochastic_limit: largest kappa(Sigma_t) for stochastic descent without preconditioner, which is slow.

    Returns:
        `steps`: one row per setting and seed (algorithm, preconditioned, relative_rate: step size times the
        largest variance, path, target, t, condition_number, condition_number_t, seed, lowest, total: steps of the
        slowest direction and of the total, interpolated between whole ones, infinite where not reached;
        theory_lowest, theory_total: in closed form, the total of gradient descent and both of stochastic descent in
        whole steps; counts_lowest, counts_total: the goal is well above the noise floor).
    """
    bases = torch.stack([rotation(dim, derived_seed(seed, "basis", s)) for s in range(seeds)])
    rows, plain = grid(paths, targets, times, condition_numbers, bases)
    own = [derived_seed(seed, "data", s) for s in rows["seed"].tolist()]
    drawn, matched = independent_normals(own, samples, dim), matched_normals(own, dim)
    frames = []
    for preconditioned in (False, True):
        problems = plain.preconditioned() if preconditioned else plain
        steps = _descent_steps(problems, drawn, descent_rate, fraction)
        about = {"algorithm": "descent", "preconditioned": preconditioned, "relative_rate": descent_rate}
        frames.append(rows.assign(**about, **steps))
        limit = math.inf if preconditioned else stochastic_limit
        index = torch.tensor(np.flatnonzero(rows["condition_number_t"] <= limit))
        rate = preconditioned_stochastic_rate if preconditioned else stochastic_rate
        steps = _stochastic_steps(
            problems.part(index),
            (matched[0][index], matched[1][index]),
            rate,
            fraction,
            batch_size,
            generator_for(seed, "batches", int(preconditioned)),
        )
        few = rows.iloc[index.numpy()]
        about = {"algorithm": "stochastic", "preconditioned": preconditioned, "relative_rate": rate}
        frames.append(few.assign(**about, **steps))
    return {"steps": pd.concat(frames, ignore_index=True)}


def _patience(variances: Tensor, rate: float) -> Tensor:
    """Steps after which a descent gives up, shape (problems,)."""
    return (PATIENCE / rate * variances.amax(-1) / variances.amin(-1)).long() + 1


def _descent_steps(
    problems: Regressions, normals: tuple[Tensor, Tensor], rate: float, fraction: float
) -> dict[str, np.ndarray]:
    """Columns of gradient descent from zero on samples."""
    x, y = problems.sampled.samples(*normals)
    excess_of = EmpiricalExcess.of(x, y)
    largest = excess_of.variances.amax(-1)
    zero = torch.zeros_like(problems.sampled.basis)
    limits = _patience(excess_of.variances, rate)
    found = steps_until(FixedSamples(x, y), excess_of, zero, rate / largest, fraction, limits)
    closed = problems.closed
    rates = rate / closed.variance.amax(-1)
    exact = (
        steps_to_fraction(closed.variance[:, 0], rates, fraction),
        steps_to_total_fraction(closed.variance, closed.optimum.square(), rates, fraction),
    )
    return _columns(found, exact, torch.ones(2, len(zero), dtype=torch.bool))


def _stochastic_steps(
    problems: Regressions,
    normals: tuple[Tensor, Tensor],
    rate: float,
    fraction: float,
    batch_size: int,
    generator: torch.Generator,
) -> dict[str, np.ndarray]:
    """Columns of stochastic descent on fresh batches."""
    closed, basis = problems.closed, problems.sampled.basis
    rates, limits = rate / closed.variance.amax(-1), _patience(closed.variance, rate)
    # Fresh batches lead to the best field of the law, which samples of exact second moments have too.
    excess_of = EmpiricalExcess.of(*problems.sampled.samples(*normals), basis)
    start, errors = _far_start(closed, basis)
    samples = FreshSamples(problems.sampled, batch_size, generator)
    found = steps_until(samples, excess_of, start, rates, fraction, limits)
    exact = stochastic_steps_to_fraction(
        closed.variance, errors, closed.residual, rates, batch_size, fraction, int(limits.max())
    )
    floor = stochastic_floor(closed.variance, closed.residual, rates, batch_size)
    goal = fraction * first_and_total(closed.variance * errors)
    return _columns(found, exact, MARGIN * first_and_total(floor) <= goal)


def _far_start(closed: LinearProblem, basis: Tensor) -> tuple[Tensor, Tensor]:
    """Fields whose error has the same excess risk, the unexplained variance, along every direction.

    From a zero field the excess risk of the slowest direction may start below the noise floor of any
    practical step size (velocity on the linear path), and then no number of steps is enough.
    """
    excess = closed.residual.sum(-1, keepdim=True).expand_as(closed.variance)
    errors = excess / closed.variance
    return symmetric(closed.optimum + errors.sqrt(), basis), errors


def _columns(
    found: tuple[Tensor, Tensor], exact: tuple[Tensor, Tensor], counts: Tensor
) -> dict[str, np.ndarray]:
    """Steps measured and in closed form, and whether they count, for the slowest direction and the total."""
    return {
        f"{prefix}{quantity}": column.numpy()
        for prefix, columns in (("", found), ("theory_", exact), ("counts_", counts))
        for quantity, column in zip(("lowest", "total"), columns, strict=True)
    }
