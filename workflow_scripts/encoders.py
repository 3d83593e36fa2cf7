"""Kind `encoders`: fit the encoder whose latents the flows learn."""

from precfm.core.options import validated
from precfm.core.serialization import new_network
from precfm.encoders.base import save
from precfm.pipeline.job import Job
from precfm.pipeline.shards import SHARD_BYTES
from precfm.training.options import TrainingOptions

MOST_BYTES = (
    8 * SHARD_BYTES
)  # of images that an encoder is fitted to: the first ones, which are in random order


def make(job: Job) -> None:
    """Fit on the images of the train split; write the encoder, and the history of its training if it has one."""
    data, params = job.parent("data"), job.params
    channels, image_size, _ = data.json("about.json")["image_shape"]
    encoder, _ = new_network(
        "encoders", params["model"], params["seed"], channels=channels, image_size=image_size
    )
    training = params["training"] and validated(TrainingOptions, params["training"])
    most = MOST_BYTES // (channels * image_size**2)
    history = encoder.to(job.node.device).fit(
        data.rows("train.safetensors").read(0, most, ["images"])["images"],
        seed=params["seed"],
        training=training,
        scratch=job.scratch,
    )
    save(encoder, job.folder)
    if history is not None:
        job.write_frame("history.csv", history)
