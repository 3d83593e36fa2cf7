"""Kind `flows`: train the velocity field in the preconditioned space."""

from torch import nn

from precfm.core.serialization import save_network
from precfm.flows.compute import flops_per_step, num_parameters
from precfm.geometry.decoder import metric_of
from precfm.pipeline.job import Job
from precfm.pipeline.snakemake_entry import run_rule
from precfm.preconditioned_flow import bind, matched, tuned
from precfm.preconditioners.base import load
from precfm.training.trainer import train


def make(job: Job) -> None:
    """Train on the train split; write the weights at every checkpoint, the loss at every step, and the cost."""
    device, seed, spec = job.node.device, job.params["seed"], dict(job.params["flow"])
    if job.parents("budget"):
        spec = matched(spec, job.parent("budget").json("budget.json"), job.params["match"])
    if job.parents("recipe"):
        spec = tuned(spec, job.parent("recipe").json("recipe.json"))
    split = job.parent("latents").tensors("train.safetensors")
    preconditioner = load(job.parent("preconditioner").verified()).to(device)
    x1, labels = split["latents"].to(device), split["labels"].to(device)
    flow = bind(spec, preconditioner, x1, labels, seed, metric_of(job.parents("decoder_metric")))

    def write_checkpoint(step: int, module: nn.Module) -> None:
        folder = job.folder / f"step-{step:06d}"
        folder.mkdir()
        save_network(module, flow.description, folder)

    cost = {
        "flow_parameters": num_parameters(flow.model),
        "flops_per_step": flops_per_step(
            flow.model, flow.objective.loss, flow.data, flow.training.batch_size
        ),
        "steps": flow.training.steps,
        "notes": " ".join(getattr(flow.model, "notes", ())),
    }
    result = train(
        flow.model,
        flow.objective.loss,
        flow.data,
        flow.training,
        seed=seed,
        scratch=job.scratch,
        on_checkpoint=write_checkpoint,
        name="flow",
    )
    job.write_frame("history.csv", result.history)
    job.write_json("flow.json", spec)
    job.write_json("cost.json", cost)


if "snakemake" in globals():
    run_rule(make, snakemake)
