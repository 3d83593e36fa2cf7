"""Kind `budgets`: what a preconditioner and the flow behind it cost, and which baseline without it costs as much."""

from precfm.core.registry import build
from precfm.flows.compute import flops_per_step, matched_steps, matched_width, num_parameters
from precfm.geometry.decoder import metric_of
from precfm.pipeline.job import Job
from precfm.pipeline.snakemake_entry import run_rule
from precfm.preconditioned_flow import bind, width_of
from precfm.preconditioners.base import load


def make(job: Job) -> None:
    """Count parameters and training FLOPs; write the width and the number of steps that match them."""
    split = job.parent("latents").tensors("train.safetensors")
    preconditioner = load(job.parent("preconditioner").verified())
    spec = job.params["flow"]
    flow = bind(
        spec, preconditioner, split["latents"], split["labels"], 0, metric_of(job.parents("decoder_metric"))
    )
    per_step = flops_per_step(flow.model, flow.objective.loss, flow.data, flow.training.batch_size)
    options = {name: value for name, value in flow.description["options"].items() if name != "width"}
    job.write_json(
        "budget.json",
        {
            "flow_parameters": num_parameters(flow.model),
            "preconditioner_parameters": preconditioner.num_parameters,
            "flops_per_step": per_step,
            "fit_flops": preconditioner.flops_per_fit,
            "steps": flow.training.steps,
            "matched_width": matched_width(
                lambda width: build("models", {"name": spec["model"]["name"], "width": width}, **options),
                width_of(spec),
                preconditioner.num_parameters,
            ),
            "matched_steps": matched_steps(flow.training.steps, per_step, preconditioner.flops_per_fit),
        },
    )


if "snakemake" in globals():
    run_rule(make, snakemake)
