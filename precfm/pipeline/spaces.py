"""The latent spaces of an experiment: data sets, classifiers and encoders, which all methods share."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from precfm.core.registry import import_string
from precfm.datasets.manifest import source_manifest
from precfm.datasets.sources import SOURCES
from precfm.metrics.extractors.judges import checksum
from precfm.pipeline.components import component
from precfm.pipeline.images import check_classes, check_counts, check_pinned, check_pixels, latent_shape
from precfm.pipeline.keys import KeyedArtifacts
from precfm.pipeline.node import Node
from precfm.pipeline.pinned import pinned_model
from precfm.pipeline.schema import Dataset, Encoder, Experiment, Setting, is_fixed, source_name
from precfm.pipeline.stand_ins import SOURCE as STAND_IN

REPLICATES = 100  # resamples of the held-out split, by which intervals know how far they hang on it


@dataclass(frozen=True)
class Space:
    """One data set in the latent space of one encoder.

    Attributes:
        label: of the data set and the encoder.
        data: the splits.
        encoder: the encoder; None of your own latents.
        latents: of all splits.
        settings: the comparisons that are made here; none where an experiment trains models or shows latents alone.
        judged: by role, what samples are compared with.
        selecting: the classifier that chooses recipes; empty where none is chosen.
        shape: of a latent; None where only the files, or weights that are not here yet, tell it.
    """

    label: str
    data: Node
    encoder: Node | None
    latents: Node
    settings: Mapping[str, Setting]
    judged: Mapping[str, Node | tuple[Node, ...]]
    selecting: tuple[Node, ...]
    shape: tuple[int, ...] | None

    @property
    def dimension(self) -> int | None:
        """Numbers in a latent; None where the shape is not known."""
        return None if self.shape is None else math.prod(self.shape)


def spaces(experiment: Experiment, artifacts: KeyedArtifacts) -> Iterator[Space]:
    """The latent spaces of an experiment, each with its artifacts, which are added to the plan.

    Raises:
        PrecfmError: a split, an encoder or a pinned model does not fit the data set.
    """
    for name in experiment.datasets:
        yield from _DatasetSpaces(experiment, name, artifacts).spaces()


def sources_of(datasets: Mapping[str, Dataset]) -> dict[str, str]:
    """The entries of data/sources.yaml that data sets read, by data set; what one leaves out, by its own name."""
    left_out = [source_name(source) for spec in datasets.values() for source in spec.without]
    real = {name: spec for name, spec in datasets.items() if spec.source.name != STAND_IN}
    return {name: name for name in left_out} | {name: spec.source_name for name, spec in real.items()}


class _DatasetSpaces:
    """Adds one data set, its classifiers and the latents of all its encoders to a plan."""

    def __init__(self, experiment: Experiment, name: str, artifacts: KeyedArtifacts) -> None:
        self.experiment, self.name, self.add = experiment, name, artifacts.add
        self.spec = experiment.datasets[name]
        self.data = self._data()

    def spaces(self) -> Iterator[Space]:
        """One space for each encoder that is for this data set and that a setting uses; of latents themselves one."""
        if self.spec.is_latents:
            yield self._of_latents()
            return
        classifiers, selecting = self._classifiers()
        for name, encoder in self.experiment.encoders.items():
            settings = {
                setting: spec for setting, spec in self.experiment.settings.items() if name in spec.encoders
            }
            elsewhere = encoder.datasets is not None and self.name not in encoder.datasets
            if elsewhere or (self.experiment.settings and not settings):
                continue
            shape = latent_shape(f"encoders.{name}", encoder, self.name, self.spec)
            label = f"{self.name}-{name}"
            made = self._encoder(name, encoder, label)
            encoded = {"encode": encoder.encode, "seed": encoder.seed}
            if encoder.flips:
                encoded["flips"] = True
            latents = self.add("latents", label, encoded, {"data": self.data, "encoder": made})
            judged: dict[str, Any] = {"data": self.data, "latents": latents, "classifiers": classifiers}
            if settings:
                judged["encoder"] = made
                judged["features"] = self._features(label, settings, judged)
            yield Space(label, self.data, made, latents, settings, judged, selecting, shape)

    def _of_latents(self) -> Space:
        """Your own latents: nothing encodes them, and no judge looks at them."""
        settings = self.experiment.settings
        latents = self.add("latents", self.name, {"own": True}, {"data": self.data})
        judged: dict[str, Any] = {"latents": latents}
        if settings:
            judged["features"] = self._features(self.name, settings, judged)
        shape = getattr(self.spec.source.made(), "shape", None)
        return Space(self.name, self.data, None, latents, settings, judged, (), shape and tuple(shape))

    def _features(self, label: str, settings: Mapping[str, Setting], parents: Mapping[str, Any]) -> Node:
        """What samples are compared with; how many these are, where they are fewer than the held-out rows."""
        generated = min(setting.sampling.n for setting in settings.values())
        fewer = {"generated": generated} if generated < self.spec.heldout else {}
        return self.add("features", label, {"replicates": REPLICATES, **fewer}, parents)

    def _data(self) -> Node:
        spec, manifest = self.spec, source_manifest(self.spec.source_name, SOURCES)
        check_counts(self.name, spec, manifest)
        check_classes(self.name, spec, manifest, judged=bool(self.experiment.settings))
        params: dict[str, Any] = {
            "dataset": spec.model_copy(update={"classifiers": None}),  # which change no image
            "source": spec.source_name,
            "checksum": manifest.checksum,
        }
        if spec.without:
            others = [source_name(source) for source in spec.without]
            params["without"] = {other: source_manifest(other, SOURCES).checksum for other in others}
        targets = [target for source in (spec.source, *spec.without) for target in source.targets]
        return self.add("data", self.name, params, targets=targets)

    def _classifiers(self) -> tuple[tuple[Node, ...], tuple[Node, ...]]:
        """Those that report, and the one that selects where something is selected."""
        given, trained, settings = (
            self.spec.classifiers,
            self.experiment.classifiers,
            self.experiment.settings,
        )
        selects = not settings or any(setting.recipe == "tuned" for setting in settings.values())
        made: list[Node] = []
        reporting = 0
        if given is not None:
            reporting = len(given.report)
            references = (*given.report, *([given.select] if selects and given.select else []))
            made = [self._judge(reference) for reference in references]
        elif trained is not None:
            reporting = len(trained.seeds)
            made = [
                self.add(
                    "classifiers",
                    f"{self.name}-classifier-s{seed}",
                    {"model": trained.model, "training": trained.training, "seed": seed},
                    {"data": self.data},
                    trained.model.targets,
                )
                for seed in (*trained.seeds, *([trained.selection_seed] if selects else []))
            ]
        return tuple(made[:reporting]), tuple(made[reporting:])

    def _judge(self, reference: str) -> Node:
        """A judge that comes trained: pinned, or a fixed extractor, which is one and the same for all data sets."""
        field = f"datasets.{self.name}.classifiers"
        if not is_fixed(reference):
            return self._pinned("classifiers", reference, field)
        if reference == "pixels":
            check_pixels(field, self.name, self.spec, self.experiment.settings)
        extractor = {"name": reference, "sha256": checksum(reference)}
        targets = [import_string("fixed_extractors", reference)]
        return self.add("classifiers", reference, {"extractor": extractor}, targets=targets)

    def _encoder(self, name: str, encoder: Encoder, label: str) -> Node:
        if encoder.pinned is not None:
            return self._pinned("encoders", encoder.pinned, f"encoders.{name}.pinned")
        fitted = {field: getattr(encoder, field) for field in ("model", "training", "seed")}
        batch = (
            "" if encoder.training else self.name
        )  # without training it costs less than the start of a job
        return self.add("encoders", label, fitted, {"data": self.data}, encoder.network.targets, batch=batch)

    def _pinned(self, kind: Literal["encoders", "classifiers"], reference: str, field: str) -> Node:
        """An encoder or a classifier that comes trained."""
        group: Literal["encoders", "extractors"] = "encoders" if kind == "encoders" else "extractors"
        name, record = reference.partition("@")[0], pinned_model(reference, group)
        check_pinned(field, name, record, self.name, self.spec)
        seen = {"sha256": record.images.sha256}  # whoever corrects it has the job look again
        content = {"name": name, "sha256": record.sha256, "network": record.network, "trained_on": seen}
        targets = component(group, record.model).targets
        return self.add(kind, name, {"pinned": content}, {"data": self.data}, targets, batch=self.name)
