"""The random numbers of a training: all drawn by the CPU, for blocks of steps ahead, whatever the device.

A device then changes the rounding of a training, and nothing else.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from precfm.core.seeds import derived_seed

BLOCK_STEPS = 64  # steps whose draws go to an accelerator together
BLOCK_BYTES = 2**26  # fewer steps, if their draws are larger


class Objective(Protocol):
    """What a training minimises."""

    def draw(self, batch_size: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Every random number of one step.

        Args:
            batch_size: rows of the mini-batch.
            generator: of the CPU.

        Returns:
            Tensors on the CPU; none if the loss is not random. Their shapes are the same at every step.
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


def draws_of_steps(
    objective: Objective, rows: int, batch_size: int, seed: int, steps: range, device: torch.device
) -> Iterator[tuple[Tensor, tuple[Tensor, ...]]]:
    """For each step the rows of its mini-batch, drawn with replacement, and the draws of its loss.

    Args:
        objective: says what to draw.
        rows: number of rows of the data.
        batch_size: rows of a mini-batch.
        seed: the draws of step k are a function of (seed, k).
        steps: the steps, counted from 0.
        device: where the draws are needed.

    Yields:
        Row indices, int64, shape (batch_size,), and the objective's draws; all on the device.
    """
    generator, position = torch.Generator(), steps.start

    def draw(step: int) -> list[Tensor]:
        generator.manual_seed(derived_seed(seed, "step", step))
        chosen = torch.randint(rows, (batch_size,), generator=generator)
        return [chosen, *objective.draw(batch_size, generator)]

    while position < steps.stop:
        first = draw(position)
        if device.type == "cpu":
            block = [first]
        else:
            size = sum(tensor.nbytes for tensor in first)
            ahead = max(1, min(BLOCK_STEPS, BLOCK_BYTES // size, steps.stop - position))
            several = [first, *(draw(position + step) for step in range(1, ahead))]
            stacked = [torch.stack(each).to(device) for each in zip(*several, strict=True)]
            block = [[tensor[step] for tensor in stacked] for step in range(ahead)]
        for chosen, *draws in block:
            yield chosen, tuple(draws)
        position += len(block)
