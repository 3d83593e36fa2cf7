"""Kind `recipes`: search the training recipe of one method on the validation split, each with the same budget."""

import itertools
import math
from functools import partial

import pandas as pd

from precfm.core.errors import DivergenceError, PrecfmError
from precfm.core.seeds import derived_seed
from precfm.core.serialization import load_network
from precfm.encoders.conv_vae import decode_latents
from precfm.flows.sampling import evaluation_labels, evaluation_noise
from precfm.geometry.decoder import metric_of
from precfm.metrics.extractors.base import extract
from precfm.metrics.frechet import frechet_distance
from precfm.pipeline.job import Job
from precfm.pipeline.snakemake_entry import run_rule
from precfm.preconditioned_flow import bind, generate, matched, tuned
from precfm.preconditioners.base import load
from precfm.training.trainer import train


def make(job: Job) -> None:
    """Train every combination for a few steps, judge its samples by the validation split, and keep the best."""
    search, spec, device = job.params["search"], dict(job.params["flow"]), job.node.device
    if job.parents("budget"):
        spec = matched(spec, job.parent("budget").json("budget.json"), job.params["match"])
    short = {
        **spec["training"],
        "steps": search["steps"],
        "checkpoints": [search["steps"]],
        "warmup_steps": 0,
    }
    latents, seed = job.parent("latents"), derived_seed(search["seed"], "search")
    split = latents.tensors("train.safetensors")
    x1, labels = split["latents"].to(device), split["labels"].to(device)
    preconditioner = load(job.parent("preconditioner").verified()).to(device)
    asked = evaluation_labels(search["n"], split["labels"], seed).to(device)
    noise = evaluation_noise(search["n"], x1.shape[1], seed).to(device)
    judge = Judge(job)
    names = ("time", "learning_rate", "schedule")
    rows = []
    for position, values in enumerate(itertools.product(*(search[name] for name in names))):
        recipe = dict(zip(names, values, strict=True))
        candidate = tuned({**spec, "training": short}, recipe)
        flow = bind(candidate, preconditioner, x1, labels, seed, metric_of(job.parents("decoder_metric")))
        how = (job.params["solver"], job.params["solver_steps"])
        try:
            train(
                flow.model,
                flow.objective.loss,
                flow.data,
                flow.training,
                seed=seed,
                scratch=job.scratch / str(position),
                name=f"recipe {position}",
            )
        except DivergenceError as error:  # no recipe for this method
            rows.append({**recipe, "score": math.inf, "note": str(error)})
            continue
        try:
            made = generate(candidate, flow.model.eval(), preconditioner, noise, asked, *how)
            rows.append({**recipe, "score": judge(made.cpu()), "note": ""})
        except PrecfmError as error:  # its samples, or the features of their images, are not finite
            rows.append({**recipe, "score": math.inf, "note": str(error)})
    best = min(rows, key=lambda row: row["score"])
    if math.isinf(best["score"]):
        raise PrecfmError(f"search: no combination works; the best says: {best['note']}")
    job.write_frame("search.csv", pd.DataFrame(rows))
    job.write_json("recipe.json", best)


class Judge:
    """Mean over the classifiers of ln Frechet distance to the validation split."""

    def __init__(self, job: Job) -> None:
        device = job.node.device
        images = job.parent("data").tensors("validation.safetensors")["images"]
        self._decode = partial(decode_latents, load_network(job.parent("encoder").verified(), device))
        networks = [load_network(artifact.verified(), device) for artifact in job.parents("classifiers")]
        self._judges = [(network, extract(network, images)) for network in networks]

    def __call__(self, latents) -> float:
        """The score of generated latents, (n, dim): lower is better."""
        images = self._decode(latents)
        distances = [frechet_distance(extract(network, images), real) for network, real in self._judges]
        return sum(math.log(max(float(distance), 1e-12)) for distance in distances) / len(distances)


if "snakemake" in globals():
    run_rule(make, snakemake)
