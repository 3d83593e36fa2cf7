"""What maps of feature maps have in common: channels, the first axis of a datum, and positions, the others."""

from torch import Tensor

from precfm.preconditioners.closed_form import ClosedForm


class FeatureMap(ClosedForm):
    """A closed form for data of shape (channels, *positions), such as (channels, height, width).

    Of vectors, every feature is a channel with one position.
    """

    @property
    def channels(self) -> int:
        """Number of channels."""
        return self.event_shape[0] if self.event_shape else 1

    @property
    def positions(self) -> int:
        """Number of positions, `height * width` of an image."""
        return self.features // self.channels

    def _by_channel(self, rows: Tensor) -> Tensor:
        """Rows (batch, features) as (batch, channels, positions)."""
        return rows.reshape(len(rows), self.channels, self.positions)
