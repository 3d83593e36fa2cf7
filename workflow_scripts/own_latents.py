"""Kind `latents`, of data that are latents: hand them on, and describe how ill-conditioned they are."""

from collections.abc import Mapping
from functools import partial

import pandas as pd
from torch import Tensor

from precfm.geometry.summaries import spectrum_frame
from precfm.pipeline.job import Job
from precfm.pipeline.shards import SHARD_BYTES, StoredRows, float32_bytes, require_finite


def make(job: Job) -> None:
    """Write latents and labels per split and the spectrum; nothing is decoded, so no error of a decoder is known.

    The spectrum is that of the first rows, which are in random order, as many as one shard holds.
    """
    data, counts = job.parent("data"), []
    row_bytes = float32_bytes(data.json("about.json")["latent_shape"])
    for split in ("train", "validation", "heldout"):
        stored = data.rows(f"{split}.safetensors")
        made = job.write_rows(
            f"{split}.safetensors", len(stored), row_bytes, partial(checked_rows, split, stored)
        )
        counts.append({"split": split, "rows": len(made), "squared_error": None, "clamped_share": None})
        if split == "train":
            first = made.read(0, max(2, SHARD_BYTES // row_bytes))
            job.write_frame("spectrum.csv", spectrum_frame(first["latents"], first["labels"], "data"))
    job.write_frame("reconstruction.csv", pd.DataFrame(counts))


def checked_rows(split: str, stored: StoredRows, start: int, stop: int) -> Mapping[str, Tensor]:
    """Latents, all finite, and labels."""
    rows = stored.read(start, stop, ["latents", "labels"])
    require_finite(rows["latents"], split, start, "every number must be")
    return rows
