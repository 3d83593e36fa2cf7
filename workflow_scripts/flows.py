"""Kind `flows`: train the velocity field in the preconditioned space."""

from collections.abc import Sequence
from typing import Any

from torch import nn

from precfm.core.options import validated
from precfm.flows.settings import Budget, FlowSettings, Recipe
from precfm.pipeline.job import Job
from precfm.preconditioned_flow import PreconditionedFlow, save_weights
from precfm.preconditioners.saving import load
from precfm.training.batched import train_many
from precfm.training.state import TrainingResult


def make(job: Job) -> None:
    """Train on the train split; write the weights at every checkpoint, the loss at every step, and the cost."""

    def write_checkpoint(step: int, network: nn.Module) -> None:
        _write_checkpoint(job, step, network)

    how: dict[str, Any] = {"scratch": job.scratch, "on_checkpoint": write_checkpoint}
    if job.parents("through"):
        flow, data = _flow_and_data(job)
        before = [load(each.verified()).to(job.node.device) for each in job.parents("through")]
        result = flow.train_through([*before, flow.preconditioner], **data, **how)
    else:
        flow = _prepared(job)
        result = flow.train(seed=job.params["seed"], **how)
    _write(job, flow, result)


def make_many(jobs: Sequence[Job]) -> None:
    """The same for flows that differ in their seeds alone, which train in one batched computation."""
    flows = [_prepared(job) for job in jobs]

    def write_checkpoint(position: int, step: int, network: nn.Module) -> None:
        _write_checkpoint(jobs[position], step, network)

    results = train_many(
        [flow.network for flow in flows],
        [flow.objective for flow in flows],
        [flow.data for flow in flows],
        flows[0].settings.training,
        seeds=[job.params["seed"] for job in jobs],
        scratch=jobs[0].scratch,
        facts=flows[0].description(),
        on_checkpoint=write_checkpoint,
        name="flows",
    )
    for job, flow, result in zip(jobs, flows, results, strict=True):
        _write(job, flow, result)


def _flow_and_data(job: Job) -> tuple[PreconditionedFlow, dict[str, Any]]:
    """A flow as the plan, a budget and a recipe say, and what it is trained on."""
    device = job.node.device
    settings = validated(FlowSettings, job.params["flow"])
    if job.parents("budget"):
        budget = validated(Budget, job.parent("budget").json("budget.json"))
        settings = settings.matched(budget, job.params["match"])
    if job.parents("recipe"):
        settings = settings.tuned(validated(Recipe, job.parent("recipe").json("recipe.json")))
    split = job.parent("latents").tensors("train.safetensors")
    preconditioner = load(job.parent("preconditioner").verified()).to(device)
    return PreconditionedFlow.from_settings(settings, preconditioner), {
        "x1": split["latents"].to(device),
        "labels": split["labels"].to(device),
        "seed": job.params["seed"],
        "decoder_metric": job.tensor("decoder_metric", "metric.safetensors", "metric"),
    }


def _prepared(job: Job) -> PreconditionedFlow:
    flow, data = _flow_and_data(job)
    fitted = job.parent("skip").tensors("wrappers.safetensors") if job.parents("skip") else None
    return flow.prepare(**data, fitted_wrappers=fitted)


def _write_checkpoint(job: Job, step: int, network: nn.Module) -> None:
    save_weights(network, job.folder / f"step-{step:06d}.safetensors")


def _write(job: Job, flow: PreconditionedFlow, result: TrainingResult) -> None:
    cost = {
        "flow_parameters": flow.num_parameters,
        "flops_per_step": flow.flops_per_step,
        "steps": flow.settings.training.steps,
        "notes": " ".join(flow.notes),
    }
    job.write_frame("history.csv", result.history)
    job.write_json("flow.json", flow.description())
    job.write_json("cost.json", cost)
