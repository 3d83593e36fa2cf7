"""Experiment: descent on linear fields, closed form beside measurement, a whole grid at once (C1 to C4)."""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import pandas as pd
import torch
from scipy import stats
from torch import Tensor

from precfm.core.seeds import derived_seed, generator_for
from precfm.core.statistics import t_estimate
from precfm.datasets.synthetic import rotation
from precfm.theory import gaussian, measured
from precfm.theory.settings import Setting, linear_problems, preconditioned

BLOCK = 16  # problems that are descended together: their data fit the processor's cache
NEGLIGIBLE = 1e-10  # of its start: below, an excess risk is rounding

Algorithm: TypeAlias = Literal["descent", "stochastic"]
ALGORITHMS: tuple[Algorithm, ...] = ("descent", "stochastic")


@dataclass(frozen=True)
class Batch:
    """All problems of a grid, cell by cell and seed by seed, in both descriptions.

    Attributes:
        problems: how to draw the data, as the measurement needs it.
        closed: the same problems in the eigenbasis, as the closed forms need them.
        fields: where descent starts, shape (problems, dim, dim).
        errors: || E_0 q_i ||^2 of that start, shape (problems, dim).
        rates: step size, shape (problems,).
    """

    problems: measured.Problems
    closed: gaussian.LinearProblem
    fields: Tensor
    errors: Tensor
    rates: Tensor


def run(
    *,
    dim: int = 64,
    condition_numbers: tuple[float, ...] = (1.0, 10.0, 100.0, 1e3, 1e4, 1e6),
    times: tuple[float, ...] = (0.1, 0.5, 0.9, 0.99, 0.999),
    targets: tuple[Literal["velocity", "score"], ...] = ("velocity", "score"),
    paths: tuple[Literal["linear", "variance_preserving"], ...] = ("linear", "variance_preserving"),
    seeds: int = 5,
    steps: int = 2000,
    preconditioned_steps: int = 64,
    batch_size: int = 32,
    descent_rate: float = 0.4,
    stochastic_rate: float = 0.1,
    seed: int = 0,
) -> dict[str, pd.DataFrame]:
    """Descend on every cell of the grid, with and without P = Sigma_t^(-1/2), beside the closed forms.

    Gradient descent runs on samples whose second moments are exact, so that it must agree with the closed
    form to rounding; stochastic descent draws fresh batches, so that the closed form must lie in the
    intervals over seeds as often as they promise. Fields start at random and every seed has its own rotation.

    Args:
        dim: dimension of the data.
        condition_numbers: condition numbers of the data (spectra of mean one).
        times: times t, below 1 for the score.
        targets: what is regressed.
        paths: probability paths.
        seeds: how many rotations, starts and data sets for each cell.
        steps: steps of descent without preconditioner.
        preconditioned_steps: steps with it; the contraction no longer depends on kappa, so few suffice.
        batch_size: samples per step of stochastic descent.
        descent_rate: step size of gradient descent times lambda_max, below 1.
        stochastic_rate: the same for stochastic descent.
        seed: seed of everything.

    Returns:
        `curves`: excess risk of some directions at some steps (algorithm, preconditioned, path, target, t,
        condition_number, condition_number_t, direction, step, theory, mean, low, high, n), and `agreement`:
        one row per cell and algorithm (..., contraction_theory, contraction_measured of the lowest direction,
        worst_deviation for gradient descent, covered and compared for stochastic descent),
        and `identity`: the loss of the initial field minus the least loss, beside the trace (path, target, t,
        condition_number, seed, measured, trace, relative_error).
    """
    cells = [Setting(*s) for s in itertools.product(paths, targets, times, condition_numbers)]
    plain = _batch(cells, dim, seeds, seed)
    curves: list[dict[str, Any]] = []
    agreement: list[dict[str, Any]] = []
    for algorithm, moved in itertools.product(ALGORITHMS, (False, True)):
        rate = descent_rate if algorithm == "descent" else stochastic_rate
        batch = _with_rates(_preconditioned(plain) if moved else plain, rate)
        looks = checkpoints(preconditioned_steps if moved else steps)
        theory = _theory(batch, algorithm, looks, batch_size)
        values = _measure(batch, algorithm, looks, batch_size, seed, seeds)
        for index, cell in enumerate(cells):
            part = slice(index * seeds, (index + 1) * seeds)
            name = {
                "algorithm": algorithm,
                "preconditioned": moved,
                "path": cell.path,
                "target": cell.target,
                "t": cell.t,
                "condition_number": cell.condition_number,
                "condition_number_t": _kappa(plain.closed.variance[part][0]),
            }
            curves += [name | row for row in _curve(theory[:, part], values[:, part], looks)]
            row = _agreement(theory[:, part], values[:, part], looks, algorithm)
            # Of the second moment, which for gradient descent is the contraction itself.
            variance = batch.closed.variance[part][0, 0]
            row["contraction_theory"] = float((1 - 2 * batch.rates[part][0] * variance).abs())
            agreement.append(name | row)
    identity = _identity(plain, cells, seeds, seed)
    return {"curves": pd.DataFrame(curves), "agreement": pd.DataFrame(agreement), "identity": identity}


def checkpoints(steps: int) -> list[int]:
    """Zero and powers of two below `steps`, every second one, then `steps` itself.

    Example:
        >>> checkpoints(100)
        [0, 1, 4, 16, 64, 100]
    """
    powers = [4**k for k in range(int(math.log(steps, 4)) + 1)]
    return sorted({0, *powers, steps})


def _kappa(variance: Tensor) -> float:
    return float(variance.max() / variance.min())


def _batch(cells: Sequence[Setting], dim: int, seeds: int, seed: int) -> Batch:
    """The problems without preconditioner; step sizes are set later."""
    own = [derived_seed(seed, "grid", s) for s in range(seeds)]
    normals = [torch.randn(dim, dim, generator=generator_for(s, "start"), dtype=torch.float64) for s in own]
    basis = torch.stack([rotation(dim, s) for s in own]).repeat(len(cells), 1, 1)
    fields = (torch.stack(normals) / math.sqrt(dim)).repeat(len(cells), 1, 1)
    problems, closed = linear_problems([cell for cell in cells for _ in range(seeds)], basis)
    errors = gaussian.squared_errors(fields, closed, basis)
    return Batch(problems, closed, fields, errors, torch.ones(len(fields), dtype=torch.float64))


def _preconditioned(batch: Batch) -> Batch:
    """The same regressions on z = Sigma_t^(-1/2) x, from the same initial fields."""
    problems, closed = preconditioned(batch.problems, batch.closed)
    basis, root = batch.problems.basis, batch.closed.variance.sqrt()
    fields = batch.fields @ (basis * root[:, None, :]) @ basis.mT
    errors = gaussian.preconditioned_errors(batch.closed.variance, batch.errors)
    return Batch(problems, closed, fields, errors, batch.rates)


def _with_rates(batch: Batch, rate: float) -> Batch:
    rates = rate / batch.closed.variance.amax(-1)
    return replace(batch, rates=rates)


def _theory(batch: Batch, algorithm: Algorithm, looks: Sequence[int], batch_size: int) -> Tensor:
    """Closed-form excess risks, shape (looks, problems, dim)."""
    steps = torch.tensor(looks)
    if algorithm == "descent":
        return gaussian.descent_excess(batch.closed.variance, batch.errors, batch.rates, steps)
    return gaussian.stochastic_excess(
        batch.closed.variance, batch.errors, batch.closed.residual, batch.rates, batch_size, steps
    )


def _measure(
    batch: Batch, algorithm: Algorithm, looks: Sequence[int], batch_size: int, seed: int, seeds: int
) -> Tensor:
    """Measured excess risks, shape (looks, problems, dim), block by block."""
    dim = batch.fields.shape[-1]
    own = [derived_seed(seed, "data", s) for s in range(seeds)]
    normals = measured.matched_normals(own, dim)
    blocks = []
    for start in range(0, len(batch.fields), BLOCK):
        index = torch.arange(start, min(start + BLOCK, len(batch.fields)))
        problems = batch.problems.part(index)
        x, y = problems.data(*(draws[index % seeds] for draws in normals))
        yardstick = measured.Yardstick.of(x, y, problems.basis)
        fields, rates = batch.fields[index], batch.rates[index]
        walk: Iterator[tuple[int, Tensor]]
        if algorithm == "descent":
            walk = measured.descend(x, y, fields, rates, looks)
        else:
            generator = generator_for(seed, "batches", start, int(problems.transform is not None))
            walk = measured.stochastic_descend(
                problems, fields, rates, looks, batch_size=batch_size, generator=generator
            )
        blocks.append(torch.stack([yardstick.excess(field) for _, field in walk]))
    return torch.cat(blocks, dim=1)


def _identity(batch: Batch, cells: Sequence[Setting], seeds: int, seed: int) -> pd.DataFrame:
    """Claim C1: a difference of two losses over samples, beside tr((A - A*) Sigma_t (A - A*)^T)."""
    own = [derived_seed(seed, "data", s) for s in range(seeds)]
    x0, x1 = measured.matched_normals(own, batch.fields.shape[-1])
    rows = []
    for index, cell in enumerate(cells):
        part = slice(index * seeds, (index + 1) * seeds)
        x, y = batch.problems.part(part).data(x0, x1)
        field, basis, closed = batch.fields[part], batch.problems.basis[part], batch.closed.part(part)
        found = _loss(x, y, field) - _loss(x, y, torch.linalg.lstsq(x, y).solution.mT)
        optimum = (basis * closed.optimum[:, None, :]) @ basis.mT
        cov_t = (basis * closed.variance[:, None, :]) @ basis.mT
        trace = gaussian.excess_risk(field, optimum, cov_t)
        for s in range(seeds):
            measured_value, exact = float(found[s]), float(trace[s])
            name = {"path": cell.path, "target": cell.target, "t": cell.t}
            name |= {"condition_number": cell.condition_number, "seed": s}
            error = abs(measured_value - exact) / exact
            rows.append(name | {"measured": measured_value, "trace": exact, "relative_error": error})
    return pd.DataFrame(rows)


def _loss(x: Tensor, y: Tensor, field: Tensor) -> Tensor:
    return (x @ field.mT - y).square().sum(-1).mean(-1)


def _curve(theory: Tensor, values: Tensor, looks: Sequence[int]) -> Iterator[dict[str, Any]]:
    """Rows of one cell; theory and measurement are (looks, seeds, dim); three directions and the total."""
    directions = {"lowest": 0, "middle": theory.shape[-1] // 2, "highest": theory.shape[-1] - 1}
    for (look, step), direction in itertools.product(enumerate(looks), [*directions, "total"]):
        expected, found = theory[look], values[look]
        if direction == "total":
            expected, found = expected.sum(-1), found.sum(-1)
        else:
            expected, found = expected[:, directions[direction]], found[:, directions[direction]]
        estimate = t_estimate(found.numpy())
        yield {
            "direction": direction,
            "step": step,
            "theory": float(expected.mean()),
            "mean": estimate.value,
            "low": estimate.low,
            "high": estimate.high,
            "n": estimate.n,
        }


def _agreement(theory: Tensor, values: Tensor, looks: Sequence[int], algorithm: Algorithm) -> dict[str, Any]:
    """How well measurement and closed form agree in one cell; both (looks, seeds, dim)."""
    row: dict[str, Any] = {"worst_deviation": math.nan, "covered": math.nan, "compared": 0}
    lowest = values[:, :, 0]
    visible = [k for k in range(1, len(looks)) if bool((lowest[k] > 1e-8 * lowest[0]).all())]
    last = visible[-1] if visible else 1
    ratio = (lowest[last] / lowest[0]) ** (0.5 / looks[last])
    row["contraction_measured"] = float(ratio.mean())
    if algorithm == "descent":
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
