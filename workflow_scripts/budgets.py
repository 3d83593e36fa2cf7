"""Kind `budgets`: what map, skip and flow cost together, and which baseline without them costs as much."""

from precfm.core.options import validated
from precfm.flows.compute import matched_steps
from precfm.flows.settings import Budget, FlowSettings
from precfm.pipeline.job import Job
from precfm.preconditioned_flow import PreconditionedFlow
from precfm.preconditioners.saving import load


def make(job: Job) -> None:
    """Count parameters and training FLOPs; write the width and the number of steps that match them."""
    preconditioner = load(job.parent("preconditioner").verified())
    settings = validated(FlowSettings, job.params["flow"])
    flow = prepared(job, settings)
    extra, fit = preconditioner.num_parameters, preconditioner.flops_per_fit
    if job.parents("skip"):
        cost = job.parent("skip").json("cost.json")
        extra, fit = extra + cost["fitted_numbers"], fit + cost["fit_flops"]
    plain, per_step, steps = flow, flow.flops_per_step, settings.training.steps
    if "baseline" in job.params:
        plain = prepared(job, validated(FlowSettings, job.params["baseline"]))
    own = plain.flops_per_step
    budget = Budget(
        flow_parameters=flow.num_parameters,
        preconditioner_parameters=extra,
        flops_per_step=per_step,
        fit_flops=fit,
        steps=steps,
        matched_width=plain.matched_width(extra),
        matched_steps=matched_steps(steps, own, steps * (per_step - own) + fit),
    )
    job.write_json("budget.json", budget.model_dump())


def prepared(job: Job, settings: FlowSettings) -> PreconditionedFlow:
    """An untrained flow behind the map."""
    split = job.parent("latents").tensors("train.safetensors")
    flow = PreconditionedFlow.from_settings(settings, load(job.parent("preconditioner").verified()))
    fitted = job.parent("skip").tensors("wrappers.safetensors") if settings.wrappers else None
    metric = job.tensor("decoder_metric", "metric.safetensors", "metric")
    return flow.prepare(split["latents"], split["labels"], decoder_metric=metric, fitted_wrappers=fitted)
