"""Variances at spatial frequencies: what few rows of many features tell, and how well samples recover it."""

import math
from dataclasses import dataclass

import pandas as pd
import torch
from torch import Tensor

from precfm.core.errors import PrecfmError
from precfm.core.tensors import require_tensor
from precfm.geometry.cosines import channel_products, cosine_transform
from precfm.geometry.moments import Moments, rows_per_block

ROWS_PER_CHANNEL = 10  # with fewer, chance alone shows a condition number above 3.7 at each frequency


@dataclass(frozen=True)
class RadialRecovery:
    """How well generated samples recover the variances of the data, frequency by frequency.

    Attributes:
        variances: of the reference, for each channel and band of frequencies, shape (channels, bands), float64.
        ratios: variance of the generated samples over that of the reference, shape (channels, bands).
    """

    variances: Tensor
    ratios: Tensor

    @property
    def high(self) -> Tensor:
        """Ratios of the highest quartile of frequencies, in most data those of least variance, shape (channels, n)."""
        return high_bands(self.ratios)

    @property
    def log_error(self) -> float:
        """Mean of `|log ratio|` over channels and bands; 0 is perfect."""
        return float(self.ratios.log().abs().mean())

    @property
    def log_error_high(self) -> float:
        """Mean of `|log ratio|` over channels and the highest quartile of bands."""
        return float(self.high.log().abs().mean())

    @property
    def ratio_high(self) -> float:
        """Geometric mean of the ratios of the highest quartile; above 1 is too much variance."""
        return float(self.high.log().mean().exp())

    def metrics(self) -> dict[str, float]:
        """The summaries by the names that records have for them."""
        return {
            "band_ratio_high": self.ratio_high,
            "band_log_error": self.log_error,
            "band_log_error_high": self.log_error_high,
        }

    def frame(self) -> pd.DataFrame:
        """Columns channel, band, variance, ratio; a row for each channel and band."""
        channels, bands = self.ratios.shape
        return pd.DataFrame(
            {
                "channel": torch.arange(channels).repeat_interleave(bands).tolist(),
                "band": torch.arange(bands).repeat(channels).tolist(),
                "variance": self.variances.flatten().tolist(),
                "ratio": self.ratios.flatten().tolist(),
            }
        )


def high_bands(ratios: Tensor) -> Tensor:
    """The highest quartile of bands, the last axis, shape (..., n)."""
    return ratios[..., -math.ceil(ratios.shape[-1] / 4) :]


def frequency_variances(x: Tensor) -> Tensor:
    """Eigenvalues of the covariance of the channels at each spatial frequency, all of them in ascending order.

    They are variances along orthogonal directions that are fixed but for a rotation of channels, so that rows need not
    outnumber features. The covariance of all features has a condition number at least as large; the same where
    frequencies do not depend on each other, as in fields whose statistics are the same everywhere. With fewer than ten
    rows per channel channels are not rotated.

    Args:
        x: feature maps, shape (n, channels, *positions), or vectors, shape (n, features), whose variances these are;
            n of at least 2.

    Returns:
        Shape (features,), float64.

    Raises:
        PrecfmError: there are fewer than 2 rows, or a number is not finite.
    """
    require_tensor(x, "x")
    if x.ndim < 2 or len(x) < 2:
        raise PrecfmError(f"x has shape {tuple(x.shape)}, but (n, *dim) with n of at least 2 is needed")
    found = _covariances(x)
    return (torch.linalg.eigvalsh(found) if found.ndim > 1 else found).flatten().sort().values


def frequency_directions(x: Tensor) -> Tensor:
    """The directions whose variances `frequency_variances` gives: those of the channels at each spatial frequency.

    They stand in for the eigenvectors of the covariance where rows are fewer than features.

    Args:
        x: feature maps, shape (n, channels, *positions), n of at least 2.

    Returns:
        Unit vectors of flattened maps, one per column, lowest variance first, shape (features, features), float64.

    Raises:
        PrecfmError: there are fewer than 2 rows.

    Example:
        >>> x = torch.randn(50, 2, 3, 3, generator=torch.Generator().manual_seed(0))
        >>> directions = frequency_directions(x)
        >>> bool(torch.allclose(directions.T @ directions, torch.eye(18).double()))
        True
    """
    channels, positions = x.shape[1], x.shape[2:]
    found = _covariances(x)
    if found.ndim > 1:
        variances, mixed = torch.linalg.eigh(found)
    else:
        variances, mixed = found.reshape(channels, -1).T, torch.eye(channels, dtype=torch.float64)
        mixed = mixed.expand(len(variances), -1, -1)
    ones = torch.eye(len(variances), dtype=torch.float64).reshape(-1, 1, *positions)
    waves = cosine_transform(ones, inverse=True).flatten(1)
    directions = torch.einsum("fck,fp->cpfk", mixed, waves).reshape(x[0].numel(), -1)
    return directions[:, variances.flatten().argsort()]


def _covariances(x: Tensor) -> Tensor:
    """Of the channels at each frequency, shape (frequencies, channels, channels); with few rows their variances alone.

    Those have the shape (features,), as have the variances of vectors.
    """
    channels, positions = x.shape[1], x[0].numel() // x.shape[1]
    together = x.ndim > 2 and len(x) >= ROWS_PER_CHANNEL * channels

    def products(centred: Tensor) -> Tensor:
        return channel_products(centred.reshape(-1, channels, positions).mT)

    moments = Moments(products=products) if together else Moments(diagonal=True)
    for block in torch.split(x, rows_per_block(x[0].numel())):
        if not bool(block.isfinite().all()):
            raise PrecfmError("x holds a number that is not finite, but every number must be")
        moments.update(cosine_transform(block.detach().cpu().double()))
    return moments.covariance()


def radial_bands(positions: tuple[int, ...]) -> Tensor:
    """The band of each spatial frequency: its distance from zero, rounded.

    Distances are in half-waves along the longest axis, as the DCT counts them.

    Args:
        positions: size of each axis.

    Returns:
        Bands from 0 upwards, int64, shape (*positions).

    Example:
        >>> radial_bands((3, 3))
        tensor([[0, 1, 2],
                [1, 1, 2],
                [2, 2, 3]])
    """
    longest = max(positions, default=1)
    squares = torch.zeros(positions, dtype=torch.float64)
    for axis, size in enumerate(positions):
        along = torch.arange(size, dtype=torch.float64) * longest / size
        squares = squares + along.square().reshape(-1, *[1] * (len(positions) - axis - 1))
    return squares.sqrt().round().long()


def radial_power_spectrum(x: Tensor) -> Tensor:
    """Mean variance over rows of the DCT coefficients in each radial band of spatial frequencies, for each channel.

    Args:
        x: feature maps, shape (n, channels, *positions), n of at least 2.

    Returns:
        Shape (channels, bands), float64, low frequencies first; see `radial_bands`. Bands without a frequency, of axes
        of different sizes, are left out.

    Raises:
        PrecfmError: there are fewer than 2 rows.

    Example:
        >>> x = torch.randn(1000, 1, 8, 8, generator=torch.Generator().manual_seed(0))
        >>> bool((radial_power_spectrum(x) - 1).abs().max() < 0.2)
        True
    """
    moments = Moments(diagonal=True)
    for block in torch.split(x, rows_per_block(x[0].numel())):
        moments.update(cosine_transform(block.detach().cpu().double()))
    return _in_bands(moments.covariance().reshape(x.shape[1:]))


def radial_recovery(generated: Tensor, reference: Tensor) -> RadialRecovery:
    """Compare the radial power spectra of samples and of held-out data.

    Unlike eigenvectors, frequencies are not fitted to anything, so that the ratios are fair for any number of rows.

    Args:
        generated: samples, shape (n, channels, *positions).
        reference: held-out data, shape (m, channels, *positions).

    Returns:
        Ratios by channel and band, with summaries.

    Raises:
        PrecfmError: the shapes differ, or one of both does not vary in some band.
    """
    if generated.shape[1:] != reference.shape[1:]:
        raise PrecfmError(
            f"generated has shape {tuple(generated.shape)}, but the reference has {tuple(reference.shape)}: "
            "all but the first number must agree"
        )
    made, variances = radial_power_spectrum(generated), radial_power_spectrum(reference)
    for name, each in (("generated", made), ("reference", variances)):
        empty = (each <= 0).nonzero()
        if len(empty):
            channel, band = empty[0].tolist()
            raise PrecfmError(
                f"{name} has no variance in channel {channel} at band {band} of frequencies; a ratio needs some"
            )
    return RadialRecovery(variances, made / variances)


def radial_replicates(generated: Tensor, reference: Tensor, resamples: Tensor) -> Tensor:
    """The ratios of `radial_recovery` against each resample of the reference.

    Args:
        generated: samples, shape (n, channels, *positions); kept as they are.
        reference: held-out data, shape (m, channels, *positions).
        resamples: how often each row of the reference occurs in each replicate, integers, shape (replicates, m).

    Returns:
        Shape (replicates, channels, bands), float64. Where all counts are 1 they are those of `radial_recovery`.

    Raises:
        PrecfmError: the resamples are of another number of rows.
    """
    m = len(reference)
    if resamples.ndim != 2 or resamples.shape[1] != m:
        raise PrecfmError(f"resamples: got shape {tuple(resamples.shape)}; (replicates, {m}) is needed")
    made, shares = radial_power_spectrum(generated), resamples.double() / m
    by_channel = []
    for channel in range(reference.shape[1]):  # one at a time, for the memory
        values = cosine_transform(reference[:, channel : channel + 1].detach().cpu().double()).flatten(1)
        values = values - values.mean(0)
        variances = (shares @ values.square() - (shares @ values).square()) * (m / (m - 1))
        by_channel.append(made[channel] / _in_bands(variances.reshape(-1, *reference.shape[2:])))
    return torch.stack(by_channel, dim=1)


def _in_bands(variances: Tensor) -> Tensor:
    """Means over the frequencies of each band, shape (n, bands), of variances (n, *positions)."""
    bands = radial_bands(tuple(variances.shape[1:])).flatten()
    counts = bands.bincount()
    sums = variances.new_zeros(len(variances), len(counts)).index_add_(
        1, bands, variances.reshape(len(variances), -1)
    )
    return sums[:, counts > 0] / counts[counts > 0]
