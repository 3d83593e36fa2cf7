"""How much a decoder uses each direction of the latents."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from precfm.core.errors import PrecfmError
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
    """

    unused: int
    directions: int
    kappa_used: float


def measure_decoder(decoder: Decoder, parts: Parts) -> DecoderUse:
    """Ask a decoder for each eigendirection of the rows that maps are fitted to.

    Raises:
        PrecfmError: the rows are fewer than features, or the features more than `dense_features`.
    """
    if not parts.dense or len(parts.fit[0]) <= parts.features:
        raise PrecfmError(
            f"decoder: its use of {parts.features} directions needs at least {2 * parts.features + 2} rows and at most "
            f"{parts.dense_features} features (dense_features)"
        )
    values, vectors = eigen_spectrum(Moments().update(parts.fit[0]).covariance())
    sensitivity = decoder_sensitivity(decoder, parts.fit[0][:DECODED], vectors, values)
    along = variances_along(parts.held_out_covariance(), vectors)
    used = sensitivity >= UNUSED * sensitivity.mean()
    return DecoderUse(int((~used).sum()), len(used), float(along[used].max() / along[used].min()))
