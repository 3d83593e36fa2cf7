"""Convergence of gradient descent and of its stochastic form on a linear regression, in closed form.

The problem, its eigendirections and its errors are those of `precfm.theory.linear_regression`. Gradient descent sees
second moments alone, so its curves hold for any law of the data; the noise of stochastic gradients involves fourth
moments and needs Gaussian data.

Every function takes what it needs of

* variance: lambda_i, shape (..., dim);
* errors: || E_0 q_i ||^2 of the field to start from, shape (..., dim);
* residual: r_j, what no linear field explains, shape (..., dim_out);
* learning_rate: eta, a number or shape (...,);
* batch_size: b, samples per step of stochastic descent;
* steps: numbers of steps, none negative, shape (n,);
* fraction: accuracy of the excess risk relative to its start, in (0, 1).

A fraction or a batch size out of its range, or a direction that does not contract, is a `PrecfmError`.
"""

import math
from collections.abc import Iterator
from itertools import islice

import torch
from torch import Tensor

from precfm.core.errors import PrecfmError
from precfm.core.options import Count, Fraction, checked
from precfm.theory.linear_regression import ALMOST_ZERO, first_and_total


def descent_excess(variance: Tensor, errors: Tensor, learning_rate: Tensor | float, steps: Tensor) -> Tensor:
    """Excess risk of every eigendirection after k steps of gradient descent: claim C2.

    The gradient is 2 (A - A*) Sigma_t, so E_k = E_0 (I - 2 eta Sigma_t)^k: column E q_i contracts by
    (1 - 2 eta lambda_i), and direction i's excess risk is lambda_i (1 - 2 eta lambda_i)^(2k) || E_0 q_i ||^2.
    Exact, for any law of the data; stable for eta < 1 / lambda_max. The output metric plays no part: a map of
    the outputs leaves the contraction as it is.

    Returns:
        Excess risks, shape (n, ..., dim).
    """
    factor = _contraction(variance, _per_direction(learning_rate))
    exponents = 2 * steps.to(torch.float64).reshape(-1, *[1] * factor.ndim)
    return variance * errors * factor**exponents


@checked
def steps_to_fraction(variance: Tensor, learning_rate: Tensor | float, fraction: Fraction) -> Tensor:
    """Steps k until a direction's excess risk is a fraction f of its start: (1 - 2 eta lambda)^(2k) = f.

    For eta = 1 / (2 lambda_max) and the slowest direction this is close to kappa log(1/f) / 2, hence the
    slope one of claim C2. It counts *relative* accuracy of the *slowest direction*. To an absolute accuracy,
    or in the total, a direction of small variance may need no step at all, because its excess risk starts
    small.

    Returns:
        A real number of steps, in the shape that `variance` and `learning_rate` broadcast to.
    """
    factor = _contraction(variance, torch.as_tensor(learning_rate, dtype=torch.float64))
    if not bool((factor < 1).all()):
        raise PrecfmError(
            "learning_rate: a direction does not contract; a rate below 1 / lambda_max is needed"
        )
    return math.log(1 / fraction) / (-2 * factor.clamp(min=ALMOST_ZERO).log())


def steps_to_total_fraction(
    variance: Tensor, errors: Tensor, learning_rate: Tensor | float, fraction: float
) -> Tensor:
    """Whole steps until the total excess risk is at most `fraction` of what it was.

    The smallest k with sum_i lambda_i e_i (1 - 2 eta lambda_i)^(2k) <= f sum_i lambda_i e_i, by bisection on whole
    numbers: between them the closed form has no meaning where a direction dies in one step, as the top one does at
    eta = 1 / (2 lambda_max).

    Returns:
        A number of steps, shape (...,), float64.
    """
    rate = _per_direction(learning_rate)
    high = steps_to_fraction(variance, rate, fraction).amax(-1).ceil()
    low = torch.zeros_like(high)
    squared_factor, start = _contraction(variance, rate).square(), variance * errors
    goal = fraction * start.sum(-1)
    while bool((high - low > 1).any()):
        middle = ((low + high) / 2).floor()
        above = (start * squared_factor ** middle[..., None]).sum(-1) > goal
        low, high = torch.where(above, middle, low), torch.where(above, high, middle)
    return torch.where(goal > 0, high, 0.0)


@checked
def stochastic_excess(
    variance: Tensor,
    errors: Tensor,
    residual: Tensor,
    learning_rate: Tensor | float,
    batch_size: Count,
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

    Returns:
        Expected excess risks lambda_i m_i, shape (n, ..., dim).
    """
    wanted = steps.tolist()
    course = _stochastic_course(variance, errors, residual, learning_rate, batch_size)
    found = {step: excess for step, excess in enumerate(islice(course, max(wanted) + 1)) if step in wanted}
    return torch.stack([found[step] for step in wanted])


@checked
def stochastic_steps_to_fraction(
    variance: Tensor,
    errors: Tensor,
    residual: Tensor,
    learning_rate: Tensor | float,
    batch_size: Count,
    fraction: Fraction,
    max_steps: int,
) -> tuple[Tensor, Tensor]:
    """Steps until the expected excess risk of the first direction, and of all, is a fraction of its start.

    The recursion of `stochastic_excess`, run until it gets there: where the noise floor lies above the goal,
    never.

    Returns:
        Whole steps for direction 0 and for the total, each (...,); infinite where `max_steps` did not suffice.
    """
    course = _stochastic_course(variance, errors, residual, learning_rate, batch_size)
    goal = fraction * first_and_total(next(course))
    reached = torch.full_like(goal, math.inf)
    for step, excess in enumerate(islice(course, max_steps), start=1):
        reached = torch.where((first_and_total(excess) <= goal) & reached.isinf(), float(step), reached)
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

    Returns:
        Floors, shape (..., dim); infinite where the second moment diverges (see `stochastic_is_stable`).
    """
    gains = _floor_gains(variance, learning_rate, batch_size)
    floor = gains * residual.sum(-1, keepdim=True) / (1 - gains.sum(-1, keepdim=True))
    stable = stochastic_is_stable(variance, learning_rate, batch_size)[..., None]
    return torch.where(stable, floor, math.inf)


def stochastic_is_stable(variance: Tensor, learning_rate: Tensor | float, batch_size: int) -> Tensor:
    """Whether the second moment of stochastic descent stays bounded: eta lambda_max (1 + 1/b) < 1 and g < 1.

    The recursion's matrix is diagonal plus rank one, non-negative; its largest eigenvalue is below one
    exactly if the diagonal is and the secular function g = sum_i g_i of `stochastic_floor` is below one.
    Gradient descent needs only eta lambda_max < 1: small batches ask for smaller steps, in proportion to
    tr(Sigma_t) / b.

    Returns:
        Truth values, shape (...,).
    """
    diagonal = (_per_direction(learning_rate) * variance * (1 + 1 / batch_size) < 1).all(-1)
    return diagonal & (_floor_gains(variance, learning_rate, batch_size).sum(-1) < 1)


def _per_direction(learning_rate: Tensor | float) -> Tensor:
    return torch.as_tensor(learning_rate, dtype=torch.float64)[..., None]


def _contraction(variance: Tensor, rate: Tensor) -> Tensor:
    """|1 - 2 eta lambda_i|: by how much one step of gradient descent shrinks an error."""
    return (1 - 2 * rate * variance).abs()


def _stochastic_course(
    variance: Tensor, errors: Tensor, residual: Tensor, learning_rate: Tensor | float, batch_size: int
) -> Iterator[Tensor]:
    """The excess risks of `stochastic_excess` after 0, 1, 2, ... steps, shape (..., dim)."""
    rate = _per_direction(learning_rate)
    keep = 1 - 4 * rate * variance + 4 * rate**2 * variance**2 * (1 + 1 / batch_size)
    inflow = 4 * rate**2 / batch_size * variance**2
    unexplained = residual.sum(-1, keepdim=True)
    excess = variance * errors
    while True:
        yield excess
        excess = keep * excess + inflow * (excess.sum(-1, keepdim=True) + unexplained)


def _floor_gains(variance: Tensor, learning_rate: Tensor | float, batch_size: int) -> Tensor:
    """g_i of `stochastic_floor`, shape (..., dim)."""
    scaled = _per_direction(learning_rate) * variance
    return scaled / batch_size / (1 - scaled * (1 + 1 / batch_size))
