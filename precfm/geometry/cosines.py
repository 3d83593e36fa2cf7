"""The cosine transform of feature maps, whose coefficients at different spatial frequencies hardly vary together."""

import math
from functools import lru_cache

import torch
from torch import Tensor


def cosine_transform(maps: Tensor, *, inverse: bool = False) -> Tensor:
    """The orthonormal DCT-II along every axis of positions, or its inverse.

    Args:
        maps: feature maps, shape (n, channels, *positions).
        inverse: back from coefficients to values.

    Returns:
        Coefficients (or values), of the same shape and type; frequency zero comes first.

    References:
        | Discrete Cosine Transform (Ahmed, Natarajan & Rao, 1974), which nearly diagonalises stationary covariances
        | https://doi.org/10.1109/T-C.1974.223784

    Example:
        >>> cosine_transform(torch.ones(1, 1, 4)).round(decimals=6).abs()
        tensor([[[2., 0., 0., 0.]]])
    """
    for axis, size in enumerate(maps.shape[2:], start=2):
        waves = cosine_basis(size, maps.dtype, maps.device)
        maps = torch.movedim(maps.movedim(axis, -1) @ (waves if inverse else waves.T), -1, axis)
    return maps


def channel_products(coefficients: Tensor) -> Tensor:
    """Outer products of the channels at each spatial frequency, summed over rows.

    Args:
        coefficients: shape (n, frequencies, channels).

    Returns:
        Shape (frequencies, channels, channels); of centred rows, over n - 1, they are covariances.
    """
    by_frequency = coefficients.transpose(0, 1)
    return by_frequency.mT @ by_frequency


@lru_cache(maxsize=64)
@torch.inference_mode(False)  # the first caller may be in it, a later one may need gradients
def cosine_basis(size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The orthonormal DCT-II as a matrix, one frequency per row, shape (size, size)."""
    frequencies, places = torch.arange(size, dtype=torch.float64)[:, None], torch.arange(size) + 0.5
    rows = torch.cos(math.pi / size * frequencies * places) * math.sqrt(2 / size)
    return torch.cat([rows[:1] * math.sqrt(0.5), rows[1:]]).to(device, dtype)
