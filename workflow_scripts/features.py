"""Kind `features`: features of the held-out images, computed once for all methods."""

import torch

from precfm.core.serialization import load_network
from precfm.metrics.extractors.base import extract
from precfm.pipeline.job import Job


def make(job: Job) -> None:
    """Write the held-out features of every classifier, and the held-out latents, one tensor per space."""
    images = job.parent("data").tensors("heldout.safetensors")["images"]
    features: dict[str, torch.Tensor] = {
        "latent": job.parent("latents").tensors("heldout.safetensors")["latents"].flatten(1)
    }
    for index, classifier in enumerate(job.parents("classifiers")):
        network = load_network(classifier.verified(), job.node.device)
        features[f"classifier-{index}"] = extract(network, images)
    job.write_tensors("features.safetensors", features)
