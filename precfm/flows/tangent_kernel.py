"""The empirical tangent kernel of a velocity network, and the training time that it predicts.

Near its weights a network is linear in them, so that under gradient descent on the flow-matching loss (the mean
of squares over N = points x dim numbers) the residual r = v - v* at these points decays as
r_k = exp(-2 eta k K / N) r_0, with K = J J^T and J the Jacobian of all outputs with respect to all weights.
"""

import math
from collections.abc import Callable
from typing import TypeAlias

import torch
from scipy.optimize import brentq
from torch import Tensor, nn
from torch.func import functional_call, jacrev

from precfm.core.errors import PrecfmError
from precfm.core.options import Count, Positive, checked
from precfm.core.seeds import generator_for
from precfm.flows.paths import ProbabilityPath
from precfm.flows.smoothed_velocity import learnable_velocity

Inverse: TypeAlias = Callable[[Tensor, Tensor | None], Tensor]
"""`inverse(z, labels)`: from the flow's space back to the data; shapes (batch, *dim), (batch,) or None."""

STEP_GRID = 256  # times between the fastest and the slowest mode at which a crossing is looked for
DIFFERENCE = 1e-2  # step of the finite differences of an inverse, in root mean squares of the data


def tangent_kernel(
    model: nn.Module, x_t: Tensor, t: Tensor, labels: Tensor | None, *, block: int = 8
) -> Tensor:
    """The empirical neural tangent kernel K = J J^T at the current weights, over all of them.

    Memory is bounded by two blocks of Jacobians, 2 x block x dim x parameters numbers; the blocks are computed
    again where needed. Weights and buffers are taken in the type of `x_t`.

    Args:
        model: velocity network, `model(x_t, t, labels)`; frozen weights count, too.
        x_t: points on the path, shape (n, *dim).
        t: times, shape (n,).
        labels: classes, int64, shape (n,), or None.
        block: points per block.

    Returns:
        K, shape (n * dim, n * dim), in the type of `x_t`; the row of point i and direction j is i * dim + j.

    References:
        Neural Tangent Kernel (Jacot et al., 2018), https://arxiv.org/abs/1806.07572
    """
    state = _state(model, x_t)
    weights = {name: state[name] for name, _ in model.named_parameters()}

    def jacobian(rows: slice) -> Tensor:
        chosen = None if labels is None else labels[rows]

        def outputs(varied: dict[str, Tensor]) -> Tensor:
            velocity: Tensor = functional_call(model, {**state, **varied}, (x_t[rows], t[rows], chosen))
            return velocity.flatten()

        parts = jacrev(outputs)(weights)
        return torch.cat([part.flatten(1) for part in parts.values()], dim=1)

    dim, starts = x_t[0].numel(), range(0, len(x_t), block)
    blocks = [slice(start, min(start + block, len(x_t))) for start in starts]
    kernel = x_t.new_empty(len(x_t) * dim, len(x_t) * dim)
    for place, first in enumerate(blocks):
        left = jacobian(first)
        here = slice(first.start * dim, first.stop * dim)
        for second in blocks[: place + 1]:
            there = slice(second.start * dim, second.stop * dim)
            product = left @ (left if second == first else jacobian(second)).T
            kernel[here, there], kernel[there, here] = product, product.T
    return kernel


@checked
def predicted_steps(
    kernel: Tensor,
    residual: Tensor,
    learning_rate: Positive,
    threshold: Positive,
    *,
    to_data: Tensor | None = None,
) -> float:
    """Steps of gradient descent until the mean squared residual is at most a threshold, in the linearised model.

    The residual follows r_k = exp(-2 eta k K / N) r_0: the flow that descent on the mean of N squares follows as
    long as 2 eta lambda / N is small. Adam takes other steps; compare predictions with each other, not with its.

    Args:
        kernel: K, shape (N, N), symmetric and positive semi-definite.
        residual: r_0 = v - v*, without what no network can learn, shape (N,).
        learning_rate: eta.
        threshold: on the mean of squares, absolute, in the units of the data.
        to_data: the derivative of the map to the data at each point, shape (n, dim, dim) with n * dim = N, so that
            residuals from different spaces are compared by what they are in the data; None where it is the identity.

    Returns:
        The first such number of steps, not rounded; 0 if the residual starts below, infinity if it stays above.

    Raises:
        PrecfmError: the shapes do not fit, or the learning rate or threshold is not positive.
    """
    count = residual.numel()
    if kernel.shape != (count, count):
        raise PrecfmError(
            f"kernel: got shape {tuple(kernel.shape)}; ({count}, {count}) is needed for a residual of {count} numbers"
        )
    eigenvalues, modes = _spectrum(kernel)
    amplitudes = modes.T @ residual.double().flatten()
    rates = 2 * learning_rate * eigenvalues / count
    if to_data is not None:
        dim = to_data.shape[-1]
        modes = (to_data.double() @ modes.reshape(-1, dim, count)).reshape(count, count)

    def excess(steps: float) -> float:
        left = modes @ (torch.exp(-rates * steps) * amplitudes)
        return float(left.square().mean()) - threshold

    if excess(0.0) <= 0:
        return 0.0
    moving = rates[rates > 0]
    if not len(moving):
        return math.inf
    # From well before the fastest mode moves to where the slowest is gone, whatever the size of the residual.
    last = 100 / float(moving.min())
    grid = torch.logspace(
        math.log10(1e-6 / float(moving.max())), math.log10(last), STEP_GRID, dtype=torch.float64
    )
    before = 0.0
    for steps in grid.tolist():  # the first crossing: seen from the data, the residual may rise in between
        if excess(steps) <= 0:
            return float(brentq(excess, before, steps, xtol=1e-12 * steps, rtol=1e-10))
        before = steps
    return math.inf


def kernel_condition(kernel: Tensor, residual: Tensor | None = None) -> float:
    """Condition number of a kernel; with a residual, the effective one that this residual meets.

    Effective is the geometric mean of lambda_max / lambda_i, weighted by the share of the residual's squares in
    mode i: a residual in the fast modes alone has 1, whatever the slow modes are. Modes that rounding cannot tell
    from zero count with the smallest eigenvalue that it can.

    Args:
        kernel: shape (N, N), symmetric and positive semi-definite.
        residual: shape (N,), or None.

    Returns:
        At least 1; NaN if the kernel or the residual is zero.

    Example:
        >>> kernel = torch.diag(torch.tensor([100.0, 1.0]))
        >>> kernel_condition(kernel), round(kernel_condition(kernel, torch.tensor([1.0, 1.0])), 6)
        (100.0, 10.0)
    """
    eigenvalues, modes = _spectrum(kernel)
    top = float(eigenvalues[-1])
    if top == 0:
        return math.nan
    ratios = top / eigenvalues.clamp(min=_rounding(kernel) * top)
    if residual is None:
        return float(ratios[0])
    shares = (modes.T @ residual.double().flatten()).square()
    return math.exp(float((shares * ratios.log()).sum() / shares.sum())) if shares.any() else math.nan


def _spectrum(kernel: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues, ascending, with those that are zero within rounding set to zero, and eigenvectors; float64."""
    eigenvalues, modes = torch.linalg.eigh(kernel.double())
    return torch.where(eigenvalues > _rounding(kernel) * eigenvalues[-1], eigenvalues, 0.0), modes


def _rounding(kernel: Tensor) -> float:
    """The share of the largest eigenvalue below which one of this kernel is rounding error."""
    return len(kernel) * torch.finfo(kernel.dtype).eps


@checked
def kernel_report(
    model: nn.Module,
    path: ProbabilityPath,
    z1: Tensor,
    labels: Tensor | None,
    *,
    points: Count,
    threshold: Positive,
    learning_rate: Positive,
    seed: int,
    inverse: Inverse | None = None,
) -> dict[str, float]:
    """What the tangent kernel at the current weights says about the training that lies ahead.

    Points on the path come from data, noise and times (one in each of `points` equal parts of [0, 1]) that depend
    on the seed alone, so that methods are compared on the same ones. The residual is taken against
    `learnable_velocity`, by the rest of the data.

    Args:
        model: velocity network in the flow's space, as training starts from it.
        path: the probability path.
        z1: data in the flow's space, shape (batch, *dim), more than `points` + 1 rows.
        labels: classes, int64, shape (batch,), or None.
        points: how many points on the path; the kernel has (points * dim)^2 numbers.
        threshold: on the mean squared residual per number, absolute, in the units of the data.
        learning_rate: of gradient descent; the same for all methods that are compared.
        seed: seed of points, noise and times.
        inverse: from the flow's space to the data, such as `preconditioner.inverse`; its derivative at the data
            weighs the residual, so that the threshold means the same for every preconditioner. None: the spaces
            are the same.

    Returns:
        kernel_condition_number, kernel_effective_condition (see `kernel_condition`), initial_residual (mean square
        per number, in the units of the data), predicted_steps (see there; may be infinite) and threshold.

    Raises:
        PrecfmError: there are too few rows, or the learning rate or threshold is not positive.
    """
    if points > len(z1) - 2:
        raise PrecfmError(
            f"points: got {points}; at most {len(z1) - 2} are needed, two fewer than rows of data"
        )
    generator = generator_for(seed, "tangent kernel")
    order = torch.randperm(len(z1), generator=generator).to(z1.device)
    times = (torch.randperm(points, generator=generator) + 0.5) / points
    x0 = torch.randn(points, *z1.shape[1:], generator=generator, dtype=torch.float64).to(z1.device)
    chosen, rest = order[:points], order[points:]
    t = times.to(z1.device, torch.float64)
    x_t, _ = path.sample(x0, z1[chosen].double(), t)
    of_chosen = None if labels is None else labels[chosen]
    kernel = tangent_kernel(model, x_t, t, of_chosen)
    target = learnable_velocity(
        path, x_t.flatten(1), t, of_chosen, z1[rest].flatten(1), None if labels is None else labels[rest]
    )
    residual = (_velocity(model, x_t, t, of_chosen).flatten(1) - target).flatten()
    to_data = None if inverse is None else _derivative(inverse, z1[chosen], of_chosen)
    return {
        "kernel_condition_number": kernel_condition(kernel),
        "kernel_effective_condition": kernel_condition(kernel, residual),
        "initial_residual": float(_in_data(residual, to_data).square().mean()),
        "predicted_steps": predicted_steps(kernel, residual, learning_rate, threshold, to_data=to_data),
        "threshold": float(threshold),
    }


@torch.no_grad()
def _velocity(model: nn.Module, x_t: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
    velocity: Tensor = functional_call(model, _state(model, x_t), (x_t, t, labels))
    return velocity


def _state(model: nn.Module, like: Tensor) -> dict[str, Tensor]:
    """Weights and buffers, in the type and on the device of a tensor; the model stays as it is."""
    named = (*model.named_parameters(), *model.named_buffers())
    return {
        name: value.detach().to(like if value.is_floating_point() else like.device) for name, value in named
    }


@torch.no_grad()
def _derivative(inverse: Inverse, z: Tensor, labels: Tensor | None) -> Tensor:
    """The derivative of an inverse at each row by central differences, shape (n, dim, dim), float64."""
    step = DIFFERENCE * float(z.double().square().mean().sqrt())
    columns = []
    for index in range(z[0].numel()):
        move = torch.zeros_like(z).flatten(1)
        move[:, index] = step
        move = move.reshape(z.shape)
        difference = inverse(z + move, labels).double() - inverse(z - move, labels).double()
        columns.append(difference.flatten(1) / (2 * step))
    return torch.stack(columns, dim=2)


def _in_data(residual: Tensor, to_data: Tensor | None) -> Tensor:
    if to_data is None:
        return residual
    return (to_data @ residual.reshape(len(to_data), -1, 1)).flatten()
