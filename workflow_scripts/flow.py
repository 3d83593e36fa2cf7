"""Kind `flows`: train the velocity field in the preconditioned space."""

from pathlib import Path

from torch import nn

from precfm.artifacts import Job, run_rule
from precfm.networks import new_network, save_network
from precfm.objectives import flow_matching_loss
from precfm.preconditioners.base import load
from precfm.registry import build
from precfm.training import TrainingOptions, train


def make(job: Job) -> None:
    """Train on the train split; write the weights at every checkpoint and the loss at every step."""
    latents, spec, device = job.parent("latents"), job.params["flow"], job.node.device
    split = latents.tensors("train.safetensors")
    x1, labels = split["latents"].to(device), split["labels"].to(device)
    z1 = load(job.parent("preconditioner").verified()).to(device).forward(x1, labels)
    filled_in = {"dim": z1.shape[1], "num_classes": int(labels.max()) + 1}
    model, description = new_network("models", spec["model"], job.params["seed"], **filled_in)
    path = build("paths", spec["path"])

    def write_checkpoint(step: int, module: nn.Module) -> None:
        folder = Path(job.folder / f"step-{step:06d}")
        folder.mkdir()
        save_network(module, description, folder)

    result = train(
        model.to(device),
        lambda module, batch, generator: flow_matching_loss(module, path, batch[0], batch[1], generator),
        (z1, labels),
        TrainingOptions(**spec["training"]),
        seed=job.params["seed"],
        scratch=job.scratch,
        on_checkpoint=write_checkpoint,
        name="flow",
    )
    job.write_frame("history.csv", result.history)


if "snakemake" in globals():
    run_rule(make, snakemake)
