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
    objective: Objective,
    rows: int,
    batch_size: int,
    seed: int,
    steps: range,
    device: torch.device,
    *,
    ahead: int | None = None,
) -> Iterator[tuple[Tensor, tuple[Tensor, ...]]]:
    """For each step the rows of its mini-batch, drawn with replacement, and the draws of its loss.

    Args:
        objective: says what to draw.
        rows: number of rows of the data.
        batch_size: rows of a mini-batch.
        seed: the draws of step k are a function of (seed, k).
        steps: the steps, counted from 0.
        device: where the draws are needed.
        ahead: most steps that are drawn and moved together; None for one on the CPU and `BLOCK_STEPS` elsewhere,
            where each move makes the host wait. The draws do not depend on it.

    Yields:
        Row indices, int64, shape (batch_size,), and the objective's draws; all on the device.
    """
    most = ahead or (1 if device.type == "cpu" else BLOCK_STEPS)
    generator = torch.Generator()

    def draw(step: int) -> list[Tensor]:
        generator.manual_seed(derived_seed(seed, "step", step))
        chosen = torch.randint(rows, (batch_size,), generator=generator)
        return [chosen, *objective.draw(batch_size, generator)]

    position = steps.start
    while position < steps.stop:
        first = draw(position)
        fitting = BLOCK_BYTES // sum(tensor.nbytes for tensor in first)
        end = min(position + max(1, min(most, fitting)), steps.stop)
        several = [first, *map(draw, range(position + 1, end))]
        stacked = [torch.stack(each).to(device) for each in zip(*several, strict=True)]
        for chosen, *draws in zip(*stacked, strict=True):
            yield chosen, tuple(draws)
        position = end
