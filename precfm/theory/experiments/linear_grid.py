"""Experiment: descent on linear fields, closed form beside measurement, a whole grid at once (C1 to C4)."""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import pandas as pd
import torch
from scipy import stats
from torch import Tensor

from precfm.core.options import Count, Fraction, Share, checked
from precfm.core.seeds import derived_seed, generator_for
from precfm.core.statistics import t_estimate
from precfm.datasets.synthetic import rotation
from precfm.theory.convergence import descent_excess, stochastic_excess
from precfm.theory.linear_regression import Target, excess_risk, squared_errors, symmetric
from precfm.theory.measured_descent import FixedSamples, FreshSamples, Samples, descend
from precfm.theory.option_types import ConditionNumber, Several
from precfm.theory.regression_grid import Regressions, grid
from precfm.theory.sampled_regression import EmpiricalExcess, PathName, matched_normals, random_field

BLOCK = 16  # problems that are descended together: their data fit the processor's cache
NEGLIGIBLE = 1e-10  # of its start: below, an excess risk is rounding
VISIBLE = 1e-8  # of its start: above, a contraction can be read off two excess risks

Algorithm: TypeAlias = Literal["descent", "stochastic"]
ALGORITHMS: tuple[Algorithm, ...] = ("descent", "stochastic")


@dataclass(frozen=True)
class Start:
    """All problems of the grid, cell by cell and seed by seed, and where descent on them starts.

    Attributes:
        problems: the regressions.
        fields: initial fields, shape (problems, dim, dim).
        errors: their squared errors || E_0 q_i ||^2, shape (problems, dim).
        normals: of each seed, the draws that samples of exact second moments are made of.
    """

    problems: Regressions
    fields: Tensor
    errors: Tensor
    normals: tuple[Tensor, Tensor]

    def preconditioned(self) -> "Start":
        """The same regressions on z = Sigma_t^(-1/2) x, from the same initial fields."""
        basis, variance = self.problems.sampled.basis, self.problems.closed.variance
        fields = self.fields @ (basis * variance.sqrt()[:, None, :]) @ basis.mT
        return Start(self.problems.preconditioned(), fields, variance * self.errors, self.normals)

    def samples(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs and targets of exact second moments for some problems, shape (len(index), 2 dim, dim)."""
        draws = (normals[index % len(normals)] for normals in self.normals)
        return self.problems.sampled.part(index).samples(*draws)


@dataclass(frozen=True)
class Descent:
    """How to descend.

    Attributes:
        algorithm: gradient descent on samples of exact second moments, or stochastic descent on fresh batches.
        preconditioned: behind P = Sigma_t^(-1/2).
        rate: step size times lambda_max.
        batch_size: samples per step of stochastic descent.
        looks: steps after which the excess risk is compared.
    """

    algorithm: Algorithm
    preconditioned: bool
    rate: float
    batch_size: int
    looks: tuple[int, ...]


@checked
def run(
    *,
    dim: Count = 64,
    condition_numbers: Several[ConditionNumber] = (1.0, 10.0, 100.0, 1e3, 1e4, 1e6),
    times: Several[Share] = (0.1, 0.5, 0.9, 0.99, 0.999),
    targets: Several[Target] = ("velocity", "score"),
    paths: Several[PathName] = ("linear", "variance_preserving"),
    seeds: Count = 5,
    steps: Count = 2000,
    preconditioned_steps: Count = 64,
    batch_size: Count = 32,
    descent_rate: Fraction = 0.4,
    stochastic_rate: Fraction = 0.1,
    seed: int = 0,
) -> dict[str, pd.DataFrame]:
    """Descend on every cell of the grid, with and without P = Sigma_t^(-1/2), beside the closed forms.

    Gradient descent runs on samples whose second moments are exact, so that it must agree with the closed
    form to rounding; stochastic descent draws fresh batches, so that the closed form must lie in the
    intervals over seeds as often as they promise. Fields start at random and every seed has its own rotation.

    Args:
        steps: steps of descent without preconditioner.
        preconditioned_steps: steps with it; the contraction no longer depends on kappa, so few suffice.
        descent_rate: step size of gradient descent times lambda_max.
        stochastic_rate: the same for stochastic descent.

    Returns:
        `curves`: excess risk of some directions at some steps (algorithm, preconditioned, path, target, t,
        condition_number, condition_number_t, direction, step, theory, mean, low, high, n), and `agreement`:
        one row per cell and algorithm (..., contraction_theory, contraction_measured of the lowest direction,
        worst_deviation for gradient descent, covered and compared for stochastic descent),
        and `identity`: the loss of the initial field minus the least loss, beside the trace (path, target, t,
        condition_number, seed, measured, trace, relative_error).
    """
    own = [derived_seed(seed, "grid", s) for s in range(seeds)]
    rows, problems = grid(
        paths, targets, times, condition_numbers, torch.stack([rotation(dim, s) for s in own])
    )
    fields = torch.stack([random_field(dim, s) for s in own]).repeat(len(rows) // seeds, 1, 1)
    errors = squared_errors(fields, problems.closed, problems.sampled.basis)
    normals = matched_normals([derived_seed(seed, "data", s) for s in range(seeds)], dim)
    start = Start(problems, fields, errors, normals)
    cells: list[dict[Any, Any]] = rows.drop(columns="seed")[::seeds].to_dict("records")
    curves: list[dict[str, Any]] = []
    agreement: list[dict[str, Any]] = []
    for algorithm, preconditioned in itertools.product(ALGORITHMS, (False, True)):
        descent = Descent(
            algorithm,
            preconditioned,
            descent_rate if algorithm == "descent" else stochastic_rate,
            batch_size,
            checkpoints(preconditioned_steps if preconditioned else steps),
        )
        moved = start.preconditioned() if preconditioned else start
        variance = moved.problems.closed.variance
        rates = descent.rate / variance.amax(-1)
        theory = _closed_form(moved, rates, descent)
        values = _measured(moved, rates, descent, seed)
        for index, cell in enumerate(cells):
            part = slice(index * seeds, (index + 1) * seeds)
            name: dict[str, Any] = {"algorithm": algorithm, "preconditioned": preconditioned, **cell}
            curves += [name | row for row in _curve(theory[:, part], values[:, part], descent.looks)]
            row = _agreement(theory[:, part], values[:, part], descent)
            # Of the second moment, which for gradient descent is the contraction itself.
            row["contraction_theory"] = float((1 - 2 * rates[part][0] * variance[part][0, 0]).abs())
            agreement.append(name | row)
    tables = {"curves": pd.DataFrame(curves), "agreement": pd.DataFrame(agreement)}
    return {**tables, "identity": _identity(start, rows.drop(columns="condition_number_t"))}


def checkpoints(steps: int) -> tuple[int, ...]:
    """Zero and powers of two below `steps`, every second one, then `steps` itself.

    Example:
        >>> checkpoints(100)
        (0, 1, 4, 16, 64, 100)
    """
    powers = [4**k for k in range(int(math.log(steps, 4)) + 1)]
    return tuple(sorted({0, *powers, steps}))


def _closed_form(start: Start, rates: Tensor, descent: Descent) -> Tensor:
    """Excess risks, shape (looks, problems, dim)."""
    closed, looks = start.problems.closed, torch.tensor(descent.looks)
    if descent.algorithm == "descent":
        return descent_excess(closed.variance, start.errors, rates, looks)
    return stochastic_excess(closed.variance, start.errors, closed.residual, rates, descent.batch_size, looks)


def _measured(start: Start, rates: Tensor, descent: Descent, seed: int) -> Tensor:
    """Excess risks over samples of exact second moments, shape (looks, problems, dim), block by block."""
    blocks = []
    for first in range(0, len(rates), BLOCK):
        index = torch.arange(first, min(first + BLOCK, len(rates)))
        problems = start.problems.sampled.part(index)
        x, y = start.samples(index)
        samples: Samples = FixedSamples(x, y)
        if descent.algorithm == "stochastic":
            generator = generator_for(seed, "batches", first, int(descent.preconditioned))
            samples = FreshSamples(problems, descent.batch_size, generator)
        excess_of = EmpiricalExcess.of(x, y, problems.basis)
        fields = descend(samples, start.fields[index], rates[index], descent.looks)
        blocks.append(torch.stack([excess_of(field) for field in fields]))
    return torch.cat(blocks, dim=1)


def _identity(start: Start, rows: pd.DataFrame) -> pd.DataFrame:
    """Claim C1: a difference of two losses over samples, beside tr((A - A*) Sigma_t (A - A*)^T)."""
    x, y = start.samples(torch.arange(len(rows)))
    measured = _loss(x, y, start.fields) - _loss(x, y, torch.linalg.lstsq(x, y).solution.mT)
    closed, basis = start.problems.closed, start.problems.sampled.basis
    trace = excess_risk(start.fields, symmetric(closed.optimum, basis), symmetric(closed.variance, basis))
    errors = (measured - trace).abs() / trace
    return rows.assign(measured=measured.numpy(), trace=trace.numpy(), relative_error=errors.numpy())


def _loss(x: Tensor, y: Tensor, field: Tensor) -> Tensor:
    return (x @ field.mT - y).square().sum(-1).mean(-1)


def _curve(theory: Tensor, values: Tensor, looks: Sequence[int]) -> Iterator[dict[str, Any]]:
    """Rows of one cell; theory and measurement are (looks, seeds, dim); three directions and the total."""
    dim = theory.shape[-1]
    directions = {"lowest": [0], "middle": [dim // 2], "highest": [dim - 1], "total": list(range(dim))}
    for (look, step), (name, chosen) in itertools.product(enumerate(looks), directions.items()):
        expected, found = (each[look][:, chosen].sum(-1) for each in (theory, values))
        estimate = t_estimate(found.numpy())
        yield {
            "direction": name,
            "step": step,
            "theory": float(expected.mean()),
            "mean": estimate.value,
            "low": estimate.low,
            "high": estimate.high,
            "n": estimate.n,
        }


def _agreement(theory: Tensor, values: Tensor, descent: Descent) -> dict[str, Any]:
    """How well measurement and closed form agree in one cell; both (looks, seeds, dim)."""
    row: dict[str, Any] = {"worst_deviation": math.nan, "covered": math.nan, "compared": 0}
    lowest, looks = values[:, :, 0], descent.looks
    visible = [k for k in range(1, len(looks)) if bool((lowest[k] > VISIBLE * lowest[0]).all())]
    last = visible[-1] if visible else 1
    ratio = (lowest[last] / lowest[0]) ** (0.5 / looks[last])
    row["contraction_measured"] = float(ratio.mean())
    if descent.algorithm == "descent":
        counted = theory > NEGLIGIBLE * theory[:1]
        deviation = ((values - theory).abs() / theory)[counted]
        row["worst_deviation"] = float(deviation.max())
        row["compared"] = int(counted.sum())
    else:
        # Fields start from several seeds, so that the closed form differs a little between them.
        difference = (values - theory)[1:]
        n = theory.shape[1]
        half = float(stats.t.ppf(0.975, n - 1)) / math.sqrt(n) * difference.std(1)
        inside = difference.mean(1).abs() <= half
        row["covered"], row["compared"] = float(inside.double().mean()), inside.numel()
    return row
