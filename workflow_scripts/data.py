"""Kind `data`: verify the raw files, read the rows, and write the splits."""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from precfm.core.errors import PrecfmError
from precfm.core.registry import build
from precfm.datasets.image_hashes import Hashes, image_hashes
from precfm.datasets.sources import fetch_raw
from precfm.datasets.splits import make_splits
from precfm.datasets.streams import RowStream, opened
from precfm.pipeline.job import Job

BYTES = {"images": 1, "latents": 4}  # of one number
HASHED = 1000  # images at once


def make(job: Job) -> None:
    """Write each split, in shards where it is large: images or latents, labels, and each row's index in the source."""
    spec = job.params["dataset"]
    with rows_of(job.params["source"], spec["source"]) as rows:
        refuse_single(job.params["source"], rows)
        sizes = {split: spec[split] for split in ("train", "validation", "heldout")}
        splits = make_splits(rows.labels, **sizes, seed=spec["seed"], official_split=rows.official_split)
        for source in spec["without"]:
            with rows_of(source.get("source", source["name"]), source) as others:
                other = hashes(others, torch.arange(len(others)))
            known = np.isin(hashes(rows, splits["train"]), other)
            splits["train"] = splits["train"][torch.from_numpy(~known)]
        if not len(splits["train"]):
            raise PrecfmError("without: leaves no image in the train split; other sources are needed")
        for split, indices in splits.items():

            def read(start: int, stop: int, indices: Tensor = indices) -> Mapping[str, Tensor]:
                chosen = indices[start:stop]
                return {rows.kind: rows.read(chosen), "labels": rows.labels[chosen], "index": chosen}

            row_bytes = math.prod(rows.shape) * BYTES[rows.kind]
            job.write_rows(f"{split}.safetensors", len(indices), row_bytes, read)
    counts = {split: torch.bincount(rows.labels[indices]).tolist() for split, indices in splits.items()}
    about = {"class_names": list(rows.class_names), "class_counts": counts}
    job.write_json("about.json", {**about, f"{rows.kind.removesuffix('s')}_shape": list(rows.shape)})


@contextmanager
def rows_of(name: str, spec: Mapping[str, Any]) -> Iterator[RowStream]:
    """The rows of a source, of which every file was verified."""
    raw, fetched = fetch_raw(name)
    for line in fetched:
        print(line)
    with opened(build("datasets", spec), raw) as rows:
        yield rows


def refuse_single(name: str, rows: RowStream) -> None:
    """Refuse a class of one row, of which no split but one could hold any."""
    counts = torch.bincount(rows.labels, minlength=len(rows.class_names)).tolist()
    for class_name, count in zip(rows.class_names, counts, strict=True):
        if count == 1:
            raise PrecfmError(
                f"data source '{name}': class '{class_name}' has one row; leave the class out, or give it more"
            )


def hashes(rows: RowStream, indices: Tensor) -> Hashes:
    """The hashes of these images, of which few are in memory at a time."""
    return np.concatenate([image_hashes(rows.read(block)) for block in torch.split(indices, HASHED)])
