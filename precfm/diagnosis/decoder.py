"""How much a decoder uses each direction of the latents."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from precfm.core.errors import PrecfmError
from precfm.diagnosis.conditioning import variances_along
from precfm.diagnosis.rows import Parts
from precfm.geometry.decoder import decoder_sensitivity
from precfm.geometry.moments import Moments
from precfm.geometry.spectra import eigen_spectrum

DECODED, FEWEST_DECODED = 64, 2  # latents at which the decoder is asked, for each direction
FEWEST_DIRECTIONS = 8  # with fewer, too little of the spectrum is seen
SECONDS = 60.0  # for all of it, about
UNUSED = 0.01  # of the mean change of the image per standard deviation: what moves it by less, no metric on images sees

Decoder = Callable[[Tensor], Tensor]
"""Maps latents (batch, *dim) to images (batch, *image), each row on its own."""


@dataclass(frozen=True)
class DecoderUse:
    """What a decoder makes of the directions.

    Attributes:
        unused: eigendirections along which one standard deviation changes the image by less than 1% of the mean change.
        directions: how many were asked: all, or some that are evenly spread over the spectrum.
        images: latents that were decoded for each.
        kappa_used: the held-out rows' largest over smallest variance along the other ones of those that were asked.
        reduced: why fewer images or directions were asked than 64 and all, or None.
        refused: why it could not be asked, or None; all above is then empty.
    """

    unused: int = 0
    directions: int = 0
    images: int = 0
    kappa_used: float = math.nan
    reduced: str | None = None
    refused: str | None = None


def measure_decoder(decoder: Decoder, parts: Parts) -> DecoderUse:
    """Ask a decoder for each eigendirection of the rows that maps are fitted to: `DECODED` images for each.

    A slow one is asked at fewer latents, then for fewer directions, so that it takes about a minute.

    Raises:
        PrecfmError: what it gives are no images of the latents.
    """
    features = parts.features
    if features > parts.dense_features:
        return DecoderUse(
            refused=f"there are {features:,} directions; --dense-features {features} (dense_features=) asks it"
        )
    if not parts.dense or len(parts.fit[0]) <= features:
        return DecoderUse(
            refused=f"{features:,} directions need {2 * features + 2:,} rows; {parts.total:,} are there"
        )
    latents = parts.fit[0][:DECODED]
    with torch.no_grad():
        _require_images(decoder(latents[:2]), latents[:2])
    seconds = _seconds_per_image(decoder, latents)
    images, directions = affordable(seconds, len(latents), features)
    slow = f"an image takes {seconds:.2g} s to decode here"
    if images * (directions + 1) * seconds > 2 * SECONDS:
        return DecoderUse(refused=f"{slow}; a faster device (--device cuda, where there is one) asks it")
    values, vectors = eigen_spectrum(Moments().update(parts.fit[0]).covariance())
    asked = torch.linspace(0, features - 1, directions).round().long()
    values, vectors = values[asked], vectors[:, asked]
    with tqdm(total=images * (directions + 1), desc="decoding", leave=False, disable=None) as bar:

        def counted(batch: Tensor) -> Tensor:
            bar.update(len(batch))
            return decoder(batch)

        sensitivity = decoder_sensitivity(counted, latents[:images], vectors, values)
    if not 0 < float(sensitivity.sum()) < math.inf:
        what = (
            "does not change with the latent"
            if not float(sensitivity.sum())
            else "is not finite at some latent"
        )
        raise PrecfmError(f"decoder: its image {what}; a decoder of these latents is needed")
    along = variances_along(parts.held_out_covariance(), vectors)
    used = sensitivity >= UNUSED * sensitivity.mean()
    fewer = f"{slow}: {images} images for each of {directions:,} of {features:,} directions"
    return DecoderUse(
        unused=int((~used).sum()),
        directions=directions,
        images=images,
        kappa_used=float(along[used].max() / along[used].min()),
        reduced=fewer if (images, directions) != (len(latents), features) else None,
    )


def affordable(seconds: float, latents: int, features: int) -> tuple[int, int]:
    """How many images for each of how many directions can be decoded in `SECONDS`, but no fewer than the fewest.

    Args:
        seconds: for one image.
        latents: that there are.
        features: of the latents, so many directions.

    Example:
        >>> affordable(1e-4, 64, 256), affordable(0.01, 64, 256), affordable(0.3, 64, 256), affordable(9.0, 64, 256)
        ((64, 256), (23, 256), (2, 98), (2, 8))
    """
    most = int(SECONDS / max(seconds, 1e-9))
    images = min(latents, max(FEWEST_DECODED, most // (features + 1)))
    return images, min(features, max(FEWEST_DIRECTIONS, most // images - 2))


def _require_images(images: object, latents: Tensor) -> None:
    if not isinstance(images, Tensor) or not images.numel() or len(images) != len(latents):
        got = f"shape {tuple(images.shape)}" if isinstance(images, Tensor) else f"a {type(images).__name__}"
        raise PrecfmError(
            f"decoder: gave {got} for latents of shape {tuple(latents.shape)}; a tensor of as many images is needed"
        )


def _seconds_per_image(decoder: Decoder, latents: Tensor) -> float:
    """How long an image takes, once the decoder is warm: alone, or among all where that is quick."""

    def timed(block: Tensor) -> float:
        start = time.perf_counter()
        with torch.no_grad():
            decoder(block)
        return time.perf_counter() - start

    timed(latents[:1])
    alone = timed(latents[:1])
    return alone if alone * len(latents) > SECONDS / 10 else timed(latents) / len(latents)
