"""Kind `features`: what held-out images and latents are in each space, and resamples; once for all methods."""

import torch

from precfm.core.serialization import load_network
from precfm.encoders.base import load
from precfm.metrics.bootstrap import reference_fits, reference_resamples
from precfm.metrics.extractors.base import extract
from precfm.metrics.extractors.identity import whitened
from precfm.pipeline.job import Job


def make(job: Job) -> None:
    """Write held-out features, one tensor per space, and the Gaussian fits of their resamples.

    Classifiers see the images, and the same images encoded and decoded: what the encoder loses is no fault of a flow.
    """
    device = job.node.device
    images = job.parent("data").tensors("heldout.safetensors")["images"]
    latents = job.parent("latents").tensors("heldout.safetensors")["latents"]
    train = job.parent("latents").tensors("train.safetensors")["latents"].flatten(1)
    decoded = load(job.parent("encoder").verified(), device).decode(latents)
    features: dict[str, torch.Tensor] = {
        "latent": latents.flatten(1),
        "latent-whitened": whitened(latents.flatten(1), train),
    }
    for index, classifier in enumerate(job.parents("classifiers")):
        network = load_network(classifier.verified(), device)
        features[f"classifier-{index}"] = extract(network, images)
        features[f"classifier-{index}-decoded"] = extract(network, decoded)
    job.write_tensors("features.safetensors", features)
    resamples = reference_resamples(len(images), job.params["replicates"])
    fits = {}
    for space, values in features.items():
        if space != "latent":
            fit = reference_fits(values, resamples)
            fits |= {f"{space}/means": fit.means, f"{space}/factors": fit.factors}
    job.write_tensors("resamples.safetensors", fits)
