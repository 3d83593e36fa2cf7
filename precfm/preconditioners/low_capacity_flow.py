"""A low-capacity flow behind a whitening: a small velocity field, integrated from data to noise."""

import copy
import math
from typing import Annotated

import torch
from torch import Tensor, nn

from precfm.core.errors import PrecfmError
from precfm.core.options import Bound, Count, Fraction, Natural, Patience, Positive, Share, checked
from precfm.core.seeds import generator_for
from precfm.flows.models.mlp import MLPVelocity
from precfm.flows.objectives import flow_matching_loss
from precfm.flows.paths import LinearPath
from precfm.flows.sampling import integrate
from precfm.preconditioners.base import FitData
from precfm.preconditioners.learned import LearnedPreconditioner

MARGIN = 4.0  # by which it must stay below the tolerance there, since later points may lie further out
DIVERGED = 2.0  # times the validation loss of a field that is zero, above which a fit is refused
VALIDATION_DRAWS = 8  # noises and times per validation row


class LowCapacityFlow(LearnedPreconditioner):
    """Whitens data, then carries it from data to noise along a small field learned by flow matching.

    The field is integrated by the midpoint method on a fixed grid, from t = 1 to 0 in `forward` and back in
    `inverse`. A numerical solution is not exactly reversible, so the fit measures the round trip on the data
    and on its tails, and doubles the number of steps until the error is well below `tolerance`.

    Arguments:
        conditional: whether the velocity depends on the label.
        width: hidden units per layer of the velocity network.
        depth: hidden layers of the velocity network.
        tolerance: largest round-trip error, relative to the smallest standard deviation of the data.
        solver_steps: midpoint steps to begin with.
        max_solver_steps: most midpoint steps; if these do not suffice, the fit is refused.
        shrinkage: shrinkage of the whitening before the flow, as in `Whitening`.
        steps: most training steps.
        batch_size: rows per step.
        learning_rate: peak learning rate of a cosine schedule.
        validate_every: steps between two validations.
        patience: validations without improvement after which training stops; 0 never stops early.
        validation_share: part of the data held out if `fit` gets no validation data.

    References:
        | Preconditioned (Score and) Flow Matching (Ahamed et al., 2026), low-capacity flow matching
        | https://arxiv.org/abs/2603.02337
    """

    uses_seed = True
    has_log_det = False

    midpoint_steps: Tensor

    @checked
    def __init__(
        self,
        conditional: bool = True,
        width: Count = 64,
        depth: Count = 2,
        tolerance: Positive = 1e-2,
        solver_steps: Count = 25,
        max_solver_steps: Annotated[
            int,
            Bound(lambda n, others: n >= others["solver_steps"], "at least solver_steps ({solver_steps})"),
        ] = 400,
        shrinkage: Share = 0.0,
        steps: Count = 1500,
        batch_size: Count = 256,
        learning_rate: Positive = 2e-3,
        validate_every: Natural = 100,
        patience: Patience = 5,
        validation_share: Fraction = 0.1,
    ) -> None:
        super().__init__(
            conditional=conditional,
            shrinkage=shrinkage,
            steps=steps,
            batch_size=batch_size,
            learning_rate=learning_rate,
            validate_every=validate_every,
            patience=patience,
            validation_share=validation_share,
        )
        self.width, self.depth = width, depth
        self.tolerance = self.round_trip_tolerance = tolerance
        self.solver_steps, self.max_solver_steps = solver_steps, max_solver_steps

    def _allocate(self) -> None:
        super()._allocate()
        self.register_buffer("midpoint_steps", torch.tensor(self.solver_steps, device=self.anchor.device))

    def _build(self) -> nn.Module:
        return MLPVelocity(self.features, len(self.classes), width=self.width, depth=self.depth)

    def _loss(self, network: nn.Module, batch: tuple[Tensor, ...], generator: torch.Generator) -> Tensor:
        white, classes = batch if len(batch) == 2 else (batch[0], None)
        return flow_matching_loss(network, LinearPath(), white, classes, generator)

    def _validation_loss(
        self, network: nn.Module, batch: tuple[Tensor, ...], generator: torch.Generator
    ) -> Tensor:
        repeated = tuple(tensor.repeat_interleave(VALIDATION_DRAWS, dim=0) for tensor in batch)
        return self._loss(network, repeated, generator)

    def _settle(self, data: FitData) -> None:
        """Raise the number of midpoint steps until the map is reversible within the tolerance."""
        steps = self.solver_steps
        self._check_loss(data)
        while not (error := self._error(data, steps)) * MARGIN <= self.tolerance:
            if 2 * steps > self.max_solver_steps:
                raise PrecfmError(
                    f"max_solver_steps: {self.max_solver_steps} are too few for a reversible map (round-trip "
                    f"error {error:.2g} at {steps} steps, but at most {self.tolerance / MARGIN:.2g} is "
                    "accepted); raise it, raise tolerance or lower width"
                )
            steps *= 2
        self.notes.append(
            f"{steps} midpoint steps: round-trip error {error:.1e} of the smallest standard deviation, tails "
            "included"
        )

    def _check_loss(self, data: FitData) -> None:
        """Refuse a field that is far worse than none at all, whose loss is the variance of data and noise."""
        assert data.x_validation is not None
        batch = self._tensors(data.x_validation, data.classes_validation)
        network = copy.deepcopy(self.network).float()
        generator = generator_for(data.seed, "validation loss", device=data.x.device)
        loss = float(self._validation_loss(network, batch, generator))
        none = float(batch[0].square().mean()) + 1
        if not loss <= DIVERGED * none:
            raise PrecfmError(
                f"LowCapacityFlow: diverged: the best validation loss is {loss:.3g}, but a field that is zero "
                f"has {none:.3g}; lower learning_rate (now {self.learning_rate:g})"
            )

    def _error(self, data: FitData, steps: int) -> float:
        """Round-trip error with so many steps; infinite if the solution leaves the finite numbers."""
        self.midpoint_steps.fill_(steps)
        try:
            return self._round_trip(data, self._smallest_std)
        except PrecfmError:
            return math.inf

    def _forward(self, x: Tensor, classes: Tensor | None) -> Tensor:
        return self._carry(self.whitening._forward(x, None), classes, t0=1.0, t1=0.0)

    def _inverse(self, z: Tensor, classes: Tensor | None) -> Tensor:
        return self.whitening._inverse(self._carry(z, classes, t0=0.0, t1=1.0), None)

    def _carry(self, start: Tensor, classes: Tensor | None, t0: float, t1: float) -> Tensor:
        steps = int(self.midpoint_steps)
        return integrate(self.network, start, classes, solver="midpoint", steps=steps, t0=t0, t1=t1)

    def _log_abs_det(self, x: Tensor, classes: Tensor | None) -> Tensor:
        raise PrecfmError("LowCapacityFlow: this map has no closed-form Jacobian determinant")
