"""Kind `latents`: encode every split, and describe how ill-conditioned the latents are."""

from functools import partial

import torch

from precfm.core.errors import PrecfmError
from precfm.core.seeds import generator_for
from precfm.core.serialization import load_network
from precfm.encoders.conv_vae import decode_latents, encode_images
from precfm.geometry.decoder import decoder_sensitivity
from precfm.geometry.spectra import covariance, eigen_spectrum
from precfm.geometry.summaries import spectrum_frame
from precfm.pipeline.job import Job
from precfm.pipeline.snakemake_entry import run_rule

SENSITIVITY_SAMPLES = 512


def make(job: Job) -> None:
    """Write latents and labels per split, the reconstruction error, and the spectrum with decoder sensitivity."""
    data, device = job.parent("data"), job.node.device
    model = load_network(job.parent("encoder").verified(), device)
    errors, latents = {}, {}
    for split in ("train", "validation", "heldout"):
        tensors = data.tensors(f"{split}.safetensors")
        mean, log_variance = encode_images(model, tensors["images"])
        latents[split] = mean
        if job.params["encode"] == "sample":
            noise = torch.randn(mean.shape, generator=generator_for(job.params["seed"], "encode", split))
            latents[split] = mean + (log_variance / 2).exp() * noise
        bad = (~latents[split].isfinite()).any(1).nonzero()
        if len(bad):
            raise PrecfmError(
                f"{split} latents: row {int(bad[0])} is not finite; train the encoder differently"
            )
        difference = decode_latents(model, latents[split]) - tensors["images"] / 255
        errors[split] = difference.square().flatten(1).sum(1).mean().item()
        job.write_tensors(f"{split}.safetensors", {"latents": latents[split], "labels": tensors["labels"]})
    job.write_json("reconstruction.json", {"sum_of_squares_per_image": errors})
    train = latents["train"]
    values, vectors = eigen_spectrum(covariance(train))
    sensitivity = decoder_sensitivity(
        partial(decode_latents, model), train[:SENSITIVITY_SAMPLES], vectors, values
    )
    labels = data.tensors("train.safetensors")["labels"]
    job.write_frame("spectrum.csv", spectrum_frame(train, labels, "data", sensitivity))


if "snakemake" in globals():
    run_rule(make, snakemake)
