"""What stands for sources and pretrained weights that are not on this machine, in experiments that are cut to seconds.

Nothing is fetched for a tiny experiment: what is not here already is replaced, and it says so.
"""

import sys
from collections.abc import Mapping
from typing import Any

from precfm.datasets.manifest import source_manifest
from precfm.datasets.sources import SOURCES, place_here
from precfm.pipeline.components import component
from precfm.pipeline.schema import is_fixed

PIXELS = "pixels"  # the judge that needs no weights
SOURCE = "stand_in"  # the data set, and its entry in data/sources.yaml
CLASSES = 5  # of images whose classes only the files tell
AUTOENCODER = {  # with latents of the shape that most have: 4 channels, an eighth of the image's side
    "model": {"name": "kl_autoencoder", "latent_channels": 4, "factor": 8, "width": 8},
    "training": {"steps": 12, "batch_size": 8},
}


def with_stand_ins(experiment: Mapping[str, Any]) -> dict[str, Any]:
    """A tiny experiment, as plain data, in which nothing is left that is not on this machine.

    Args:
        experiment: as `precfm.pipeline.schema.Experiment`, already cut.
    """
    replaced: list[str] = []
    datasets = {
        name: _judges(_dataset(spec, replaced), replaced)
        for name, spec in (experiment.get("datasets") or {}).items()
    }
    encoders = {name: _encoder(spec, replaced) for name, spec in (experiment.get("encoders") or {}).items()}
    if not replaced:
        return dict(experiment)
    names = ", ".join(dict.fromkeys(replaced))
    said = f"stand-ins, random numbers or pixels, for what is not on this machine or would take long: {names}"
    print(f"precfm: {said}", file=sys.stderr)
    described = f"{experiment['description'].strip()} NOT REAL DATA: {said}."
    return {**experiment, "description": described, "datasets": datasets, "encoders": encoders}


def _dataset(spec: Mapping[str, Any], replaced: list[str]) -> dict[str, Any]:
    source = spec["source"]
    without = [other for other in spec.get("without") or () if _is_here(other)]
    made = component("datasets", source).made()
    if _is_here(source) or not hasattr(made, "resolution"):  # of latents nobody knows what they are of
        return {**spec, "without": without}
    replaced.append(_name(source))
    images = sum(spec[split] for split in ("train", "validation", "heldout"))
    shape = {"resolution": made.resolution, "channels": made.channels}
    classes = len(getattr(made, "class_names", ())) or CLASSES
    stand_in = {
        "name": SOURCE,
        "stands_for": _name(source),
        **shape,
        "images": images,
        "classes": min(classes, images // 20),
    }
    return {**spec, "without": without, "source": stand_in}


def _judges(spec: Mapping[str, Any], replaced: list[str]) -> dict[str, Any]:
    """Pixels instead of networks of published weights, which would take longer than all else."""
    given = spec.get("classifiers")
    lacking = [name for name in (given or {}).get("report", ()) if is_fixed(name) and name != PIXELS]
    if not given or not lacking:
        return dict(spec)
    replaced += lacking
    report = dict.fromkeys(PIXELS if name in lacking else name for name in given["report"])
    select = given.get("select")
    return {**spec, "classifiers": {"report": [*report], "select": None if select in report else select}}


def _encoder(spec: Mapping[str, Any], replaced: list[str]) -> dict[str, Any]:
    model = spec.get("model")
    if model is not None and (must_be_fetched := component("encoders", model).constant("must_be_fetched")):
        options = {name: value for name, value in model.items() if name != "name"}
        if must_be_fetched(**options):
            replaced.append(options["source"])
            return {**spec, **AUTOENCODER}
    return dict(spec)


def _name(source: Mapping[str, Any]) -> str:
    return str(source.get("source", source["name"]))


def _is_here(source: Mapping[str, Any]) -> bool:
    return bool(place_here(source_manifest(_name(source), SOURCES)))
