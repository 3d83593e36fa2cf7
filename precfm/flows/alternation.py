"""One training in several spaces, one after the other: what alternates a map and the flow behind it."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from precfm.flows.objectives import VelocityObjective


class CountedSteps(nn.Module):
    """A network, and how many losses it has had in training, which its state dict carries: a resumed training goes on.

    Args:
        network: what is trained.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.taken = network, 0

    def get_extra_state(self) -> Tensor:
        """The count, where the weights are; a number on the host costs an accelerator no wait at each step."""
        return torch.tensor(self.taken, device=next(self.network.parameters()).device)

    def set_extra_state(self, state: Tensor) -> None:
        """Take a saved count."""
        self.taken = int(state)


@dataclass(frozen=True)
class InTurn:
    """An objective of the trainer that is one objective after the other, each for an equal share of the steps.

    A mini-batch is the same rows in every space, then their labels if there are any. All objectives get the same random
    numbers, so that equal spaces are one.

    Attributes:
        objectives: prepared, one for each space.
        steps: of the whole training.
    """

    objectives: Sequence[VelocityObjective]
    steps: int

    @property
    def couples_rows(self) -> bool:
        """Whether that of any space does."""
        return any(objective.couples_rows for objective in self.objectives)

    def draw(self, batch_size: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        """The draws of every objective."""
        state, found = generator.get_state(), list[Tensor]()
        for objective in self.objectives:
            generator.set_state(state)
            found.extend(objective.draw(batch_size, generator))
        return tuple(found)

    def loss(self, module: nn.Module, batch: tuple[Tensor, ...], draws: tuple[Tensor, ...]) -> Tensor:
        """The loss in the space whose turn it is."""
        assert isinstance(module, CountedSteps)
        spaces = len(self.objectives)
        turn, each = module.taken * spaces // self.steps, len(draws) // spaces
        module.taken += 1
        own = draws[turn * each : (turn + 1) * each]
        return self.objectives[turn].loss(module.network, (batch[turn], *batch[spaces:]), own)
