"""Kind `samples`: draw latents from a flow or a skip, from a map alone, or from the train split (the floor)."""

import torch

from precfm.core.options import validated
from precfm.core.seeds import derived_seed
from precfm.flows.sampling import evaluation_labels, evaluation_noise
from precfm.flows.settings import Recipe
from precfm.metrics.floor import floor_rows
from precfm.pipeline.job import Job
from precfm.preconditioned_flow import PreconditionedFlow
from precfm.preconditioners.saving import load


def make(job: Job) -> None:
    """Write labels and samples of every checkpoint; all methods of a training seed share labels and noise."""
    options, source = job.params["sampling"], job.params["source"]
    n, seed = options["n"], derived_seed(options["seed"], "training seed", job.params["seed"])
    train = job.parent("latents").tensors("train.safetensors")
    labels = evaluation_labels(n, train["labels"], seed)
    noise = evaluation_noise(n, tuple(train["latents"].shape[1:]), seed)
    if source == "train":
        rows = floor_rows(labels, train["labels"], job.params["seed"], options["seed"])
        samples = {"step-000000": train["latents"][rows]}
    elif source == "preconditioner":
        samples = {"step-000000": load(job.parent("preconditioner").verified()).inverse(noise, labels)}
    else:
        samples = from_flow(job, noise, labels)
    job.write_tensors("samples.safetensors", {**samples, "labels": labels})


def from_flow(job: Job, noise: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
    """Samples by checkpoint."""
    artifact, options = job.parent("flow"), job.params["sampling"]
    preconditioner = load(job.parent("preconditioner").verified())
    flow = PreconditionedFlow.from_description(artifact.json("flow.json"), preconditioner).to(job.node.device)
    seed = derived_seed(options["seed"], "training seed", job.params["seed"])
    how = {name: options[name] for name in ("solver", "steps", "guidance")} | {"seed": seed}
    if job.parents("recipe"):
        how["steps"] = validated(Recipe, job.parent("recipe").json("recipe.json")).solver_steps
    return {
        name.removesuffix(".safetensors"): flow.load_weights(artifact.path(name))
        .transport(noise, labels, **how)
        .cpu()
        for name in sorted(artifact.record["files"])
        if name.startswith("step-")
    }
