"""The flow of a Gaussian mixture as a map: from data to noise along the mixture's own exact velocity."""

import torch
from torch import Tensor
from torchdiffeq import odeint

from precfm.core.errors import PrecfmError
from precfm.core.options import Count, Positive, Share, checked
from precfm.flows.gaussian_mixture import ClassMixture
from precfm.flows.paths import LinearPath
from precfm.flows.sampling import equal_steps
from precfm.preconditioners.base import Preconditioner
from precfm.preconditioners.fit_data import FitData
from precfm.preconditioners.round_trip import fitting_error
from precfm.preconditioners.whitening import Whitening

PATH = LinearPath()
DOUBLINGS = 3  # of the steps, at most


class MixtureFlow(Preconditioner):
    """Whitens data, then carries it to noise along the exact velocity of a Gaussian mixture fitted to it.

    Nothing is trained: the mixture (`precfm.flows.gaussian_mixture.ClassMixture`, one for each class where
    `conditional`) gives the velocity of the linear path and its divergence in closed form. The ODE is solved by a
    Runge-Kutta method of fourth order with equal steps of s, t = 1 - (1 - s)^2, which are small near the data where
    components are narrow. A numerical solution is not exactly reversible, least of all for points between two
    components, so a fit measures the round trip on the data and on their tails, and doubles the steps until it
    suffices. The log-determinant is the integral of the divergence by the same method.

    Arguments:
        components: Gaussians for each class.
        steps: of the solver to begin with, of four evaluations each.
        conditional: whether each class has its own mixture.
        shrinkage: of the whitening before, as in `Whitening`.
        tolerance: largest round-trip error, relative to the smallest standard deviation of the data. A few points
            between two components have it; that of most points is smaller by orders of magnitude.

    References:
        | Score-Based Generative Modeling through SDEs (Song et al., 2020), section 4.3, the probability-flow ODE
        | https://arxiv.org/abs/2011.13456
    """

    uses_seed = True

    whitening: Whitening
    mixture: ClassMixture
    taken_steps: Tensor

    @checked
    def __init__(
        self,
        *,
        components: Count = 10,
        steps: Count = 60,
        conditional: bool = True,
        shrinkage: Share = 0.0,
        tolerance: Positive = 2.0,
    ) -> None:
        super().__init__()
        self.components, self.steps, self.shrinkage = components, steps, shrinkage
        self.conditional = self.needs_labels = conditional
        self.tolerance = self.round_trip_tolerance = tolerance

    @property
    def num_parameters(self) -> int:
        """Free numbers of the whitening and the mixture."""
        return self.whitening.num_parameters + self.mixture.num_numbers

    def _allocate(self) -> None:
        self.whitening = Whitening(shrinkage=self.shrinkage).to(self.anchor)
        self.whitening.allocate((self.features,), ())
        self.mixture = ClassMixture(self.features, max(len(self.classes), 1), self.components).to(self.anchor)
        self.register_buffer("taken_steps", torch.tensor(self.steps, device=self.anchor.device))

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
        unit = 1 / float(torch.linalg.matrix_norm(self.whitening.matrix, ord=2))
        for doubling in range(DOUBLINGS + 1):
            self.taken_steps.fill_(self.steps * 2**doubling)
            error = fitting_error(self, rows, unit)
            if error <= self.tolerance:
                break
        else:
            raise PrecfmError(
                f"steps: got {self.steps}, too few for a reversible map: {int(self.taken_steps)} have a round-trip "
                f"error of {error:.2g}; raise them, raise tolerance ({self.tolerance:g}) or lower components"
            )
        self.notes.append(
            f"{int(self.taken_steps)} steps of the solver: round-trip error {error:.1e} of the smallest standard "
            "deviation, tails included"
        )
        return self.whitening.flops_per_fit + int(self.mixture.flops)

    def _forward(self, x: Tensor, classes: Tensor | None) -> Tensor:
        return self._to_noise(x, classes, with_divergence=False)[0] @ self.mixture.basis.T

    def _inverse(self, z: Tensor, classes: Tensor | None) -> Tensor:
        chosen = self._classes(z, classes)
        rows, _ = self._carry(z @ self.mixture.basis, chosen, 0.0, 1.0, with_divergence=False)
        white = rows @ self.mixture.basis.T + self.mixture.class_means[chosen]
        return self.whitening._inverse(white, None)

    def _log_abs_det(self, x: Tensor, classes: Tensor | None) -> Tensor:
        return self.whitening.log_det + self._to_noise(x, classes, with_divergence=True)[1]

    def _to_noise(self, x: Tensor, classes: Tensor | None, *, with_divergence: bool) -> tuple[Tensor, Tensor]:
        """Where data go, in the mixture's basis, and the integral of the divergence on their way."""
        chosen = self._classes(x, classes)
        rows = self.mixture.to_eigenbasis(self.whitening._forward(x, None), chosen)
        return self._carry(rows, chosen, 1.0, 0.0, with_divergence)

    def _carry(
        self, rows: Tensor, classes: Tensor, start: float, end: float, with_divergence: bool
    ) -> tuple[Tensor, Tensor]:
        """Solve for rows relative to t times their class's mean, from one s to another."""

        def field(s: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
            t, slope = (1 - (1 - s) ** 2).expand(len(rows), 1), 2 * (1 - s)
            velocity = self.mixture.velocity(state[0], t, classes, PATH)
            if not with_divergence:
                return slope * velocity, state[1]
            return slope * velocity, slope * self.mixture.divergence(state[0], t, classes, PATH)

        ends = rows.new_tensor([start, end])
        state = (rows, rows.new_zeros(len(rows)))
        path, change = odeint(field, state, ends, method="rk4", options=equal_steps(int(self.taken_steps)))
        return path[-1], change[-1]

    @staticmethod
    def _classes(rows: Tensor, classes: Tensor | None) -> Tensor:
        return torch.zeros(len(rows), dtype=torch.int64, device=rows.device) if classes is None else classes
