"""Kind `flows`: train the velocity field in the preconditioned space."""

from torch import nn

from precfm.core.options import validated
from precfm.flows.settings import Budget, FlowSettings, Recipe
from precfm.pipeline.job import Job
from precfm.preconditioned_flow import PreconditionedFlow, save_weights
from precfm.preconditioners.saving import load


def make(job: Job) -> None:
    """Train on the train split; write the weights at every checkpoint, the loss at every step, and the cost."""
    device, seed = job.node.device, job.params["seed"]
    settings = validated(FlowSettings, job.params["flow"])
    if job.parents("budget"):
        budget = validated(Budget, job.parent("budget").json("budget.json"))
        settings = settings.matched(budget, job.params["match"])
    if job.parents("recipe"):
        settings = settings.tuned(validated(Recipe, job.parent("recipe").json("recipe.json")))
    split = job.parent("latents").tensors("train.safetensors")
    x1, labels = split["latents"].to(device), split["labels"].to(device)
    metric = job.tensor("decoder_metric", "metric.safetensors", "metric")
    preconditioner = load(job.parent("preconditioner").verified()).to(device)
    before = [load(each.verified()).to(device) for each in job.parents("through")]
    flow = PreconditionedFlow.from_settings(settings, preconditioner)

    def write_checkpoint(step: int, network: nn.Module) -> None:
        save_weights(network, job.folder / f"step-{step:06d}.safetensors")

    how = {"seed": seed, "scratch": job.scratch, "on_checkpoint": write_checkpoint}
    if before:
        result = flow.train_through([*before, preconditioner], x1, labels, decoder_metric=metric, **how)
    else:
        fitted = job.parent("skip").tensors("wrappers.safetensors") if job.parents("skip") else None
        flow.prepare(x1, labels, seed=seed, decoder_metric=metric, fitted_wrappers=fitted)
        result = flow.train(**how)
    cost = {
        "flow_parameters": flow.num_parameters,
        "flops_per_step": flow.flops_per_step,
        "steps": settings.training.steps,
        "notes": " ".join(flow.notes),
    }
    job.write_frame("history.csv", result.history)
    job.write_json("flow.json", flow.description())
    job.write_json("cost.json", cost)
