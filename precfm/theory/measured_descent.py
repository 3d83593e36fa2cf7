"""Measured descent: samples, a loss, autograd; nothing here knows the closed forms that it is compared with.

The sum of the losses of a batch of problems has independent gradients, so that one backward pass serves all. Batches
are cut into blocks that fit the processor's cache: the results do not depend on it for gradient descent, and only
through the random draws for stochastic descent.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeAlias

import torch
from torch import Tensor

from precfm.theory.linear_regression import ALMOST_ZERO, first_and_total
from precfm.theory.sampled_regression import EmpiricalExcess, GaussianRegressions


@dataclass(frozen=True)
class FixedSamples:
    """The same samples at every step: gradient descent.

    Attributes:
        x: inputs, shape (problems, n, dim).
        y: targets, shape (problems, n, dim_out).
    """

    x: Tensor
    y: Tensor

    def draw(self) -> tuple[Tensor, Tensor]:
        """All samples."""
        return self.x, self.y

    def part(self, index: Tensor) -> "FixedSamples":
        """Those of some problems."""
        return FixedSamples(self.x[index], self.y[index])


@dataclass(frozen=True)
class FreshSamples:
    """A fresh mini-batch for every step and problem: stochastic gradient descent.

    Attributes:
        problems: where the samples are drawn from.
        batch_size: samples a step.
        generator: where the draws come from.
    """

    problems: GaussianRegressions
    batch_size: int
    generator: torch.Generator

    def draw(self) -> tuple[Tensor, Tensor]:
        """One mini-batch for each problem, shape (problems, batch_size, dim)."""
        shape = (2, len(self.problems), self.batch_size, self.problems.eigenvalues.shape[1])
        normal0, normal1 = torch.randn(shape, generator=self.generator).to(torch.float64)
        return self.problems.samples(normal0, normal1)

    def part(self, index: Tensor) -> "FreshSamples":
        """Those of some problems."""
        return FreshSamples(self.problems.part(index), self.batch_size, self.generator)


Samples: TypeAlias = FixedSamples | FreshSamples


def descend(
    samples: Samples, field: Tensor, learning_rate: Tensor, checkpoints: Sequence[int]
) -> Iterator[Tensor]:
    """Descent by autograd on the squared error, summed over outputs, mean over samples.

    Args:
        samples: what the loss is taken over.
        field: where to start, shape (problems, dim_out, dim).
        learning_rate: one for each problem, shape (problems,).
        checkpoints: numbers of steps, ascending.

    Yields:
        The fields after so many steps, shape (problems, dim_out, dim).
    """
    # Transposed, so that every product reads its operands in order.
    transposed = field.mT.clone(memory_format=torch.contiguous_format).requires_grad_()
    rate = learning_rate[:, None, None]
    for before, after in pairwise([0, *checkpoints]):
        for _ in range(after - before):
            x, y = samples.draw()
            squares = torch.nn.functional.mse_loss(torch.bmm(x, transposed), y, reduction="sum")
            (gradient,) = torch.autograd.grad(squares / x.shape[1], transposed)
            with torch.no_grad():
                transposed.addcmul_(gradient, rate, value=-1)
        yield transposed.detach().clone().mT


def steps_until(
    samples: Samples,
    excess_of: EmpiricalExcess,
    field: Tensor,
    learning_rate: Tensor,
    fraction: float,
    max_steps: Tensor,
    *,
    resolution: float = 0.02,
) -> tuple[Tensor, Tensor]:
    """Measured steps until the excess risk has fallen to a fraction of its start.

    The excess is looked at on a geometric grid of steps and interpolated (its log against steps). Problems
    that are done leave the batch, so that the few slow ones do not pay for the many fast ones.

    Args:
        samples: what the descent sees.
        excess_of: what measures the excess risk.
        field: where to start, shape (problems, dim_out, dim).
        learning_rate: one for each problem, shape (problems,).
        fraction: accuracy, relative to the start, in (0, 1).
        max_steps: where to give up, for each problem, shape (problems,).
        resolution: relative spacing of the looks.

    Returns:
        Steps for the first direction of `excess_of` and for the total, each (problems,); infinite where
        `max_steps` did not suffice (looked at with the same resolution), zero where the start is already the best
        field.
    """
    active = torch.arange(len(field))
    previous = first_and_total(excess_of(field))
    reached = torch.full_like(previous, math.inf).masked_fill(previous <= 0, 0.0)
    previous = previous.clamp(min=ALMOST_ZERO)
    goal = fraction * previous
    step = 0
    while len(active):
        stride = max(1, int(step * resolution))
        (field,) = descend(samples, field, learning_rate, [stride])
        now = first_and_total(excess_of(field))
        # A log of zero would poison the interpolation; a vanished excess has crossed at this look.
        share = ((previous / goal).log() / (previous / now.clamp(min=ALMOST_ZERO)).log()).clamp(0, 1)
        crossed = (now <= goal) & reached[:, active].isinf()
        reached[:, active] = torch.where(crossed, step + share * stride, reached[:, active])
        step += stride
        left = reached[:, active].isinf().any(0) & (max_steps[active] > step)
        if not bool(left.all()):
            samples, excess_of = samples.part(left), excess_of.part(left)
            field, learning_rate = field[left], learning_rate[left]
            active, now, goal = active[left], now[:, left], goal[:, left]
        previous = now
    return reached[0], reached[1]
