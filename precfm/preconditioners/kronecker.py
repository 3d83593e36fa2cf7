"""Whitening of a feature map under a covariance that is a Kronecker product: of channels, and of positions."""

import torch
from torch import Tensor

from precfm.core.errors import PrecfmError
from precfm.core.options import checked
from precfm.geometry.moments import Moments
from precfm.preconditioners.closed_form import ByClass
from precfm.preconditioners.feature_map import FeatureMap
from precfm.preconditioners.symmetric_power import (
    Exponent,
    Shrinkage,
    SymmetricMap,
    few_rows,
    power_flops,
    symmetric_power,
)


class Kronecker(FeatureMap):
    """Whitens channels and positions each with a matrix, `Z = A^(-exponent) (X - mean) B^(-exponent)`.

    With a datum as a matrix `X` (channels, positions), its covariance is taken for `A (x) B / s`: `A` is the mean over
    positions of the covariance across channels, `B` the mean over channels of the covariance across positions, and `s`
    the mean variance. These partial traces need one pass over the data and no matrix of all features. They are the
    factors wherever the covariance is such a product; elsewhere they are neither its nearest product, which needs the
    whole matrix, nor the likeliest one, which needs many passes ("flip-flop"), and `z` is not quite white.

    Arguments:
        exponent: as in `Whitening`, for both factors.
        shrinkage: as in `Whitening`, for both factors; `auto` counts, for one factor, each row as often as the other
            has directions that are worth it, `trace^2 / trace of the square`.

    References:
        | Models with a Kronecker product covariance structure: estimation and testing (Srivastava, von Rosen & von
        | Rosen, 2008), in Mathematical Methods of Statistics 17 (4), for the likeliest factors
        | https://doi.org/10.3103/S1066530708040066

        | Approximation with Kronecker products (Van Loan & Pitsianis, 1993), for the nearest product
        | https://doi.org/10.1007/978-94-015-8196-7_17

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> x = torch.randn(2000, 2, 3, generator=generator) * torch.tensor([1.0, 9.0])[:, None]
        >>> x = x @ torch.tensor([[1.0, 2.0, 0.0], [0.0, 1.0, 2.0], [0.0, 0.0, 1.0]])
        >>> z = Kronecker().fit(x).forward(x)
        >>> bool(torch.allclose(z.flatten(1).T.cov(), torch.eye(6), atol=0.1))
        True
    """

    mean: Tensor
    channel_matrix: Tensor
    channel_inverse_matrix: Tensor
    position_matrix: Tensor
    position_inverse_matrix: Tensor
    log_det: Tensor

    @checked
    def __init__(self, exponent: Exponent = 0.5, shrinkage: Shrinkage = "auto") -> None:
        super().__init__()
        self.exponent, self.shrinkage = exponent, shrinkage

    @property
    def num_parameters(self) -> int:
        """One mean per feature and two symmetric matrices; their scale is shared."""
        return self.features + sum(size * (size + 1) // 2 for size in (self.channels, self.positions)) - 1

    def _allocate(self) -> None:
        zeros = self.anchor.new_zeros
        channel, position = (
            SymmetricMap(zeros(size, size), zeros(size, size), zeros(()))
            for size in (self.channels, self.positions)
        )
        self._set(zeros(self.channels, self.positions), channel, position)

    def _set(self, mean: Tensor, channel: SymmetricMap, position: SymmetricMap) -> None:
        self.register_buffer("mean", mean)
        for name, power in (("channel", channel), ("position", position)):
            self.register_buffer(f"{name}_matrix", power.matrix)
            self.register_buffer(f"{name}_inverse_matrix", power.inverse_matrix)
        self.register_buffer("log_det", self.positions * channel.log_det + self.channels * position.log_det)

    def _empty(self) -> Moments:
        return Moments(products=self._partial_traces)

    def _partial_traces(self, centred: Tensor) -> Tensor:
        """Sums over rows and positions, and over rows and channels, one after the other in a vector."""
        maps = self._by_channel(centred)
        by_channel = maps.transpose(0, 1).reshape(self.channels, -1)
        by_position = maps.reshape(-1, self.positions)
        return torch.cat([(by_channel @ by_channel.T).flatten(), (by_position.T @ by_position).flatten()])

    def _solve(self, moments: ByClass) -> int:
        (whole,) = moments.values()
        sizes = (self.channels, self.positions)
        by_channel, by_position = torch.split(whole.covariance(), [size**2 for size in sizes])
        across_channels = by_channel.reshape(self.channels, -1) / self.positions
        mean_variance = across_channels.diagonal().mean()
        if not float(mean_variance) > 0:
            raise PrecfmError("x: has variance 0 in every feature; a scale needs rows that differ")
        across_positions = by_position.reshape(self.positions, -1) / (self.channels * mean_variance)
        channel = self._power(across_channels, "channels", 1 + (whole.count - 1) * _worth(across_positions))
        position = self._power(across_positions, "positions", 1 + (whole.count - 1) * _worth(across_channels))
        self._set(whole.mean.reshape(sizes), channel, position)
        return power_flops(whole.count * self.positions, self.channels) + power_flops(
            whole.count * self.channels, self.positions
        )

    def _power(self, cov: Tensor, axis: str, rows: float) -> SymmetricMap:
        self.notes.extend(few_rows(int(rows), len(cov), self.shrinkage, f"x, across {axis},"))
        return symmetric_power(cov, self.exponent, self.shrinkage, f"x: across {axis},", rows)

    def _forward(self, x: Tensor, classes: Tensor | None) -> Tensor:
        return (self.channel_matrix @ (self._by_channel(x) - self.mean) @ self.position_matrix).reshape(
            x.shape
        )

    def _inverse(self, z: Tensor, classes: Tensor | None) -> Tensor:
        centred = self.channel_inverse_matrix @ self._by_channel(z) @ self.position_inverse_matrix
        return (centred + self.mean).reshape(z.shape)

    def _log_abs_det(self, x: Tensor, classes: Tensor | None) -> Tensor:
        return self.log_det.expand(len(x))


def _worth(cov: Tensor) -> float:
    """How many independent directions of equal variance a covariance is worth."""
    return float(cov.diagonal().sum().square() / cov.square().sum())
