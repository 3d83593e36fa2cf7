import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from precfm.core.errors import PrecfmError
from precfm.flows.paths import LinearPath, VariancePreservingPath
from precfm.geometry.decoder import decoder_sensitivity
from precfm.geometry.recovery import eigenvalue_recovery, smallest_std
from precfm.geometry.spectra import (
    class_covariances,
    condition_number,
    covariance,
    effective_rank,
    eigen_spectrum,
    normalise_scale,
    path_condition_numbers,
)
from precfm.preconditioners.fit_data import FitData
from precfm.preconditioners.round_trip import round_trip_error, tail_round_trip_error
from precfm.preconditioners.scalar import Scalar
from precfm.preconditioners.whitening import Whitening

spectra = st.lists(st.floats(1e-4, 1e4), min_size=1, max_size=8)


def rotated(eigenvalues: list[float], seed: int = 0) -> Tensor:
    """A covariance with the given spectrum in a random basis."""
    dim = len(eigenvalues)
    source = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(dim, dim, generator=source, dtype=torch.float64))[0]
    return basis @ torch.diag(torch.tensor(eigenvalues, dtype=torch.float64)) @ basis.T


def sample(rows: int, dim: int, seed: int = 0) -> Tensor:
    source = torch.Generator().manual_seed(seed)
    mix = torch.randn(dim, dim, generator=source, dtype=torch.float64)
    return torch.randn(rows, dim, generator=source, dtype=torch.float64) @ mix + 3


@settings(max_examples=20, deadline=None)
@given(rows=st.integers(2, 50), dim=st.integers(1, 6), seed=st.integers(0, 99))
def test_covariance_is_numpys(rows: int, dim: int, seed: int) -> None:
    x = sample(rows, dim, seed).float()
    expected = np.cov(x.double().numpy(), rowvar=False).reshape(dim, dim)
    assert covariance(x).dtype == torch.float64
    assert np.allclose(covariance(x).numpy(), expected, rtol=1e-9, atol=1e-12)


def test_covariance_flattens_and_sees_constants_exactly() -> None:
    x = sample(20, 6)
    assert torch.equal(covariance(x.reshape(20, 2, 3)), covariance(x))
    assert covariance(x[:, 0]).shape == (1, 1)
    x[:, 2] = 0.1
    assert torch.equal(covariance(x)[2], torch.zeros(6).double())


def test_covariance_refuses_what_has_none() -> None:
    x = sample(5, 2)
    with pytest.raises(PrecfmError, match="at least 2 rows"):
        covariance(x[:1])
    x[3, 1] = math.nan
    with pytest.raises(PrecfmError, match="row 3"):
        covariance(x)


@pytest.mark.parametrize("convert", [lambda x: x.numpy(), lambda x: x.tolist()])
def test_what_is_no_tensor_is_refused_by_name(convert):
    x, labels = sample(5, 2), torch.arange(5) % 2
    for name, call in {
        "x": lambda: covariance(convert(x)),
        "labels": lambda: class_covariances(x, convert(labels)),
        "cov": lambda: condition_number(convert(x.T @ x)),
    }.items():
        with pytest.raises(PrecfmError, match=f"^{name}: got "):
            call()


def test_class_covariances_are_those_of_the_subsets() -> None:
    x, labels = sample(30, 3), torch.arange(30) % 3 + 5
    by_class = class_covariances(x, labels)
    assert list(by_class) == [5, 6, 7]
    assert torch.equal(by_class[6], covariance(x[1::3]))
    with pytest.raises(PrecfmError, match="class 9 has 1 row"):
        class_covariances(x, labels.index_fill(0, torch.tensor([4]), 9))
    with pytest.raises(PrecfmError, match="labels"):
        class_covariances(x, labels[:-1])


@given(eigenvalues=spectra)
def test_spectrum_and_condition_number_of_a_known_matrix(eigenvalues: list[float]) -> None:
    cov = rotated(eigenvalues)
    spectrum = eigen_spectrum(cov)
    assert np.allclose(spectrum.eigenvalues.numpy(), sorted(eigenvalues), rtol=1e-6)
    rebuilt = spectrum.eigenvectors @ torch.diag(spectrum.eigenvalues) @ spectrum.eigenvectors.T
    assert torch.allclose(rebuilt, cov, rtol=1e-9, atol=1e-9 * max(eigenvalues))
    assert condition_number(cov) == pytest.approx(max(eigenvalues) / min(eigenvalues), rel=1e-6)


def test_matrices_that_are_no_covariances_are_refused() -> None:
    for wrong, message in [
        (torch.ones(2, 3), "square"),
        (torch.tensor([[1.0, 2.0], [0.0, 1.0]]), "not symmetric"),
        (torch.tensor([[math.nan]]), "non-finite"),
    ]:
        with pytest.raises(PrecfmError, match=message):
            eigen_spectrum(wrong)
    for smallest, shown in [(0.0, "0"), (-0.5, "-0.5")]:
        with pytest.raises(PrecfmError, match=rf"smallest eigenvalue {shown} beside"):
            condition_number(torch.diag(torch.tensor([smallest, 1.0])))
    with pytest.raises(PrecfmError, match="trace 0"):
        effective_rank(torch.zeros(2, 2))
    with pytest.raises(PrecfmError, match=r"negative eigenvalue -0\.5"):
        effective_rank(torch.diag(torch.tensor([-0.5, 1.0])))
    with pytest.raises(PrecfmError, match="mean variance 0"):
        normalise_scale(torch.zeros(2, 2))


@given(eigenvalues=spectra, scale=st.floats(1e-3, 1e3))
def test_effective_rank_is_the_entropy_formula(eigenvalues: list[float], scale: float) -> None:
    shares = np.array(eigenvalues) / np.sum(eigenvalues)
    expected = np.prod(shares**-shares)
    assert effective_rank(rotated(eigenvalues)) == pytest.approx(expected, rel=1e-6)
    assert effective_rank(scale * rotated(eigenvalues)) == pytest.approx(expected, rel=1e-6)
    assert 1 - 1e-9 <= expected <= len(eigenvalues) + 1e-9


def test_effective_rank_at_its_ends() -> None:
    assert effective_rank(torch.eye(5)) == pytest.approx(5)
    assert effective_rank(torch.diag(torch.tensor([0.0, 0.0, 2.0]))) == pytest.approx(1)


@given(eigenvalues=spectra)
def test_normalised_scale_has_mean_variance_one(eigenvalues: list[float]) -> None:
    cov = rotated(eigenvalues)
    assert float(normalise_scale(cov).diagonal().mean()) == pytest.approx(1, rel=1e-9)
    assert condition_number(normalise_scale(cov)) == pytest.approx(condition_number(cov), rel=1e-6)


@pytest.mark.parametrize("path", [LinearPath(), VariancePreservingPath()])
def test_path_conditioning_is_that_of_the_covariance_along_the_path(path: LinearPath) -> None:
    cov, times = rotated([0.01, 1.0, 30.0]), torch.linspace(0, 1, 11)
    numbers = path_condition_numbers(cov, path, times)
    for number, t in zip(numbers.tolist(), times.tolist(), strict=True):
        cov_t = path.cov_t(cov, torch.tensor(t, dtype=torch.float64))
        assert number == pytest.approx(float(torch.linalg.cond(cov_t)), rel=1e-5)
    assert numbers[0] == 1
    assert float(numbers[-1]) == pytest.approx(3000, rel=1e-9)
    with pytest.raises(PrecfmError, match="must lie in"):
        path_condition_numbers(cov, path, torch.tensor([0.5, 1.5]))
    with pytest.raises(PrecfmError, match="smallest eigenvalue"):
        path_condition_numbers(torch.zeros(2, 2), path, times)


def test_conditioning_of_the_path_depends_on_the_scale() -> None:
    cov, half = rotated([1.0, 100.0]), torch.tensor([0.5])
    small, large = (float(path_condition_numbers(c * cov, LinearPath(), half)) for c in (0.01, 100.0))
    assert small < 2 < 50 < large


@settings(max_examples=30, deadline=None)
@given(factors=st.lists(st.floats(0.1, 10.0), min_size=5, max_size=5))
def test_recovery_finds_the_factors_put_in(factors: list[float]) -> None:
    reference = Whitening(shrinkage=0).fit(x := sample(200, 5)).forward(x) * torch.arange(1.0, 6.0).double()
    basis = torch.linalg.qr(sample(5, 5, seed=1))[0]
    generated = (reference * torch.tensor(factors).double().sqrt()) @ basis.T + 7
    recovery = eigenvalue_recovery(generated, reference @ basis.T)
    logs = np.log(factors)
    assert np.allclose(recovery.ratios.numpy(), factors, rtol=1e-6)
    assert np.allclose(recovery.eigenvalues.numpy(), np.arange(1, 6) ** 2, rtol=1e-6)
    assert recovery.ratio_low == pytest.approx(
        np.exp(logs[:2].mean()), rel=1e-6
    )  # ceil(5 / 4) = 2 directions
    assert recovery.log_error == pytest.approx(np.abs(logs).mean(), rel=1e-6, abs=1e-9)
    assert recovery.log_error_low == pytest.approx(np.abs(logs[:2]).mean(), rel=1e-6, abs=1e-9)


def test_recovery_tells_too_much_variance_from_too_little() -> None:
    # Convention: above 1 means that the samples vary more than the data.
    reference = sample(100, 4)
    assert eigenvalue_recovery(1.5 * reference, reference).ratio_low == pytest.approx(2.25)
    assert eigenvalue_recovery(reference, 1.5 * reference).ratio_low == pytest.approx(1 / 2.25)


def test_recovery_refuses_what_has_no_ratio() -> None:
    reference = sample(50, 3)
    with pytest.raises(PrecfmError, match="must agree"):
        eigenvalue_recovery(sample(50, 4), reference)
    with pytest.raises(PrecfmError, match="smallest eigenvalue"):
        eigenvalue_recovery(reference, reference @ torch.ones(3, 3).double())
    with pytest.raises(PrecfmError, match="eigendirection 0"):
        eigenvalue_recovery(torch.ones(50, 3), reference)


class Leaky(Scalar):
    """A scalar map whose inverse is off by a constant."""

    offset = 0.25

    def _fit(self, data: FitData) -> int:
        flops = super()._fit(data)
        self.mean, self.scale = torch.zeros_like(self.mean), torch.ones_like(self.scale)
        return flops

    def _inverse(self, z: Tensor, classes: Tensor | None) -> Tensor:
        return z + self.offset


def test_round_trip_errors_are_in_units_of_the_smallest_spread() -> None:
    x = Whitening(shrinkage=0).fit(y := sample(100, 3)).forward(y) * torch.tensor([0.1, 1.0, 10.0]).double()
    assert smallest_std(x) == pytest.approx(0.1, rel=1e-6)
    leaky = Leaky().fit(x)
    assert round_trip_error(leaky, x) == pytest.approx(2.5, rel=1e-6)
    assert tail_round_trip_error(leaky, x) == pytest.approx(2.5, rel=1e-6)
    assert round_trip_error(leaky, x.reshape(100, 3)) == round_trip_error(leaky, x)


def test_tail_points_lie_in_the_tails() -> None:
    x, seen = sample(500, 3), []

    class Watched(Whitening):
        def _forward(self, x: Tensor, classes: Tensor | None) -> Tensor:
            seen.append(super()._forward(x, classes))
            return seen[-1]

    tail_round_trip_error(Watched().fit(x), x, seed=1)
    assert float(seen[-1].std()) == pytest.approx(1.5, rel=0.05)


def test_decoder_sensitivity_of_a_linear_decoder() -> None:
    latents, matrix = sample(40, 3), sample(5, 3, seed=2)
    spectrum = eigen_spectrum(covariance(latents))
    expected = spectrum.eigenvalues * (matrix @ spectrum.eigenvectors).square().sum(dim=0)
    for batch_size in (7, 1000):
        found = decoder_sensitivity(
            lambda batch: (batch @ matrix.T).reshape(-1, 1, 5, 1),
            latents,
            *spectrum[::-1],
            batch_size=batch_size,
        )
        assert torch.allclose(found, expected)


def test_decoder_sensitivity_averages_over_latents() -> None:
    latents = torch.tensor([[0.0], [2.0]])
    found = decoder_sensitivity(torch.square, latents, torch.eye(1), torch.tensor([1.0]))
    assert found.tolist() == [((1 - 0) ** 2 + (9 - 4) ** 2) / 2]
    with pytest.raises(PrecfmError, match="n > 0"):
        decoder_sensitivity(torch.square, latents[:0], torch.eye(1), torch.tensor([1.0]))
    with pytest.raises(PrecfmError, match=r"\(dim, 2\)"):
        decoder_sensitivity(torch.square, latents, torch.eye(1), torch.ones(2))
