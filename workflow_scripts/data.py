"""Kind `data`: verify the raw files, decode the images, and write the splits."""

import numpy as np
import torch

from precfm.core.errors import PrecfmError
from precfm.core.registry import build
from precfm.datasets.image_hashes import image_hashes
from precfm.datasets.images import Images
from precfm.datasets.sources import fetch_raw
from precfm.datasets.splits import make_splits
from precfm.pipeline.job import Job


def make(job: Job) -> None:
    """Write one safetensors file per split: images, labels, and each image's index in the source."""
    spec = job.params["dataset"]
    images = load(job.params["source"], spec["source"])
    sizes = {split: spec[split] for split in ("train", "validation", "heldout")}
    splits = make_splits(images.labels, **sizes, seed=spec["seed"], official_split=images.official_split)
    for source in spec["without"]:
        other = image_hashes(load(source.get("source", source["name"]), source).images)
        known = np.isin(image_hashes(images.images[splits["train"]]), other)
        splits["train"] = splits["train"][torch.from_numpy(~known)]
    if not len(splits["train"]):
        raise PrecfmError("without: leaves no image in the train split; other sources are needed")
    for split, indices in splits.items():
        tensors = {"images": images.images[indices], "labels": images.labels[indices], "index": indices}
        job.write_tensors(f"{split}.safetensors", tensors)
    shape, classes = list(images.images.shape[1:]), list(images.class_names)
    counts = {split: torch.bincount(images.labels[indices]).tolist() for split, indices in splits.items()}
    job.write_json("about.json", {"image_shape": shape, "class_names": classes, "class_counts": counts})


def load(name: str, spec: dict[str, str]) -> Images:
    """The images of a source, of which every file was verified."""
    raw, fetched = fetch_raw(name)
    for line in fetched:
        print(line)
    images: Images = build("datasets", spec).load(raw)
    return images
