"""The flow of a Gaussian mixture as a map: from data to noise along the mixture's own exact velocity."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torchdiffeq import odeint

from precfm.core.errors import PrecfmError
from precfm.core.options import Count, Positive, checked
from precfm.core.seeds import generator_for
from precfm.flows.gaussian_mixture import ClassMixture
from precfm.flows.paths import LinearPath
from precfm.flows.sampling import equal_steps
from precfm.preconditioners.base import Preconditioner
from precfm.preconditioners.fit_data import FitData, FitRows
from precfm.preconditioners.round_trip import TAIL
from precfm.preconditioners.symmetric_power import Shrinkage
from precfm.preconditioners.whitening import Whitening

PATH = LinearPath()
FLOORS = (
    0.1,
    0.2,
    0.3,
    0.5,
    1.0,
)  # of the variances, as shares of the pooled ones: tried one after the other
MARGIN = (
    4.0  # by which the error must stay below the tolerance in a fit, since later points may lie further out
)
SEARCHED, MEASURED = 2000, 50  # points that a rough solution looks at, and the worst of them, which count
ROUGH = 8  # times fewer steps of that solution
JACOBIAN_ROWS = 64  # points whose Jacobians are held at once: what a core's cache holds


class MixtureFlow(Preconditioner):
    """Whitens data, then carries it to noise along the exact velocity of a Gaussian mixture fitted to it.

    Nothing is trained: the mixture (`precfm.flows.gaussian_mixture.ClassMixture`, one for each class where
    `conditional`) gives the velocity of the linear path in closed form. The ODE is solved by a Runge-Kutta method of
    fourth order with equal steps of s, t = 1 - (1 - s)^2, which are small near the data where components are narrow.

    The map presses points between two narrow components together, so much that single precision, and any number of
    steps, loses them. The likeliest mixture is therefore made smoother where it has to be: the fit measures the round
    trip in single precision on the worst of its rows and of the tails, and raises the variances until the error is well
    below `tolerance`. The log-determinant is that of the numerical solution, from its whole Jacobian.

    Arguments:
        components: Gaussians for each class.
        solver_steps: of the solver, of four evaluations each.
        conditional: whether each class has its own mixture, where a fit gets labels.
        shrinkage: of the whitening before, as in `Whitening`.
        tolerance: largest round-trip error, relative to the smallest standard deviation of the data.

    References:
        | Score-Based Generative Modeling through SDEs (Song et al., 2020), section 4.3, the probability-flow ODE
        | https://arxiv.org/abs/2011.13456
    """

    uses_seed = True

    whitening: Whitening
    mixture: ClassMixture

    @checked
    def __init__(
        self,
        *,
        components: Count = 10,
        solver_steps: Count = 120,
        conditional: bool = True,
        shrinkage: Shrinkage = 0.0,
        tolerance: Positive = 1e-2,
    ) -> None:
        super().__init__()
        self.components, self.solver_steps, self.shrinkage = components, solver_steps, shrinkage
        self.conditional = self.needs_labels = conditional
        self.tolerance = self.round_trip_tolerance = tolerance

    @property
    def num_parameters(self) -> int:
        """Free numbers of the whitening and the mixture."""
        return self.whitening.num_parameters + self.mixture.num_numbers

    def _expect_labels(self, given: bool) -> None:
        self.needs_labels = self.conditional and given
        if self.conditional and not given:
            self.notes.append("there are no labels: one mixture holds all rows")

    def _allocate(self) -> None:
        self.whitening = Whitening(shrinkage=self.shrinkage).to(self.anchor)
        self.whitening.allocate((self.features,), ())
        self.mixture = ClassMixture(self.features, max(len(self.classes), 1), self.components).to(self.anchor)

    def _fit(self, data: FitData) -> int:
        rows = data.rows()
        self._allocate()
        self.whitening.fit(rows.x)
        self.notes.extend(self.whitening.notes)
        held_out = None
        if rows.x_validation is not None:
            validation = self.whitening._forward(rows.x_validation, None)
            held_out = validation, self._classes(validation, rows.classes_validation)
        white = self.whitening._forward(rows.x, None)
        self.notes.extend(
            self.mixture.fit(white, self._classes(white, rows.classes), held_out, seed=rows.seed)
        )
        self._smooth(rows)
        return self.whitening.flops_per_fit + int(self.mixture.flops)

    def _smooth(self, rows: FitRows) -> None:
        """Raise the variances until the map is reversible within the tolerance."""
        every = -(-len(rows.x) // SEARCHED)
        x, classes = rows.x[::every], None if rows.classes is None else rows.classes[::every]
        noise = torch.randn(x.shape, generator=generator_for(rows.seed, "tails"), dtype=torch.float64).to(x)
        error = math.inf
        for floor in (0.0, *FLOORS):
            if floor and floor <= float(self.mixture.floor):
                continue
            self.mixture.raise_variances(floor)
            error = self._worst_error(x, classes)
            if error * MARGIN <= self.tolerance:
                error = max(error, self._worst_error(self._inverse(TAIL * noise, classes), classes))
            if error * MARGIN <= self.tolerance:
                break
        else:
            raise PrecfmError(
                f"solver_steps: got {self.solver_steps}, too few for a reversible map: the round-trip error is "
                f"{error:.2g}; at most {self.tolerance / MARGIN:.2g} is accepted: raise them, raise tolerance or lower "
                "components"
            )
        self.notes.append(
            f"the map's mixture has variances of at least {float(self.mixture.floor):g} of the pooled ones: round-trip "
            f"error {error:.1e} of the smallest standard deviation in single precision, tails included"
        )

    def _worst_error(self, x: Tensor, classes: Tensor | None) -> float:
        """The largest round-trip error, on the points where a rough solution has the largest ones."""
        rough = self._errors(x, classes, max(1, self.solver_steps // ROUGH))
        worst = rough.topk(min(MEASURED, len(x))).indices
        found = self._errors(x[worst], None if classes is None else classes[worst], self.solver_steps)
        return float(found.max())

    def _errors(self, x: Tensor, classes: Tensor | None, steps: int) -> Tensor:
        z = self._forward(x, classes, steps).float().to(x)
        errors = (self._inverse(z, classes, steps) - x).abs().amax(1)
        unit = 1 / float(
            torch.linalg.matrix_norm(self.whitening.matrix, ord=2)
        )  # the smallest standard deviation
        return (errors / unit).nan_to_num(nan=math.inf)

    def _forward(self, x: Tensor, classes: Tensor | None, steps: int | None = None) -> Tensor:
        rows, chosen = self._rotated(x, classes)
        return self._carry(rows, chosen, 1.0, 0.0, steps) @ self.mixture.basis.T

    def _inverse(self, z: Tensor, classes: Tensor | None, steps: int | None = None) -> Tensor:
        chosen = self._classes(z, classes)
        rows = self._carry(z @ self.mixture.basis, chosen, 0.0, 1.0, steps)
        white = rows @ self.mixture.basis.T + self.mixture.class_means[chosen]
        return self.whitening._inverse(white, None)

    def _carry(self, rows: Tensor, classes: Tensor, start: float, end: float, steps: int | None) -> Tensor:
        """Solve for rows relative to t times their class's mean, from one s to another."""

        def field(s: Tensor, state: tuple[Tensor]) -> tuple[Tensor]:
            t, slope = _time(s, len(rows))
            return (slope * self.mixture.velocity(state[0], t, classes, PATH),)

        return _solved(field, (rows,), start, end, steps or self.solver_steps)[0]

    def _log_abs_det(self, x: Tensor, classes: Tensor | None) -> Tensor:
        """Of the numerical solution as it is: the same steps carry its Jacobian along with the points."""
        rows, chosen = self._rotated(x, classes)
        found = []
        for first in range(0, len(rows), JACOBIAN_ROWS):
            start, asked = rows[first : first + JACOBIAN_ROWS], chosen[first : first + JACOBIAN_ROWS]

            def field(
                s: Tensor, state: tuple[Tensor, Tensor], asked: Tensor = asked
            ) -> tuple[Tensor, Tensor]:
                t, slope = _time(s, len(asked))
                velocity = self.mixture.velocity(state[0], t, asked, PATH)
                jacobian = self.mixture.jacobian(state[0], t, asked, PATH)
                return slope * velocity, slope * (jacobian @ state[1])

            unit = torch.eye(self.features, dtype=x.dtype, device=x.device).expand(len(start), -1, -1)
            columns = _solved(field, (start, unit), 1.0, 0.0, self.solver_steps)[1]
            found.append(torch.linalg.slogdet(columns.double()).logabsdet)
        log_det: Tensor = self.whitening.log_det + torch.cat(found).to(x.dtype)
        return log_det

    def _rotated(self, x: Tensor, classes: Tensor | None) -> tuple[Tensor, Tensor]:
        """White rows in the mixture's basis, relative to their class's mean, and their classes."""
        chosen = self._classes(x, classes)
        return self.mixture.to_eigenbasis(self.whitening._forward(x, None), chosen), chosen

    @staticmethod
    def _classes(rows: Tensor, classes: Tensor | None) -> Tensor:
        return torch.zeros(len(rows), dtype=torch.int64, device=rows.device) if classes is None else classes


def _time(s: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    """t = 1 - (1 - s)^2 for so many rows, and its derivative."""
    return (1 - (1 - s) ** 2).expand(rows, 1), 2 * (1 - s)


def _solved(
    field: Callable[[Tensor, Any], Any], start: tuple[Tensor, ...], begin: float, end: float, steps: int
) -> list[Tensor]:
    """Where an ODE of several tensors ends."""
    ends = start[0].new_tensor([begin, end])
    return [path[-1] for path in odeint(field, start, ends, method="rk4", options=equal_steps(steps))]
