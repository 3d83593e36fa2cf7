"""The decoder's pull-back metric, the Jacobian of an affine inverse, and decoder-metric coordinates."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from precfm.core.errors import PrecfmError
from precfm.core.seeds import seeded_module
from precfm.datasets.synthetic import gaussian
from precfm.encoders.conv_vae import ConvVAE
from precfm.geometry.decoder import decoder_sensitivity, pull_back_metric
from precfm.geometry.spectra import covariance, eigen_spectrum
from precfm.preconditioners.base import Preconditioner
from precfm.preconditioners.class_whitening import ClassWhitening
from precfm.preconditioners.composition import Composition
from precfm.preconditioners.decoder_metric import DecoderMetric
from precfm.preconditioners.identity import Identity
from precfm.preconditioners.jacobian import inverse_jacobian
from precfm.preconditioners.normalizing_flow import NormalizingFlow
from precfm.preconditioners.per_channel import PerChannel
from precfm.preconditioners.projection import Projection
from precfm.preconditioners.saving import load, save
from precfm.preconditioners.scalar import Scalar
from precfm.preconditioners.whitening import Whitening

DIM = 5


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def data(rows: int = 300) -> Tensor:
    return gaussian(DIM, 1e3, seed=1).sample(rows, 0) + 0.5


def metric(seed: int = 3) -> Tensor:
    """Of rank 3, and with a spectrum over three decades."""
    root = normal(3, DIM, seed=seed) * torch.tensor([10.0, 1.0, 0.3])[:, None]
    return root.T @ root


def vae() -> ConvVAE:
    return seeded_module(lambda: ConvVAE(latent_dim=DIM, image_size=8, width=4, hidden=16), 0).double().eval()


def test_the_metric_of_a_decoder_is_the_mean_of_its_jacobians() -> None:
    model, latents = vae(), normal(7, DIM)
    jacobians = [
        torch.autograd.functional.jacobian(model.decoder, row[None]).reshape(-1, DIM) for row in latents
    ]
    expected = torch.stack([jacobian.T @ jacobian for jacobian in jacobians]).mean(0)
    for chunk in (1, 3, 7, 100):
        found = pull_back_metric(model.decode, latents, chunk=chunk)
        assert found.dtype == torch.float64
        assert torch.allclose(found, expected, rtol=1e-10, atol=1e-12 * float(expected.max()))
        assert torch.equal(found, found.T)


def test_the_metric_through_the_function_that_the_pipeline_decodes_with() -> None:
    model, latents = vae().float(), normal(7, DIM).float()
    found = pull_back_metric(model.decode, latents)
    assert torch.allclose(found, pull_back_metric(vae().decode, latents.double()), rtol=1e-4, atol=1e-6)
    assert not found.requires_grad


@given(pixels=st.integers(1, 9), rows=st.integers(1, 6), seed=st.integers(0, 30))
@settings(max_examples=30, deadline=None)
def test_a_linear_decoder_has_one_metric_everywhere(pixels: int, rows: int, seed: int) -> None:
    decoder = normal(DIM, pixels, seed=seed)
    found = pull_back_metric(
        lambda latents: (latents @ decoder)[:, None, :], normal(rows, DIM, seed=seed + 1)
    )
    assert torch.allclose(found, decoder @ decoder.T, atol=1e-12)


def test_small_moves_change_the_image_by_what_the_metric_says() -> None:
    model, latents = vae(), normal(20, DIM)
    spectrum = eigen_spectrum(covariance(data()))
    small = 1e-8 * spectrum.eigenvalues
    moved = decoder_sensitivity(model.decode, latents, spectrum.eigenvectors, small)
    found = pull_back_metric(model.decode, latents)
    along = torch.einsum("ij,jk,ki->i", spectrum.eigenvectors.T, found, spectrum.eigenvectors)
    assert torch.allclose(small * along, moved, rtol=1e-3)


def test_latents_of_more_axes_are_flattened() -> None:
    latents = normal(4, 2, 3)
    found = pull_back_metric(lambda rows: torch.stack([rows[:, 0].sum(1), 2 * rows[:, 1, 0]], 1), latents)
    expected = torch.zeros(6, 6).double()
    expected[:3, :3], expected[3, 3] = 1, 4
    assert torch.allclose(found, expected)


def test_impossible_metrics_are_refused() -> None:
    with pytest.raises(PrecfmError, match="latents"):
        pull_back_metric(lambda latents: latents, torch.zeros(0, 3))
    with pytest.raises(PrecfmError, match="chunk"):
        pull_back_metric(lambda latents: latents, torch.zeros(2, 3), chunk=0)
    with pytest.raises(PrecfmError, match="not finite"):
        pull_back_metric(lambda latents: latents.sqrt(), torch.zeros(2, 3))


AFFINE: list[Preconditioner] = [
    Identity(),
    Scalar(),
    PerChannel(),
    Whitening(),
    Whitening(exponent=0.25),
    Projection(rank=2),
    DecoderMetric(),
    Composition(({"name": "per_channel"}, {"name": "whitening"})),
]


@pytest.mark.parametrize("preconditioner", AFFINE, ids=lambda each: type(each).__name__)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_jacobian_of_an_affine_inverse(preconditioner: Preconditioner, dtype: torch.dtype) -> None:
    fitted = preconditioner.fit(data(), metric=metric()).to(dtype)
    found = inverse_jacobian(fitted, DIM)
    z = normal(1, DIM).requires_grad_()
    expected = torch.autograd.functional.jacobian(fitted.inverse, z).reshape(DIM, DIM)
    assert found.dtype == torch.float64
    assert torch.allclose(found, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


def test_a_jacobian_that_is_not_symmetric_is_not_transposed() -> None:
    two_maps = Composition(({"name": "per_channel"}, {"name": "whitening"})).fit(data())
    found = inverse_jacobian(two_maps, DIM)
    assert not torch.allclose(found, found.T, rtol=1e-2)
    move = normal(1, DIM)
    shift = two_maps.inverse(move) - two_maps.inverse(torch.zeros_like(move))
    assert torch.allclose(shift[0], found @ move[0])


def test_preconditioners_that_bend_or_differ_between_classes_are_refused() -> None:
    x, labels = data(), torch.arange(300) % 2
    x[labels == 1] = x[labels == 1] * 3 + 1
    own = ClassWhitening(shrinkage=0).fit(x, labels)
    flow = NormalizingFlow(steps=40, width=16, validate_every=20, conditional=False).fit(x)
    for preconditioner in (own, flow):
        with pytest.raises(PrecfmError, match=type(preconditioner).__name__):
            inverse_jacobian(preconditioner, DIM)
    only = inverse_jacobian(own, DIM, labels=torch.tensor([1, 1]))
    assert torch.allclose(only @ only.T, covariance(x[labels == 1]), rtol=1e-6, atol=1e-9)
    alike = ClassWhitening().fit(torch.cat([data(), data() + 4]), torch.arange(600) // 300)
    assert torch.allclose(inverse_jacobian(alike, DIM), inverse_jacobian(Whitening().fit(data()), DIM))
    with pytest.raises(PrecfmError, match="dim: got 4"):
        inverse_jacobian(Scalar().fit(x), 4)
    with pytest.raises(PrecfmError, match="before fit"):
        inverse_jacobian(Scalar(), DIM)


def test_distances_are_those_of_the_floored_metric() -> None:
    x = data()
    for floor in (1e-3, 0.01, 1.0):
        fitted = DecoderMetric(floor).fit(x, metric=metric())
        values, vectors = torch.linalg.eigh(metric())
        floored = (vectors * values.clamp(min=floor * float(values.mean()))) @ vectors.T
        move = fitted.forward(x) - fitted.forward(x[:1])
        lengths = ((x - x[0]) @ floored * (x - x[0])).sum(1)
        ratios = move.square().sum(1)[1:] / lengths[1:]
        assert torch.allclose(ratios, ratios[0].expand_as(ratios), rtol=1e-9)
        z = fitted.forward(x)
        assert torch.allclose(z.mean(0), torch.zeros(DIM).double(), atol=1e-12)
        assert float(z.var(0).mean()) == pytest.approx(1, rel=1e-12)
        assert torch.allclose(fitted.matrix, fitted.matrix.T)
        raised = int((values < floor * values.mean()).sum())
        assert fitted.notes[0].startswith(f"{raised} of 5 eigenvalues of the metric raised to {floor:g}")
        assert fitted.round_trip_tolerance == pytest.approx(1e-3 / floor**0.5)


def test_an_isotropic_metric_of_any_size_is_the_scalar_map() -> None:
    x = data()
    for factor in (1e-6, 1.0, 1e6):
        fitted = DecoderMetric().fit(x, metric=factor * torch.eye(DIM))
        assert torch.allclose(fitted.forward(x), Scalar().fit(x).forward(x), atol=1e-10)
        assert fitted.notes == []


def test_the_loss_metric_of_decoder_coordinates_is_isotropic() -> None:
    """J^T G J is a multiple of the identity where nothing was floored: the coordinates are the metric's."""
    full = metric() + 5 * torch.eye(DIM)
    jacobian = inverse_jacobian(DecoderMetric(1e-6).fit(data(), metric=full), DIM)
    seen = jacobian.T @ full @ jacobian
    assert torch.allclose(seen, seen.trace() / DIM * torch.eye(DIM).double(), atol=1e-9 * float(seen.max()))


def test_the_metric_is_needed_to_fit_and_not_to_load(tmp_path: Path) -> None:
    x = data()
    with pytest.raises(PrecfmError, match="metric: got nothing"):
        DecoderMetric().fit(x)
    fitted = DecoderMetric().fit(x, metric=metric())
    save(fitted, tmp_path)
    assert torch.equal(load(tmp_path).inverse(x), fitted.inverse(x))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (torch.ones(DIM), "shape"),
        (torch.ones(2, 3), "shape"),
        (torch.eye(3), r"\(5, 5\) is needed"),
        (torch.eye(DIM).tolist(), "list"),
        (torch.full((DIM, DIM), torch.nan), "not finite"),
        (torch.triu(torch.ones(DIM, DIM)), "symmetric"),
        (torch.zeros(DIM, DIM), "does the decoder vary"),
        (torch.diag(torch.tensor([1.0, 1, 1, 1, -1])), "none negative"),
    ],
)
def test_impossible_metrics_are_not_taken(wrong: Tensor, message: str) -> None:
    with pytest.raises(PrecfmError, match=f"metric: .*{message}"):
        DecoderMetric().fit(data(), metric=wrong)


def test_data_without_variance_are_refused() -> None:
    with pytest.raises(PrecfmError, match="variance 0"):
        DecoderMetric().fit(torch.ones(10, DIM), metric=metric())


def test_constant_features_survive_the_round_trip() -> None:
    x = data()
    x[:, 2] = 0.25
    fitted = DecoderMetric().fit(x, metric=metric())
    assert torch.allclose(fitted.inverse(fitted.forward(x)), x, atol=1e-12)
