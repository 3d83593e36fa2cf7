"""Kind `recipes`: search the training recipe of one method on the validation split, each with the same budget."""

import itertools
import math
from typing import Any

import pandas as pd
from torch import Tensor

from precfm.core.errors import DivergenceError, PrecfmError
from precfm.core.options import validated
from precfm.core.seeds import derived_seed
from precfm.encoders.base import load as load_encoder
from precfm.flows.sampling import evaluation_labels, evaluation_noise
from precfm.flows.settings import Budget, FlowSettings, Recipe
from precfm.metrics.extractors.judges import batches_of, judged, load_judges
from precfm.metrics.frechet import frechet_distance
from precfm.metrics.kernels import kid, scaled_by_reference
from precfm.pipeline.job import Job
from precfm.preconditioned_flow import PreconditionedFlow
from precfm.preconditioners.saving import load


def make(job: Job) -> None:
    """Train every combination for a few steps, score its samples by the validation split, and keep the best."""
    search, settings = job.params["search"], validated(FlowSettings, job.params["flow"])
    if job.parents("budget"):
        budget = validated(Budget, job.parent("budget").json("budget.json"))
        settings = settings.matched(budget, job.params["match"])
    score = ValidationScore(job)
    names, rows = ("time", "learning_rate", "schedule"), []
    for position, values in enumerate(itertools.product(*(search[name] for name in names))):
        trained = dict(zip(names, values, strict=True))
        recipes = [validated(Recipe, {**trained, "solver_steps": steps}) for steps in search["solver_steps"]]
        scores = score(settings.shortened(search["steps"]), recipes, f"recipe {position}")
        rows += [{**recipe.model_dump(), **found} for recipe, found in zip(recipes, scores, strict=True)]
    best = min(rows, key=lambda row: row["score"])
    if math.isinf(best["score"]):
        raise PrecfmError(f"search: no combination works; the best says: {best['note']}")
    job.write_frame("search.csv", pd.DataFrame(rows))
    job.write_json("recipe.json", {name: best[name] for name in Recipe.model_fields})


class ValidationScore:
    """How far a flow's samples are from the validation split, by a judge that reports nothing.

    The ln Frechet distance; the KID where there are too few rows for the judge's features.
    """

    def __init__(self, job: Job) -> None:
        self.job, self.device = job, job.node.device
        self.seed = derived_seed(job.params["search"]["seed"], "search")
        split = job.parent("latents").tensors("train.safetensors")
        self.x1, self.labels = split["latents"].to(self.device), split["labels"].to(self.device)
        images = job.parent("data").tensors("validation.safetensors")["images"]
        self.encoder = load_encoder(job.parent("encoder").verified(), self.device)
        self.judge = load_judges([job.parent("classifier").verified()], self.device)
        (self.reference,) = judged(self.judge, images).values()

    def __call__(self, settings: FlowSettings, recipes: list[Recipe], name: str) -> list[dict[str, Any]]:
        """The scores of recipes that differ in the solver's steps alone, lower is better; infinite where none is."""
        try:
            flow = self.trained(settings.tuned(recipes[0]), name)
        except DivergenceError as error:  # no recipes for this method
            return [{"score": math.inf, "note": str(error)} for _ in recipes]
        n = self.job.params["search"]["n"]
        asked = evaluation_labels(n, self.labels, self.seed)
        noise = evaluation_noise(n, tuple(self.x1.shape[1:]), self.seed)
        found = []
        for recipe in recipes:
            try:
                how = {"solver": self.job.params["solver"], "steps": recipe.solver_steps}
                made = flow.transport(noise, asked, **how).cpu()
                found.append({"score": self.distance(made), "note": ""})
            except PrecfmError as error:  # samples, or the features of their images, are not finite
                found.append({"score": math.inf, "note": str(error)})
        return found

    def trained(self, settings: FlowSettings, name: str) -> PreconditionedFlow:
        """A short training."""
        job = self.job
        preconditioner = load(job.parent("preconditioner").verified()).to(self.device)
        flow = PreconditionedFlow.from_settings(settings, preconditioner)
        flow.prepare(
            self.x1,
            self.labels,
            seed=self.seed,
            decoder_metric=job.tensor("decoder_metric", "metric.safetensors", "metric"),
            fitted_wrappers=job.parent("skip").tensors("wrappers.safetensors")
            if job.parents("skip")
            else None,
        )
        flow.train(seed=self.seed, scratch=job.scratch / name.replace(" ", "-"), name=name)
        return flow

    def distance(self, latents: Tensor) -> float:
        """The score of generated latents, (n, *dim)."""
        batches = batches_of(latents, math.prod(self.encoder.image_shape))
        (features,) = judged(self.judge, map(self.encoder.decode, batches)).values()
        if min(len(features), len(self.reference)) <= features.shape[1]:
            return kid(*scaled_by_reference(features, self.reference)).value
        return math.log(max(float(frechet_distance(features, self.reference)), 1e-12))
