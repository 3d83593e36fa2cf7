"""Training objectives: flow matching, by velocity or data, and denoising score matching on a probability path.

The losses are functions of given draws; `FlowMatching`, `XPrediction` and `DenoisingScore` are what a configuration
names. Their options condition something else than the data, and are the baselines of a preconditioner: the law of the
training time (`precfm.flows.times`), the coupling of noise and data (`precfm.flows.coupling`), and the metric of the
error (`precfm.flows.loss_metric`).
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar, Literal, Self, TypeAlias

import torch
from torch import Tensor

from precfm.core.errors import PrecfmError
from precfm.core.options import Positive, checked
from precfm.core.tensors import require_tensor
from precfm.flows.coupling import optimal_coupling
from precfm.flows.loss_metric import LossMetric, loss_metric_root
from precfm.flows.paths import ProbabilityPath, per_sample
from precfm.flows.score import velocity_from_data, velocity_from_noise
from precfm.flows.times import TimeLaw, TimeName, time_law

Network: TypeAlias = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""`network(x_t, t, labels)`: shapes (batch, *dim), (batch,), (batch,) or None; returns (batch, *dim)."""


def flow_matching_loss(
    model: Network, path: ProbabilityPath, x1: Tensor, labels: Tensor | None, x0: Tensor, t: Tensor
) -> Tensor:
    """Regress the path's velocity: E || v(x_t, t, y) - (alpha_t' x1 + sigma_t' x0) ||^2 / dim.

    Args:
        model: velocity network.
        path: the probability path.
        x1: data, shape (batch, *dim).
        labels: class of each sample, int64, shape (batch,), or None.
        x0: noise, shape (batch, *dim).
        t: times in [0, 1], shape (batch,).

    Returns:
        Mean squared error over batch and dimensions, a scalar with gradient.

    References:
        Flow Matching for Generative Modeling (Lipman et al., 2022), eq. 9, https://arxiv.org/abs/2210.02747
    """
    x_t, velocity = path.sample(x0, x1, t)
    return (model(x_t, t, labels) - velocity).square().mean()


def denoising_score_loss(
    model: Network, path: ProbabilityPath, x1: Tensor, labels: Tensor | None, x0: Tensor, t: Tensor
) -> Tensor:
    """Denoising score matching, weighted by sigma_t^2: E || eps(x_t, t, y) - x0 ||^2 / dim.

    Given x1, the score of x_t is -x0 / sigma_t. With the model of the score written as s = -eps / sigma_t,
    the weighted loss sigma_t^2 || s + x0 / sigma_t ||^2 is || eps - x0 ||^2: the network predicts the noise,
    a target that stays bounded where sigma_t vanishes. `precfm.flows.score` turns a prediction into a score.

    Args:
        model: network eps that predicts the noise.
        path: the probability path.
        x1: data, shape (batch, *dim).
        labels: class of each sample, int64, shape (batch,), or None.
        x0: noise, shape (batch, *dim).
        t: times in [0, 1], shape (batch,).

    Returns:
        Mean squared error over batch and dimensions, a scalar with gradient.

    References:
        Score-Based Generative Modeling through SDEs (Song et al., 2020), eq. 7 with lambda(t) = sigma_t^2,
        https://arxiv.org/abs/2011.13456; the noise form is eq. 14 of https://arxiv.org/abs/2006.11239
    """
    x_t, _ = path.sample(x0, x1, t)
    return (model(x_t, t, labels) - x0).square().mean()


class VelocityObjective(ABC):
    """An objective of the trainer (`precfm.training.draws.Objective`) that learns a velocity field.

    `prepare` binds it to a path and to the training data, once, before the first loss.

    Attributes:
        start: time at which sampling starts.
        predicts_velocity: whether the network itself is the velocity, so that wrappers can add a known part of it.
        needs_inverse_jacobian: whether `prepare` needs the Jacobian of the preconditioner's inverse.
        needs_decoder_metric: whether `prepare` needs the decoder's pull-back metric.
        is_fitted: whether `prepare` takes more from the training data than their shape and type.
        couples_rows: whether the loss of a mini-batch is more than the mean of its rows' losses, so that it cannot be
            cut into parts.
    """

    start: ClassVar[float] = 0.0
    predicts_velocity: ClassVar[bool] = True
    needs_inverse_jacobian: bool = False
    needs_decoder_metric: bool = False
    is_fitted: bool = True
    couples_rows: bool = False

    time: TimeName

    def __init__(self, time: TimeName, time_mean: float, time_std: float) -> None:
        self.time, self.time_mean, self.time_std = time, time_mean, time_std
        self._path: ProbabilityPath | None = None
        self._times: TimeLaw
        self._like: Tensor  # no rows, of the data's shape and type, on the CPU
        self._root: Tensor | None = None
        self._label_dropout, self._null_class = 0.0, 0

    def prepare(
        self,
        path: ProbabilityPath,
        z1: Tensor,
        *,
        inverse_jacobian: Tensor | None = None,
        decoder_metric: Tensor | None = None,
        label_dropout: float = 0.0,
        null_class: int = 0,
    ) -> Self:
        """Bind the objective to a path and to all training data.

        Args:
            path: the probability path.
            z1: training data in the flow's space, shape (n, *dim).
            inverse_jacobian: J = dx/dz, constant, shape (dim_x, dim); where `needs_inverse_jacobian`.
            decoder_metric: G, symmetric and positive semi-definite, shape (dim_x, dim_x); where
                `needs_decoder_metric`.
            label_dropout: share of the rows whose label the network is not told, see `VelocityNetwork`.
            null_class: the label that it is told instead.

        Returns:
            The objective itself.

        Raises:
            PrecfmError: what the objective needs is missing or does not fit, or the data have no variance.
        """
        require_tensor(z1, "z1", floating=True)
        self._path, self._like = path, torch.empty(0, *z1.shape[1:], dtype=z1.dtype)
        self._label_dropout, self._null_class = label_dropout, null_class
        self._times = time_law(self.time, self.time_mean, self.time_std, path, z1)
        self._root = self._error_metric(z1, inverse_jacobian, decoder_metric)
        return self

    def draw(self, batch_size: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Times t, shape (batch,), and noise x0, shape (batch, *dim), on the CPU, in the type of the data.

        Where labels are dropped, also of which rows, bool, shape (batch,).
        """
        self._prepared()
        t = self._times(batch_size, generator).to(self._like.dtype)
        shape = (batch_size, *self._like.shape[1:])
        drawn = t, torch.randn(shape, generator=generator, dtype=self._like.dtype)
        if not self._label_dropout:
            return drawn
        return *drawn, torch.rand(batch_size, generator=generator) < self._label_dropout

    @abstractmethod
    def loss(self, module: Network, batch: tuple[Tensor, ...], draws: tuple[Tensor, ...]) -> Tensor:
        """The loss of a mini-batch.

        Args:
            module: the network.
            batch: data in the flow's space, shape (batch, *dim), and if there are labels they, shape (batch,).
            draws: what `draw` returned, on the device of the data.

        Returns:
            A scalar with gradient.

        Raises:
            PrecfmError: `prepare` was not called.
        """

    def velocity(self, module: Network, path: ProbabilityPath) -> Network:
        """The velocity field to integrate: the network itself."""
        return module

    def start_scale(self, path: ProbabilityPath) -> float:
        """Standard deviation of the noise that sampling starts from."""
        return 1.0

    def _error_metric(
        self, z1: Tensor, inverse_jacobian: Tensor | None, decoder_metric: Tensor | None
    ) -> Tensor | None:
        """R with R^T R the metric of the error; None for the identity."""
        return None

    def _told(self, labels: Tensor | None, dropped: list[Tensor]) -> Tensor | None:
        """The labels that the network is told; `dropped` holds the mask of the others, if there is one."""
        return labels if labels is None or not dropped else labels.masked_fill(dropped[0], self._null_class)

    def _prepared(self) -> ProbabilityPath:
        if self._path is None:
            raise PrecfmError(f"{type(self).__name__}: used before prepare; call prepare(path, z1) first")
        return self._path


class FlowMatching(VelocityObjective):
    """Flow matching with options that condition something else than the data; the defaults are the plain recipe.

    Args:
        time: law of the training times, see `precfm.flows.times`.
        time_mean: mean of the logit of `logit_normal` times.
        time_std: standard deviation of the logit of `logit_normal` times.
        coupling: `independent` noise and data, or paired within mini-batch and class by `optimal_coupling`.
        metric: how errors of the velocity are measured, see `precfm.flows.loss_metric`.

    Raises:
        PrecfmError: an option is out of its range.

    References:
        Flow Matching for Generative Modeling (Lipman et al., 2022), https://arxiv.org/abs/2210.02747
    """

    @checked
    def __init__(
        self,
        *,
        time: TimeName = "uniform",
        time_mean: float = 0.0,
        time_std: Positive = 1.0,
        coupling: Literal["independent", "optimal_transport"] = "independent",
        metric: LossMetric = "flow",
    ) -> None:
        super().__init__(time, time_mean, time_std)
        self.coupling, self.metric = coupling, metric
        self.needs_inverse_jacobian = metric in ("latent", "decoder")
        self.needs_decoder_metric = metric == "decoder"
        self.couples_rows = coupling == "optimal_transport"
        # What derives from this class may fit more.
        self.is_fitted = type(self) is not FlowMatching or time == "kappa_directed" or metric != "flow"

    def loss(self, module: Network, batch: tuple[Tensor, ...], draws: tuple[Tensor, ...]) -> Tensor:
        """Mean weighted squared error of the velocity; with the default options `flow_matching_loss`, to the bit."""
        path, (t, x0, *dropped) = self._prepared(), draws
        x1, labels = batch[0], batch[1] if len(batch) > 1 else None
        if self.coupling == "optimal_transport":
            x0 = optimal_coupling(x0, x1, labels)
        x_t, velocity = path.sample(x0, x1, t)
        error = self._error(module(x_t, t, self._told(labels, dropped)), velocity, x1, t)
        if self._root is None:
            return error.square().mean()
        return (error.flatten(1) @ self._root.T).square().sum(1).mean()

    def _error(self, predicted: Tensor, velocity: Tensor, x1: Tensor, t: Tensor) -> Tensor:
        """The error of the velocity."""
        return predicted - velocity

    def _error_metric(
        self, z1: Tensor, inverse_jacobian: Tensor | None, decoder_metric: Tensor | None
    ) -> Tensor | None:
        return loss_metric_root(self.metric, z1, inverse_jacobian, decoder_metric)


class XPrediction(FlowMatching):
    """Flow matching by a network that predicts the data x1; its velocity is derived.

    An error e of x1 is an error (alpha_t' - sigma_t' alpha_t / sigma_t) e of the velocity, which the loss measures as
    `FlowMatching` does. So that it stays bounded where sigma_t vanishes, the loss divides by sigma_t or `LOSS_SIGMA`,
    whichever is larger; sampling divides by `SAMPLING_SIGMA` at least, which the midpoints of 50 steps do not reach.

    Args:
        options: as of `FlowMatching`.

    References:
        Back to Basics: Let Denoising Generative Models Denoise (Li and He, 2025), prediction of the data with the loss
        of the velocity, https://arxiv.org/abs/2511.13720
    """

    LOSS_SIGMA: ClassVar[float] = 0.05
    SAMPLING_SIGMA: ClassVar[float] = 0.01
    predicts_velocity: ClassVar[bool] = False

    def _error(self, predicted: Tensor, velocity: Tensor, x1: Tensor, t: Tensor) -> Tensor:
        path, time = self._prepared(), per_sample(t, x1)
        slope = path.d_alpha(time) * path.sigma(time) - path.d_sigma(time) * path.alpha(time)
        return slope / path.sigma(time).clamp(min=self.LOSS_SIGMA) * (predicted - x1)

    def velocity(self, module: Network, path: ProbabilityPath) -> Network:
        """The velocity field to integrate, which the predicted data stand for."""

        def field(x_t: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
            return velocity_from_data(path, module(x_t, t, labels), x_t, t, self.SAMPLING_SIGMA)

        return field


class DenoisingScore(VelocityObjective):
    """Denoising score matching in its noise form: the network predicts the noise in x_t.

    Sampling starts at t = 0.02: at t = 0 x_t is all noise, and the noise does not determine a velocity.

    Args:
        time: law of the training times, see `precfm.flows.times`.
        time_mean: mean of the logit of `logit_normal` times.
        time_std: standard deviation of the logit of `logit_normal` times.

    Raises:
        PrecfmError: an option is out of its range.

    References:
        Score-Based Generative Modeling through SDEs (Song et al., 2020), https://arxiv.org/abs/2011.13456
    """

    start: ClassVar[float] = 0.02
    predicts_velocity: ClassVar[bool] = False

    @checked
    def __init__(
        self,
        *,
        time: TimeName = "uniform",
        time_mean: float = 0.0,
        time_std: Positive = 1.0,
    ) -> None:
        super().__init__(time, time_mean, time_std)
        self.is_fitted = type(self) is not DenoisingScore or time == "kappa_directed"

    def loss(self, module: Network, batch: tuple[Tensor, ...], draws: tuple[Tensor, ...]) -> Tensor:
        """`denoising_score_loss` of the mini-batch; `module` predicts noise."""
        path, (t, x0, *dropped) = self._prepared(), draws
        labels = self._told(batch[1] if len(batch) > 1 else None, dropped)
        return denoising_score_loss(module, path, batch[0], labels, x0, t)

    def velocity(self, module: Network, path: ProbabilityPath) -> Network:
        """The velocity field to integrate, which the predicted noise stands for."""

        def field(x_t: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
            return velocity_from_noise(path, module(x_t, t, labels), x_t, t)

        return field

    def start_scale(self, path: ProbabilityPath) -> float:
        """Standard deviation of x_t at `start` for data of variance one."""
        t = torch.tensor(self.start, dtype=torch.float64)
        return float(torch.hypot(path.alpha(t), path.sigma(t)))
