"""Kind `encoders`: fit the encoder whose latents the flows learn."""

from precfm.core.options import validated
from precfm.core.serialization import new_network
from precfm.encoders.base import save
from precfm.pipeline.job import Job
from precfm.training.options import TrainingOptions


def make(job: Job) -> None:
    """Fit on the images of the train split; write the encoder, and the history of its training if it has one."""
    data, params = job.parent("data"), job.params
    channels, image_size, _ = data.json("about.json")["image_shape"]
    encoder, _ = new_network(
        "encoders", params["model"], params["seed"], channels=channels, image_size=image_size
    )
    training = params["training"] and validated(TrainingOptions, params["training"])
    history = encoder.to(job.node.device).fit(
        data.tensors("train.safetensors")["images"],
        seed=params["seed"],
        training=training,
        scratch=job.scratch,
    )
    save(encoder, job.folder)
    if history is not None:
        job.write_frame("history.csv", history)
