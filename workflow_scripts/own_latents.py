"""Kind `latents`, of data that are latents: hand them on, and describe how ill-conditioned they are."""

import pandas as pd

from precfm.core.errors import PrecfmError
from precfm.geometry.summaries import spectrum_frame
from precfm.pipeline.job import Job


def make(job: Job) -> None:
    """Write latents and labels per split and the spectrum; nothing is decoded, so no error of a decoder is known."""
    data, counts = job.parent("data"), []
    for split in ("train", "validation", "heldout"):
        tensors = data.tensors(f"{split}.safetensors")
        latents = tensors["latents"].float()
        bad = (~latents.flatten(1).isfinite()).any(1).nonzero()
        if len(bad):
            raise PrecfmError(f"{split} latents: row {int(bad[0])} is not finite; every number must be")
        job.write_tensors(f"{split}.safetensors", {"latents": latents, "labels": tensors["labels"]})
        counts.append({"split": split, "rows": len(latents), "squared_error": None, "clamped_share": None})
        if split == "train":
            job.write_frame("spectrum.csv", spectrum_frame(latents, tensors["labels"], "data"))
    job.write_frame("reconstruction.csv", pd.DataFrame(counts))
