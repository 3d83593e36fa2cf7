"""Decoder-metric coordinates: distances in the flow's space are those that the decoder makes of them."""

import math
from typing import Annotated, Self

import torch
from torch import Tensor

from precfm.core.errors import PrecfmError
from precfm.core.options import Bound, checked
from precfm.core.tensors import require_tensor
from precfm.geometry.spectra import covariance, eigen_spectrum
from precfm.preconditioners.base import FitData
from precfm.preconditioners.symmetric_affine import SymmetricAffine
from precfm.preconditioners.symmetric_power import power_flops, symmetric_map


class DecoderMetric(SymmetricAffine):
    """Centres data and multiplies it by the square root of a metric, `z = c G_f^(1/2) (x - mean)`.

    `G` is the metric that a decoder pulls back to the latents (`precfm.geometry.decoder.pull_back_metric`), and
    `G_f` has its eigenvalues, floored at `floor` times their mean, so that directions that the decoder ignores are
    kept. The squared length of a step in `z` is then the squared change of the image, up to the factor. The
    factor `c` gives `z` a mean variance of one over the training data; it does not make them white.

    The metric is no part of the data: `with_metric` hands it in before `fit`. A stored map does not need it.
    Against the rounding of float32 a floored direction is less well protected, so the round-trip tolerance is
    `1e-3 / sqrt(floor)`. `flops_per_fit` leaves out what the metric took.

    Arguments:
        floor: smallest eigenvalue of `G_f` over the mean eigenvalue of `G`, from 1e-6 to 1.

    References:
        | Latent Space Oddity: on the Curvature of Deep Generative Models (Arvanitidis et al., 2018)
        | https://arxiv.org/abs/1710.11379

    Example:
        >>> x = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
        >>> z = DecoderMetric().with_metric(torch.diag(torch.tensor([4.0, 1.0]))).fit(x).forward(x)
        >>> round(float(z[0, 0] / z[2, 1]), 6)
        2.0
    """

    needs_metric = True

    @checked
    def __init__(
        self, floor: Annotated[float, Bound(lambda x, _: 1e-6 <= x <= 1, "a number from 1e-06 to 1")] = 0.01
    ) -> None:
        super().__init__()
        self.floor = floor
        self.round_trip_tolerance = 1e-3 / math.sqrt(floor)
        self._metric: Tensor | None = None

    def with_metric(self, metric: Tensor) -> Self:
        """Hand in the metric that the next fits use.

        Args:
            metric: symmetric, positive semi-definite, shape (features, features).

        Returns:
            The preconditioner itself.

        Raises:
            PrecfmError: it is not such a matrix, or zero.
        """
        require_tensor(metric, f"{self._name}: the metric")
        metric = metric.detach().double()
        if metric.ndim != 2 or metric.shape[0] != metric.shape[1]:
            raise PrecfmError(
                f"{self._name}: the metric has shape {tuple(metric.shape)}, but (dim, dim) is needed"
            )
        largest = float(metric.abs().max())
        if not math.isfinite(largest) or not torch.allclose(metric, metric.T, rtol=0, atol=1e-6 * largest):
            raise PrecfmError(f"{self._name}: the metric is not finite and symmetric, as a mean of J^T J is")
        eigenvalues = eigen_spectrum(metric).eigenvalues
        if not float(eigenvalues[-1]) > 0 or float(eigenvalues[0]) < -1e-6 * float(eigenvalues[-1]):
            raise PrecfmError(
                f"{self._name}: the metric has eigenvalues from {float(eigenvalues[0]):.3g} to "
                f"{float(eigenvalues[-1]):.3g}, but some must be positive and none negative: does the decoder vary?"
            )
        self._metric = metric
        return self

    @property
    def num_parameters(self) -> int:
        """The mean and a symmetric matrix."""
        return self.features + self.features * (self.features + 1) // 2

    def _fit(self, data: FitData) -> int:
        if self._metric is None:
            raise PrecfmError(f"{self._name}: has no metric to fit with; call with_metric(metric) before fit")
        if len(self._metric) != self.features:
            raise PrecfmError(
                f"{self._name}: the metric is of {len(self._metric)} features, but x has {self.features}"
            )
        eigenvalues, eigenvectors = eigen_spectrum(self._metric.to(data.x.device))
        lowest = self.floor * eigenvalues.mean()
        floored = eigenvalues.clamp(min=float(lowest))
        variances = ((covariance(data.x) @ eigenvectors) * eigenvectors).sum(dim=0)
        mean_variance = (floored * variances).mean()
        if not float(mean_variance) > 0:
            raise PrecfmError(
                f"{self._name}: x has variance 0 in every feature, but a scale needs rows that differ"
            )
        self.mean = data.x.mean(dim=0)
        factors = (floored / mean_variance).sqrt()
        self.matrix, self.inverse_matrix, self.log_det = symmetric_map(factors, eigenvectors)
        raised = int((eigenvalues < lowest).sum())
        if raised:
            self.notes.append(
                f"{raised} of {self.features} eigenvalues of the metric raised to {self.floor:g} of their mean"
            )
        return power_flops(*data.x.shape)
