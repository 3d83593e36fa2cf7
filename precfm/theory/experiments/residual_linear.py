"""Experiment: steps after an imperfect preconditioner, measured, beside the bound in its residual kappa."""

import itertools
import math
from typing import Annotated

import pandas as pd
import torch
from pydantic import Field
from torch import Tensor

from precfm.core.options import Count, Fraction, Share, checked
from precfm.core.seeds import derived_seed
from precfm.datasets.synthetic import gaussian
from precfm.theory.convergence import steps_to_total_fraction
from precfm.theory.imperfect_preconditioners import (
    Rate,
    from_samples,
    per_channel,
    power,
    residual_covariance,
    samples_kappa_bound,
    shrunk,
    steps_bound,
)
from precfm.theory.linear_regression import linear_problem, squared_errors
from precfm.theory.measured_descent import FixedSamples, steps_until
from precfm.theory.option_types import ConditionNumber, Levels, Several
from precfm.theory.regression_grid import PATHS
from precfm.theory.sampled_regression import (
    EmpiricalExcess,
    GaussianRegressions,
    matched_normals,
    path_weights,
    random_field,
)


@checked
def run(
    *,
    dim: Count = 16,
    condition_numbers: Several[ConditionNumber] = (100.0, 1e4),
    times: Several[Share] = (0.5, 0.99),
    shrinkages: Levels[Share] = (1e-3, 1e-2, 0.1, 0.5),
    exponents: Levels[Share] = (0.25, 0.5, 0.75, 1.0),
    samples_per_dim: Levels[Annotated[float, Field(gt=1)]] = (1.5, 2.0, 4.0, 16.0, 64.0),
    fraction: Fraction = 0.1,
    rate: Rate = 0.5,
    seeds: Count = 5,
    seed: int = 0,
) -> dict[str, pd.DataFrame]:
    """Transform the data by an imperfect map, descend in the new space, count the steps.

    Velocity target, linear path, gradient descent from a random field on samples of exact second moments. The
    transformed data are divided by one scalar, so that their mean variance is one.

    Args:
        shrinkages: shares of the mean variance mixed into the covariance before whitening.
        exponents: exponents a of Sigma^(-a/2).
        samples_per_dim: samples from which whitening is estimated, divided by `dim`.
        rate: step size times the largest variance of the inputs.

    Returns:
        `steps`: one row per setting and seed (kind, level, condition_number, t, seed, residual_kappa of the
        data, residual_kappa_t of the inputs, predicted_kappa in closed form where there is one (for samples:
        a 95% bound), lowest, total, theory_total, bound).
    """
    maps = [("none", 0.0), ("per channel", 0.0)]
    maps += [("shrunk whitening", s) for s in shrinkages] + [("power", a) for a in exponents]
    maps += [("whitening from samples", m) for m in samples_per_dim]
    rows, spectra, bases = [], [], []
    for (kind, level), kappa, t, s in itertools.product(maps, condition_numbers, times, range(seeds)):
        law = gaussian(dim, kappa, seed=derived_seed(seed, "law", s))
        transform, predicted = _map(kind, level, law.cov, kappa, derived_seed(seed, "map", s))
        values, basis = torch.linalg.eigh(residual_covariance(law.cov, transform))
        spectra.append(values)
        bases.append(basis)
        rows.append(
            {"kind": kind, "level": level, "condition_number": kappa, "t": t, "seed": s}
            | {"residual_kappa": float(values[-1] / values[0]), "predicted_kappa": predicted}
        )
    frame = pd.DataFrame(rows)
    eigenvalues, basis = torch.stack(spectra), torch.stack(bases)
    closed = linear_problem(eigenvalues, torch.tensor(frame["t"].to_numpy()), PATHS["linear"])
    weights = [path_weights("linear", "velocity", t) for t in frame["t"].tolist()]
    problems = GaussianRegressions(eigenvalues, basis, torch.tensor(weights, dtype=torch.float64))
    own = [derived_seed(seed, "data", s) for s in frame["seed"].tolist()]
    x, y = problems.samples(*matched_normals(own, dim))
    excess_of = EmpiricalExcess.of(x, y)
    fields = torch.stack([random_field(dim, s) for s in own])
    kappa_t = closed.variance[:, -1] / closed.variance[:, 0]
    bound = steps_bound(kappa_t, fraction, rate)
    lowest, total = steps_until(
        FixedSamples(x, y),
        excess_of,
        fields,
        rate / excess_of.variances.amax(-1),
        fraction,
        (2 * bound).long() + 2,
    )
    errors = squared_errors(fields, closed, basis)
    theory = steps_to_total_fraction(closed.variance, errors, rate / closed.variance.amax(-1), fraction)
    steps = frame.assign(
        residual_kappa_t=kappa_t.numpy(),
        lowest=lowest.numpy(),
        total=total.numpy(),
        theory_total=theory.numpy(),
        bound=bound.numpy(),
    )
    return {"steps": steps}


def _map(kind: str, level: float, cov: Tensor, kappa: float, seed: int) -> tuple[Tensor, float]:
    """The map, and what is known in advance of the residual condition number."""
    dim = len(cov)
    if kind == "none":
        return torch.eye(dim, dtype=torch.float64), kappa
    if kind == "per channel":
        return per_channel(cov), math.nan
    if kind == "power":
        return power(cov, level), kappa ** (1 - level)
    if kind == "shrunk whitening":
        values = torch.linalg.eigvalsh(cov)
        kept = values / ((1 - level) * values + level * values.mean())
        return shrunk(cov, level), float(kept[-1] / kept[0])
    n = round(level * dim)
    return from_samples(cov, n, seed), samples_kappa_bound(n, dim)
