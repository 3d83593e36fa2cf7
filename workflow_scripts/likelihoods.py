"""Kind `likelihoods`: the negative log-likelihood of held-out latents under a flow or a skip, or under a map alone."""

import math

import pandas as pd
import torch

from precfm.core.seeds import generator_for
from precfm.metrics.bootstrap import (
    reference_resamples,
    replicates_text,
    resampled_means,
    shared_deviations,
)
from precfm.pipeline.job import Job
from precfm.preconditioned_flow import PreconditionedFlow
from precfm.preconditioners.saving import load


def make(job: Job) -> None:
    """Write it for the last checkpoint: of every point, its mean, and its mean over resamples of the points.

    The density is that in the space before the map, so it is the same whatever the map: log p(x) = log p(z) +
    log |det dz/dx|. All flows are asked for the same points.
    """
    options, source = job.params["likelihood"], job.params["source"]
    held_out = job.parent("latents").tensors("heldout.safetensors")
    order = torch.randperm(
        len(held_out["latents"]), generator=generator_for(options["seed"], "likelihood points")
    )
    rows = order[: options["points"]].sort().values
    x, labels = held_out["latents"][rows], held_out["labels"][rows]
    preconditioner, step = load(job.parent("preconditioner").verified()), 0
    error = torch.zeros(len(rows))
    if source == "preconditioner":
        z = preconditioner.forward(x, labels).flatten(1)
        density = -0.5 * z.square().sum(1) - 0.5 * z.shape[1] * math.log(2 * math.pi)
        log_p = density + preconditioner.log_abs_det_jacobian(x, labels)
    else:
        artifact = job.parent("flow")
        steps = {
            int(name.removeprefix("step-").removesuffix(".safetensors")): name
            for name in artifact.record["files"]
            if name.startswith("step-")
        }
        step, last = max(steps.items())
        flow = PreconditionedFlow.from_description(artifact.json("flow.json"), preconditioner)
        flow.to(job.node.device).load_weights(artifact.path(last))
        found = flow.log_prob_with_error(x.to(job.node.device), labels.to(job.node.device))
        log_p, error = found.values.cpu(), found.trace_error.cpu()
    deviations = preconditioner.log_abs_det_deviations(x.to(preconditioner.anchor.device), labels).cpu()
    values = -log_p.double()
    job.write_tensors("points.safetensors", {"rows": rows, "nll": values, "trace_error": error.double()})
    about = {"step": step, "metric": "nll", "space": "latent"}
    spread = float(values.std() / len(values) ** 0.5)
    # Of independent estimates of the trace, one for each point; zero where it is exact.
    of_trace = float(error.double().square().sum().sqrt() / len(values))
    # Of a map's estimated determinant, whose random vectors all points share; zero where it is exact.
    of_map = float(deviations.mean(1).std() / len(deviations) ** 0.5) if len(deviations) else 0.0
    errors = {"the trace": of_trace, "the map's log-determinant": of_map}
    record = {
        **about,
        "value": float(values.mean()),
        "standard_error": math.hypot(spread, *errors.values()),
        "n_real": len(rows),
        "n_generated": 0,
        "extractor": "identity",
        "extractor_hash": "",
        "reference": "held-out",
        "evaluation_seed": options["seed"],
        "settings": "{}",
        "note": "; ".join(f"standard error of {what}: {size:.2g}" for what, size in errors.items() if size),
    }
    job.write_frame("records.csv", pd.DataFrame([record]))
    resamples = reference_resamples(len(rows), job.params["replicates"])
    means = resampled_means(values, resamples)
    if len(deviations):
        means = means - shared_deviations(deviations, resamples)
    job.write_frame("bootstrap.csv", pd.DataFrame([{**about, "replicates": replicates_text(means)}]))
