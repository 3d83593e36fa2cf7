"""How much a decoder uses each direction of the latents."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor
from tqdm import tqdm

from precfm.diagnosis.conditioning import variances_along
from precfm.diagnosis.rows import Parts
from precfm.geometry.decoder import decoder_sensitivity
from precfm.geometry.moments import Moments
from precfm.geometry.spectra import eigen_spectrum

DECODED = 64  # latents at which the decoder is asked
UNUSED = 0.01  # of the mean change of the image per standard deviation: what moves it by less, no metric on images sees

Decoder = Callable[[Tensor], Tensor]
"""Maps latents (batch, *dim) to images (batch, *image), each row on its own."""


@dataclass(frozen=True)
class DecoderUse:
    """What a decoder makes of the directions.

    Attributes:
        unused: eigendirections along which one standard deviation changes the image by less than 1% of the mean change.
        directions: how many there are.
        kappa_used: the held-out rows' largest over smallest variance along the other ones.
        refused: why it could not be asked, or None; all above is then empty.
    """

    unused: int = 0
    directions: int = 0
    kappa_used: float = math.nan
    refused: str | None = None


def measure_decoder(decoder: Decoder, parts: Parts) -> DecoderUse:
    """Ask a decoder for each eigendirection of the rows that maps are fitted to: `DECODED` images for each."""
    features = parts.features
    if features > parts.dense_features:
        return DecoderUse(refused=f"there are {features:,} directions; dense_features of {features} asks it")
    if not parts.dense or len(parts.fit[0]) <= features:
        return DecoderUse(
            refused=f"{features:,} directions need {2 * features + 2:,} rows; {parts.total:,} are there"
        )
    values, vectors = eigen_spectrum(Moments().update(parts.fit[0]).covariance())
    latents = parts.fit[0][:DECODED]
    with tqdm(total=len(latents) * (len(values) + 1), desc="decoding", leave=False, disable=None) as bar:

        def counted(batch: Tensor) -> Tensor:
            bar.update(len(batch))
            return decoder(batch)

        sensitivity = decoder_sensitivity(counted, latents, vectors, values)
    along = variances_along(parts.held_out_covariance(), vectors)
    used = sensitivity >= UNUSED * sensitivity.mean()
    return DecoderUse(int((~used).sum()), len(used), float(along[used].max() / along[used].min()))
