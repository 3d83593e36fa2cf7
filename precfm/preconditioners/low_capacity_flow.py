"""A low-capacity flow behind a whitening: a small velocity field, integrated from data to noise."""

import math
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.func import jvp, vmap
from torchdiffeq import odeint

from precfm.core.errors import PrecfmError
from precfm.core.options import Count, Positive, checked
from precfm.flows.models.mlp import MLPVelocity
from precfm.flows.objectives import FlowMatching
from precfm.flows.paths import LinearPath
from precfm.flows.sampling import equal_steps, integrate
from precfm.preconditioners.fit_data import FitRows
from precfm.preconditioners.learned import LearnedPreconditioner
from precfm.preconditioners.round_trip import POINTS, fitting_error
from precfm.training.draws import Objective

JACOBIAN_ROWS = 128  # points, and
JACOBIAN_CHUNK = 16  # directions of a Jacobian at once: what a core's cache holds
MARGIN = (
    4.0  # by which the error must stay below the tolerance in a fit, since later points may lie further out
)
DIVERGED = 2.0  # times the validation loss of a field that is zero, above which a fit is refused


class LowCapacityFlow(LearnedPreconditioner):
    """Whitens data, then carries it from data to noise along a small field learned by flow matching.

    The field is integrated by the midpoint method on a fixed grid, from t = 1 to 0 in `forward` and back in
    `inverse`. A numerical solution is not exactly reversible, so the fit measures the round trip on the data
    and on its tails, and doubles the number of steps until the error is well below `tolerance`.

    Arguments:
        width: hidden units per layer of the velocity network.
        depth: hidden layers of the velocity network.
        tolerance: largest round-trip error, relative to the smallest standard deviation of the data.
        solver_steps: midpoint steps to begin with.
        max_solver_steps: most midpoint steps; if these do not suffice, the fit is refused.
        inherited: see `LearnedPreconditioner`.

    References:
        | Preconditioned (Score and) Flow Matching (Ahamed et al., 2026), low-capacity flow matching
        | https://arxiv.org/abs/2603.02337
    """

    validation_draws = 8
    solver: ClassVar[Literal["midpoint", "rk4"]] = "midpoint"
    error_points = POINTS  # rows on which a fit measures the round trip

    midpoint_steps: Tensor

    @checked
    def __init__(
        self,
        *,
        width: Count = 64,
        depth: Count = 2,
        tolerance: Positive = 1e-2,
        solver_steps: Count = 25,
        max_solver_steps: Count = 400,
        learning_rate: Positive = 2e-3,
        **inherited: Any,
    ) -> None:
        super().__init__(learning_rate=learning_rate, **inherited)
        if max_solver_steps < solver_steps:
            raise PrecfmError(
                f"max_solver_steps: got {max_solver_steps}; at least solver_steps ({solver_steps}) is needed"
            )
        self.width, self.depth = width, depth
        self.tolerance = self.round_trip_tolerance = tolerance
        self.solver_steps, self.max_solver_steps = solver_steps, max_solver_steps

    def _allocate(self) -> None:
        super()._allocate()
        self._set_steps(self.solver_steps)

    def _set_steps(self, steps: int) -> None:
        self.register_buffer("midpoint_steps", torch.tensor(steps, device=self.anchor.device))

    def _build(self) -> nn.Module:
        return MLPVelocity(self.features, len(self.classes), width=self.width, depth=self.depth)

    def _objective(self, white: Tensor) -> Objective:
        return FlowMatching().prepare(LinearPath(), white)

    def _settle(self, data: FitRows, validation_loss: float) -> None:
        """Raise the number of midpoint steps until the map is reversible within the tolerance."""
        self._refuse_divergence(data, validation_loss)
        steps = self.solver_steps
        while not (error := self._error(data, steps)) * MARGIN <= self.tolerance:
            if 2 * steps > self.max_solver_steps:
                raise PrecfmError(
                    f"max_solver_steps: got {self.max_solver_steps}, too few for a reversible map: the round-trip "
                    f"error is {error:.2g} at {steps} steps; at most {self.tolerance / MARGIN:.2g} is accepted: "
                    "raise it, raise tolerance or lower width"
                )
            steps *= 2
        self.notes.append(
            f"{steps} {self.solver} steps: round-trip error {error:.1e} of the smallest standard deviation, tails "
            "included"
        )

    def _refuse_divergence(self, data: FitRows, validation_loss: float) -> None:
        """Refuse a field that is far worse than none at all, whose loss is the variance of data and noise."""
        assert data.x_validation is not None
        none = float(self.whitening._forward(data.x_validation, None).square().mean()) + 1
        if not validation_loss <= DIVERGED * none:
            raise PrecfmError(
                f"learning_rate: got {self.learning_rate:g}, and the training diverged: the best validation loss is "
                f"{validation_loss:.3g}, but a field that is zero has {none:.3g}; a lower one is needed"
            )

    def _error(self, data: FitRows, steps: int) -> float:
        """Round-trip error with so many steps; infinite if the solution leaves the finite numbers."""
        self._set_steps(steps)
        try:
            return fitting_error(self, data, self._smallest_std(data), self.error_points)
        except PrecfmError:
            return math.inf

    def _forward(self, x: Tensor, classes: Tensor | None) -> Tensor:
        return self._carry(self.whitening._forward(x, None), classes, t0=1.0, t1=0.0)

    def _inverse(self, z: Tensor, classes: Tensor | None) -> Tensor:
        return self.whitening._inverse(self._carry(z, classes, t0=0.0, t1=1.0), None)

    def _carry(
        self, start: Tensor, classes: Tensor | None, t0: float, t1: float, steps: int | None = None
    ) -> Tensor:
        steps = steps or int(self.midpoint_steps)
        return integrate(self.network, start, classes, solver=self.solver, steps=steps, t0=t0, t1=t1)

    def _log_abs_det(self, x: Tensor, classes: Tensor | None) -> Tensor:
        """Of the numerical solution as it is, from its whole Jacobian: `dim` tangents through all steps."""
        white = self.whitening._forward(x, None)
        options = equal_steps(int(self.midpoint_steps))
        ends = torch.tensor([1.0, 0.0], dtype=x.dtype, device=x.device)
        axes = torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
        found = []
        for first in range(0, len(x), JACOBIAN_ROWS):
            rows = slice(first, first + JACOBIAN_ROWS)
            asked = None if classes is None else classes[rows]

            def carried(start: Tensor, asked: Tensor | None = asked) -> Tensor:
                def field(t: Tensor, z: Tensor) -> Tensor:
                    velocity: Tensor = self.network(z, t.expand(len(z)), asked)
                    return velocity

                solution: Tensor = odeint(field, start, ends, method=self.solver, options=options)[-1]
                return solution

            def moved(axis: Tensor, start: Tensor = white[rows]) -> Tensor:
                tangent: Tensor = jvp(carried, (start,), (axis.expand_as(start),))[1]
                return tangent

            columns: Tensor = vmap(moved, chunk_size=JACOBIAN_CHUNK)(axes)
            found.append(torch.linalg.slogdet(columns.transpose(0, 1).double()).logabsdet)
        log_det: Tensor = self.whitening._log_abs_det(x, None) + torch.cat(found).to(x.dtype)
        return log_det
