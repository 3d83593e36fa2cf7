"""Linear regression along the path at a fixed time: optimum, what no linear field explains, excess risk.

Setting and assumptions, everywhere in this module:

* x_t = alpha_t x1 + sigma_t x0, x0 ~ N(0, I), x1 centred with covariance Sigma_1, coupling independent, t
  fixed. Data that are not centred need a bias in the field; without one, Sigma_t becomes the second moment.
* The loss of a field A is E || A x_t - y ||^2, summed over outputs. Averaged over the d outputs, every rate is
  divided by d.
* y is the velocity alpha_t' x1 + sigma_t' x0, or the denoising-score target -x0 / sigma_t.

Sigma_t = alpha_t^2 Sigma_1 + sigma_t^2 I has the eigenvectors q_i of Sigma_1, and so have all matrices here: a
problem is a set of numbers per direction i. Only second moments enter, so all of it holds for any law of x1; that the
best linear field is the best field needs Gaussian data. All tensors are float64; leading axes `...` are a batch of
problems.

References:
    Preconditioned (Score and) Flow Matching (Ahamed et al., 2026), https://arxiv.org/abs/2603.02337
"""

from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from precfm.core.errors import PrecfmError
from precfm.flows.paths import ProbabilityPath

Target: TypeAlias = Literal["velocity", "score"]
ALMOST_ZERO = 1e-300  # stands for an excess risk of 0 under a logarithm


@dataclass(frozen=True)
class LinearProblem:
    """Least squares of y on x_t, one number per eigendirection.

    Attributes:
        variance: lambda_i, eigenvalues of Sigma_t, shape (..., dim).
        optimum: a_i, eigenvalues of A* = E[y x_t^T] Sigma_t^-1, shape (..., dim).
        residual: r_i = Var(y_i) - a_i^2 lambda_i, what no linear field explains, shape (..., dim).
    """

    variance: Tensor
    optimum: Tensor
    residual: Tensor

    def part(self, index: slice | Tensor) -> "LinearProblem":
        """Some problems of a batch."""
        return LinearProblem(self.variance[index], self.optimum[index], self.residual[index])

    def preconditioned(self) -> "LinearProblem":
        """The same regression on z = Sigma_t^(-1/2) x: claim C3.

        Writing A x = B z with B = A Sigma_t^(1/2), the inputs z have covariance I and the optimum of B is
        a_i sqrt(lambda_i). An error E of A is the error E Sigma_t^(1/2) of B, whose squared columns are
        lambda_i || E q_i ||^2. So every direction contracts alike, and the excess risks at the start are the same
        numbers as before.

        P = Sigma_t^(-1/2) depends on t, so it is no single map of the data. The map x1 -> Sigma_1^(-1/2) x1 gives
        Sigma_t = (alpha_t^2 + sigma_t^2) I for all t at once: kappa one, rate 1 - 2 eta (alpha_t^2 + sigma_t^2).
        """
        return LinearProblem(
            torch.ones_like(self.variance), self.optimum * self.variance.sqrt(), self.residual
        )


def linear_problem(
    eigenvalues: Tensor, t: Tensor | float, path: ProbabilityPath, target: Target = "velocity"
) -> LinearProblem:
    """The regression problem at time t, diagonal in the eigenbasis of Sigma_1.

    A* = E[y x_t^T] Sigma_t^-1 is where the gradient 2 (A Sigma_t - E[y x_t^T]) vanishes. For an eigenvalue l of
    Sigma_1, with (a, s, a', s') the path's weights and their derivatives: lambda = a^2 l + s^2. Velocity:
    E[u x] = a a' l + s s', and the residual is (Var u Var x - Cov^2) / Var x = l (a s' - a' s)^2 / lambda. Score:
    E[-x0 x / s] = -1, so a* = -1 / lambda (the score of N(0, Sigma_t)), and the residual is
    1 / s^2 - 1 / lambda = a^2 l / (s^2 lambda).

    Args:
        eigenvalues: eigenvalues l_i of Sigma_1, none negative, shape (..., dim).
        t: times in [0, 1], a number or shape (...,).
        path: the probability path.
        target: `velocity`, or `score` for the denoising-score target.

    Returns:
        The problem, shapes (..., dim).

    Raises:
        PrecfmError: Sigma_t is singular (an eigenvalue is zero and t = 1), or the score is asked for at
            sigma_t = 0. A zero eigenvalue is fine at t < 1.

    Example:
        >>> from precfm.flows.paths import LinearPath
        >>> linear_problem(torch.tensor([1.0, 4.0]), 0.5, LinearPath()).optimum
        tensor([0.0000, 1.2000], dtype=torch.float64)
    """
    values = eigenvalues.to(torch.float64)
    time = torch.as_tensor(t, dtype=torch.float64)[..., None]
    alpha, sigma, d_alpha, d_sigma = (f(time) for f in (path.alpha, path.sigma, path.d_alpha, path.d_sigma))
    variance = alpha**2 * values + sigma**2
    if not bool((variance > 0).all()):
        raise PrecfmError("t: got 1 with an eigenvalue 0, so Sigma_t is singular; t < 1 is needed")
    if target == "velocity":
        optimum = (alpha * d_alpha * values + sigma * d_sigma) / variance
        return LinearProblem(variance, optimum, values * (alpha * d_sigma - d_alpha * sigma) ** 2 / variance)
    if not bool((sigma > 0).all()):
        raise PrecfmError("t: got 1 with the target 'score', which is infinite there; t < 1 is needed")
    return LinearProblem(variance, -1 / variance, alpha**2 * values / (sigma**2 * variance))


def symmetric(eigenvalues: Tensor, basis: Tensor) -> Tensor:
    """The matrix of these eigenvalues, shape (..., dim), and eigenvectors as columns, shape (..., dim, dim)."""
    return (basis * eigenvalues[..., None, :]) @ basis.mT


def excess_risk(field: Tensor, optimum: Tensor, cov_t: Tensor) -> Tensor:
    """R(A) - R(A*) = tr((A - A*) Sigma_t (A - A*)^T): claim C1, an identity.

    With E = A - A* the risk is E || E x + (A* x - y) ||^2, and the cross term vanishes because the residual
    A* x - y is uncorrelated with x. No Gaussianity is used.

    Args:
        field: A, shape (..., dim_out, dim).
        optimum: A*, shape (..., dim_out, dim).
        cov_t: Sigma_t, shape (..., dim, dim).

    Returns:
        The excess risk, shape (...,).
    """
    error = field - optimum
    return torch.einsum("...oi,...ij,...oj->...", error, cov_t, error)


def squared_errors(field: Tensor, problem: LinearProblem, basis: Tensor) -> Tensor:
    """|| (A - A*) q_i ||^2 for each input direction; times lambda_i it is that direction's excess risk.

    Args:
        field: A, shape (..., dim, dim).
        problem: the problem in the eigenbasis.
        basis: eigenvectors q_i as columns, shape (..., dim, dim).

    Returns:
        Squared errors, shape (..., dim).
    """
    return ((field - symmetric(problem.optimum, basis)) @ basis).square().sum(-2)


def first_and_total(excess: Tensor) -> Tensor:
    """Excess risk of the first direction and of all, shape (2, ...), of excess risks by direction, (..., dim)."""
    return torch.stack([excess[..., 0], excess.sum(-1)])
