"""A low-capacity flow of feature maps: a small convolutional velocity field, integrated from data to noise."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.func import jvp

from precfm.core.options import Count, Positive, checked
from precfm.core.seeds import generator_for
from precfm.flows.models.mlp import FASTEST, SLOWEST
from precfm.preconditioners.behind_frequencies import Before, BehindFrequencies, ConvNet, label_embedding
from precfm.preconditioners.fit_data import FitRows
from precfm.preconditioners.low_capacity_flow import LowCapacityFlow

EXACT_LOG_DET = 64  # features; of more, the trace of the field's Jacobian is estimated
PROBES = 16  # random vectors for that
CHECKED = 8  # rows on which a fit measures the standard error of the estimate
TIME_FEATURES = 16


class ConvLowCapacityFlow(BehindFrequencies, LowCapacityFlow):
    """Whitens feature maps (channels, height, width), then carries them to noise along a small convolutional field.

    The field is that of white data, along which nothing moves in the end, plus a network of convolutions that is zero
    at first and learns what the data are beyond white. It is integrated as in `LowCapacityFlow`, by a method of fourth
    order, since errors count in units of the smallest standard deviation, far below most numbers of a map.

    Up to 64 features `log_abs_det_jacobian` is that of the numerical solution, as in `LowCapacityFlow`. Of more it is
    the integral of the field's divergence, estimated with 16 random vectors that are the same for all calls
    (Hutchinson); the notes say its standard error, and `log_abs_det_deviations` how the vectors differ.

    Arguments:
        before: the map before the network; its `shrinkage` is that option.
        width: channels between the layers of the network.
        depth: layers between.
        tolerance: as in `LowCapacityFlow`.
        solver_steps: steps to begin with; each evaluates the field four times.
        max_solver_steps: most steps; if these do not suffice, the fit is refused.
        inherited: see `LearnedPreconditioner`.

    References:
        | Preconditioned (Score and) Flow Matching (Ahamed et al., 2026), low-capacity flow matching
        | https://arxiv.org/abs/2603.02337

        | FFJORD: Free-form Continuous Dynamics for Scalable Reversible Generative Models (Grathwohl et al., 2018),
        | section 3.1, for the estimated divergence
        | https://arxiv.org/abs/1810.01367

    Example:
        >>> x = torch.randn(60, 2, 4, 4, generator=torch.Generator().manual_seed(0))
        >>> flow = ConvLowCapacityFlow(conditional=False, steps=1, width=4).fit(x)
        >>> bool(torch.allclose(flow.inverse(flow.forward(x)), x, atol=1e-2))
        True
    """

    solver = "rk4"
    error_points = 64

    @checked
    def __init__(
        self,
        before: Before = "per_frequency",
        *,
        width: Count = 16,
        depth: Count = 2,
        tolerance: Positive = 1e-2,
        solver_steps: Count = 20,
        max_solver_steps: Count = 160,
        steps: Count = 500,
        batch_size: Count = 64,
        **inherited: Any,
    ) -> None:
        super().__init__(
            width=width,
            depth=depth,
            tolerance=tolerance,
            solver_steps=solver_steps,
            max_solver_steps=max_solver_steps,
            steps=steps,
            batch_size=batch_size,
            **inherited,
        )
        self.before: Before = before

    def _build(self) -> nn.Module:
        return ConvField(self._map_shape, len(self.classes), width=self.width, depth=self.depth)

    def _settle(self, data: FitRows, validation_loss: float) -> None:
        super()._settle(data, validation_loss)
        if self.features > EXACT_LOG_DET:
            white, classes = self.whitening._forward(data.x[:CHECKED], None), data.classes
            estimates = self._divergences(white, None if classes is None else classes[:CHECKED])
            error = float(estimates.std(dim=0).mean()) / PROBES**0.5
            self.notes.append(
                f"log_abs_det_jacobian is an estimate from {PROBES} random vectors: standard error {error:.2g} nats a "
                "row"
            )

    def _log_abs_det(self, x: Tensor, classes: Tensor | None) -> Tensor:
        if self.features <= EXACT_LOG_DET:
            return super()._log_abs_det(x, classes)
        white = self.whitening._forward(x, None)
        return self.whitening._log_abs_det(x, None) + self._divergences(white, classes).mean(dim=0)

    def _log_abs_det_deviations(self, x: Tensor, classes: Tensor | None) -> Tensor:
        if self.features <= EXACT_LOG_DET:
            return super()._log_abs_det_deviations(x, classes)
        estimates = self._divergences(self.whitening._forward(x, None), classes)
        return estimates - estimates.mean(dim=0)

    def _divergences(self, white: Tensor, classes: Tensor | None) -> Tensor:
        """For each random vector the log determinant from t = 1 to 0, by Simpson's rule; shape (vectors, batch)."""
        signs = torch.randint(0, 2, (PROBES, white.shape[1]), generator=generator_for(0, "divergence"))
        probes = (2 * signs - 1).to(white)
        steps = int(self.midpoint_steps)
        total, z = white.new_zeros(PROBES, len(white)), white
        times = torch.linspace(1, 0, 2 * steps + 1).tolist()
        for index, t in enumerate(times):
            weight = 1 if index in (0, 2 * steps) else 2 + 2 * (index % 2)
            total = total - weight / (6 * steps) * self._products(z, t, classes, probes)
            if index < 2 * steps:
                z = self._carry(z, classes, t0=t, t1=times[index + 1], steps=1)
        return total

    def _products(self, z: Tensor, t: float, classes: Tensor | None, probes: Tensor) -> Tensor:
        """`e^T J e` of the field's Jacobian for each vector `e`, shape (vectors, batch)."""

        def field(points: Tensor) -> Tensor:
            velocity: Tensor = self.network(points, points.new_full((len(points),), t), classes)
            return velocity

        moved = [jvp(field, (z,), (probe.expand_as(z),))[1] @ probe for probe in probes]
        return torch.stack(moved)


class ConvField(nn.Module):
    """The network of `ConvLowCapacityFlow`: velocities of rows (batch, features), with fresh weights of white data.

    Args:
        shape: channels, height and width of a row.
        num_classes: number of classes; 0 for none.
        width: channels between the layers.
        depth: layers between.
    """

    angular_frequencies: Tensor

    def __init__(self, shape: tuple[int, int, int], num_classes: int, *, width: int, depth: int) -> None:
        super().__init__()
        self.shape = shape
        frequencies = torch.logspace(0, 1, TIME_FEATURES // 2, base=FASTEST / SLOWEST) * SLOWEST
        self.register_buffer("angular_frequencies", frequencies, persistent=False)
        self.embed_time = nn.Linear(TIME_FEATURES, width, bias=False)
        self.embedding = label_embedding(num_classes, width)
        self.network = ConvNet((shape[0], shape[0]), width, depth)

    def forward(self, x_t: Tensor, t: Tensor, classes: Tensor | None = None) -> Tensor:
        """Velocities at rows (batch, features) and times (batch,); classes are positions (batch,)."""
        t = t.to(x_t.dtype)
        angles = t[:, None] * self.angular_frequencies
        condition = self.embed_time(torch.cat([angles.cos(), angles.sin()], dim=1))
        if self.embedding is not None:
            condition = condition + self.embedding(classes)
        learned: Tensor = self.network(x_t.reshape(-1, *self.shape), condition).flatten(1)
        # The velocity of the linear path between N(0, I) and itself: (t - (1 - t)) / (t^2 + (1 - t)^2) x_t.
        return learned + ((2 * t - 1) / (t.square() + (1 - t).square()))[:, None] * x_t
