"""Encoders: one contract for all, the linear ones against closed forms, the VAE's loss, and training on real digits."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.fft import dctn
from scipy.spatial.distance import pdist
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence

from precfm.core.errors import PrecfmError
from precfm.core.serialization import load_network, new_network, save_network
from precfm.datasets.mnist5k import MNIST5k
from precfm.datasets.sources import fetch
from precfm.datasets.splits import make_splits
from precfm.encoders import base
from precfm.encoders.base import Encoder, load, save
from precfm.encoders.block_dct import BlockDCT, zigzag
from precfm.encoders.conv_vae import ConvVAE, NegativeELBO
from precfm.encoders.linear import coordinates, rounded
from precfm.encoders.pca import PCA, gram
from precfm.geometry.decoder import decoder_sensitivity, pull_back_metric
from precfm.geometry.spectra import covariance, eigen_spectrum
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
        return torch.cat([latents + self.shift, torch.zeros_like(latents)], dim=2)


def small_vae(**options) -> ConvVAE:
    torch.manual_seed(0)
    return ConvVAE(**{"latent_dim": 5, "image_size": 12, "width": 4, "hidden": 16, **options})


def bytes_like(n: int, *shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, *shape), generator=generator, dtype=torch.uint8)


def small_pca(channels: int = 1) -> PCA:
    return PCA(channels, 12, components=5)


def small_dct(channels: int = 1) -> BlockDCT:
    return BlockDCT(channels, 12, block=4, keep=3)


ENCODERS = [small_vae, Halves, small_pca, small_dct]


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
    with torch.no_grad():
        raw = encoder._decode(100 * latents)
    outside = (raw < -0.5 / 255) | (raw > 1 + 0.5 / 255)
    shares = encoder.clamped_shares(100 * latents)
    torch.testing.assert_close(shares, outside.float().mean(dim=(1, 2, 3)))
    assert bool(shares.any()) != isinstance(encoder, ConvVAE), "a sigmoid leaves nothing to clamp"
    for constant, value in (
        ("BATCH", 4),
        ("NUMBERS", 300),
    ):  # batches of 4, and of 2 grey images or 1 in colour
        monkeypatch.setattr(base, constant, value)
        torch.testing.assert_close(encoder.encode(images), latents)
        torch.testing.assert_close(encoder.decode(100 * latents), decoded)
        torch.testing.assert_close(encoder.reconstruction_errors(images, latents), errors)
        torch.testing.assert_close(encoder.clamped_shares(100 * latents), shares)
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
        for use in (encoder.decode, encoder.clamped_shares):
            with pytest.raises(PrecfmError, match="latents"):
                use(latents)


def test_what_an_encoder_has_no_use_for_is_refused() -> None:
    with pytest.raises(PrecfmError, match="training"):
        Halves().fit(bytes_like(2, 1, 12, 12), training=TrainingOptions())
    with pytest.raises(PrecfmError, match="sample_seed"):
        Halves().encode(bytes_like(2, 1, 12, 12), sample_seed=0)


# ---- the linear encoders


LINEAR = [small_pca, small_dct]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("make", LINEAR)
def test_errors_in_latents_are_errors_in_pixels(make, channels: int) -> None:
    """Distances, the pull-back metric and the decoder's sensitivity, as long as nothing is clamped."""
    encoder, images = make(channels), 96 + bytes_like(120, channels, 12, 12) // 4
    encoder.fit(images)
    latents = encoder.encode(images)
    assert encoder.clamped_shares(latents).max() == 0
    flat = latents.flatten(1)
    np.testing.assert_allclose(pdist(encoder.decode(latents).flatten(1)), pdist(flat), rtol=1e-5)
    metric = pull_back_metric(encoder.decode, latents[:3])
    torch.testing.assert_close(metric, torch.eye(flat.shape[1], dtype=torch.float64), atol=3e-6, rtol=0)
    variances, directions = eigen_spectrum(covariance(latents))
    moved = decoder_sensitivity(encoder.decode, latents, directions, variances)
    torch.testing.assert_close(moved, variances, rtol=1e-4, atol=0)


@given(st.integers(1, 2000), st.integers(0, 10))
@settings(deadline=None, max_examples=20)
def test_coordinates_have_the_same_bits_in_any_order_of_summation(dim: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    axes = torch.randn(dim, 3, generator=generator, dtype=torch.float64)
    axes = rounded(axes / axes.norm(dim=0))
    centre = rounded(torch.rand(dim, generator=generator)).float()
    images = torch.randint(0, 256, (5, dim), generator=generator).float() / 255
    found = coordinates(images, centre, axes.float())
    order = torch.randperm(dim, generator=generator)
    assert torch.equal(coordinates(images[:, order], centre[order], axes.float()[order]), found)
    torch.testing.assert_close(found, (images.double() - centre) @ axes, rtol=1e-6, atol=1e-6)


# ---- principal components


@given(st.integers(1, 700), st.integers(1, 5), st.integers(0, 3))
@settings(deadline=None, max_examples=20)
def test_moments_are_exact(n: int, dim: int, seed: int) -> None:
    for rows in (bytes_like(n, dim, seed=seed), torch.full((n, dim), 255, dtype=torch.uint8)):
        assert torch.equal(gram(rows).long(), rows.long().T @ rows.long())


@pytest.mark.parametrize(("n", "channels", "size"), [(600, 1, 6), (600, 3, 4), (40, 3, 5), (30, 1, 20)])
def test_principal_components_are_those_of_a_singular_value_decomposition(
    n: int, channels: int, size: int
) -> None:
    """Also with fewer images than pixels. The error is the variance that is left out."""
    images, k = 96 + bytes_like(n, channels, size, size) // 4, 7
    pca = PCA(channels, size, components=k)
    pca.fit(images)
    rows = images.flatten(1).double().numpy() / 255
    _, singular, axes = np.linalg.svd(rows - rows.mean(0), full_matrices=False)
    np.testing.assert_allclose(pca.mean, rows.mean(0), atol=2e-7)
    found = pca.axes.double().numpy()
    np.testing.assert_allclose(np.abs((found * axes[:k].T).sum(0)), 1, atol=1e-6)
    assert (np.take_along_axis(found, np.abs(found).argmax(0)[None], 0) > 0).all()
    latents = pca.encode(images)
    np.testing.assert_allclose(latents.mean(0), 0, atol=1e-5)
    scatter = latents.double().T @ latents.double()
    np.testing.assert_allclose(scatter, np.diag(singular[:k] ** 2), atol=1e-4 * singular[0] ** 2)
    projected = (rows - rows.mean(0)) @ axes[:k].T
    np.testing.assert_allclose(pdist(latents), pdist(projected), rtol=1e-5)
    assert pca.clamped_shares(latents).max() == 0
    error = pca.reconstruction_errors(images, latents).mean().item()
    assert error == pytest.approx((singular[k:] ** 2).sum() / n, rel=1e-4)


def test_components_do_not_depend_on_the_order_of_images_nor_on_their_sign() -> None:
    images = bytes_like(700, 1, 6, 6)
    fits = [PCA(1, 6, components=9) for _ in range(3)]
    order = torch.randperm(700, generator=torch.Generator().manual_seed(1))
    for pca, these in zip(fits, (images, images[order], 255 - images), strict=True):
        pca.fit(these)
    assert torch.equal(fits[0].mean, fits[1].mean)
    assert torch.equal(fits[0].axes, fits[1].axes)
    assert torch.equal(fits[0].axes, fits[2].axes)


def test_as_many_components_as_numbers_lose_nothing() -> None:
    images = bytes_like(200, 3, 4, 4)
    pca = PCA(3, 4, components=48)
    pca.fit(images)
    decoded = pca.decode(pca.encode(images))
    assert torch.equal((decoded * 255).round().to(torch.uint8), images)


def test_components_that_cannot_be_had_are_refused() -> None:
    with pytest.raises(PrecfmError, match=r"^components: got 49"):
        PCA(3, 4, components=49)
    images = bytes_like(20, 1, 6, 6)
    for use in (lambda pca: pca.check_rows(20), lambda pca: pca.fit(images)):
        with pytest.raises(PrecfmError, match=r"^components: got 20.* 20 images"):
            use(PCA(1, 6, components=20))
    PCA(1, 6, components=19).fit(images)
    for copies in (4, 10):  # 16 and 40 images of 4 kinds, beside 36 pixels
        with pytest.raises(PrecfmError, match=r"^components: got 4.* 3 directions"):
            PCA(1, 6, components=4).fit(images[:4].repeat(copies, 1, 1, 1))
    for use in (lambda pca: pca.encode(images), lambda pca: pca.decode(torch.zeros(2, 4))):
        with pytest.raises(PrecfmError, match=r"^PCA: .*fit"):
            use(PCA(1, 6, components=4))


# ---- blocks of cosines


@given(st.sampled_from([1, 2, 3, 4, 6, 12]), st.sampled_from([1, 3]), st.data())
@settings(deadline=None, max_examples=30)
def test_block_coefficients_are_scipys_and_the_error_is_what_is_left_out(
    block: int, channels: int, data
) -> None:
    keep = data.draw(st.integers(1, block**2))
    encoder, images = BlockDCT(channels, 12, block, keep), bytes_like(3, channels, 12, 12)
    latents = encoder.encode(images).double().numpy()
    side = 12 // block
    assert latents.shape == (3, channels * keep, side, side)
    blocks = (images.double().numpy() / 255 - 0.5).reshape(3, channels, side, block, side, block)
    found = dctn(blocks, axes=(3, 5), norm="ortho")
    kept = np.stack([found[:, :, :, i, :, j] for i, j in zigzag(block)[:keep]], axis=2)
    np.testing.assert_allclose(latents.reshape(kept.shape), kept, atol=1e-5)
    with torch.no_grad():
        decoded = encoder._decode(encoder.encode(images))  # before it is clamped
    error = (decoded.double().numpy() - images.numpy() / 255).reshape(3, -1)
    left_out = (found.reshape(3, -1) ** 2).sum(1) - (kept.reshape(3, -1) ** 2).sum(1)
    np.testing.assert_allclose((error**2).sum(1), left_out, atol=1e-4)
    if keep == block**2:
        np.testing.assert_allclose(error, 0, atol=1e-5)


def test_the_order_of_coefficients_is_that_of_jpeg() -> None:
    places = [
        [0, 1, 5, 6, 14, 15, 27, 28],
        [2, 4, 7, 13, 16, 26, 29, 42],
    ]  # T.81, figure A.6, the first two rows
    order = {frequency: place for place, frequency in enumerate(zigzag(8))}
    assert [[order[i, j] for j in range(8)] for i in range(2)] == places
    assert order[7, 7] == 63


def test_blocks_and_coefficients_that_do_not_fit_are_refused() -> None:
    with pytest.raises(PrecfmError, match=r"^block: got 8.*image_size is 28"):
        BlockDCT(1, 28, block=8)
    with pytest.raises(PrecfmError, match=r"^keep: got 17"):
        BlockDCT(1, 28, block=4, keep=17)


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
