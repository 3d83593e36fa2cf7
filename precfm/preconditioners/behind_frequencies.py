"""Learned maps of feature maps: a small convolutional network behind a whitening that keeps positions."""

from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn

from precfm.geometry.recovery import smallest_std
from precfm.preconditioners.base import Preconditioner
from precfm.preconditioners.channel_whitening import ChannelWhitening
from precfm.preconditioners.fit_data import FitRows
from precfm.preconditioners.learned import LearnedPreconditioner
from precfm.preconditioners.per_frequency import PerFrequency

Before: TypeAlias = Literal["per_frequency", "channel_whitening"]
KERNEL = 3


class BehindFrequencies(LearnedPreconditioner):
    """A learned map of data (channels, height, width) whose first map is `per_frequency` or `channel_whitening`.

    Both need few rows and no matrix of all features. Of data (channels, positions) the height is 1, of vectors both.
    """

    before: Before

    @property
    def _map_shape(self) -> tuple[int, int, int]:
        """Channels, height and width."""
        channels, *positions = self.event_shape or (1,)
        height, width = [1, 1, *positions][-2:] if len(positions) < 3 else [1, self.features // channels]
        return channels, height, width

    def _first_map(self) -> Preconditioner:
        return {"per_frequency": PerFrequency, "channel_whitening": ChannelWhitening}[self.before](
            shrinkage=self.shrinkage
        )

    @property
    def _first_shape(self) -> tuple[int, ...]:
        return self.event_shape

    def _smallest_std(self, data: FitRows) -> float:
        """The smallest standard deviation of any direction that the rows tell of, unless shrinkage hides it."""
        first = self.whitening
        matrices: Tensor = first.matrices if self.before == "per_frequency" else first.matrix  # type: ignore[assignment]
        known = 1 / float(torch.linalg.matrix_norm(matrices, ord=2).max())
        return (
            min(known, smallest_std(data.x.reshape(-1, *self.event_shape))) if self.shrinkage == 0 else known
        )


class ConvNet(nn.Module):
    """Convolutions with SiLU between them; the condition enters by addition behind the first, the last one is zero.

    Args:
        channels: of the input and of the output.
        width: channels between.
        depth: layers between, at least 1.
        middle: kernel size of the layers between the first and the last.
    """

    def __init__(self, channels: tuple[int, int], width: int, depth: int, middle: int = KERNEL) -> None:
        super().__init__()
        sizes = [KERNEL] + [middle] * (depth - 1) + [KERNEL]
        counts = [channels[0]] + [width] * depth + [channels[1]]
        self.layers = nn.ModuleList(
            nn.Conv2d(counts[i], counts[i + 1], size, padding=size // 2) for i, size in enumerate(sizes)
        )
        nn.init.zeros_(self.layers[-1].weight)  # type: ignore[arg-type]
        nn.init.zeros_(self.layers[-1].bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor, condition: Tensor | None) -> Tensor:
        """Maps (batch, channels, height, width), given a condition (batch, width)."""
        first, *rest = self.layers
        hidden: Tensor = first(x)
        if condition is not None:
            hidden = hidden + condition[:, :, None, None]
        for layer in rest:
            hidden = layer(nn.functional.silu(hidden))
        return hidden


def label_embedding(num_classes: int, width: int) -> nn.Embedding | None:
    """A vector for each class, with the spread that a convolution gives; None without classes."""
    if not num_classes:
        return None
    embedding = nn.Embedding(num_classes, width)
    nn.init.normal_(embedding.weight, std=3**-0.5)
    return embedding
