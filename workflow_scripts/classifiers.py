"""Kind `classifiers`: train one frozen classifier, whose features measure the quality of images."""

from precfm.core.options import validated
from precfm.core.serialization import new_network, save_network
from precfm.metrics.extractors.classifier import accuracy
from precfm.pipeline.job import Job
from precfm.training.options import TrainingOptions
from precfm.training.shifted_cross_entropy import ShiftedCrossEntropy
from precfm.training.trainer import train


def make(job: Job) -> None:
    """Train on the train split; record the accuracy there and on the validation split."""
    data, params, device = job.parent("data"), job.params, job.node.device
    about = data.json("about.json")
    channels, image_size, _ = about["image_shape"]
    shape = {"channels": channels, "image_size": image_size, "num_classes": len(about["class_names"])}
    model, description = new_network("extractors", params["model"], params["seed"], **shape)
    model.to(device)
    splits = {}
    for split in ("train", "validation"):
        tensors = data.tensors(f"{split}.safetensors")
        splits[split] = (tensors["images"].to(device) / 255, tensors["labels"].to(device))
    result = train(
        model,
        ShiftedCrossEntropy(),
        splits["train"],
        validated(TrainingOptions, params["training"]),
        seed=params["seed"],
        scratch=job.scratch,
        name="classifier",
    )
    save_network(model, description, job.folder)
    job.write_json("accuracy.json", {split: accuracy(model, *tensors) for split, tensors in splits.items()})
    job.write_frame("history.csv", result.history)
