"""Kind `preconditioners`: fit the invertible map from data space to the space of the flow."""

from precfm.core.registry import build
from precfm.core.seeds import derived_seed
from precfm.pipeline.job import Job
from precfm.preconditioners.saving import save


def make(job: Job) -> None:
    """Fit on the train split; learned maps stop early on the validation split."""
    latents = job.parent("latents")
    train, validation = (latents.tensors(f"{split}.safetensors") for split in ("train", "validation"))
    preconditioner = build("preconditioners", job.params["preconditioner"])
    preconditioner.fit(
        train["latents"].to(job.node.device),
        train["labels"].to(job.node.device),
        validation=(validation["latents"].to(job.node.device), validation["labels"].to(job.node.device)),
        metric=job.tensor("decoder_metric", "metric.safetensors", "metric"),
        seed=derived_seed(job.params["seed"], "preconditioner"),
        scratch=job.scratch,
    )
    save(preconditioner, job.folder)
