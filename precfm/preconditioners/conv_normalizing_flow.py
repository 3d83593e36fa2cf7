"""A normalizing flow of feature maps: affine coupling by convolutions at several scales."""

import math
from collections.abc import Iterator
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from precfm.core.errors import PrecfmError
from precfm.core.options import Count, checked
from precfm.preconditioners.behind_frequencies import Before, BehindFrequencies, ConvNet, label_embedding
from precfm.preconditioners.likelihood_flow import MAX_SHIFT, LikelihoodFlow


class ConvNormalizingFlow(BehindFrequencies, LikelihoodFlow):
    """Whitens feature maps (channels, height, width), then applies a multi-scale flow of maximum likelihood.

    At each scale come `transforms` pairs of an invertible 1 x 1 convolution and an affine coupling, in which a small
    network of convolutions reads one half of the channels, and the label, and moves the other. Then half of the
    channels leave, and of the others each 2 x 2 positions become channels for the next scale. In the end every number
    returns to where it came from, so that `z` is a map, too. The 1 x 1 convolutions are orthogonal: their inverse is
    exact and they scale nothing. The logarithm of every scale and every shift of a coupling are bounded smoothly. A
    flow that diverged is refused, as in `NormalizingFlow`.

    Arguments:
        before: the map before the network; its `shrinkage` is that option.
        scales: how many scales; fewer where height or width is odd, which the notes say.
        transforms: pairs at each scale.
        width: channels between the layers of each coupling's network.
        depth: layers between; those between the first and the last are 1 x 1.
        max_log_scale: bound on the absolute logarithm of each coupling's scale.
        inherited: see `LearnedPreconditioner`.

    Raises:
        PrecfmError: by the fit, there is one channel and no 2 x 2 positions to make more of.

    References:
        | Density estimation using Real NVP (Dinh et al., 2016), section 3.6 for several scales
        | https://arxiv.org/abs/1605.08803

        | Glow: Generative Flow with Invertible 1x1 Convolutions (Kingma & Dhariwal, 2018), whose matrices are LU
        | products; here they are exponentials of skew-symmetric ones
        | https://arxiv.org/abs/1807.03039

    Example:
        >>> x = torch.randn(60, 4, 4, 4, generator=torch.Generator().manual_seed(0))
        >>> flow = ConvNormalizingFlow(conditional=False, steps=1, width=8).fit(x)
        >>> bool(torch.allclose(flow.inverse(flow.forward(x)), x, atol=1e-4))
        True
    """

    @checked
    def __init__(
        self,
        before: Before = "per_frequency",
        *,
        scales: Count = 3,
        transforms: Count = 2,
        width: Count = 32,
        depth: Count = 2,
        max_log_scale: Annotated[float, Field(gt=0, le=5)] = 1.0,
        steps: Count = 500,
        batch_size: Count = 64,
        **inherited: Any,
    ) -> None:
        super().__init__(steps=steps, batch_size=batch_size, **inherited)
        self.before: Before = before
        self.scales, self.transforms = scales, transforms
        self.width, self.depth = width, depth
        self.max_log_scale = max_log_scale

    def _build(self) -> nn.Module:
        return MultiscaleFlow(
            self._map_shape,
            len(self.classes),
            scales=self.scales,
            transforms=self.transforms,
            width=self.width,
            depth=self.depth,
            max_log_scale=self.max_log_scale,
        )

    def _settle(self, data: Any, validation_loss: float) -> None:
        if (found := len(self._flow.levels)) < self.scales:
            shape = " x ".join(map(str, self._map_shape))
            self.notes.append(f"{found} of {self.scales} scales: {shape} does not halve further")
        super()._settle(data, validation_loss)

    def _negative_log_likelihood(
        self, network: nn.Module, white: Tensor, classes: Tensor | None = None
    ) -> Tensor:
        z, log_det = network(white, classes)
        gaussian = 0.5 * (z.square() + math.log(2 * math.pi)).sum(dim=1)
        loss: Tensor = (gaussian - log_det).mean()
        return loss

    @property
    def _flow(self) -> "MultiscaleFlow":
        assert isinstance(self.network, MultiscaleFlow)
        return self.network

    def _forward(self, x: Tensor, classes: Tensor | None) -> Tensor:
        return self._flow(self.whitening._forward(x, None), classes)[0]  # type: ignore[no-any-return]

    def _inverse(self, z: Tensor, classes: Tensor | None) -> Tensor:
        return self.whitening._inverse(self._flow.inverse(z, classes), None)

    def _log_abs_det(self, x: Tensor, classes: Tensor | None) -> Tensor:
        log_det: Tensor = self._flow(self.whitening._forward(x, None), classes)[1]
        return self.whitening._log_abs_det(x, None) + log_det


class MultiscaleFlow(nn.Module):
    """The network of `ConvNormalizingFlow`: rows (batch, features) to rows, with fresh weights the identity.

    Args:
        shape: channels, height and width of a row.
        num_classes: number of classes; 0 for none.
        scales: most levels.
        transforms: pairs of a 1 x 1 convolution and a coupling at each level.
        width: as in `ConvNormalizingFlow`.
        depth: as in `ConvNormalizingFlow`.
        max_log_scale: as in `ConvNormalizingFlow`.

    Raises:
        PrecfmError: no level can be made, for lack of a second channel.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        num_classes: int,
        *,
        scales: int,
        transforms: int,
        width: int,
        depth: int,
        max_log_scale: float,
    ) -> None:
        super().__init__()
        self.shape = shape
        self.splits = list(_channels_at_levels(shape, scales))
        if not self.splits:
            raise PrecfmError(
                f"x: has one channel of shape {shape[1:]}; a coupling needs two, or height and width that halve"
            )
        self.levels = nn.ModuleList(
            nn.ModuleList(
                _Pair(channels, num_classes, width, depth, max_log_scale, flip=bool(index % 2))
                for index in range(transforms)
            )
            for channels in self.splits
        )

    def forward(self, rows: Tensor, classes: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Rows (batch, features) behind the flow, and the log determinants, shape (batch,)."""
        return self._at_level(0, rows.reshape(-1, *self.shape), classes, forward=True)

    def inverse(self, rows: Tensor, classes: Tensor | None = None) -> Tensor:
        """The rows that `forward` maps to these."""
        return self._at_level(0, rows.reshape(-1, *self.shape), classes, forward=False)[0]

    def _at_level(
        self, level: int, x: Tensor, classes: Tensor | None, *, forward: bool
    ) -> tuple[Tensor, Tensor]:
        """One level and all below it; the inverse comes from below. The order of numbers is that of the input."""
        squeezed = x.shape[1] != self.splits[level]
        x = pixel_unshuffle(x, 2) if squeezed else x
        log_det = x.new_zeros(len(x))
        pairs = list(self.levels[level].children())
        for pair in pairs if forward else ():
            x, more = pair(x, classes)
            log_det = log_det + more
        if level + 1 < len(self.levels):
            going_on, leaving = x.tensor_split([x.shape[1] - x.shape[1] // 2], dim=1)
            below, more = self._at_level(level + 1, going_on, classes, forward=forward)
            x, log_det = torch.cat([below.reshape(going_on.shape), leaving], dim=1), log_det + more
        for pair in () if forward else reversed(pairs):
            assert isinstance(pair, _Pair)
            x = pair.inverse(x, classes)
        x = pixel_shuffle(x, 2) if squeezed else x
        return x.flatten(1), log_det


class _Pair(nn.Module):
    """An orthogonal 1 x 1 convolution, then an affine coupling.

    Args:
        channels: at least 2.
        num_classes: number of classes; 0 for none.
        width: of the coupling's network.
        depth: of the coupling's network.
        max_log_scale: bound on the logarithm of a scale.
        flip: whether the second half of the channels moves the first.
    """

    def __init__(
        self, channels: int, num_classes: int, width: int, depth: int, max_log_scale: float, *, flip: bool
    ) -> None:
        super().__init__()
        self.skew = nn.Parameter(torch.zeros(channels, channels))
        read, moved = channels // 2, channels - channels // 2
        self.read, self.flip, self.max_log_scale = read, flip, max_log_scale
        self.network = ConvNet((read, 2 * moved), width, depth, middle=1)
        self.embedding = label_embedding(num_classes, width)

    def forward(self, x: Tensor, classes: Tensor | None) -> tuple[Tensor, Tensor]:
        read, moved = self._halves(torch.einsum("ij,njhw->nihw", self._rotation(), x))
        log_scale, shift = self._coupling(read, classes)
        return self._joined(read, moved * log_scale.exp() + shift), log_scale.flatten(1).sum(dim=1)

    def inverse(self, z: Tensor, classes: Tensor | None) -> Tensor:
        """What `forward` maps to `z`."""
        read, moved = self._halves(z)
        log_scale, shift = self._coupling(read, classes)
        x = self._joined(read, (moved - shift) * (-log_scale).exp())
        return torch.einsum("ji,njhw->nihw", self._rotation(), x)

    def _rotation(self) -> Tensor:
        lower = self.skew.tril(-1)
        rotation: Tensor = torch.linalg.matrix_exp(lower - lower.T)
        return rotation

    def _halves(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The channels that are read, and those that are moved."""
        if self.flip:
            return x[:, -self.read :], x[:, : -self.read]
        return x[:, : self.read], x[:, self.read :]

    def _joined(self, read: Tensor, moved: Tensor) -> Tensor:
        return torch.cat([moved, read] if self.flip else [read, moved], dim=1)

    def _coupling(self, read: Tensor, classes: Tensor | None) -> tuple[Tensor, Tensor]:
        """Logarithms of scales, and shifts, both bounded."""
        condition = None if self.embedding is None else self.embedding(classes)
        raw_scale, raw_shift = self.network(read, condition).chunk(2, dim=1)
        bound = self.max_log_scale
        return bound * torch.tanh(raw_scale / bound), MAX_SHIFT * torch.tanh(raw_shift / MAX_SHIFT)


def _channels_at_levels(shape: tuple[int, int, int], scales: int) -> Iterator[int]:
    """Channels at each level, behind its squeeze; the first level squeezes only what has one channel."""
    channels, height, width = shape
    for level in range(scales):
        if level or channels == 1:
            if height % 2 or width % 2:
                return
            channels, height, width = 4 * channels, height // 2, width // 2
        yield channels
        channels -= channels // 2
