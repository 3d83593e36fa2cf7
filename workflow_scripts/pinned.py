"""Pinned encoders and classifiers: verify the weights and that they have seen no image that evaluates; copy them."""

import shutil

from precfm.pipeline.job import Job
from precfm.pipeline.pinned import read_record, refuse_overlap, verified, weights_file


def make(job: Job) -> None:
    """Write the network as a training would."""
    name, network = job.params["pinned"]["name"], job.params["pinned"]["network"]
    weights = verified(weights_file(name), job.params["pinned"]["sha256"])
    data = job.parent("data")
    evaluating = (
        (split, data.tensors(f"{split}.safetensors")["images"]) for split in ("validation", "heldout")
    )
    refuse_overlap(name, read_record(name), evaluating)
    shutil.copyfile(weights, job.folder / "model.safetensors")
    job.write_json("model.json", network)
