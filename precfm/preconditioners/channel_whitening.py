"""Whitening across channels: the same matrix at every position of a feature map."""

from torch import Tensor

from precfm.core.options import checked
from precfm.preconditioners.closed_form import ByClass
from precfm.preconditioners.feature_map import FeatureMap
from precfm.preconditioners.symmetric_power import (
    Exponent,
    Shrinkage,
    SymmetricMap,
    few_rows,
    power_flops,
    require_rows,
    symmetric_power,
)


class ChannelWhitening(FeatureMap):
    """Multiplies the channels at each position by a power of their covariance, `z_p = c A^(-exponent) (x_p - mean)`.

    `A` is the covariance of the channels over rows and positions, and each channel has one mean, as in `PerChannel`.
    It removes what channels share, and leaves what positions share. Of vectors, every feature is a channel.

    Arguments:
        exponent: as in `Whitening`; 0.5 whitens the channels fully.
        shrinkage: as in `Whitening`; `auto` counts rows, not positions, since these depend on each other.

    References:
        | Whitening and Coloring Batch Transform for GANs (Siarohin et al., 2019), section 3.1, where the channels of a
        | feature map are whitened over batch and positions
        | https://arxiv.org/abs/1806.00420

    Example:
        >>> import torch
        >>> source = torch.randn(500, 2, 4, 4, generator=torch.Generator().manual_seed(0))
        >>> x = torch.einsum("ij,njhw->nihw", torch.tensor([[3.0, 1.0], [0.0, 0.1]]), source)
        >>> z = ChannelWhitening().fit(x).forward(x)
        >>> bool(torch.allclose(z.transpose(0, 1).flatten(1).cov(), torch.eye(2), atol=1e-2))
        True
    """

    mean: Tensor
    matrix: Tensor
    inverse_matrix: Tensor
    log_det: Tensor

    @checked
    def __init__(self, exponent: Exponent = 0.5, shrinkage: Shrinkage = "auto") -> None:
        super().__init__()
        self.exponent, self.shrinkage = exponent, shrinkage

    @property
    def num_parameters(self) -> int:
        """One mean per channel and a symmetric matrix."""
        return self.channels + self.channels * (self.channels + 1) // 2

    def _allocate(self) -> None:
        zeros = self.anchor.new_zeros
        square = zeros(self.channels, self.channels)
        self._set(zeros(self.channels), SymmetricMap(square, square.clone(), zeros(())))

    def _set(self, mean: Tensor, power: SymmetricMap) -> None:
        self.register_buffer("mean", mean)
        for name, value in power._asdict().items():
            self.register_buffer(name, value)

    def _coordinates(self, rows: Tensor) -> Tensor:
        return self._by_channel(rows).transpose(1, 2).reshape(-1, self.channels)

    def _solve(self, moments: ByClass) -> int:
        (whole,) = moments.values()
        rows = whole.count // self.positions
        what = "x: across channels,"
        require_rows(whole.count, self.channels, self.shrinkage, what)
        power = symmetric_power(whole.covariance(), self.exponent, self.shrinkage, what, rows)
        self._set(whole.mean, power)
        self.notes.extend(few_rows(rows, self.channels, self.shrinkage, "x, across channels,"))
        return power_flops(whole.count, self.channels)

    def _forward(self, x: Tensor, classes: Tensor | None) -> Tensor:
        return (self.matrix @ (self._by_channel(x) - self.mean[:, None])).reshape(x.shape)

    def _inverse(self, z: Tensor, classes: Tensor | None) -> Tensor:
        return (self.inverse_matrix @ self._by_channel(z) + self.mean[:, None]).reshape(z.shape)

    def _log_abs_det(self, x: Tensor, classes: Tensor | None) -> Tensor:
        return (self.positions * self.log_det).expand(len(x))
