"""Kind `evaluations`: every metric of every checkpoint's samples against the held-out split."""

import pandas as pd
import torch
from torch import Tensor

from precfm.core.seeds import generator_for
from precfm.core.serialization import load_network
from precfm.encoders.base import load
from precfm.flows.sampling import rows_with_labels
from precfm.geometry.recovery import EigenvalueRecovery, eigenvalue_recovery, recovery_replicates
from precfm.geometry.spectra import covariance, eigen_spectrum
from precfm.metrics.bootstrap import (
    GaussianFits,
    frechet_against_fits,
    reference_resamples,
    replicates_text,
)
from precfm.metrics.copying import copying_check
from precfm.metrics.evaluate import METRICS, evaluate_features
from precfm.metrics.extractors.base import extract
from precfm.metrics.extractors.identity import whitened
from precfm.metrics.values import records
from precfm.pipeline.job import Job

OF_PAIRS = tuple(metric for metric in METRICS if metric != "frechet")
NEIGHBOURS = ("precision", "recall")  # in latent coordinates: kernels are for features
GRID = 40  # decoded samples that are kept to be looked at
DECODED = "-decoded"  # spaces whose reference are held-out images that were encoded and decoded


def make(job: Job) -> None:
    """Write the metric records, their replicates over resamples of the held-out split, and a grid of samples."""
    samples = job.parent("samples").tensors("samples.safetensors")
    labels = samples.pop("labels")
    decode = load(job.parent("encoder").verified(), job.node.device).decode
    evaluation = _Evaluation(job)
    last = max(samples, key=step_number)
    tables, recovered = [], []
    for step, latents in samples.items():
        made = evaluation.spaces(latents, decode(latents))
        values, recovery = evaluation.at_checkpoint(step_number(step), made, last=step == last)
        tables.append(values)
        recovered.append(recovery)
        if step == last:
            job.write_frame("bootstrap.csv", evaluation.replicates(step_number(step), made))
    heldout = job.parent("data").tensors("heldout.safetensors")
    matched = heldout["images"][rows_with_labels(labels[:GRID], heldout["labels"])]
    generated_images = (decode(samples[last][:GRID]) * 255).round().to(torch.uint8)
    job.write_tensors(
        "grid.safetensors", {"images": generated_images, "held-out": matched, "labels": labels[:GRID]}
    )
    job.write_frame("records.csv", pd.concat(tables, ignore_index=True))
    job.write_frame("recovery.csv", pd.concat(recovered, ignore_index=True))


class _Evaluation:
    """What samples are compared with, and how."""

    def __init__(self, job: Job) -> None:
        self.job, self.options = job, job.params["evaluation"]
        self.classifiers = {
            f"classifier-{index}": (load_network(artifact.verified(), job.node.device), artifact.key)
            for index, artifact in enumerate(job.parents("classifiers"))
        }
        features = job.parent("features")
        self.reference = features.tensors("features.safetensors")
        self.fits = features.tensors("resamples.safetensors")
        self.train = job.parent("latents").tensors("train.safetensors")["latents"].flatten(1)
        self.directions = eigen_spectrum(covariance(self.train)).eigenvectors

    def spaces(self, latents: Tensor, images: Tensor) -> dict[str, Tensor]:
        """Samples in every space in which they are judged."""
        vectors = latents.flatten(1)
        made = {name: extract(network, images) for name, (network, _) in self.classifiers.items()}
        return {**made, "latent": vectors, "latent-whitened": whitened(vectors, self.train)}

    def at_checkpoint(
        self, step: int, made: dict[str, Tensor], *, last: bool
    ) -> tuple[pd.DataFrame, pd.DataFrame]:
        """The metrics of one checkpoint, and the recovery of each eigendirection."""
        full = last or self.options["precision_recall"] == "all"
        tables = []
        for space, features in made.items():
            tables.append(self._records(space, space, features, ("frechet",), step))
            if space in self.classifiers:
                tables.append(self._records(space + DECODED, space, features, ("frechet",), step))
            if full:
                metrics = OF_PAIRS if space in self.classifiers else NEIGHBOURS
                tables.append(self._records(space, space, features, metrics, step, self.options["pairs"]))
        protocol = tables[0].iloc[0]
        recovery = eigenvalue_recovery(made["latent"], self.reference["latent"], self.directions)
        tables.append(recovery_records(recovery, protocol))
        if last and self.job.parent("samples").record["params"]["source"] != "train":
            tables.append(self._copying(made["latent"], protocol))
        by_direction = {
            "step": step,
            "index": range(len(recovery.ratios)),
            "eigenvalue": recovery.eigenvalues.tolist(),
            "ratio": recovery.ratios.tolist(),
        }
        return pd.concat(tables, ignore_index=True), pd.DataFrame(by_direction)

    def replicates(self, step: int, made: dict[str, Tensor]) -> pd.DataFrame:
        """The metrics again, where the held-out rows are drawn with replacement: the same resamples for all."""
        tables = []
        for space in sorted({name.rpartition("/")[0] for name in self.fits}):
            fits = GaussianFits(self.fits[f"{space}/means"], self.fits[f"{space}/factors"])
            values = frechet_against_fits(made[space.removesuffix(DECODED)], fits)
            tables.append(("frechet", space, values))
        held_out = self.reference["latent"]
        resamples = reference_resamples(len(held_out), len(values))
        recovery = recovery_replicates(made["latent"], held_out, self.directions, resamples)
        tables.append(("eigenvalue_log_error", "latent", recovery.log_error))
        tables.append(("eigenvalue_log_error_low", "latent", recovery.log_error_low))
        return pd.DataFrame(
            [
                {"step": step, "metric": metric, "space": space, "replicates": replicates_text(values)}
                for metric, space, values in tables
            ]
        )

    def _records(
        self,
        space: str,
        extractor: str,
        features: Tensor,
        metrics: tuple[str, ...],
        step: int,
        rows: int | None = None,
    ) -> pd.DataFrame:
        key = self.classifiers[extractor][1] if extractor in self.classifiers else ""
        name = f"{extractor}@{key}" if key else "identity"
        values = evaluate_features(
            features[:rows],
            self.reference[space][:rows],
            metrics=metrics,
            k=self.options["neighbours"],
            seed=self.options["seed"],
            extractor=name,
            extractor_hash=key,
            **({"reference_name": "held-out, decoded"} if space.endswith(DECODED) else {}),
        )
        return records(values).assign(step=step, space=space)

    def _copying(self, vectors: Tensor, protocol: pd.Series) -> pd.DataFrame:
        """Whether samples are nearer to training than to held-out rows, equally many of both."""
        held_out = self.reference["latent"]
        count = min(len(held_out), len(self.train))
        order = torch.randperm(len(self.train), generator=generator_for(self.options["seed"], "copying"))
        found = copying_check(vectors, self.train[order[:count]], held_out[:count])
        same = protocol[["step", "n_real", "n_generated", "reference", "evaluation_seed"]].to_dict()
        error = {"standard_error": found.standard_error}
        row = {"metric": "nearer_train", "value": found.nearer, "space": "latent", "extractor": "identity"}
        return pd.DataFrame([{**row, **error, **same}])


def step_number(name: str) -> int:
    """The training step that a checkpoint's name stands for."""
    return int(name.removeprefix("step-"))


def recovery_records(recovery: EigenvalueRecovery, protocol: pd.Series) -> pd.DataFrame:
    """The summaries of eigenvalue recovery as records, under the protocol of the other latent metrics."""
    values = {
        "eigenvalue_ratio_low": recovery.ratio_low,
        "eigenvalue_log_error": recovery.log_error,
        "eigenvalue_log_error_low": recovery.log_error_low,
    }
    same = protocol[["step", "n_real", "n_generated", "reference", "evaluation_seed"]].to_dict()
    return pd.DataFrame(
        [
            {"metric": name, "value": value, "space": "latent", "extractor": "identity", **same}
            for name, value in values.items()
        ]
    )
