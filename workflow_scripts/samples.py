"""Kind `samples`: draw latents from a flow, from a preconditioner alone, or from the train split (the floor)."""

import torch

from precfm.core.seeds import derived_seed
from precfm.core.serialization import load_network
from precfm.flows.sampling import evaluation_labels, evaluation_noise, rows_with_labels
from precfm.pipeline.job import Job
from precfm.pipeline.snakemake_entry import run_rule
from precfm.preconditioned_flow import generate
from precfm.preconditioners.base import load


def make(job: Job) -> None:
    """Write labels and samples of every checkpoint; all methods of a training seed share labels and noise."""
    latents, options, device = job.parent("latents"), job.params["sampling"], job.node.device
    n = options["n"]
    seed = derived_seed(options["seed"], "training seed", job.params["seed"])
    train = latents.tensors("train.safetensors")
    labels = evaluation_labels(n, train["labels"], seed)
    if job.params["source"] == "train":
        samples = {"step-000000": train["latents"][rows_with_labels(labels, train["labels"])]}
    else:
        noise = evaluation_noise(n, train["latents"].shape[1], seed).to(device)
        samples = draw(job, noise, labels.to(device))
    job.write_tensors("samples.safetensors", {**samples, "labels": labels})


def draw(job: Job, noise: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
    """Samples by checkpoint; a preconditioner alone maps the noise itself back to data space."""
    device, options = job.node.device, job.params["sampling"]
    preconditioner = load(job.parent("preconditioner").verified()).to(device)
    if job.params["source"] == "preconditioner":
        return {"step-000000": preconditioner.inverse(noise, labels).cpu()}
    flow = job.parent("flow")
    folder, spec, how = flow.verified(), flow.json("flow.json"), (options["solver"], options["steps"])
    steps = sorted({name.split("/")[0] for name in flow.record["files"] if name.startswith("step-")})
    return {
        step: generate(spec, load_network(folder / step, device), preconditioner, noise, labels, *how).cpu()
        for step in steps
    }


if "snakemake" in globals():
    run_rule(make, snakemake)
