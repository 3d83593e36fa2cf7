"""Spectra of few rows or many features against ones that are known exactly."""

import math
from collections.abc import Callable
from contextlib import suppress

import numpy as np
import pytest
import scipy.fft
import torch
from torch import Tensor

from precfm.core.errors import PrecfmError
from precfm.flows.models.bases import FrequencyBasis
from precfm.flows.paths import LinearPath
from precfm.geometry import large_spectra
from precfm.geometry.cosines import channel_products, cosine_transform
from precfm.geometry.frequencies import (
    frequency_variances,
    radial_bands,
    radial_power_spectrum,
    radial_recovery,
    radial_replicates,
)
from precfm.geometry.large_spectra import extreme_eigenvalues, known_condition, known_spectrum
from precfm.geometry.recovery import smallest_std
from precfm.geometry.spectra import condition_number, covariance
from precfm.geometry.summaries import path_frame, spectrum_frame


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rows_with(eigenvalues: Tensor, rows: int) -> Tensor:
    """Rows whose sample covariance has exactly these eigenvalues, along rotated directions, and a mean."""
    features = len(eigenvalues)
    centred = noise(rows, features)
    white = torch.linalg.qr(centred - centred.mean(0))[0] * math.sqrt(rows - 1)
    return white * eigenvalues.sqrt() @ torch.linalg.qr(noise(features, features, seed=1))[0] + 5


def field(variances: Tensor, rows: int, seed: int = 0) -> Tensor:
    """Maps whose DCT coefficients have exactly these sample variances (channels, *positions)."""
    white = noise(rows, *variances.shape, seed=seed)
    white = (white - white.mean(0)) / white.std(0)
    coefficients = white * variances.sqrt()
    axes = tuple(range(2, coefficients.ndim))
    return torch.from_numpy(scipy.fft.idctn(coefficients.numpy(), axes=axes, norm="ortho")) + 3


@pytest.mark.parametrize("restarts", [large_spectra.RESTARTS, 1])
def test_lanczos_brackets_a_known_condition_number(restarts: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(large_spectra, "RESTARTS", restarts)  # 1: ARPACK gives nothing
    known = torch.logspace(-3, 0, 300, dtype=torch.float64)
    found = extreme_eigenvalues(rows_with(known, 700).float())
    at_least, at_most = found.bracket
    assert at_least * (1 - 1e-4) <= 1000 <= at_most
    assert float(known[0]) <= found.smallest * (1 + 1e-4)
    assert abs(found.largest - 1) <= found.largest_error + 1e-5
    assert at_least > 900


def test_lanczos_refuses_what_rows_do_not_determine() -> None:
    for rows, features in ((50, 50), (10, 2)):
        with pytest.raises(PrecfmError, match=f"{rows} rows of {features} features"):
            extreme_eigenvalues(noise(rows, features))
    constant = noise(90, 20)
    constant[:, 3] = 1
    with suppress(PrecfmError):  # rounding decides
        assert extreme_eigenvalues(constant).bracket[1] == math.inf


def test_a_condition_number_says_what_it_is_of(monkeypatch: pytest.MonkeyPatch) -> None:
    x = rows_with(torch.tensor([1.0, 4.0, 9.0, 100.0]).double(), 60)
    assert known_condition(x).note is None
    assert known_condition(x).value == condition_number(covariance(x)) == pytest.approx(100)
    monkeypatch.setattr(large_spectra, "MOST_FEATURES", 3)
    by_lanczos = known_condition(x)
    assert "Lanczos" in str(by_lanczos.note)
    assert by_lanczos.value == pytest.approx(100)
    variances = torch.logspace(0, 2, 64, dtype=torch.float64).reshape(1, 8, 8)
    few = known_condition(field(variances, 40))
    assert few.value == pytest.approx(100)
    assert "40 rows do not determine" in str(few.note)


def test_channels_at_each_frequency_are_decomposed_where_rows_suffice() -> None:
    x = noise(60, 3, 2, 4) @ noise(4, 4, seed=2)
    x = torch.einsum("ij,njhw->nihw", noise(3, 3, seed=3), x)
    coefficients = scipy.fft.dctn(x.numpy(), axes=(2, 3), norm="ortho").reshape(60, 3, 8)
    expected = np.concatenate([np.linalg.eigvalsh(np.cov(coefficients[:, :, k].T)) for k in range(8)])
    assert np.allclose(frequency_variances(x).numpy(), np.sort(expected))
    few = frequency_variances(x[:29])
    assert np.allclose(few.numpy(), np.sort(coefficients[:29].var(axis=0, ddof=1).ravel()))
    assert known_spectrum(x[:29]).basis == "frequencies"
    vectors = noise(5, 8)
    assert torch.allclose(known_spectrum(vectors).eigenvalues, vectors.var(0).sort().values)
    assert known_spectrum(vectors).basis == "features"


def test_frames_of_few_rows_are_of_frequencies_and_say_so() -> None:
    variances = torch.logspace(0, 2, 64, dtype=torch.float64).reshape(1, 8, 8)
    x, labels = field(variances, 40), torch.arange(40) % 2
    spectrum = spectrum_frame(x, labels, "flow")
    assert set(spectrum["basis"]) == {"frequencies"}
    everything = spectrum[spectrum["scope"] == "all"]["eigenvalue"]
    assert np.allclose(everything, variances.flatten())
    path = path_frame(x, labels, LinearPath(), (0.0, 0.5, 1.0))
    of_all = path[path["scope"] == "all"]
    scaled = variances.flatten() / variances.mean()
    assert of_all["condition_number"].tolist() == pytest.approx(
        [1, float((scaled[-1] + 1) / (scaled[0] + 1)), 100]
    )
    assert of_all["effective_rank"].iloc[0] == pytest.approx(64)
    shares = (scaled / scaled.sum()).numpy()
    assert of_all["effective_rank"].iloc[-1] == pytest.approx(math.exp(-(shares * np.log(shares)).sum()))
    assert smallest_std(x) == pytest.approx(1)
    enough = path_frame(noise(200, 3), torch.arange(200) % 2, LinearPath(), (0.5,))
    assert "basis" not in enough


def test_bands_are_distances_from_frequency_zero() -> None:
    assert radial_bands((2, 4)).tolist() == [[0, 1, 2, 3], [2, 2, 3, 4]]
    assert radial_bands((5,)).tolist() == [0, 1, 2, 3, 4]
    assert radial_bands(()).tolist() == 0


@pytest.mark.parametrize("shape", [(2, 8, 8), (1, 2, 4), (3, 5), (4,)])
def test_the_radial_spectrum_of_a_known_field(shape: tuple[int, ...]) -> None:
    variances = noise(*shape, seed=4).exp()
    spectrum = radial_power_spectrum(field(variances, 30).float())
    bands = radial_bands(shape[1:])
    for band, kept in enumerate(torch.unique(bands).tolist()):
        chosen = variances.reshape(shape[0], -1)[:, (bands == kept).flatten()]
        assert torch.allclose(spectrum[:, band], chosen.mean(1), rtol=1e-4)


def test_the_radial_spectrum_adds_up_to_the_variance() -> None:
    x = noise(20, 2, 6, 6)
    counts = radial_bands((6, 6)).flatten().bincount()
    total = (radial_power_spectrum(x) * counts).sum()
    assert float(total) == pytest.approx(float(x.var(0).sum()))
    assert torch.allclose(cosine_transform(x).square().sum((2, 3)), x.square().sum((2, 3)))


def test_radial_recovery_finds_the_factor_of_high_frequencies() -> None:
    variances = torch.ones(2, 8, 8).double()
    bands = radial_bands((8, 8))
    changed = variances * torch.where(bands >= 8, 0.25, 1.0)  # the last three of eleven bands
    recovery = radial_recovery(field(changed, 50, seed=5), field(variances, 30))
    assert torch.allclose(recovery.ratios[:, :8], torch.ones(2, 8).double())
    assert recovery.ratio_high == pytest.approx(0.25)
    assert recovery.metrics()["band_log_error_high"] == pytest.approx(math.log(4))
    assert recovery.log_error == pytest.approx(3 / 11 * math.log(4))
    frame = recovery.frame()
    assert frame[frame["band"] == 10]["ratio"].tolist() == pytest.approx([0.25, 0.25])


def test_radial_replicates_of_each_row_once_are_the_ratios() -> None:
    made, held_out = noise(40, 2, 4, 4, seed=6), noise(30, 2, 4, 4, seed=7)
    resamples = torch.ones(2, 30, dtype=torch.int64)
    resamples[1, :10], resamples[1, 10:20] = 2, 0
    found = radial_replicates(made, held_out, resamples)
    assert torch.allclose(found[0], radial_recovery(made, held_out).ratios)
    again = torch.cat([held_out[:10], held_out[:10], held_out[20:]])
    assert torch.allclose(found[1], radial_recovery(made, again).ratios)


@pytest.mark.parametrize(
    ("call", "field_name"),
    [
        (lambda x: radial_recovery(x, x[:, :1]), "generated"),
        (lambda x: radial_recovery(torch.ones_like(x), x), "generated has no variance"),
        (lambda x: radial_recovery(x, torch.ones_like(x)), "reference has no variance"),
        (lambda x: radial_replicates(x, x, torch.ones(3, 2)), "resamples"),
        (lambda x: frequency_variances(x[:1]), "x has shape"),
        (lambda x: frequency_variances(x * math.inf), "not finite"),
    ],
)
def test_wrong_maps_are_refused(call: Callable[[Tensor], object], field_name: str) -> None:
    with pytest.raises(PrecfmError, match=field_name):
        call(noise(6, 2, 3, 3))


def test_products_of_channels_are_those_of_every_pair_at_every_frequency():
    coefficients = noise(7, 5, 3)
    expected = torch.einsum("nfc,nfd->fcd", coefficients, coefficients)
    assert torch.allclose(channel_products(coefficients), expected)
    maps = noise(60, 3, 4, 2)
    moment = FrequencyBasis((3, 4, 2)).second_moment((maps - maps.mean(0)).flatten(1))
    variances = torch.linalg.eigvalsh(moment / 59).flatten().sort().values
    assert torch.allclose(variances, frequency_variances(maps))
