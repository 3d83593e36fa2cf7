"""Kind `decoder_metrics`: how far the image moves when the latents do, averaged over the train split."""

import torch

from precfm.core.seeds import generator_for
from precfm.encoders.base import load
from precfm.geometry.decoder import pull_back_metric
from precfm.pipeline.job import Job


def make(job: Job) -> None:
    """Write the mean of J^T J of the decoder over a sample of the train split's latents."""
    latents = job.parent("latents").tensors("train.safetensors")["latents"]
    order = torch.randperm(len(latents), generator=generator_for(0, "decoder metric"))
    encoder = load(job.parent("encoder").verified())
    metric = pull_back_metric(encoder.decode, latents[order[: job.params["points"]]])
    job.write_tensors("metric.safetensors", {"metric": metric})
