"""Encoders: one contract for all, the VAE's loss recomputed by hand, and that training works on real digits."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence

from precfm.core.errors import PrecfmError
from precfm.core.serialization import load_network, new_network, save_network
from precfm.datasets.mnist5k import MNIST5k
from precfm.datasets.sources import fetch
from precfm.datasets.splits import make_splits
from precfm.encoders import base
from precfm.encoders.base import Encoder, load, save
from precfm.encoders.conv_vae import ConvVAE, NegativeELBO
from precfm.training.options import TrainingOptions

SOURCES = Path(__file__).parents[1] / "data" / "sources.yaml"


class Halves(Encoder):
    """The smallest encoder without training: the top half of an image, as its own latents."""

    def __init__(self, channels: int = 1, image_size: int = 12) -> None:
        super().__init__(channels, image_size, (channels, image_size // 2, image_size))
        self.register_buffer("shift", torch.zeros(self.latent_shape))

    def _fit(self, images, seed, training, validation, scratch):
        self.shift = (images[:, :, : self.image_size // 2] / 255).mean(0)

    def _encode(self, images, noise):
        return images[:, :, : self.image_size // 2] - self.shift

    def _decode(self, latents):
        return torch.cat([latents + self.shift, torch.zeros_like(latents)], dim=2).clamp(0, 1)


def small_vae(**options) -> ConvVAE:
    torch.manual_seed(0)
    return ConvVAE(**{"latent_dim": 5, "image_size": 12, "width": 4, "hidden": 16, **options})


def bytes_like(n: int, *shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, *shape), generator=generator, dtype=torch.uint8)


ENCODERS = [small_vae, Halves]


# ---- what every encoder keeps


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("make", ENCODERS)
def test_shapes_range_and_batches(make, channels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder, images = make(channels=channels), bytes_like(11, channels, 12, 12)
    encoder.fit(images, training=TrainingOptions(steps=2) if encoder.trained else None)
    latents = encoder.encode(images)
    decoded = encoder.decode(100 * latents)
    assert latents.shape == (11, *encoder.latent_shape)
    assert decoded.shape == images.shape
    assert decoded.dtype == torch.float32
    assert 0 <= decoded.min() <= decoded.max() <= 1
    assert not latents.requires_grad
    assert not encoder.training
    errors = encoder.reconstruction_errors(images, latents)
    by_hand = [((encoder.decode(latents[i : i + 1])[0] - images[i] / 255) ** 2).sum() for i in range(11)]
    torch.testing.assert_close(errors, torch.stack(by_hand))
    monkeypatch.setattr(base, "BATCH", 4)
    torch.testing.assert_close(encoder.encode(images), latents)
    torch.testing.assert_close(encoder.decode(100 * latents), decoded)
    torch.testing.assert_close(encoder.reconstruction_errors(images, latents), errors)
    assert encoder.encode(images[:0]).shape == (0, *encoder.latent_shape)


@pytest.mark.parametrize("make", ENCODERS)
def test_a_stored_encoder_is_the_same(make, tmp_path: Path) -> None:
    encoder, images = make(), bytes_like(7, 1, 12, 12)
    encoder.fit(images, training=TrainingOptions(steps=2) if encoder.trained else None)
    save(encoder, tmp_path)
    again = load(tmp_path)
    assert type(again) is type(encoder)
    assert torch.equal(again.encode(images), encoder.encode(images))
    assert torch.equal(again.decode(again.encode(images)), encoder.decode(encoder.encode(images)))
    assert not any(parameter.requires_grad for parameter in again.parameters())


@pytest.mark.parametrize("make", ENCODERS)
def test_images_and_latents_that_do_not_fit_are_refused(make) -> None:
    encoder = make()
    for images in (bytes_like(2, 1, 16, 16), bytes_like(2, 1, 12, 12) / 255, bytes_like(2, 12, 12), None):
        for use in (encoder.encode, encoder.fit):
            with pytest.raises(PrecfmError, match="images"):
                use(images)
    with pytest.raises(PrecfmError, match="validation"):
        encoder.fit(bytes_like(2, 1, 12, 12), validation=bytes_like(2, 1, 16, 16))
    for latents in (torch.zeros(2, 77), torch.zeros(2, *encoder.latent_shape, dtype=torch.int64), None):
        with pytest.raises(PrecfmError, match="latents"):
            encoder.decode(latents)


def test_what_an_encoder_has_no_use_for_is_refused() -> None:
    with pytest.raises(PrecfmError, match="training"):
        Halves().fit(bytes_like(2, 1, 12, 12), training=TrainingOptions())
    with pytest.raises(PrecfmError, match="sample_seed"):
        Halves().encode(bytes_like(2, 1, 12, 12), sample_seed=0)


# ---- networks on disk


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "model.json").unlink(),
        lambda folder: (folder / "model.json").write_text("{}"),
        lambda folder: (folder / "model.json").write_text("no json"),
        lambda folder: (folder / "model.safetensors").write_bytes(b"x"),
        lambda folder: save_network(nn.Linear(2, 3), json.loads((folder / "model.json").read_text()), folder),
    ],
)
def test_a_damaged_folder_is_named(tmp_path: Path, damage) -> None:
    save(small_vae(), tmp_path)
    damage(tmp_path)
    with pytest.raises(PrecfmError, match=f"{tmp_path}"):
        load(tmp_path)


def test_another_network_is_no_encoder(tmp_path: Path) -> None:
    network, description = new_network("extractors", {"name": "digit_classifier"}, 0)
    save_network(network, description, tmp_path)
    assert type(load_network(tmp_path)) is type(network)
    with pytest.raises(PrecfmError, match="DigitClassifier"):
        load(tmp_path)


# ---- the variational autoencoder


@pytest.mark.parametrize(("field", "value"), [("image_size", 30), ("image_size", 0), ("channels", 2)])
def test_impossible_sizes_are_named(field: str, value: int) -> None:
    with pytest.raises(PrecfmError, match=f"{field}: got {value}"):
        small_vae(**{field: value})


@pytest.mark.parametrize("beta", [0.0, 1e-3, 2.0])
def test_loss_equals_its_definition(beta: float) -> None:
    """SSE summed over pixels and KL summed over latents, from torch's own distributions, both averaged."""
    model, images, objective = small_vae(channels=3), bytes_like(6, 3, 12, 12), NegativeELBO(5, beta)
    draws = objective.draw(6, torch.Generator().manual_seed(7))
    measured = objective.loss(model, (images,), draws)
    mean, log_variance = (part.detach() for part in model.posterior(images / 255))
    posterior = Normal(mean, log_variance.exp().sqrt())
    noise = torch.randn(mean.shape, generator=torch.Generator().manual_seed(7))
    decoded = model.decode(posterior.mean + posterior.stddev * noise)
    sse = sum(float(((decoded[i] - images[i] / 255) ** 2).sum()) for i in range(6)) / 6
    divergence = float(kl_divergence(posterior, Normal(0.0, 1.0)).sum()) / 6
    assert measured.item() == pytest.approx(sse + beta * divergence, rel=1e-5)
    measured.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_samples_of_the_posterior_are_spread_around_the_mean_by_their_seed() -> None:
    model, images = small_vae(), bytes_like(1, 1, 12, 12).expand(4000, -1, -1, -1)
    mean, log_variance = model.posterior(images[:1] / 255)
    samples = model.encode(images, sample_seed=3)
    assert torch.equal(samples, model.encode(images, sample_seed=3))
    assert not torch.equal(samples, model.encode(images, sample_seed=4))
    deviation = (log_variance[0] / 2).exp()
    assert ((samples.mean(0) - mean[0]).abs() < 0.1 * deviation).all()
    torch.testing.assert_close(samples.std(0), deviation, rtol=0.1, atol=0)


def test_early_stopping_keeps_the_weights_of_the_best_validation() -> None:
    images, opposite = bytes_like(8, 1, 12, 12), 255 - bytes_like(8, 1, 12, 12)
    options = {"batch_size": 8, "learning_rate": 3e-2, "ema_decay": None}
    stopped = small_vae()
    history = stopped.fit(
        images, training=TrainingOptions(steps=60, validate_every=10, **options), validation=opposite
    )
    best_step = int(history["step"][history["validation_loss"].idxmin()])
    assert best_step < 60, "what fits the images is wrong for their opposites"
    shorter = small_vae()
    shorter.fit(images, training=TrainingOptions(steps=best_step, **options))
    assert torch.equal(stopped.encode(images), shorter.encode(images))


def test_training_on_real_digits_beats_the_linear_encoder_of_fewer_dimensions(tmp_path: Path) -> None:
    """After a few steps the held-out error is below that of the mean image and of 4 principal components."""
    fetch("mnist5k", tmp_path, sources_file=SOURCES)
    data = MNIST5k().load(tmp_path)
    splits = make_splits(data.labels, train=2000, validation=0, heldout=500, seed=0)
    train_images, heldout = data.images[splits["train"]], data.images[splits["heldout"]]
    torch.manual_seed(0)
    model = ConvVAE(latent_dim=16, width=8, hidden=64)
    options = TrainingOptions(steps=250, batch_size=64, learning_rate=3e-3)
    history = model.fit(train_images, training=options)
    assert len(history) == 250

    centre = train_images.double().flatten(1).mean(0) / 255
    centred = heldout.double().flatten(1) / 255 - centre
    _, _, axes = torch.linalg.svd(train_images.double().flatten(1) / 255 - centre, full_matrices=False)
    linear = (centred - centred @ axes[:4].T @ axes[:4]).square().sum(1).mean()
    assert model.reconstruction_errors(heldout, model.encode(heldout)).mean() < linear
