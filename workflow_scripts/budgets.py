"""Kind `budgets`: what a preconditioner and the flow behind it cost, and which baseline without it costs as much."""

from precfm.core.options import validated
from precfm.flows.compute import matched_steps, matched_width
from precfm.flows.settings import Budget, FlowSettings
from precfm.pipeline.job import Job
from precfm.preconditioned_flow import PreconditionedFlow
from precfm.preconditioners.saving import load


def make(job: Job) -> None:
    """Count parameters and training FLOPs; write the width and the number of steps that match them."""
    split = job.parent("latents").tensors("train.safetensors")
    preconditioner = load(job.parent("preconditioner").verified())
    settings = validated(FlowSettings, job.params["flow"])
    flow = PreconditionedFlow.from_settings(settings, preconditioner)
    metric = job.tensor("decoder_metric", "metric.safetensors", "metric")
    flow.prepare(split["latents"], split["labels"], decoder_metric=metric)
    steps, per_step, fit = settings.training.steps, flow.flops_per_step, preconditioner.flops_per_fit
    extra = preconditioner.num_parameters
    budget = Budget(
        flow_parameters=flow.num_parameters,
        preconditioner_parameters=extra,
        flops_per_step=per_step,
        fit_flops=fit,
        steps=steps,
        matched_width=matched_width(flow.network_of_width, settings.width, extra),
        matched_steps=matched_steps(steps, per_step, fit),
    )
    job.write_json("budget.json", budget.model_dump())
