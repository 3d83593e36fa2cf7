"""Training objectives: flow matching and denoising score matching on a probability path.

The losses are functions; `FlowMatching` and `DenoisingScore` are what a configuration names. Their options
condition something else than the data, and are the baselines of a preconditioner:

- `time` says where along the path the regression looks. `uniform` is the plain recipe; `logit_normal` favours
  the middle; `kappa_directed` favours the times where the covariance of x_t is ill-conditioned, which is near
  the data. The loss is not corrected for it: like any other law of the time, this one re-weights the regression.
- `coupling` says which noise meets which data. `independent` is the plain recipe; `optimal_transport` pairs
  them within a mini-batch so that paths cross less and the velocity to be learned varies less.
- `metric` says how an error of the velocity is measured. `flow` weighs all directions of the flow's space
  alike; `latent` and `decoder` undo what the preconditioner did to the weighting, so that errors count as they
  would in latent space or in the decoder's images; `inverse_variance` weighs the directions of the flow's space
  as whitening would, without changing coordinates.
"""

import math
from collections.abc import Callable
from typing import Literal, TypeAlias, TypeVar

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from precfm.core.errors import PrecfmError
from precfm.core.options import Positive, checked
from precfm.core.tensors import require_tensor
from precfm.flows.paths import ProbabilityPath, per_sample
from precfm.geometry.spectra import (
    Spectrum,
    covariance,
    eigen_spectrum,
    path_condition_numbers,
    require_positive,
)

Network: TypeAlias = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""`network(x_t, t, labels)`: shapes (batch, *dim), (batch,), (batch,) or None; returns (batch, *dim)."""

SampleTime: TypeAlias = Callable[[int, torch.Generator, torch.device], Tensor]
"""`sample_time(n, generator, device)` draws n times in [0, 1], shape (n,)."""


Bound = TypeVar("Bound")

FLOOR = 1e-6  # least eigenvalue of a covariance that a weighting believes in, relative to the largest
TIME_GRID = 4097  # points at which the law of a time is tabulated


def uniform_time(n: int, generator: torch.Generator, device: torch.device) -> Tensor:
    """Draw times uniformly from [0, 1), shape (n,): the plain recipe."""
    return torch.rand(n, generator=generator, device=device)


def logit_normal_time(mean: float = 0.0, std: float = 1.0) -> SampleTime:
    """Times whose logit is normal: most draws fall around sigmoid(mean), few near the ends.

    Args:
        mean: mean of logit(t); above 0 prefers the data end (t = 1), below 0 the noise end.
        std: standard deviation of logit(t), positive.

    Returns:
        A time sampler for `flow_matching_loss` and `denoising_score_loss`.

    Raises:
        PrecfmError: `std` is not positive.

    References:
        Scaling Rectified Flow Transformers (Esser et al., 2024), section 3.1, https://arxiv.org/abs/2403.03206;
        there t = 1 is noise, so that its mean has the opposite sign.
    """
    if not std > 0:
        raise PrecfmError(f"logit_normal_time: std is {std}; it must be positive")

    def sample_time(n: int, generator: torch.Generator, device: torch.device) -> Tensor:
        return torch.sigmoid(mean + std * torch.randn(n, generator=generator, device=device))

    return sample_time


def kappa_directed_time(path: ProbabilityPath, cov_data: Tensor) -> SampleTime:
    """Times drawn more often where x_t is ill-conditioned: density proportional to 1 + ln kappa(Sigma_t).

    The logarithm counts orders of magnitude: a density proportional to kappa itself would spend nearly all draws
    next to t = 1. It is bounded, since kappa is that of a spectrum floored at 1e-6 of its largest eigenvalue,
    and it is uniform for white data. The density is tabulated on a grid and constant between its points.

    Args:
        path: the probability path.
        cov_data: Sigma_1, covariance of the data in the space of the flow, shape (dim, dim).

    Returns:
        A time sampler for `flow_matching_loss` and `denoising_score_loss`; it draws one uniform number per time.

    Raises:
        PrecfmError: the data have no variance.

    Example:
        >>> from precfm.flows.paths import LinearPath
        >>> sample_time = kappa_directed_time(LinearPath(), torch.diag(torch.tensor([1.0, 1e-4])))
        >>> bool(sample_time(1000, torch.Generator().manual_seed(0), torch.device("cpu")).mean() > 0.6)
        True
    """
    grid = torch.linspace(0, 1, TIME_GRID, dtype=torch.float64)
    floored = torch.diag(_floored_spectrum(cov_data).eigenvalues.cpu())
    density = 1 + path_condition_numbers(floored, path, grid).log()
    below = torch.cat([density.new_zeros(1), torch.cumulative_trapezoid(density, grid)])
    quantiles = torch.from_numpy(np.interp(grid.numpy(), (below / below[-1]).numpy(), grid.numpy()))
    quantiles = quantiles.to(cov_data.device, torch.float32)

    def sample_time(n: int, generator: torch.Generator, device: torch.device) -> Tensor:
        place = torch.rand(n, generator=generator, device=device) * (TIME_GRID - 1)
        left = place.long().clamp(max=TIME_GRID - 2)
        return torch.lerp(quantiles[left], quantiles[left + 1], place - left)

    return sample_time


def optimal_coupling(x0: Tensor, x1: Tensor, labels: Tensor | None) -> Tensor:
    """Noise re-ordered so that, within each class of the batch, it meets the data at the least squared distance.

    The assignment is exact. It stays within the class, so that noise given a label is still N(0, I): pairing
    across classes would teach the flow that some noise belongs to some classes, which sampling does not know.

    Args:
        x0: noise, shape (batch, *dim).
        x1: data, shape (batch, *dim).
        labels: class of each sample, shape (batch,), or None for one class. On an accelerator they and the
            samples are copied to the host, where the assignment is computed.

    Returns:
        The rows of `x0` in another order, shape (batch, *dim).

    References:
        | Improving and Generalizing Flow-Based Generative Models with Minibatch Optimal Transport
        | (Tong et al., 2023), https://arxiv.org/abs/2302.00482
        | Multisample Flow Matching: Straightening Flows with Minibatch Couplings (Pooladian et al., 2023)
        | https://arxiv.org/abs/2304.14772

    Example:
        >>> noise, data = torch.tensor([[5.0], [-5.0]]), torch.tensor([[-1.0], [1.0]])
        >>> optimal_coupling(noise, data, None).tolist(), optimal_coupling(noise, data, torch.arange(2)).tolist()
        ([[-5.0], [5.0]], [[5.0], [-5.0]])
    """
    noise, data = (x.detach().flatten(1).cpu().double().numpy() for x in (x0, x1))
    classes = np.zeros(len(noise), dtype=np.int64) if labels is None else labels.cpu().numpy()
    order = np.arange(len(noise))
    for label in np.unique(classes):
        rows = np.flatnonzero(classes == label)
        # The norms in |x1 - x0|^2 do not depend on the pairing: the least distance is the largest product.
        order[rows] = rows[linear_sum_assignment(data[rows] @ noise[rows].T, maximize=True)[1]]
    return x0[torch.from_numpy(order).to(x0.device)]


def flow_matching_loss(
    model: Network,
    path: ProbabilityPath,
    x1: Tensor,
    labels: Tensor | None,
    generator: torch.Generator,
    sample_time: SampleTime | None = None,
) -> Tensor:
    """Regress the path's velocity: E || v(x_t, t, y) - (alpha_t' x1 + sigma_t' x0) ||^2 / dim.

    Args:
        model: velocity network.
        path: the probability path.
        x1: data, shape (batch, *dim).
        labels: class of each sample, int64, shape (batch,), or None.
        generator: where times and noise come from, on the device of `x1`.
        sample_time: distribution of t; uniform when None.

    Returns:
        Mean squared error over batch and dimensions, a scalar with gradient.

    References:
        Flow Matching for Generative Modeling (Lipman et al., 2022), eq. 9, https://arxiv.org/abs/2210.02747
    """
    x0, t = _draw(x1, generator, sample_time)
    x_t, velocity = path.sample(x0, x1, t)
    return (model(x_t, t, labels) - velocity).square().mean()


def denoising_score_loss(
    model: Network,
    path: ProbabilityPath,
    x1: Tensor,
    labels: Tensor | None,
    generator: torch.Generator,
    sample_time: SampleTime | None = None,
) -> Tensor:
    """Denoising score matching, weighted by sigma_t^2: E || eps(x_t, t, y) - x0 ||^2 / dim.

    Given x1, the score of x_t is -x0 / sigma_t. With the model of the score written as s = -eps / sigma_t,
    the weighted loss sigma_t^2 || s + x0 / sigma_t ||^2 is || eps - x0 ||^2: the network predicts the noise,
    a target that stays bounded where sigma_t vanishes. `score_from_noise` turns a prediction into a score.

    Args:
        model: network eps that predicts the noise.
        path: the probability path.
        x1: data, shape (batch, *dim).
        labels: class of each sample, int64, shape (batch,), or None.
        generator: where times and noise come from, on the device of `x1`.
        sample_time: distribution of t; uniform when None.

    Returns:
        Mean squared error over batch and dimensions, a scalar with gradient.

    References:
        Score-Based Generative Modeling through SDEs (Song et al., 2020), eq. 7 with lambda(t) = sigma_t^2,
        https://arxiv.org/abs/2011.13456; the noise form is eq. 14 of https://arxiv.org/abs/2006.11239
    """
    x0, t = _draw(x1, generator, sample_time)
    x_t, _ = path.sample(x0, x1, t)
    return (model(x_t, t, labels) - x0).square().mean()


def score_from_noise(path: ProbabilityPath, noise: Tensor, t: Tensor) -> Tensor:
    """The score grad log p(x_t) that a noise prediction stands for, -noise / sigma_t.

    Args:
        path: the probability path.
        noise: predicted noise, shape (batch, *dim).
        t: times in [0, 1), shape (batch,); at t = 1 sigma_t is zero and the score infinite.

    Returns:
        The score, shape (batch, *dim).
    """
    return -noise / path.sigma(per_sample(t, noise))


def velocity_from_noise(path: ProbabilityPath, noise: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
    """The velocity that a noise prediction stands for, so that a score model can be sampled by the same ODE.

    Solving x_t = alpha_t x1 + sigma_t x0 for x1 gives alpha_t' (x_t - sigma_t x0) / alpha_t + sigma_t' x0.

    Args:
        path: the probability path.
        noise: predicted noise, shape (batch, *dim).
        x_t: point on the path, shape (batch, *dim).
        t: times in (0, 1], shape (batch,); at t = 0 alpha_t is zero and the velocity undetermined.

    Returns:
        The velocity, shape (batch, *dim).
    """
    t = per_sample(t, x_t)
    x1 = (x_t - path.sigma(t) * noise) / path.alpha(t)
    return path.d_alpha(t) * x1 + path.d_sigma(t) * noise


class FlowMatching:
    """Flow matching with options that condition something else than the data; the defaults are the plain recipe.

    An error e of the velocity counts as e^T M e / trace(M), for M = I the mean over dimensions. With J = dx/dz,
    the Jacobian of the preconditioner's inverse (x in latent space, z in the flow's), M is

    - `flow`: I;
    - `latent`: J^T J, since an error e in the flow's space is an error J e in latent space;
    - `decoder`: J^T G J, with the decoder's pull-back metric G in latent space;
    - `inverse_variance`: the inverse covariance of the data in the flow's space, its spectrum floored at 1e-6 of
      the largest eigenvalue.

    Args:
        time: law of the training times; see `uniform_time`, `logit_normal_time`, `kappa_directed_time`.
        time_mean: mean of the logit of `logit_normal` times.
        time_std: standard deviation of the logit of `logit_normal` times.
        coupling: `independent` noise and data, or paired within mini-batch and class by `optimal_coupling`.
        metric: how errors of the velocity are measured.

    Raises:
        PrecfmError: an option is out of its range.

    References:
        Flow Matching for Generative Modeling (Lipman et al., 2022), https://arxiv.org/abs/2210.02747
    """

    start = 0.0
    """Time at which sampling starts."""

    @checked
    def __init__(
        self,
        *,
        time: Literal["uniform", "logit_normal", "kappa_directed"] = "uniform",
        time_mean: float = 0.0,
        time_std: Positive = 1.0,
        coupling: Literal["independent", "optimal_transport"] = "independent",
        metric: Literal["flow", "latent", "decoder", "inverse_variance"] = "flow",
    ) -> None:
        _check_time("flow_matching", time)
        _check_choice("flow_matching", "coupling", coupling, ("independent", "optimal_transport"))
        _check_choice("flow_matching", "metric", metric, ("flow", "latent", "decoder", "inverse_variance"))
        self._time, self._coupling, self._metric = (time, time_mean, time_std), coupling, metric
        self._bound: tuple[ProbabilityPath, SampleTime, Tensor | None] | None = None

    def prepare(
        self,
        path: ProbabilityPath,
        z1: Tensor,
        labels: Tensor | None,
        *,
        inverse_jacobian: Tensor | None = None,
        decoder_metric: Tensor | None = None,
    ) -> None:
        """Bind the objective to a path and to all training data, once, before the first loss.

        Args:
            path: the probability path.
            z1: training data in the flow's space, shape (n, *dim).
            labels: classes, int64, shape (n,), or None; no option uses them so far.
            inverse_jacobian: J = dx/dz, constant, shape (dim_x, dim); needed by the metrics `latent` and
                `decoder`.
            decoder_metric: G, symmetric and positive semi-definite, shape (dim_x, dim_x); needed by `decoder`.

        Raises:
            PrecfmError: what the metric needs is missing or does not fit, or the data have no variance.
        """
        root = self._metric_root(z1, inverse_jacobian, decoder_metric)
        self._bound = (
            path,
            _time_law(*self._time, path, z1),
            None if root is None else _unit_trace(root).to(z1),
        )

    def loss(self, module: Network, batch: tuple[Tensor, ...], generator: torch.Generator) -> Tensor:
        """The loss of a mini-batch, for `precfm.training.trainer.train`.

        With the default options it is `flow_matching_loss`, to the bit.

        Args:
            module: velocity network.
            batch: data in the flow's space, shape (batch, *dim), and if there are labels they, shape (batch,).
            generator: where times and noise come from, on the device of the data.

        Returns:
            Mean weighted squared error, a scalar with gradient.

        Raises:
            PrecfmError: `prepare` was not called.
        """
        path, sample_time, root = _prepared("flow_matching", self._bound)
        x1, labels = batch[0], batch[1] if len(batch) > 1 else None
        x0, t = _draw(x1, generator, sample_time)
        if self._coupling == "optimal_transport":
            x0 = optimal_coupling(x0, x1, labels)
        x_t, velocity = path.sample(x0, x1, t)
        error = module(x_t, t, labels) - velocity
        if root is None:
            return error.square().mean()
        return (error.flatten(1) @ root.T).square().sum(1).mean()

    def velocity(self, module: Network, path: ProbabilityPath) -> Network:
        """The velocity field to integrate: the network itself."""
        return module

    def start_noise(self, z0: Tensor, path: ProbabilityPath) -> Tensor:
        """What sampling starts from: standard normal noise as it is, shape (n, *dim)."""
        return z0

    def _metric_root(
        self, z1: Tensor, inverse_jacobian: Tensor | None, decoder_metric: Tensor | None
    ) -> Tensor | None:
        """R with R^T R = M, shape (rows, dim), float64; None for M = I."""
        if self._metric == "flow":
            return None
        if self._metric == "inverse_variance":
            spectrum = _floored_spectrum(covariance(z1))
            return (spectrum.eigenvectors / spectrum.eigenvalues.sqrt()).T
        dim = z1[0].numel()
        if inverse_jacobian is None:
            raise PrecfmError(
                f"flow_matching: metric '{self._metric}' needs the inverse_jacobian; it is missing"
            )
        jacobian = inverse_jacobian.to(z1.device, torch.float64)
        if jacobian.ndim != 2 or jacobian.shape[1] != dim or not bool(jacobian.isfinite().all()):
            raise PrecfmError(
                f"flow_matching: inverse_jacobian has shape {tuple(jacobian.shape)}; it must be finite and of "
                f"shape (dim_x, {dim})"
            )
        if self._metric == "latent":
            return jacobian
        if decoder_metric is None:
            raise PrecfmError("flow_matching: metric 'decoder' needs the decoder_metric; it is missing")
        rows = len(jacobian)
        if decoder_metric.shape != (rows, rows):
            raise PrecfmError(
                f"flow_matching: decoder_metric has shape {tuple(decoder_metric.shape)}; it must be "
                f"({rows}, {rows}), as inverse_jacobian has it"
            )
        spectrum = eigen_spectrum(decoder_metric.to(z1.device))
        return (spectrum.eigenvectors * spectrum.eigenvalues.clamp(min=0).sqrt()).T @ jacobian


class DenoisingScore:
    """Denoising score matching in its noise form: the network predicts the noise in x_t.

    Args:
        time: law of the training times; see `uniform_time`, `logit_normal_time`, `kappa_directed_time`.
        time_mean: mean of the logit of `logit_normal` times.
        time_std: standard deviation of the logit of `logit_normal` times.

    Raises:
        PrecfmError: an option is out of its range.

    References:
        Score-Based Generative Modeling through SDEs (Song et al., 2020), https://arxiv.org/abs/2011.13456
    """

    start = 0.02
    """Time at which sampling starts: at t = 0 x_t is all noise, and the noise does not determine a velocity."""

    @checked
    def __init__(
        self,
        *,
        time: Literal["uniform", "logit_normal", "kappa_directed"] = "uniform",
        time_mean: float = 0.0,
        time_std: Positive = 1.0,
    ) -> None:
        _check_time("denoising_score", time)
        self._time = (time, time_mean, time_std)
        self._bound: tuple[ProbabilityPath, SampleTime] | None = None

    def prepare(
        self,
        path: ProbabilityPath,
        z1: Tensor,
        labels: Tensor | None,
        *,
        inverse_jacobian: Tensor | None = None,
        decoder_metric: Tensor | None = None,
    ) -> None:
        """Bind the objective to a path and to all training data, as `FlowMatching.prepare`; it has no metric."""
        self._bound = path, _time_law(*self._time, path, z1)

    def loss(self, module: Network, batch: tuple[Tensor, ...], generator: torch.Generator) -> Tensor:
        """The loss of a mini-batch, as `FlowMatching.loss`; `module` predicts noise."""
        path, sample_time = _prepared("denoising_score", self._bound)
        labels = batch[1] if len(batch) > 1 else None
        return denoising_score_loss(module, path, batch[0], labels, generator, sample_time)

    def velocity(self, module: Network, path: ProbabilityPath) -> Network:
        """The velocity field to integrate, which the predicted noise stands for."""

        def field(x_t: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
            return velocity_from_noise(path, module(x_t, t, labels), x_t, t)

        return field

    def start_noise(self, z0: Tensor, path: ProbabilityPath) -> Tensor:
        """Standard normal noise, scaled to the variance that x_t has at `start` for data of variance one."""
        t = torch.tensor(self.start, dtype=z0.dtype, device=z0.device)
        return z0 * torch.hypot(path.alpha(t), path.sigma(t))


def _prepared(objective: str, bound: Bound | None) -> Bound:
    if bound is None:
        raise PrecfmError(
            f"{objective}: the loss was asked for before prepare; call prepare with the data first"
        )
    return bound


def _check_choice(objective: str, option: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise PrecfmError(f"{objective}: {option} is '{value}'; it must be one of {', '.join(known)}")


def _check_time(objective: str, time: str) -> None:
    _check_choice(objective, "time", time, ("uniform", "logit_normal", "kappa_directed"))


def _time_law(time: str, mean: float, std: float, path: ProbabilityPath, z1: Tensor) -> SampleTime:
    """The sampler that the options name, for given data."""
    if time == "uniform":
        return uniform_time
    if time == "logit_normal":
        return logit_normal_time(mean, std)
    return kappa_directed_time(path, covariance(z1))


def _floored_spectrum(cov: Tensor) -> Spectrum:
    """Spectrum of a covariance with no eigenvalue below `FLOOR` times the largest."""
    eigenvalues, eigenvectors = eigen_spectrum(cov)
    floored = eigenvalues.clamp(min=FLOOR * max(float(eigenvalues[-1]), 0.0))
    require_positive(floored)
    return Spectrum(floored, eigenvectors)


def _unit_trace(root: Tensor) -> Tensor:
    """R scaled so that trace(R^T R) is one."""
    trace = float(root.square().sum())
    if not trace > 0:
        raise PrecfmError(f"flow_matching: the metric's trace is {trace}; it must be positive")
    return root / math.sqrt(trace)


def _draw(x1: Tensor, generator: torch.Generator, sample_time: SampleTime | None) -> tuple[Tensor, Tensor]:
    """Noise shaped like the data, and one time for each sample."""
    require_tensor(x1, "x1", floating=True)
    t = (sample_time or uniform_time)(len(x1), generator, x1.device).to(x1.dtype)
    x0 = torch.randn(x1.shape, generator=generator, device=x1.device, dtype=x1.dtype)
    return x0, t
