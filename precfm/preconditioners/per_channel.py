"""Standardisation of each channel: a diagonal preconditioner, blind to directions that are rotated."""

import torch
from torch import Tensor

from precfm.core.errors import PrecfmError
from precfm.preconditioners.base import FitData, Preconditioner, summary


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
        channels = self._by_channel(data.x)
        variance = (channels - channels[:1, :, :1]).var(
            dim=(0, 2)
        )  # shifted: exactly 0 for a constant channel
        constant = (variance == 0).nonzero().flatten().tolist()
        if constant:
            raise PrecfmError(
                f"PerChannel: channel {summary(constant)} of x is constant and cannot be scaled to "
                "variance 1; drop it, or use the preconditioner 'scalar'"
            )
        self.mean, self.scale = channels.mean(dim=(0, 2))[:, None], variance.sqrt()[:, None]
        return 4 * data.x.numel()

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
