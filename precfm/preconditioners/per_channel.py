"""Standardisation of each channel: a diagonal preconditioner, blind to directions that are rotated."""

import torch
from torch import Tensor

from precfm.core.errors import PrecfmError
from precfm.geometry.moments import Moments
from precfm.preconditioners.closed_form import ByClass
from precfm.preconditioners.feature_map import FeatureMap
from precfm.preconditioners.inputs import summary


class PerChannel(FeatureMap):
    """Centres each channel and divides it by its own standard deviation.

    For vectors (batch, dim) every feature is a channel. For maps (batch, channels, height, width) the first
    axis of a datum counts the channels, and the statistics run over rows and positions, as is usual for the
    latents of image encoders.

    Example:
        >>> import torch
        >>> x = torch.tensor([[0.0, 0.0], [2.0, 20.0]])
        >>> [round(float(variance), 5) for variance in PerChannel().fit(x).forward(x).var(dim=0)]
        [1.0, 1.0]
    """

    mean: Tensor
    scale: Tensor

    @property
    def num_parameters(self) -> int:
        """One mean and one scale per channel."""
        return 2 * self.channels

    def _allocate(self) -> None:
        self.register_buffer("mean", torch.zeros(self.channels, 1).to(self.anchor))
        self.register_buffer("scale", torch.ones(self.channels, 1).to(self.anchor))

    def _empty(self) -> Moments:
        return Moments(diagonal=True)

    def _coordinates(self, rows: Tensor) -> Tensor:
        return self._by_channel(rows).transpose(1, 2).reshape(-1, self.channels)

    def _solve(self, moments: ByClass) -> int:
        (whole,) = moments.values()
        variance = whole.covariance()
        constant = (variance == 0).nonzero().flatten().tolist()
        if constant:
            raise PrecfmError(
                f"x: is constant in channel {summary(constant)}, which cannot be scaled to variance 1; drop it, or "
                "use the preconditioner 'scalar'"
            )
        self.register_buffer("mean", whole.mean[:, None])
        self.register_buffer("scale", variance.sqrt()[:, None])
        return 4 * whole.count * self.channels

    def _forward(self, x: Tensor, classes: Tensor | None) -> Tensor:
        return ((self._by_channel(x) - self.mean) / self.scale).reshape(x.shape)

    def _inverse(self, z: Tensor, classes: Tensor | None) -> Tensor:
        return (self._by_channel(z) * self.scale + self.mean).reshape(z.shape)

    def _log_abs_det(self, x: Tensor, classes: Tensor | None) -> Tensor:
        return (-self.positions * self.scale.log().sum()).expand(len(x))
