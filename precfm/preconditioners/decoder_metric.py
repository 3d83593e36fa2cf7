"""Decoder-metric coordinates: distances in the flow's space are those that the decoder makes of them."""

import math
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from precfm.core.errors import PrecfmError
from precfm.core.options import checked
from precfm.core.tensors import require_tensor
from precfm.geometry.spectra import Spectrum, eigen_spectrum
from precfm.preconditioners.fit_data import FitData
from precfm.preconditioners.symmetric_affine import SymmetricAffine
from precfm.preconditioners.symmetric_power import power_flops, symmetric_map


class DecoderMetric(SymmetricAffine):
    """Centres data and multiplies it by the square root of a metric, `z = c G_f^(1/2) (x - mean)`.

    `G` is the metric that a decoder pulls back to the latents (`precfm.geometry.decoder.pull_back_metric`), and
    `G_f` has its eigenvalues, floored at `floor` times their mean, so that directions that the decoder ignores are
    kept. The squared length of a step in `z` is then the squared change of the image, up to the factor. The
    factor `c` gives `z` a mean variance of one over the training data; it does not make them white.

    The metric is no part of the data: `fit(x, metric=G)` takes it. A stored map does not need it.
    Against the rounding of float32 a floored direction is less well protected, so the round-trip tolerance is
    `1e-3 / sqrt(floor)`. `flops_per_fit` leaves out what the metric took.

    Arguments:
        floor: smallest eigenvalue of `G_f` over the mean eigenvalue of `G`, from 1e-6 to 1.

    References:
        | Latent Space Oddity: on the Curvature of Deep Generative Models (Arvanitidis et al., 2018)
        | https://arxiv.org/abs/1710.11379

    Example:
        >>> x = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
        >>> z = DecoderMetric().fit(x, metric=torch.diag(torch.tensor([4.0, 1.0]))).forward(x)
        >>> round(float(z[0, 0] / z[2, 1]), 6)
        2.0
    """

    needs_metric = True

    @checked
    def __init__(self, floor: Annotated[float, Field(ge=1e-6, le=1)] = 0.01) -> None:
        super().__init__()
        self.floor = floor
        self.round_trip_tolerance = 1e-3 / math.sqrt(floor)

    def _fit(self, data: FitData) -> int:
        eigenvalues, eigenvectors = _metric_spectrum(data.metric, self.features, self.anchor.device)
        moments = data.moments()
        lowest = self.floor * eigenvalues.mean()
        floored = eigenvalues.clamp(min=float(lowest))
        variances = ((moments.covariance() @ eigenvectors) * eigenvectors).sum(dim=0)
        mean_variance = (floored * variances).mean()
        if not float(mean_variance) > 0:
            raise PrecfmError("x: has variance 0 in every feature; a scale needs rows that differ")
        self._set(moments.mean, symmetric_map((floored / mean_variance).sqrt(), eigenvectors))
        raised = int((eigenvalues < lowest).sum())
        if raised:
            self.notes.append(
                f"{raised} of {self.features} eigenvalues of the metric raised to {self.floor:g} of their mean"
            )
        return power_flops(moments.count, self.features)


def _metric_spectrum(metric: Tensor | None, features: int, device: torch.device) -> Spectrum:
    """The spectrum of a metric that a user handed in, after all checks."""
    require_tensor(metric, "metric")
    assert isinstance(metric, Tensor)
    metric = metric.detach().to(device, torch.float64)
    if metric.shape != (features, features):
        raise PrecfmError(f"metric: has shape {tuple(metric.shape)}; {(features, features)} is needed")
    largest = float(metric.abs().max())
    if not math.isfinite(largest) or not torch.allclose(metric, metric.T, rtol=0, atol=1e-6 * largest):
        raise PrecfmError("metric: is not finite and symmetric, as a mean of J^T J is")
    spectrum = eigen_spectrum((metric + metric.T) / 2)
    smallest, largest = float(spectrum.eigenvalues[0]), float(spectrum.eigenvalues[-1])
    if not largest > 0 or smallest < -1e-6 * largest:
        raise PrecfmError(
            f"metric: has eigenvalues from {smallest:.3g} to {largest:.3g}; some must be positive and none negative: "
            "does the decoder vary?"
        )
    return spectrum
