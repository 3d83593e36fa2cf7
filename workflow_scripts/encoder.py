"""Kind `encoders`: train the variational autoencoder whose latents the flows learn."""

from functools import partial

from precfm.core.serialization import new_network, save_network
from precfm.encoders.conv_vae import vae_loss
from precfm.pipeline.job import Job
from precfm.pipeline.snakemake_entry import run_rule
from precfm.training.trainer import TrainingOptions, train


def make(job: Job) -> None:
    """Train on the images of the train split."""
    data, params, device = job.parent("data"), job.params, job.node.device
    channels, image_size, _ = data.json("about.json")["image_shape"]
    shape = {"channels": channels, "image_size": image_size}
    model, description = new_network("encoders", params["model"], params["seed"], **shape)
    images = data.tensors("train.safetensors")["images"].to(device) / 255
    result = train(
        model.to(device),
        partial(vae_loss, beta=params["beta"]),
        (images,),
        TrainingOptions(**params["training"]),
        seed=params["seed"],
        scratch=job.scratch,
        name="encoder",
    )
    save_network(model, description, job.folder)
    job.write_frame("history.csv", result.history)


if "snakemake" in globals():
    run_rule(make, snakemake)
