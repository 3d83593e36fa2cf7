"""Kind `evaluations`: every metric of every checkpoint's samples against the held-out split."""

import math
from collections.abc import Mapping
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from precfm.core.metric_names import FRECHET_IN_COMPONENTS
from precfm.core.seeds import generator_for
from precfm.encoders.base import Encoder, load
from precfm.flows.sampling import rows_with_labels
from precfm.geometry.frequencies import frequency_directions, high_bands, radial_recovery, radial_replicates
from precfm.geometry.large_spectra import determines_covariance
from precfm.geometry.recovery import EigenvalueRecovery, eigenvalue_recovery, recovery_replicates
from precfm.geometry.spectra import covariance, eigen_spectrum
from precfm.metrics.bootstrap import (
    GaussianFits,
    frechet_against_fits,
    reference_resamples,
    replicates_text,
)
from precfm.metrics.copying import copying_check
from precfm.metrics.distances import nearest
from precfm.metrics.evaluate import METRICS, evaluate_features
from precfm.metrics.extractors.identity import whitened
from precfm.metrics.extractors.judges import batches_of, fixed_judges, judged, load_judges
from precfm.metrics.kernels import kid_replicates
from precfm.metrics.principal import PrincipalAxes, is_small
from precfm.metrics.values import records
from precfm.pipeline.job import Job

OF_PAIRS = tuple(metric for metric in METRICS if metric != "frechet")
NEIGHBOURS = ("precision", "recall")  # in latent coordinates: kernels are for features
GRID = 40  # decoded samples that are kept to be looked at
DECODED = "-decoded"  # spaces whose reference are held-out images that were encoded and decoded
WHITENED = "latent-whitened"
LARGEST = 4096  # dimensions of latents of which all directions are looked at
RECOVERY = ("step", "index", "eigenvalue", "ratio")


def make(job: Job) -> None:
    """Write the metric records, their replicates over resamples of the held-out split, and a grid of samples."""
    samples = job.parent("samples").tensors("samples.safetensors")
    labels = samples.pop("labels")
    evaluation = _Evaluation(job)
    last = max(samples, key=step_number)
    tables, recovered = [], [pd.DataFrame(columns=RECOVERY)]
    for step, latents in samples.items():
        made = evaluation.spaces(latents)
        values, recovery = evaluation.at_checkpoint(step_number(step), made, last=step == last)
        tables.append(values)
        if recovery is not None:
            recovered.append(recovery)
        if step == last:
            job.write_frame("bootstrap.csv", evaluation.replicates(step_number(step), made))
            if evaluation.encoder is not None:
                job.write_tensors("grid.safetensors", evaluation.grid(latents, labels, made))
    job.write_frame("records.csv", pd.concat(tables, ignore_index=True))
    job.write_frame("recovery.csv", pd.concat(recovered[1:] or recovered, ignore_index=True))
    if evaluation.bands:
        job.write_frame("radial.csv", pd.concat(evaluation.bands, ignore_index=True))


class _Evaluation:
    """What samples are compared with, and how; your own latents have no encoder, and no judges."""

    def __init__(self, job: Job) -> None:
        self.job, self.options = job, job.params["evaluation"]
        judges, device = job.parents("classifiers"), job.node.device
        self.judges = load_judges([each.verified() for each in judges], device)
        self.keys = dict(zip(self.judges, [each.key for each in judges], strict=True))
        self.encoder: Encoder | None = None
        if job.parents("encoder"):
            self.encoder = load(job.parent("encoder").verified(), device)
        self.features = job.parent("features")
        self.reference = self.features.tensors("features.safetensors")
        self.fits = self.features.tensors("resamples.safetensors")
        self.axes = _axes(self.features.tensors("axes.safetensors")) if self._has("axes") else {}
        train = job.parent("latents").tensors("train.safetensors")["latents"]
        self.train, self.shape = train.flatten(1), train.shape[1:]
        self.directions = _directions(train)
        self.bands: list[pd.DataFrame] = []

    def _has(self, name: str) -> bool:
        return f"{name}.safetensors" in self.features.record["files"]

    @property
    def is_map(self) -> bool:
        """Whether latents have channels and positions."""
        return len(self.shape) > 1

    def spaces(self, latents: Tensor) -> dict[str, Tensor]:
        """Samples in every space in which they are judged."""
        made: dict[str, Tensor] = {}
        if self.encoder is not None:
            batches = batches_of(latents, math.prod(self.encoder.image_shape))
            made = judged(self.judges, map(self.encoder.decode, batches))
        vectors = latents.flatten(1)
        small = self.axes.get("latent")
        in_axes = (
            whitened(vectors, self.train) if small is None else small.coordinates(vectors, whitened=True)
        )
        return {**made, "latent": vectors, WHITENED: in_axes}

    def at_checkpoint(
        self, step: int, made: dict[str, Tensor], *, last: bool
    ) -> tuple[pd.DataFrame, pd.DataFrame | None]:
        """The metrics of one checkpoint, and the recovery of each eigendirection where there are directions."""
        full = last or self.options["precision_recall"] == "all"
        tables = []
        for space, features in made.items():
            tables += self._distances(space, space, features, step)
            if space in self.judges:
                tables += self._distances(space + DECODED, space, features, step)
            if full:
                metrics = OF_PAIRS if space in self.judges else NEIGHBOURS
                if space in self.judges and self._is_small(space, features):
                    metrics = tuple(metric for metric in metrics if metric != "kid")  # has it already
                tables.append(self._records(space, space, features, metrics, step, self.options["pairs"]))
        vectors, held_out = made["latent"], self.reference["latent"]
        protocol = {
            "step": step,
            "n_real": len(held_out),
            "n_generated": len(vectors),
            "reference": "held-out",
            "evaluation_seed": self.options["seed"],
        }
        by_direction = None
        if self.directions is not None:
            recovery = eigenvalue_recovery(vectors, held_out, self.directions)
            tables.append(latent_records(recovery_metrics(recovery), protocol))
            columns = (
                step,
                range(len(recovery.ratios)),
                recovery.eigenvalues.tolist(),
                recovery.ratios.tolist(),
            )
            by_direction = pd.DataFrame(dict(zip(RECOVERY, columns, strict=True)))
        if self.is_map:
            radial = radial_recovery(vectors.unflatten(1, self.shape), held_out.unflatten(1, self.shape))
            tables.append(latent_records(radial.metrics(), protocol))
            self.bands.append(radial.frame().assign(step=step))
        if last and self.job.parent("samples").record["params"]["source"] != "train":
            tables.append(self._copying(vectors, protocol))
        return pd.concat(tables, ignore_index=True), by_direction

    def replicates(self, step: int, made: dict[str, Tensor]) -> pd.DataFrame:
        """The metrics again, where the held-out rows are drawn with replacement: the same resamples for all."""
        tables, held_out = [], self.reference["latent"]
        count = self.features.params["replicates"]
        for space in sorted({name.rpartition("/")[0] for name in self.fits}):
            fits = GaussianFits(self.fits[f"{space}/means"], self.fits[f"{space}/factors"])
            own = space.removesuffix(DECODED)
            metric = FRECHET_IN_COMPONENTS if self._in_axes(own) else "frechet"
            tables.append((metric, space, frechet_against_fits(self._compared(own, made[own]), fits)))
        if self.directions is not None:
            resamples = reference_resamples(len(held_out), count)
            recovery = recovery_replicates(made["latent"], held_out, self.directions, resamples)
            tables.append(("eigenvalue_log_error", "latent", recovery.log_error))
            tables.append(("eigenvalue_log_error_low", "latent", recovery.log_error_low))
        if self.is_map:
            maps = (each.unflatten(1, self.shape) for each in (made["latent"], held_out))
            radial = radial_replicates(*maps, reference_resamples(len(held_out), count))
            tables += [
                ("band_log_error", "latent", log_error(radial)),
                ("band_log_error_high", "latent", log_error(high_bands(radial))),
            ]
        rows = self.options["pairs"]
        resamples = reference_resamples(min(rows, len(held_out)), count)
        for judge in self.judges:
            for space in (judge, judge + DECODED) if self._is_small(judge, made[judge]) else ():
                values = kid_replicates(made[judge][:rows], self.reference[space][:rows], resamples)
                tables.append(("kid", space, values))
        return pd.DataFrame(
            [
                {"step": step, "metric": metric, "space": space, "replicates": replicates_text(values)}
                for metric, space, values in tables
            ]
        )

    def grid(self, latents: Tensor, labels: Tensor, made: dict[str, Tensor]) -> dict[str, Tensor]:
        """Decoded samples beside held-out images of their labels.

        In the eyes of a fixed extractor also the nearest training image of each sample; and the held-out images
        encoded and decoded.
        """
        assert self.encoder is not None
        data = self.job.parent("data")
        heldout = data.tensors("heldout.safetensors")
        known = heldout["labels"]
        rows = rows_with_labels(labels[:GRID], known.repeat(GRID)) % len(known)  # of few rows some come twice
        grid = {
            "images": _bytes(self.encoder.decode(latents[:GRID])),
            "held-out": heldout["images"][rows],
            "labels": labels[:GRID],
        }
        if near := fixed_judges(self.judges)[:1]:
            encoded = self.job.parent("latents").tensors("heldout.safetensors")["latents"]
            grid["held-out, decoded"] = _bytes(self.encoder.decode(encoded[rows]))
            train = self.features.tensors("train.safetensors")
            closest = nearest(made[near[0]][:GRID], train["features"], 1)[1][:, 0]
            grid["neighbours"] = data.rows("train.safetensors").take(train["rows"][closest], "images")
        return grid

    def _in_axes(self, space: str) -> bool:
        """Whether a space is one of small sets, compared in principal coordinates."""
        return ("latent" if space == WHITENED else space) in self.axes

    def _is_small(self, space: str, features: Tensor) -> bool:
        """Whether a space has too few rows for a Frechet distance, or is compared in principal coordinates."""
        rows = min(len(features), len(self.reference[space]))
        return is_small(rows, features.shape[1]) or self._in_axes(space)

    def _compared(self, space: str, features: Tensor) -> Tensor:
        """Features in principal coordinates, where a space is compared in these."""
        return (
            self.axes[space].coordinates(features) if space in self.axes and space != WHITENED else features
        )

    def _distances(self, space: str, extractor: str, features: Tensor, step: int) -> list[pd.DataFrame]:
        """The Frechet distance; of small sets the KID of judges, and the distance in principal coordinates."""
        if not self._is_small(extractor, features):
            return [self._records(space, extractor, features, ("frechet",), step)]
        tables = []
        if extractor in self.judges:
            tables.append(self._records(space, extractor, features, ("kid",), step, self.options["pairs"]))
        if self._in_axes(extractor):
            values = evaluate_features(
                self._compared(extractor, features),
                self._compared(extractor, self.reference[space]),
                metrics=("frechet",),
                **self._protocol(space, extractor),
            )
            tables.append(records(values).assign(metric=FRECHET_IN_COMPONENTS, step=step, space=space))
        return tables

    def _records(
        self,
        space: str,
        extractor: str,
        features: Tensor,
        metrics: tuple[str, ...],
        step: int,
        rows: int | None = None,
    ) -> pd.DataFrame:
        values = evaluate_features(
            features[:rows],
            self.reference[space][:rows],
            metrics=metrics,
            k=self.options["neighbours"],
            **self._protocol(space, extractor),
        )
        return records(values).assign(step=step, space=space)

    def _protocol(self, space: str, extractor: str) -> dict[str, Any]:
        key = self.keys.get(extractor, "")
        return {
            "seed": self.options["seed"],
            "extractor": f"{extractor}@{key}" if key else "identity",
            "extractor_hash": key,
            **({"reference_name": "held-out, decoded"} if space.endswith(DECODED) else {}),
        }

    def _copying(self, vectors: Tensor, protocol: dict[str, Any]) -> pd.DataFrame:
        """Whether samples are nearer to training than to held-out rows, equally many of both."""
        held_out = self.reference["latent"]
        count = min(len(held_out), len(self.train))
        order = torch.randperm(len(self.train), generator=generator_for(self.options["seed"], "copying"))
        found = copying_check(vectors, self.train[order[:count]], held_out[:count])
        error = {"standard_error": found.standard_error}
        row = {"metric": "nearer_train", "value": found.nearer, "space": "latent", "extractor": "identity"}
        return pd.DataFrame([{**row, **error, **protocol}])


def _directions(train: Tensor) -> Tensor | None:
    """Directions along which variances are compared, lowest variance first: the eigenvectors of the train covariance.

    Of maps those of the channels at each frequency, whatever the rows, so that all photographs have the same ones; of
    vectors with fewer rows than dimensions none, since directions of no variance would be chance.
    """
    dim = train[0].numel()
    if dim > LARGEST:
        return None
    if train.ndim > 2:
        return frequency_directions(train)
    return eigen_spectrum(covariance(train)).eigenvectors if determines_covariance(train) else None


def _axes(tensors: dict[str, Tensor]) -> dict[str, PrincipalAxes]:
    """Axes by space, as `features` has written them."""
    parts: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        space, _, field = name.rpartition("/")
        parts.setdefault(space, {})[field] = tensor
    return {space: PrincipalAxes(**fields) for space, fields in parts.items()}


def _bytes(images: Tensor) -> Tensor:
    """Images in [0, 1] as uint8."""
    return (images * 255).round().to(torch.uint8)


def log_error(ratios: Tensor) -> Tensor:
    """Mean |ln ratio| of each replicate."""
    return ratios.log().abs().flatten(1).mean(1)


def step_number(name: str) -> int:
    """The training step that a checkpoint's name stands for."""
    return int(name.removeprefix("step-"))


def recovery_metrics(recovery: EigenvalueRecovery) -> dict[str, float]:
    """The summaries of recovery along directions by the names that records have for them."""
    return {
        "eigenvalue_ratio_low": recovery.ratio_low,
        "eigenvalue_log_error": recovery.log_error,
        "eigenvalue_log_error_low": recovery.log_error_low,
    }


def latent_records(values: Mapping[str, float], protocol: Mapping[str, Any]) -> pd.DataFrame:
    """Numbers of latent coordinates as records, under the protocol of the other ones."""
    return pd.DataFrame(
        [
            {"metric": name, "value": value, "space": "latent", "extractor": "identity", **protocol}
            for name, value in values.items()
        ]
    )
