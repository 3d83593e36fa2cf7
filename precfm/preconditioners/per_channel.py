"""Standardisation of each channel: a diagonal preconditioner, blind to directions that are rotated."""

import torch
from torch import Tensor

from precfm.core.errors import PrecfmError
from precfm.geometry.moments import Moments
from precfm.preconditioners.base import Preconditioner
from precfm.preconditioners.fit_data import FitData
from precfm.preconditioners.inputs import summary


class PerChannel(Preconditioner):
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
        return 2 * self._channels

    @property
    def _channels(self) -> int:
        return self.event_shape[0] if self.event_shape else 1

    def _allocate(self) -> None:
        self.register_buffer("mean", torch.zeros(self._channels, 1).to(self.anchor))
        self.register_buffer("scale", torch.ones(self._channels, 1).to(self.anchor))

    def _fit(self, data: FitData) -> int:
        moments = Moments(diagonal=True)
        for rows, _ in data.batches:
            moments.update(self._by_channel(rows).transpose(1, 2).reshape(-1, self._channels))
        variance = moments.covariance()
        constant = (variance == 0).nonzero().flatten().tolist()
        if constant:
            raise PrecfmError(
                f"x: is constant in channel {summary(constant)}, which cannot be scaled to variance 1; drop it, or "
                "use the preconditioner 'scalar'"
            )
        self.register_buffer("mean", moments.mean[:, None])
        self.register_buffer("scale", variance.sqrt()[:, None])
        return 4 * moments.count * self._channels

    def _by_channel(self, rows: Tensor) -> Tensor:
        """Rows (batch, features) as (batch, channels, positions)."""
        return rows.reshape(len(rows), self._channels, self.features // self._channels)

    def _forward(self, x: Tensor, classes: Tensor | None) -> Tensor:
        return ((self._by_channel(x) - self.mean) / self.scale).reshape(x.shape)

    def _inverse(self, z: Tensor, classes: Tensor | None) -> Tensor:
        return (self._by_channel(z) * self.scale + self.mean).reshape(z.shape)

    def _log_abs_det(self, x: Tensor, classes: Tensor | None) -> Tensor:
        positions = self.features // self._channels
        return (-positions * self.scale.log().sum()).expand(len(x))
