"""Kind `latents`: encode every split, and describe how ill-conditioned the latents are."""

import pandas as pd

from precfm.core.errors import PrecfmError
from precfm.core.seeds import derived_seed
from precfm.encoders.base import load
from precfm.geometry.decoder import decoder_sensitivity
from precfm.geometry.large_spectra import decomposable
from precfm.geometry.spectra import covariance, eigen_spectrum
from precfm.geometry.summaries import spectrum_frame
from precfm.pipeline.job import Job

SENSITIVITY_SAMPLES = 512


def make(job: Job) -> None:
    """Write latents and labels per split, how well they decode, and the spectrum with decoder sensitivity."""
    data, device = job.parent("data"), job.node.device
    encoder = load(job.parent("encoder").verified(), device)
    latents, decoded = {}, []
    for split in ("train", "validation", "heldout"):
        tensors = data.tensors(f"{split}.safetensors")
        seed = derived_seed(job.params["seed"], "encode", split) if job.params["encode"] == "sample" else None
        latents[split] = encoder.encode(tensors["images"], sample_seed=seed)
        bad = (~latents[split].flatten(1).isfinite()).any(1).nonzero()
        if len(bad):
            raise PrecfmError(
                f"{split} latents: row {int(bad[0])} is not finite; train the encoder differently"
            )
        errors = encoder.reconstruction_errors(tensors["images"], latents[split])
        means = {
            "squared_error": errors.mean().item(),
            "clamped_share": encoder.clamped_shares(latents[split]).mean().item(),
        }
        decoded.append({"split": split, "rows": len(errors), **means})
        job.write_tensors(f"{split}.safetensors", {"latents": latents[split], "labels": tensors["labels"]})
    job.write_frame("reconstruction.csv", pd.DataFrame(decoded))
    train = latents["train"]
    sensitivity = None
    if decomposable(train):
        values, vectors = eigen_spectrum(covariance(train))
        sensitivity = decoder_sensitivity(encoder.decode, train[:SENSITIVITY_SAMPLES], vectors, values)
    labels = data.tensors("train.safetensors")["labels"]
    job.write_frame("spectrum.csv", spectrum_frame(train, labels, "data", sensitivity))
