"""The lowest frequencies of each block of an image, as JPEG orders them: latents of any image without a fit."""

from pathlib import Path
from typing import Literal

import numpy as np
import torch
from scipy.fft import idct
from torch import Tensor

from precfm.core.errors import PrecfmError
from precfm.core.options import Count, checked
from precfm.encoders.base import Encoder
from precfm.encoders.linear import coordinates, rounded
from precfm.training.options import TrainingOptions


class BlockDCT(Encoder):
    """Coefficients of the orthonormal two-dimensional DCT-II of each block and channel, lowest frequencies first.

    Images are centred at middle grey before. Decoding is isometric as long as nothing is clamped.

    Args:
        channels: 1 for grey images, 3 for colour.
        image_size: height and width in pixels, a multiple of `block`.
        block: height and width of a block in pixels.
        keep: coefficients per block and channel, in zigzag order; block**2 keeps all.

    Raises:
        PrecfmError: an argument is impossible.

    References:
        Ahmed, Natarajan, Rao, "Discrete Cosine Transform", IEEE Transactions on Computers C-23 (1974), 90-93
        ITU-T T.81 (JPEG), figure A.6 (zigzag order), https://www.w3.org/Graphics/JPEG/itu-t81.pdf

    Example:
        >>> dct = BlockDCT(channels=3, image_size=32, block=8, keep=6)
        >>> latents = dct.encode(torch.zeros(5, 3, 32, 32, dtype=torch.uint8))
        >>> latents.shape, dct.decode(latents).shape
        (torch.Size([5, 18, 4, 4]), torch.Size([5, 3, 32, 32]))
    """

    basis: Tensor

    @checked
    def __init__(
        self, channels: Literal[1, 3] = 1, image_size: Count = 32, block: Count = 8, keep: Count = 6
    ) -> None:
        if image_size % block:
            fitting = ", ".join(str(size) for size in range(1, image_size + 1) if image_size % size == 0)
            raise PrecfmError(
                f"block: got {block}, but image_size is {image_size}; one that divides it is needed: {fitting}"
            )
        if keep > block**2:
            raise PrecfmError(
                f"keep: got {keep}, but a block of {block} x {block} has {block**2} coefficients; "
                "take at most as many"
            )
        side = image_size // block
        super().__init__(channels, image_size, (channels * keep, side, side))
        self.block, self.keep = block, keep
        self.register_buffer("basis", rounded(dct_basis(block, keep)).float())

    def _fit(
        self,
        images: Tensor,
        seed: int,
        training: TrainingOptions | None,
        validation: Tensor | None,
        scratch: Path | None,
    ) -> None:
        """Nothing: the basis is fixed."""

    def _encode(self, images: Tensor, noise: Tensor | None) -> Tensor:
        side = self.image_size // self.block
        blocks = images.reshape(-1, self.channels, side, self.block, side, self.block).transpose(3, 4)
        grey = torch.full_like(self.basis[:, 0], 0.5)
        return coordinates(blocks.flatten(4), grey, self.basis).movedim(4, 2).flatten(1, 2).float()

    def _decode(self, latents: Tensor) -> Tensor:
        coefficients = latents.reshape(-1, self.channels, self.keep, *self.latent_shape[1:])
        waves = self.basis.reshape(self.block, self.block, self.keep)
        blocks = torch.einsum("bckij,pqk->bcipjq", coefficients, waves)
        return blocks.reshape(-1, *self.image_shape) + 0.5


def dct_basis(block: int, keep: int) -> Tensor:
    """Orthonormal basis vectors of the two-dimensional DCT-II, the first ones in zigzag order.

    Args:
        block: height and width of a block in pixels.
        keep: how many, at most block**2.

    Returns:
        Tensor, shape (block**2, keep), float64; rows are pixels, row by row.
    """
    waves = idct(np.eye(block), axis=0, norm="ortho")  # one column per frequency
    down, across = np.array(zigzag(block)[:keep]).T
    return torch.from_numpy(np.einsum("pk,qk->pqk", waves[:, down], waves[:, across]).reshape(block**2, keep))


def zigzag(block: int) -> list[tuple[int, int]]:
    """Vertical and horizontal frequencies from low to high: along the antidiagonals, every other one upwards.

    Example:
        >>> zigzag(3)
        [(0, 0), (0, 1), (1, 0), (2, 0), (1, 1), (0, 2), (1, 2), (2, 1), (2, 2)]
    """
    frequencies = [(i, j) for i in range(block) for j in range(block)]
    return sorted(frequencies, key=lambda ij: (sum(ij), ij[0] if sum(ij) % 2 else ij[1]))
