"""Closed forms for a linear field A x at a fixed time: optimum, excess risk, gradient descent and its noise.

Setting and assumptions, everywhere in this module:

* x_t = alpha_t x1 + sigma_t x0, x0 ~ N(0, I), x1 centred with covariance Sigma_1, coupling independent, t
  fixed. Data that are not centred need a bias in the field; without one, Sigma_t becomes the second moment.
* The loss is E || A x_t - y ||^2, summed over outputs. Averaged over the d outputs, every rate is divided by
  d.
* y is the velocity alpha_t' x1 + sigma_t' x0, or the denoising-score target -x0 / sigma_t.

Sigma_t = alpha_t^2 Sigma_1 + sigma_t^2 I has the eigenvectors q_i of Sigma_1, and so have all matrices here:
a problem is a set of numbers per direction i. First and second moments are all that the risk and gradient
descent see, so those hold for any law of x1; the noise of stochastic gradients (fourth moments) and "the best
linear field is the best field" need Gaussian data. All tensors are float64; leading axes `...` are a batch of
problems.

References:
    Preconditioned (Score and) Flow Matching (Ahamed et al., 2026), https://arxiv.org/abs/2603.02337
"""

import math
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from precfm.core.errors import PrecfmError
from precfm.flows.paths import ProbabilityPath

Target: TypeAlias = Literal["velocity", "score"]


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


def linear_problem(
    eigenvalues: Tensor, t: Tensor | float, path: ProbabilityPath, target: Target = "velocity"
) -> LinearProblem:
    """The regression problem at time t, diagonal in the eigenbasis of Sigma_1.

    For an eigenvalue l of Sigma_1, with (a, s, a', s') the path's weights and their derivatives:
    lambda = a^2 l + s^2. Velocity: E[u x] = a a' l + s s', and the residual is
    (Var u Var x - Cov^2) / Var x = l (a s' - a' s)^2 / lambda. Score: E[-x0 x / s] = -1, so a* = -1 / lambda,
    and the residual is 1 / s^2 - 1 / lambda = a^2 l / (s^2 lambda).

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
        raise PrecfmError("Sigma_t is singular: an eigenvalue of Sigma_1 is 0 at t = 1; take t < 1")
    if target == "velocity":
        optimum = (alpha * d_alpha * values + sigma * d_sigma) / variance
        return LinearProblem(variance, optimum, values * (alpha * d_sigma - d_alpha * sigma) ** 2 / variance)
    if not bool((sigma > 0).all()):
        raise PrecfmError("target 'score' has no finite value at sigma_t = 0; take t < 1")
    return LinearProblem(variance, -1 / variance, alpha**2 * values / (sigma**2 * variance))


def optimal_field(cov_data: Tensor, t: float, path: ProbabilityPath, target: Target = "velocity") -> Tensor:
    """A* = E[y x_t^T] Sigma_t^-1, the minimiser of E || A x_t - y ||^2.

    Setting the gradient 2 (A Sigma_t - E[y x_t^T]) to zero gives it; E[y x_t^T] is alpha alpha' Sigma_1 +
    sigma sigma' I for the velocity and -I for the score (A* = -Sigma_t^-1, the score of N(0, Sigma_t)).

    Args:
        cov_data: Sigma_1, shape (dim, dim).
        t: time.
        path: the probability path.
        target: what is regressed.

    Returns:
        A*, shape (dim, dim), symmetric.
    """
    eigenvalues, basis = torch.linalg.eigh(cov_data.to(torch.float64))
    problem = linear_problem(eigenvalues.clamp(min=0), t, path, target)
    field: Tensor = (basis * problem.optimum) @ basis.T
    return field


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
    optimum = (basis * problem.optimum[..., None, :]) @ basis.mT
    return ((field - optimum) @ basis).square().sum(-2)


def descent_excess(variance: Tensor, errors: Tensor, learning_rate: Tensor | float, steps: Tensor) -> Tensor:
    """Excess risk of every eigendirection after k steps of gradient descent: claim C2.

    The gradient is 2 (A - A*) Sigma_t, so E_k = E_0 (I - 2 eta Sigma_t)^k: column E q_i contracts by
    (1 - 2 eta lambda_i), and direction i's excess risk is lambda_i (1 - 2 eta lambda_i)^(2k) || E_0 q_i ||^2.
    Exact, for any law of the data; stable for eta < 1 / lambda_max. The output metric plays no part: a map of
    the outputs leaves the contraction as it is.

    Args:
        variance: lambda_i, shape (..., dim).
        errors: || E_0 q_i ||^2, shape (..., dim).
        learning_rate: eta, a number or shape (...,).
        steps: numbers of steps, shape (n,).

    Returns:
        Excess risks, shape (n, ..., dim).
    """
    rate = torch.as_tensor(learning_rate, dtype=torch.float64)[..., None]
    factor = (1 - 2 * rate * variance).abs()
    exponents = 2 * steps.to(torch.float64).reshape(-1, *[1] * factor.ndim)
    return variance * errors * factor**exponents


def steps_to_fraction(variance: Tensor, learning_rate: Tensor | float, fraction: float) -> Tensor:
    """Steps k until a direction's excess risk is a fraction f of its start: (1 - 2 eta lambda)^(2k) = f.

    For eta = 1 / (2 lambda_max) and the slowest direction this is close to kappa log(1/f) / 2, hence the
    slope one of claim C2. It counts *relative* accuracy of the *slowest direction*. To an absolute accuracy,
    or in the total, a direction of small variance may need no step at all, because its excess risk starts
    small.

    Args:
        variance: lambda, any shape.
        learning_rate: eta, a number or a shape that broadcasts.
        fraction: in (0, 1).

    Returns:
        A real number of steps, in the broadcast shape.

    Raises:
        PrecfmError: `fraction` is not in (0, 1), or a direction does not contract.
    """
    factor = (1 - 2 * torch.as_tensor(learning_rate, dtype=torch.float64) * variance).abs()
    _check_fraction(fraction)
    if not bool((factor < 1).all()):
        raise PrecfmError("learning_rate does not contract every direction; it must be below 1 / lambda_max")
    return math.log(1 / fraction) / (-2 * factor.clamp(min=1e-300).log())


def steps_to_total_fraction(
    variance: Tensor, errors: Tensor, learning_rate: Tensor | float, fraction: float
) -> Tensor:
    """Steps until the total excess risk is `fraction` of what it was, by bisection on the closed form.

    Args:
        variance: lambda_i, shape (..., dim).
        errors: || E_0 q_i ||^2, shape (..., dim).
        learning_rate: eta, a number or shape (...,).
        fraction: in (0, 1).

    Returns:
        A real number of steps, shape (...,).

    Raises:
        PrecfmError: `fraction` is not in (0, 1), or a direction does not contract.
    """
    rate = torch.as_tensor(learning_rate, dtype=torch.float64)[..., None]
    high = steps_to_fraction(variance, rate, fraction).amax(-1)
    low = torch.zeros_like(high)
    log_factor = 2 * (1 - 2 * rate * variance).abs().clamp(min=1e-300).log()
    start = variance * errors
    goal = fraction * start.sum(-1)
    for _ in range(100):
        middle = (low + high) / 2
        above = (start * (log_factor * middle[..., None]).exp()).sum(-1) > goal
        low, high = torch.where(above, middle, low), torch.where(above, high, middle)
    return high


def stochastic_excess(
    variance: Tensor,
    errors: Tensor,
    residual: Tensor,
    learning_rate: Tensor | float,
    batch_size: int,
    steps: Tensor,
) -> Tensor:
    """Expected excess risk of every eigendirection under stochastic descent with fresh Gaussian batches.

    One step is E' = E (I - 2 eta S) + 2 eta N with S = mean x x^T and N = mean r x^T over b samples, r the
    residual, which is independent of x for Gaussian data. In mean, E contracts as in gradient descent. For
    M = E[E^T E], with E[S M S] = (1 + 1/b) Sigma M Sigma + tr(M Sigma) Sigma / b (Isserlis) and
    E[N^T N] = tr(R) Sigma / b, the diagonal in the eigenbasis closes on itself:

        m_i' = m_i (1 - 4 eta lambda_i + 4 eta^2 lambda_i^2 (1 + 1/b))
               + (4 eta^2 / b) lambda_i (sum_j lambda_j m_j + sum_j r_j).

    Exact for Gaussian data, any initial field and b >= 1. So stochastic descent inherits the slow directions
    and couples all of them through the total.

    Args:
        variance: lambda_i, shape (..., dim).
        errors: || E_0 q_i ||^2, shape (..., dim).
        residual: r_j, shape (..., dim_out).
        learning_rate: eta, a number or shape (...,).
        batch_size: b.
        steps: numbers of steps, ascending, shape (n,).

    Returns:
        Expected excess risks lambda_i m_i, shape (n, ..., dim).

    Raises:
        PrecfmError: `batch_size` is below 1 or the steps do not ascend.
    """
    if batch_size < 1:
        raise PrecfmError(f"batch_size is {batch_size}; it must be at least 1")
    wanted = [int(step) for step in steps]
    if wanted != sorted(wanted) or (wanted and wanted[0] < 0):
        raise PrecfmError(f"steps are {wanted}; they must ascend from 0 or more")
    rate = torch.as_tensor(learning_rate, dtype=torch.float64)[..., None]
    keep, inflow = _stochastic_step(variance, rate, batch_size)
    unexplained = residual.sum(-1, keepdim=True)
    excess = variance * errors
    out, done = [], 0
    for step in wanted:
        for _ in range(step - done):
            excess = keep * excess + inflow * (excess.sum(-1, keepdim=True) + unexplained)
        done = step
        out.append(excess)
    return torch.stack(out)


def stochastic_steps_to_fraction(
    variance: Tensor,
    errors: Tensor,
    residual: Tensor,
    learning_rate: Tensor | float,
    batch_size: int,
    fraction: float,
    max_steps: int,
) -> tuple[Tensor, Tensor]:
    """Steps until the expected excess risk of the first direction, and of all, is a fraction of its start.

    The recursion of `stochastic_excess`, run until it gets there: where the noise floor lies above the goal,
    never.

    Args:
        variance: lambda_i, shape (..., dim).
        errors: || E_0 q_i ||^2, shape (..., dim).
        residual: r_j, shape (..., dim_out).
        learning_rate: eta, a number or shape (...,).
        batch_size: b.
        fraction: in (0, 1).
        max_steps: where to give up.

    Returns:
        Whole steps for direction 0 and for the total, each (...,); infinite where `max_steps` did not
        suffice.
    """
    _check_fraction(fraction)
    rate = torch.as_tensor(learning_rate, dtype=torch.float64)[..., None]
    keep, inflow = _stochastic_step(variance, rate, batch_size)
    unexplained = residual.sum(-1, keepdim=True)
    excess = variance * errors
    goal = fraction * torch.stack([excess[..., 0], excess.sum(-1)])
    reached = torch.full_like(goal, math.inf)
    for step in range(1, max_steps + 1):
        excess = keep * excess + inflow * (excess.sum(-1, keepdim=True) + unexplained)
        now = torch.stack([excess[..., 0], excess.sum(-1)])
        reached = torch.where((now <= goal) & reached.isinf(), float(step), reached)
        if step % 256 == 0 and bool(reached.isfinite().all()):
            break
    return reached[0], reached[1]


def stochastic_floor(
    variance: Tensor, residual: Tensor, learning_rate: Tensor | float, batch_size: int
) -> Tensor:
    """Where `stochastic_excess` ends: the noise floor of every eigendirection.

    The fixed point of the recursion is e_i = g_i (T + tr R), T = sum_j e_j, with
    g_i = (eta lambda_i / b) / (1 - eta lambda_i (1 + 1/b)); summed, T = tr(R) g / (1 - g) with g = sum_i g_i.
    For small eta it is (eta lambda_i / b) tr R: proportional to the step and to the direction's variance, so
    a floor needs eta ~ 1 / tr Sigma_t, and the slowest direction tr(Sigma_t) / lambda_min steps.

    Args:
        variance: lambda_i, shape (..., dim).
        residual: r_j, shape (..., dim_out).
        learning_rate: eta, a number or shape (...,).
        batch_size: b.

    Returns:
        Floors, shape (..., dim); infinite where the second moment diverges (see `stochastic_is_stable`).
    """
    rate = torch.as_tensor(learning_rate, dtype=torch.float64)[..., None]
    gains = rate * variance / batch_size / (1 - rate * variance * (1 + 1 / batch_size))
    gain = gains.sum(-1, keepdim=True)
    floor = gains * residual.sum(-1, keepdim=True) / (1 - gain)
    stable = stochastic_is_stable(variance, rate[..., 0], batch_size)[..., None]
    return torch.where(stable, floor, math.inf)


def stochastic_is_stable(variance: Tensor, learning_rate: Tensor | float, batch_size: int) -> Tensor:
    """Whether the second moment of stochastic descent stays bounded: eta lambda_max (1 + 1/b) < 1 and g < 1.

    The recursion's matrix is diagonal plus rank one, non-negative; its largest eigenvalue is below one
    exactly if the diagonal is and the secular function g = sum_i g_i of `stochastic_floor` is below one.
    Gradient descent needs only eta lambda_max < 1: small batches ask for smaller steps, in proportion to
    tr(Sigma_t) / b.

    Args:
        variance: lambda_i, shape (..., dim).
        learning_rate: eta, a number or shape (...,).
        batch_size: b.

    Returns:
        Truth values, shape (...,).
    """
    rate = torch.as_tensor(learning_rate, dtype=torch.float64)[..., None]
    scaled = rate * variance
    diagonal = (scaled * (1 + 1 / batch_size) < 1).all(-1)
    gain = (scaled / batch_size / (1 - scaled * (1 + 1 / batch_size))).sum(-1)
    return diagonal & (gain < 1)


def preconditioned_errors(variance: Tensor, errors: Tensor) -> Tensor:
    """Squared errors in the coordinates z = Sigma_t^(-1/2) x: claim C3.

    Writing A x = B z with B = A Sigma_t^(1/2), the inputs z have covariance I and the error is E
    Sigma_t^(1/2), whose squared columns are lambda_i || E q_i ||^2. Descent on B has `variance` one
    everywhere: every direction contracts by (1 - 2 eta), and the excess risks at the start are the same
    numbers as before.

    P = Sigma_t^(-1/2) depends on t, so it is no single map of the data. The map x1 -> Sigma_1^(-1/2) x1 gives
    Sigma_t = (alpha_t^2 + sigma_t^2) I for all t at once: kappa one, rate (1 - 2 eta (alpha_t^2 +
    sigma_t^2)).

    Args:
        variance: lambda_i, shape (..., dim).
        errors: || E_0 q_i ||^2, shape (..., dim).

    Returns:
        Squared errors of B, shape (..., dim).
    """
    return variance * errors


def _stochastic_step(variance: Tensor, rate: Tensor, batch_size: int) -> tuple[Tensor, Tensor]:
    """What one step keeps of a direction's excess risk, and takes of the total; `stochastic_excess`."""
    keep = 1 - 4 * rate * variance + 4 * rate**2 * variance**2 * (1 + 1 / batch_size)
    return keep, 4 * rate**2 / batch_size * variance**2


def _check_fraction(fraction: float) -> None:
    if not 0 < fraction < 1:
        raise PrecfmError(f"fraction is {fraction}; it must be between 0 and 1")
