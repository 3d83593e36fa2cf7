"""A grid of linear problems in both descriptions: as the closed forms and as the measurement need them."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from precfm.datasets.synthetic import spectrum
from precfm.flows.paths import LinearPath, ProbabilityPath, VariancePreservingPath
from precfm.theory.gaussian import LinearProblem, Target, linear_problem
from precfm.theory.measured import Problems, path_weights

PATHS: dict[str, ProbabilityPath] = {
    "linear": LinearPath(),
    "variance_preserving": VariancePreservingPath(),
}


@dataclass(frozen=True)
class Setting:
    """What defines a linear problem, up to its rotation and its draws.

    Attributes:
        path: name of the probability path.
        target: what is regressed.
        t: time.
        condition_number: condition number of the data, whose spectrum is geometric with mean one.
    """

    path: str
    target: Target
    t: float
    condition_number: float


def linear_problems(settings: Sequence[Setting], bases: Tensor) -> tuple[Problems, LinearProblem]:
    """One problem for each setting.

    Args:
        settings: the settings.
        bases: eigenvectors of the data of each, as columns, shape (len(settings), dim, dim).

    Returns:
        The problems as the measurement draws them, and in the eigenbasis.
    """
    dim = bases.shape[-1]
    # Settings repeat over seeds, and a closed form is cheap to look up.
    closed = {
        s: linear_problem(spectrum(dim, s.condition_number), s.t, PATHS[s.path], s.target) for s in settings
    }
    weights = [path_weights(s.path, s.target, s.t) for s in settings]
    problems = Problems(
        torch.stack([spectrum(dim, s.condition_number) for s in settings]),
        bases,
        torch.tensor(weights, dtype=torch.float64),
    )
    return problems, LinearProblem(
        torch.stack([closed[s].variance for s in settings]),
        torch.stack([closed[s].optimum for s in settings]),
        torch.stack([closed[s].residual for s in settings]),
    )


def preconditioned(problems: Problems, closed: LinearProblem) -> tuple[Problems, LinearProblem]:
    """The same problems on z = Sigma_t^(-1/2) x: unit variances, and optima a_i sqrt(lambda_i)."""
    root = closed.variance.sqrt()
    transform = (problems.basis / root[:, None, :]) @ problems.basis.mT
    moved = Problems(problems.eigenvalues, problems.basis, problems.weights, transform)
    return moved, LinearProblem(torch.ones_like(root), closed.optimum * root, closed.residual)
