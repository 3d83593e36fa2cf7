"""The random numbers of a training: all drawn by the CPU, whatever the device.

A device then changes the rounding of a training, and nothing else.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from precfm.core.seeds import derived_seed


class Objective(Protocol):
    """What a training minimises."""

    def draw(self, batch_size: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Every random number of one step.

        Args:
            batch_size: rows of the mini-batch.
            generator: of the CPU.

        Returns:
            Tensors on the CPU; none if the loss is not random. Where a mini-batch is cut into parts, a tensor whose
            length is `batch_size` is cut with it, and every part gets the whole of any other.
        """

    def loss(self, module: nn.Module, batch: tuple[Tensor, ...], draws: tuple[Tensor, ...]) -> Tensor:
        """The loss of a mini-batch.

        Args:
            module: what is trained.
            batch: rows of the data.
            draws: what `draw` returned, on the device of the data.

        Returns:
            A scalar with gradient.
        """


@dataclass(frozen=True)
class NotRandom:
    """The objective of a loss that needs no random numbers.

    Attributes:
        function: `function(module, batch)` returns the loss, a scalar.
    """

    function: Callable[[nn.Module, tuple[Tensor, ...]], Tensor]

    def draw(self, batch_size: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Nothing."""
        return ()

    def loss(self, module: nn.Module, batch: tuple[Tensor, ...], draws: tuple[Tensor, ...]) -> Tensor:
        """The loss of a mini-batch."""
        return self.function(module, batch)


def draws_of_step(
    objective: Objective, rows: int, batch_size: int, seed: int, step: int
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The rows of a step's mini-batch, drawn with replacement, and the draws of its loss: a function of (seed, step).

    Args:
        objective: says what to draw.
        rows: number of rows of the data.
        batch_size: rows of a mini-batch.
        seed: of the training.
        step: counted from 0.

    Returns:
        Row indices, int64, shape (batch_size,), and the objective's draws; all on the CPU.
    """
    generator = torch.Generator().manual_seed(derived_seed(seed, "step", step))
    chosen = torch.randint(rows, (batch_size,), generator=generator)
    return chosen, objective.draw(batch_size, generator)
