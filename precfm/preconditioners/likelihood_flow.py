"""What normalizing flows have in common: maximum likelihood behind a first map, and what a fit refuses and notes."""

import math
from abc import abstractmethod

import torch
from torch import Tensor, nn

from precfm.core.errors import PrecfmError
from precfm.core.registry import name_of
from precfm.core.seeds import generator_for
from precfm.preconditioners.fit_data import FitRows
from precfm.preconditioners.learned import LearnedPreconditioner
from precfm.preconditioners.round_trip import TAIL, fitting_error
from precfm.training.draws import NotRandom, Objective

MAX_SHIFT = 5.0  # in standard deviations of the whitened data
DIVERGED = 1.0  # nats per feature by which the likelihood may fall behind whitening, where the flow starts


class LikelihoodFlow(LearnedPreconditioner):
    """A normalizing flow, trained by maximum likelihood, that starts as the identity."""

    @abstractmethod
    def _negative_log_likelihood(
        self, network: nn.Module, white: Tensor, classes: Tensor | None = None
    ) -> Tensor:
        """Mean over whitened rows, in nats."""

    def _objective(self, white: Tensor) -> Objective:
        return NotRandom(lambda network, batch: self._negative_log_likelihood(network, *batch))

    def _settle(self, data: FitRows, validation_loss: float) -> None:
        """Refuse what diverged; note the likelihood beside that of whitening alone, and where the tails go."""
        assert data.x_validation is not None
        white = self.whitening._forward(data.x_validation, None)
        gaussian = float(0.5 * (white.square() + math.log(2 * math.pi)).sum(dim=1).mean())
        if not validation_loss <= gaussian + DIVERGED * self.features:
            raise PrecfmError(
                f"learning_rate: got {self.learning_rate:g}, and the training diverged: the best validation NLL is "
                f"{validation_loss:.4g} nats, but whitening alone, where the flow starts, has {gaussian:.4g}; a lower "
                "one is needed"
            )
        if (
            not (error := fitting_error(self, data, self._smallest_std(data)))
            <= self.round_trip_tolerance / 2
        ):
            raise PrecfmError(
                f"{self._name}: the round-trip error is {error:.2g} smallest standard deviations; at most "
                f"{self.round_trip_tolerance / 2:.2g} is accepted: lower max_log_scale or transforms"
            )
        self.notes.append(
            f"validation NLL {validation_loss:.3f} nats after whitening; whitening alone has {gaussian:.3f}"
        )
        if validation_loss >= gaussian:
            first = name_of("preconditioners", type(self.whitening))
            self.notes.append(f"the flow does not beat whitening alone on the validation data: use '{first}'")
        noise = torch.randn(data.x.shape, generator=generator_for(data.seed, "tails"), dtype=torch.float64)
        tail = self.whitening._forward(self._inverse(TAIL * noise.to(white), data.classes), None)
        reach = float(tail.abs().max() / self.whitening._forward(data.x, None).abs().max())
        self.notes.append(
            f"z of {TAIL} N(0, I) maps to at most {reach:.2f} times the range of the whitened data"
        )
