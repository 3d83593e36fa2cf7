"""The encoder: shapes, the loss recomputed by hand, blocks, and that training works on real digits."""

from functools import partial
from pathlib import Path

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from precfm.core.errors import PrecfmError
from precfm.datasets.mnist5k import MNIST5k
from precfm.datasets.sources import fetch
from precfm.datasets.splits import make_splits
from precfm.encoders.conv_vae import (
    ConvVAE,
    decode_latents,
    encode_images,
    reconstruction_errors,
    squared_error,
    vae_loss,
)
from precfm.training.trainer import TrainingOptions, train

SOURCES = Path(__file__).parents[1] / "data" / "sources.yaml"


def small_vae(**options: int) -> ConvVAE:
    torch.manual_seed(0)
    return ConvVAE(**{"latent_dim": 5, "image_size": 12, "width": 4, "hidden": 16, **options})


def bytes_like(n: int, *shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(
        0, 256, (n, *shape), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8
    )


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("image_size", [4, 28, 32, 64])
def test_shapes_and_range(channels: int, image_size: int) -> None:
    model = small_vae(channels=channels, image_size=image_size)
    images = bytes_like(3, channels, image_size, image_size)
    mean, log_variance = encode_images(model, images)
    assert mean.shape == log_variance.shape == (3, 5)
    decoded = decode_latents(model, 100 * mean)
    assert decoded.shape == images.shape
    assert decoded.dtype == torch.float32
    assert 0 <= decoded.min() <= decoded.max() <= 1


@pytest.mark.parametrize(
    ("field", "value"),
    [("image_size", 30), ("image_size", 0), ("channels", 2), ("latent_dim", 0), ("width", 0), ("hidden", -1)],
)
def test_impossible_options_are_named(field: str, value: int) -> None:
    with pytest.raises(PrecfmError, match=f"{field}: (got )?{value}"):
        small_vae(**{field: value})


def test_images_of_another_shape_are_refused() -> None:
    with pytest.raises(PrecfmError, match=r"\(1, 16, 16\).*\(1, 12, 12\)"):
        encode_images(small_vae(), bytes_like(2, 1, 16, 16))


@pytest.mark.parametrize("beta", [0.0, 1e-3, 2.0])
def test_loss_equals_its_definition(beta: float) -> None:
    """SSE summed over pixels and KL summed over latents, from torch's own distributions, both averaged."""
    model, images = small_vae(channels=3), bytes_like(6, 3, 12, 12)
    measured = vae_loss(model, (images, torch.arange(6)), torch.Generator().manual_seed(7), beta)

    mean, log_variance = (part.detach() for part in model.encode(images / 255))
    posterior = Normal(mean, log_variance.exp().sqrt())
    noise = torch.randn(mean.shape, generator=torch.Generator().manual_seed(7))
    decoded = model.decode(posterior.mean + posterior.stddev * noise).detach()
    sse = sum(float(((decoded[i] - images[i] / 255) ** 2).sum()) for i in range(6)) / 6
    divergence = float(kl_divergence(posterior, Normal(0.0, 1.0)).sum()) / 6
    assert measured.item() == pytest.approx(sse + beta * divergence, rel=1e-5)


def test_loss_reaches_every_parameter() -> None:
    model = small_vae()
    vae_loss(model, (bytes_like(8, 1, 12, 12),), torch.Generator().manual_seed(0), 1e-3).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_loss_takes_bytes_and_unit_floats_alike_and_draws_from_its_generator_only() -> None:
    model, images = small_vae(), bytes_like(4, 1, 12, 12)
    state = torch.get_rng_state()
    losses = [
        vae_loss(model, (batch,), torch.Generator().manual_seed(seed))
        for batch, seed in ((images, 1), (images / 255, 1), (images, 2))
    ]
    assert losses[0] == losses[1] != losses[2]
    assert torch.equal(torch.get_rng_state(), state)


def test_blocks_do_not_change_the_result() -> None:
    model, images = small_vae(), bytes_like(11, 1, 12, 12)
    whole, parts = encode_images(model, images), encode_images(model, images, batch=4)
    for a, b in zip(whole, parts, strict=True):
        torch.testing.assert_close(a, b)
    torch.testing.assert_close(decode_latents(model, whole[0]), decode_latents(model, whole[0], batch=3))
    assert not whole[0].requires_grad


def test_reconstruction_error_is_a_sum_over_pixels() -> None:
    ones = torch.ones(2, 3, 4, 4)
    assert torch.equal(squared_error(0.5 * ones, ones), torch.full((2,), 0.25 * 48))
    model, images = small_vae(), bytes_like(7, 1, 12, 12)
    mean, _ = encode_images(model, images)
    pairs = zip(mean, images / 255, strict=True)
    by_hand = torch.stack([((model.decode(latent[None])[0] - image) ** 2).sum() for latent, image in pairs])
    torch.testing.assert_close(reconstruction_errors(model, images, batch=3), by_hand.detach())


def test_training_on_real_digits_beats_the_linear_encoder_of_fewer_dimensions(tmp_path: Path) -> None:
    """After a few steps the held-out error is below that of the mean image and of 4 principal components."""
    fetch("mnist5k", tmp_path, sources_file=SOURCES)
    data = MNIST5k().load(tmp_path)
    splits = make_splits(data.labels, train=2000, validation=0, heldout=500, seed=0)
    train_images, heldout = data.images[splits["train"]], data.images[splits["heldout"]]
    torch.manual_seed(0)
    model = ConvVAE(latent_dim=16, width=8, hidden=64)
    options = TrainingOptions(steps=250, batch_size=64, learning_rate=3e-3)
    train(model, partial(vae_loss, beta=1e-3), (train_images,), options, seed=0)

    centre = train_images.double().flatten(1).mean(0) / 255
    centred = heldout.double().flatten(1) / 255 - centre
    _, _, axes = torch.linalg.svd(train_images.double().flatten(1) / 255 - centre, full_matrices=False)
    linear = (centred - centred @ axes[:4].T @ axes[:4]).square().sum(1).mean()
    assert reconstruction_errors(model, heldout).mean() < linear
