"""Measured descent: samples, a loss, autograd; nothing here knows the closed forms that it is compared with.

A problem is a set of inputs and targets; a batch of problems (over condition number, time, target, path, seed
and step size) is one tensor, and the sum of their losses has independent gradients, so that one backward pass
serves all. Batches are cut into blocks that fit the processor's cache: the results do not depend on it for
gradient descent, and only through the random draws for stochastic descent.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import torch
from torch import Tensor

from precfm.core.errors import PrecfmError
from precfm.core.seeds import generator_for

Advance: TypeAlias = Callable[[Tensor, Tensor, int], Tensor]


@dataclass(frozen=True)
class Problems:
    """A batch of regressions whose data are drawn from a Gaussian, each with its own path weights.

    Attributes:
        eigenvalues: spectrum of the data, shape (problems, dim).
        basis: eigenvectors of the data as columns, shape (problems, dim, dim).
        weights: (alpha, sigma, c1, c0): inputs are alpha x1 + sigma x0, targets c1 x1 + c0 x0; shape
            (problems, 4).
        transform: applied to the inputs, a preconditioner of the regression, shape (problems, dim, dim), or
            None.
    """

    eigenvalues: Tensor
    basis: Tensor
    weights: Tensor
    transform: Tensor | None = None

    def __len__(self) -> int:
        return len(self.weights)

    def part(self, index: slice | Tensor) -> "Problems":
        """Some of the problems."""
        transform = None if self.transform is None else self.transform[index]
        return Problems(self.eigenvalues[index], self.basis[index], self.weights[index], transform)

    def data(self, normal0: Tensor, normal1: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs and targets made of standard normal draws.

        Args:
            normal0: draws for the noise, shape (problems or 1, n, dim).
            normal1: draws for the data, shape (problems or 1, n, dim).

        Returns:
            Inputs and targets, shape (problems, n, dim).
        """
        # Isotropic noise needs no turning: only the data are given the basis.
        alpha, sigma, c1, c0 = (w[:, None, None] for w in self.weights.unbind(1))
        x1 = normal1 @ (self.basis * self.eigenvalues.sqrt()[:, None, :]).mT
        x_t = alpha * x1 + sigma * normal0
        return (x_t if self.transform is None else x_t @ self.transform.mT), c1 * x1 + c0 * normal0


def path_weights(path: str, target: str, t: float) -> tuple[float, float, float, float]:
    """(alpha, sigma, c1, c0) written out for the two paths and the two targets.

    Args:
        path: `linear` or `variance_preserving`.
        target: `velocity` or `score`.
        t: time; the score needs t < 1.

    Returns:
        Weights of data and noise in the input, then of data and noise in the target.

    Raises:
        PrecfmError: a name is unknown, or the score is asked for at t = 1.
    """
    if path == "linear":
        alpha, sigma, velocity = t, 1 - t, (1.0, -1.0)
    elif path == "variance_preserving":
        angle = math.pi * t / 2
        alpha, sigma = math.sin(angle), math.cos(angle)
        velocity = (math.pi / 2 * math.cos(angle), -math.pi / 2 * math.sin(angle))
    else:
        raise PrecfmError(f"path is '{path}'; it must be 'linear' or 'variance_preserving'")
    if target == "velocity":
        return (alpha, sigma, *velocity)
    if target != "score":
        raise PrecfmError(f"target is '{target}'; it must be 'velocity' or 'score'")
    if t >= 1:
        raise PrecfmError(f"t is {t} for the target 'score'; it must be below 1")
    return (alpha, sigma, 0.0, -1 / sigma)


def matched_normals(seeds: Sequence[int], dim: int) -> tuple[Tensor, Tensor]:
    """Draws whose second moments are exactly those of (x0, x1): 2 dim samples, whitened among themselves.

    With them a loss over samples equals the expected loss for every linear field, so that gradient descent on
    samples can be compared with theory to rounding, without sampling error.

    Args:
        seeds: one for each problem.
        dim: dimension of the data.

    Returns:
        Draws for noise and data, each (len(seeds), 2 dim, dim), float64.
    """
    n = 2 * dim
    pairs = []
    for seed in seeds:
        raw = torch.randn(n, n, generator=generator_for(seed, "matched", dim), dtype=torch.float64)
        pairs.append(torch.linalg.qr(raw)[0] * math.sqrt(n))
    joint = torch.stack(pairs)
    return joint[..., :dim], joint[..., dim:]


def independent_normals(seeds: Sequence[int], n: int, dim: int) -> tuple[Tensor, Tensor]:
    """Independent standard normal draws for noise and data, each (len(seeds), n, dim), float64."""
    draws = torch.stack(
        [
            torch.randn(2, n, dim, generator=generator_for(s, "independent"), dtype=torch.float64)
            for s in seeds
        ]
    )
    return draws[:, 0], draws[:, 1]


@dataclass(frozen=True)
class Yardstick:
    """How far a field is from the best one, measured on samples.

    Attributes:
        best: the least-squares field of the samples, shape (problems, dim_out, dim).
        directions: principal directions of the inputs as columns, lowest variance first, (problems, dim,
            dim).
        variances: the inputs' mean square along them, ascending, shape (problems, dim).
    """

    best: Tensor
    directions: Tensor
    variances: Tensor

    @classmethod
    def of(cls, x: Tensor, y: Tensor, directions: Tensor | None = None) -> "Yardstick":
        """Fit on samples.

        Args:
            x: inputs, shape (problems, n, dim).
            y: targets, shape (problems, n, dim_out).
            directions: directions to split the excess risk by, as columns, along which the inputs are
                uncorrelated; the principal directions of `x`, lowest variance first, when None.

        Returns:
            The yardstick.
        """
        best = torch.linalg.lstsq(x, y).solution.mT
        if directions is None:
            directions = torch.linalg.svd(x, full_matrices=False)[2].mT.flip(-1)
        return cls(best, directions, (x @ directions).square().mean(-2))

    def excess(self, field: Tensor) -> Tensor:
        """Excess risk of `field` over the samples, split by direction, shape (problems, dim)."""
        return self.variances * ((field - self.best) @ self.directions).square().sum(-2)

    def part(self, index: slice | Tensor) -> "Yardstick":
        """Some of the problems."""
        return replace(
            self, best=self.best[index], directions=self.directions[index], variances=self.variances[index]
        )


def descend(
    x: Tensor, y: Tensor, field: Tensor, learning_rate: Tensor, checkpoints: Sequence[int]
) -> Iterator[tuple[int, Tensor]]:
    """Gradient descent by autograd on the summed squared error, mean over samples.

    Args:
        x: inputs, shape (problems, n, dim).
        y: targets, shape (problems, n, dim_out).
        field: where to start, shape (problems, dim_out, dim).
        learning_rate: one for each problem, shape (problems,).
        checkpoints: numbers of steps, ascending.

    Yields:
        Step and the fields after it, shape (problems, dim_out, dim).
    """
    walker = _Walker(field, learning_rate)
    done = 0
    for checkpoint in checkpoints:
        for _ in range(checkpoint - done):
            walker.step(x, y)
        done = checkpoint
        yield checkpoint, walker.field


def stochastic_descend(
    problems: Problems,
    field: Tensor,
    learning_rate: Tensor,
    checkpoints: Sequence[int],
    *,
    batch_size: int,
    generator: torch.Generator,
) -> Iterator[tuple[int, Tensor]]:
    """Stochastic gradient descent by autograd, with a fresh batch for every step and problem.

    Args:
        problems: where the batches are drawn from.
        field: where to start, shape (problems, dim, dim).
        learning_rate: one for each problem, shape (problems,).
        checkpoints: numbers of steps, ascending.
        batch_size: samples a step.
        generator: where the draws come from.

    Yields:
        Step and the fields after it, shape (problems, dim, dim).
    """
    walker = _Walker(field, learning_rate)
    shape = (2, len(problems), batch_size, problems.eigenvalues.shape[1])
    done = 0
    for checkpoint in checkpoints:
        for _ in range(checkpoint - done):
            normals = torch.randn(shape, generator=generator).to(field.dtype)
            walker.step(*problems.data(normals[0], normals[1]))
        done = checkpoint
        yield checkpoint, walker.field


class _Walker:
    """Fields on their way downhill; kept transposed, so that every product reads its operands in order."""

    def __init__(self, field: Tensor, learning_rate: Tensor) -> None:
        self._transposed = field.mT.contiguous().requires_grad_()
        self._rate = learning_rate[:, None, None]

    @property
    def field(self) -> Tensor:
        return self._transposed.detach().mT

    def step(self, x: Tensor, y: Tensor) -> None:
        """One step along the gradient of the squared error, mean over samples, that autograd gives."""
        squares = torch.nn.functional.mse_loss(torch.bmm(x, self._transposed), y, reduction="sum")
        (gradient,) = torch.autograd.grad(squares / x.shape[1], self._transposed)
        with torch.no_grad():
            self._transposed.addcmul_(gradient, self._rate, value=-1)


def steps_until(
    yardstick: Yardstick,
    field: Tensor,
    advance: Advance,
    fraction: float,
    max_steps: Tensor,
    *,
    resolution: float = 0.02,
) -> tuple[Tensor, Tensor]:
    """Measured steps until the excess risk has fallen to a fraction of its start.

    The excess is looked at on a geometric grid of steps and interpolated (its log against steps). Problems
    that are done leave the batch, so that the few slow ones do not pay for the many fast ones.

    Args:
        yardstick: what measures the excess risk, for all problems.
        field: where to start, shape (problems, dim_out, dim).
        advance: `advance(active, field, steps)` takes the fields of the problems `active` so many steps on.
        fraction: accuracy, relative to the start, in (0, 1).
        max_steps: where to give up, for each problem, shape (problems,).
        resolution: relative spacing of the looks.

    Returns:
        Steps for the yardstick's first direction (the lowest) and for the total, each (problems,); infinite
        where `max_steps` did not suffice (looked at with the same resolution), zero where the start is
        already the best field.
    """
    active = torch.arange(len(field))
    previous = _first_and_total(yardstick, field)
    reached = torch.full_like(previous, math.inf).masked_fill(previous <= 0, 0.0)
    previous = previous.clamp(min=1e-300)
    goal = fraction * previous
    step = 0
    while len(active):
        stride = max(1, int(step * resolution))
        field = advance(active, field, stride)
        now = _first_and_total(yardstick, field)
        # A log of zero would poison the interpolation; a vanished excess has crossed at this look.
        share = ((previous / goal).log() / (previous / now.clamp(min=1e-300)).log()).clamp(0, 1)
        crossed = (now <= goal) & reached[active].isinf()
        reached[active] = torch.where(crossed, step + share * stride, reached[active])
        step += stride
        left = reached[active].isinf().any(1) & (max_steps[active] > step)
        active, field, previous, goal = active[left], field[left], now[left], goal[left]
        yardstick = yardstick.part(left)
    return reached[:, 0], reached[:, 1]


def descent_advance(x: Tensor, y: Tensor, learning_rate: Tensor) -> Advance:
    """Gradient descent on fixed samples, for `steps_until`; shapes as in `descend`."""

    def advance(active: Tensor, field: Tensor, steps: int) -> Tensor:
        return next(descend(x[active], y[active], field, learning_rate[active], [steps]))[1]

    return advance


def stochastic_advance(
    problems: Problems, learning_rate: Tensor, batch_size: int, generator: torch.Generator
) -> Advance:
    """Stochastic descent on fresh batches, for `steps_until`; arguments as in `stochastic_descend`."""

    def advance(active: Tensor, field: Tensor, steps: int) -> Tensor:
        part, rate = problems.part(active), learning_rate[active]
        walk = stochastic_descend(part, field, rate, [steps], batch_size=batch_size, generator=generator)
        return next(walk)[1]

    return advance


def _first_and_total(yardstick: Yardstick, field: Tensor) -> Tensor:
    excess = yardstick.excess(field)
    return torch.stack([excess[:, 0], excess.sum(1)], dim=1)
