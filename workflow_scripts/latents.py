"""Kind `latents`: encode every split, and describe how ill-conditioned the latents are."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd
import torch
from torch import Tensor

from precfm.core.seeds import derived_seed
from precfm.encoders.base import Encoder, load
from precfm.geometry.decoder import decoder_sensitivity
from precfm.geometry.large_spectra import decomposable
from precfm.geometry.spectra import covariance, eigen_spectrum
from precfm.geometry.summaries import spectrum_frame
from precfm.pipeline.job import Job
from precfm.pipeline.shards import SHARD_BYTES, StoredRows, float32_bytes, require_finite

# Latents at which the decoder is asked: so many, or as many as decode to so many numbers along all directions.
SENSITIVITY_SAMPLES, SENSITIVITY_NUMBERS, FEWEST_SAMPLES = 512, 2**25, 4
CHUNK_BYTES = 2**26  # of images that are in memory at once


def make(job: Job) -> None:
    """Write latents and labels per split, how well they decode, and the spectrum with decoder sensitivity.

    Of a split in several chunks the first one is decoded, and the spectrum is that of the first rows, which are in
    random order.
    """
    data, device = job.parent("data"), job.node.device
    encoder = load(job.parent("encoder").verified(), device)
    decoded = []
    for split in ("train", "validation", "heldout"):
        flips = split == "train" and job.params.get("flips", False)
        seed = derived_seed(job.params["seed"], "encode", split) if job.params["encode"] == "sample" else None
        encoding = Encoding(encoder, split, data.rows(f"{split}.safetensors"), seed, flips)
        made = job.write_rows(f"{split}.safetensors", len(encoding), encoding.row_bytes, encoding.rows)
        images = encoding.images(0, encoding.chunk)
        latents = made.read(0, len(images))["latents"]
        errors = encoder.reconstruction_errors(images, latents)
        means = {
            "squared_error": errors.mean().item(),
            "clamped_share": encoder.clamped_shares(latents).mean().item(),
        }
        decoded.append({"split": split, "rows": len(errors), **means})
        if split == "train":
            train = made.read(0, max(2, SHARD_BYTES // encoding.row_bytes))
    job.write_frame("reconstruction.csv", pd.DataFrame(decoded))
    sensitivity = None
    if decomposable(train["latents"]):
        values, vectors = eigen_spectrum(covariance(train["latents"]))
        affordable = SENSITIVITY_NUMBERS // (len(values) * math.prod(encoder.image_shape))
        samples = train["latents"][: min(SENSITIVITY_SAMPLES, max(FEWEST_SAMPLES, affordable))]
        sensitivity = decoder_sensitivity(encoder.decode, samples, vectors, values)
    job.write_frame("spectrum.csv", spectrum_frame(train["latents"], train["labels"], "data", sensitivity))


@dataclass(frozen=True)
class Encoding:
    """A split on its way through an encoder, a chunk of images in memory at a time.

    Attributes:
        encoder: the encoder.
        split: its name.
        stored: its images and labels.
        seed: of samples of the posterior; None for its mean.
        flips: whether every image is followed by its mirror image.
    """

    encoder: Encoder
    split: str
    stored: StoredRows
    seed: int | None
    flips: bool

    def __len__(self) -> int:
        return len(self.stored) * (1 + self.flips)

    @property
    def row_bytes(self) -> int:
        """Bytes of one latent."""
        return float32_bytes(self.encoder.latent_shape)

    @property
    def chunk(self) -> int:
        """Images that are encoded at once, mirror images counted."""
        return max(2, CHUNK_BYTES // math.prod(self.encoder.image_shape)) // 2 * 2

    def images(self, start: int, stop: int) -> Tensor:
        """Images from a first to a last, mirror images counted."""
        if not self.flips:
            return self.stored.read(start, stop, ["images"])["images"]
        first = start // 2
        images = self.stored.read(first, -(-stop // 2), ["images"])["images"]
        both = torch.stack([images, images.flip(-1)], dim=1).flatten(0, 1)
        return both[start - 2 * first :][: stop - start]

    def rows(self, start: int, stop: int) -> Mapping[str, Tensor]:
        """Latents and labels from a first to a last."""
        latents = torch.empty(stop - start, *self.encoder.latent_shape)
        for first in range(start, stop, self.chunk):
            last = min(first + self.chunk, stop)
            seed = self.seed if self.seed is None or first == 0 else derived_seed(self.seed, "from", first)
            latents[first - start : last - start] = self.encoder.encode(
                self.images(first, last), sample_seed=seed
            )
        require_finite(latents, self.split, start, "train the encoder differently")
        of_each = 1 + self.flips
        first = start // of_each
        labels = self.stored.read(first, -(-stop // of_each), ["labels"])["labels"].repeat_interleave(of_each)
        return {"latents": latents, "labels": labels[start - of_each * first :][: stop - start]}
