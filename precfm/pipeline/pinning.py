"""Pinning: what an experiment has trained, encoders and classifiers, becomes data in data/models/, which git holds."""

import hashlib
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from precfm.core.errors import PrecfmError
from precfm.datasets.image_hashes import image_hashes
from precfm.pipeline.artifact import Artifact
from precfm.pipeline.experiments import CONFIG_FOLDER, TINY
from precfm.pipeline.files import write_whole
from precfm.pipeline.node import MODELS, RESULTS, Node
from precfm.pipeline.pinned import (
    SHOWN,
    Network,
    PinnedModel,
    TrainingImages,
    as_text,
    read_record,
    record_file,
    weights_file,
)
from precfm.pipeline.plan import Plan

KINDS = ("encoders", "classifiers")


def trained_models(plan: Plan) -> list[Node]:
    """The encoders and classifiers that an experiment trains.

    Raises:
        PrecfmError: it trains none, or is tiny, or another experiment has pinned a model of the same name.
    """
    if plan.experiment.endswith(TINY):
        raise PrecfmError(
            f"{plan.experiment}: trains in a few steps to show that it works; nothing of it is pinned"
        )
    nodes = [node for kind in KINDS for node in plan.of(kind) if node.params.get("training")]
    if not nodes:
        raise PrecfmError(
            f"{plan.experiment}: trains no encoder and no classifier, so there is nothing to pin"
        )
    for node in nodes:
        file = record_file(node.label)
        other = read_record(node.label).made_by.get("experiment") if file.is_file() else plan.experiment
        if other != plan.experiment:
            raise PrecfmError(
                f"{file}: was pinned by the experiment '{other}'; give data set or encoder another name in "
                f"{plan.experiment}, or delete that model first"
            )
    return nodes


def pin(nodes: Sequence[Node], made_by: Mapping[str, Any]) -> list[str]:
    """Copy trained models, which exist, to data/models/, each with a record of how and on what it was trained.

    A model of the same name is replaced. Files of training images that no record names any more are removed.

    Args:
        nodes: of `trained_models`.
        made_by: the revision, from `precfm.pipeline.publication.revision`.

    Returns:
        How a configuration names each model, `<name>@<checksum>`.

    Raises:
        PrecfmError: an artifact is missing or damaged.
    """
    MODELS.mkdir(parents=True, exist_ok=True)
    references = []
    for node in nodes:
        artifact = Artifact.open(node.folder)
        weights = artifact.path("model.safetensors").read_bytes()
        (data_id,) = node.parents["data"]
        data = Artifact.open(RESULTS / node.experiment / data_id)
        record = PinnedModel(
            network=Network.model_validate(artifact.json("model.json")),
            sha256=hashlib.sha256(weights).hexdigest(),
            training=dict(node.params["training"]),
            seed=node.params["seed"],
            data=dict(data.params),
            images=_write_images(data, data_id.split("/")[1]),
            made_by={
                "experiment": node.experiment,
                **made_by,
                "fingerprint": node.fingerprint,
                "made_on": artifact.record["made_on"],
            },
        )
        write_whole(weights_file(node.label), weights)
        write_whole(record_file(node.label), as_text(record).encode())
        references.append(f"{node.label}@{record.sha256[:SHOWN]}")
    named = {read_record(file.stem).images.file for file in MODELS.glob("*.json")}
    for stale in MODELS.glob("*.npy"):
        if stale.name not in named:
            stale.unlink()
    return references


def _write_images(data: Artifact, name: str) -> TrainingImages:
    """The sorted hashes of a train split."""
    hashes = np.sort(image_hashes(data.tensors("train.safetensors")["images"]))
    content = io.BytesIO()
    np.save(content, hashes, allow_pickle=False)
    write_whole(MODELS / f"{name}.npy", content.getvalue())
    sha256 = hashlib.sha256(content.getvalue()).hexdigest()
    return TrainingImages(file=f"{name}.npy", sha256=sha256, count=len(hashes))


def rename_in_configurations(references: Sequence[str]) -> list[Path]:
    """Let every configuration that names one of these models name it by its present checksum.

    Returns:
        The files that were changed.
    """
    changed = []
    for file in sorted(CONFIG_FOLDER.glob("*.yaml")):
        text = before = file.read_text(encoding="utf-8")
        for reference in references:
            name = reference.partition("@")[0]
            text = re.sub(rf"(?<![\w.=+-]){re.escape(name)}@[0-9a-f]{{{SHOWN}}}\b", reference, text)
        if text != before:
            write_whole(file, text.encode())
            changed.append(file)
    return changed
