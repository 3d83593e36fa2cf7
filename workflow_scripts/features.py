"""Kind `features`: what held-out images and latents are in each space, and resamples; once for all methods."""

import math

import torch
from torch import Tensor

from precfm.core.seeds import generator_for
from precfm.encoders.base import load
from precfm.metrics.bootstrap import reference_fits, reference_resamples
from precfm.metrics.extractors.identity import whitened
from precfm.metrics.extractors.judges import batches_of, fixed_judges, judged, load_judges
from precfm.metrics.principal import PrincipalAxes, axes_of_small_sets, is_small
from precfm.pipeline.job import Job

AXES_ROWS = 2000  # of the train split, to which principal axes are fitted
BATCH = 500  # images in memory at once
NEIGHBOURS_ROWS = 10_000  # of the train split, among which the neighbours of samples are shown


def make(job: Job) -> None:
    """Write held-out features, one tensor per space, and the Gaussian fits of their resamples.

    Judges see the images, and the same images encoded and decoded: what the encoder loses is no fault of a flow. Your
    own latents have no images, and no judges. Of spaces with at least as many dimensions as one of the compared sets
    has rows, the principal axes of the train split are written too.
    """
    latents = job.parent("latents").tensors("heldout.safetensors")["latents"]
    train = job.parent("latents").tensors("train.safetensors")["latents"].flatten(1)
    rows = min(len(latents), job.params.get("generated", len(latents)))
    axes = {"latent": axes_of_small_sets(train[_drawn(len(train), AXES_ROWS)], rows)}
    in_axes = axes["latent"]
    vectors = latents.flatten(1)
    features: dict[str, Tensor] = {
        "latent": vectors,
        "latent-whitened": whitened(vectors, train)
        if in_axes is None
        else in_axes.coordinates(vectors, whitened=True),
    }
    if job.parents("classifiers"):
        of_judges, of_axes = _of_judges(job, latents, rows)
        features |= of_judges
        axes |= of_axes
    job.write_tensors("features.safetensors", features)
    kept = {space: found for space, found in axes.items() if found is not None}
    if kept:
        parts = {
            f"{space}/{name}": value for space, found in kept.items() for name, value in vars(found).items()
        }
        job.write_tensors("axes.safetensors", parts)
    resamples = reference_resamples(len(latents), job.params["replicates"])
    fits = {}
    for space, values in features.items():
        found = kept.get(space.removesuffix("-decoded"))
        compared = values if found is None else found.coordinates(values)
        if space != "latent" and not is_small(rows, compared.shape[1]):
            fit = reference_fits(compared, resamples)
            fits |= {f"{space}/means": fit.means, f"{space}/factors": fit.factors}
    job.write_tensors("resamples.safetensors", fits)


def _of_judges(
    job: Job, latents: Tensor, rows: int
) -> tuple[dict[str, Tensor], dict[str, PrincipalAxes | None]]:
    """Held-out features of images as they are and decoded, and the axes of judges with more features than rows."""
    data, device = job.parent("data"), job.node.device
    judges = load_judges([each.verified() for each in job.parents("classifiers")], device)
    encoder = load(job.parent("encoder").verified(), device)
    heldout, train = (data.rows(f"{split}.safetensors") for split in ("heldout", "train"))
    features = judged(judges, heldout.batches("images", BATCH))
    decoded = judged(judges, map(encoder.decode, batches_of(latents, math.prod(encoder.image_shape))))
    of_train: dict[str, Tensor] = {}
    near = fixed_judges(judges)[:1]
    small = [name for name in judges if is_small(rows, features[name].shape[1]) and name not in near]
    if near or small:
        shown = _drawn(len(train), NEIGHBOURS_ROWS)
        of_axes, of_near = (
            (train.take(part, "images") for part in torch.split(chosen, BATCH))
            for chosen in (shown[:AXES_ROWS], shown)
        )
        of_train = judged({name: judges[name] for name in small}, of_axes) if small else {}
        of_train |= judged({name: judges[name] for name in near}, of_near) if near else {}
        if near:
            job.write_tensors("train.safetensors", {"features": of_train[near[0]], "rows": shown})
    axes = {name: axes_of_small_sets(found[:AXES_ROWS], rows) for name, found in of_train.items()}
    return features | {f"{name}-decoded": values for name, values in decoded.items()}, axes


def _drawn(count: int, most: int) -> Tensor:
    """Rows of the train split in random order, at most so many."""
    return torch.randperm(count, generator=generator_for(0, "features of the train split"))[:most]
