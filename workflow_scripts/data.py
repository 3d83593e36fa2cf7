"""Kind `data`: verify the raw files, decode the images, and write the splits."""

import os
from pathlib import Path

import torch

from precfm.artifacts import Job, run_rule
from precfm.datasets.sources import fetch
from precfm.datasets.splits import make_splits
from precfm.registry import load

SOURCES = Path("data/sources.yaml")


def make(job: Job) -> None:
    """Write one safetensors file per split: images, labels, and each image's index in the source."""
    spec = job.params["dataset"]
    options = {name: value for name, value in spec["source"].items() if name != "name"}
    name = spec["source"]["name"]
    source = options.get("source", name)
    raw, mirror = Path("data/raw") / source, os.environ.get("PRECFM_MIRROR")
    for line in fetch(source, raw, sources_file=SOURCES, mirror=Path(mirror) if mirror else None):
        print(line)
    images = load("datasets", name)(**options).load(raw)
    sizes = {split: spec[split] for split in ("train", "validation", "heldout")}
    splits = make_splits(images.labels, **sizes, seed=spec["seed"], official_split=images.official_split)
    for split, indices in splits.items():
        tensors = {"images": images.images[indices], "labels": images.labels[indices], "index": indices}
        job.write_tensors(f"{split}.safetensors", tensors)
    shape, classes = list(images.images.shape[1:]), list(images.class_names)
    counts = {split: torch.bincount(images.labels[indices]).tolist() for split, indices in splits.items()}
    job.write_json("about.json", {"image_shape": shape, "class_names": classes, "class_counts": counts})


if "snakemake" in globals():
    run_rule(make, snakemake)
