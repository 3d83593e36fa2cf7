"""Maps of feature maps against matrices of all features that numpy and scipy make."""

import math

import numpy as np
import pytest
import scipy.fft
import scipy.linalg
import torch
from torch import Tensor

import precfm.preconditioners.low_rank
from precfm.core.errors import PrecfmError
from precfm.geometry.spectra import condition_number, covariance
from precfm.preconditioned_flow import PreconditionedFlow
from precfm.preconditioners.base import Preconditioner
from precfm.preconditioners.channel_whitening import ChannelWhitening
from precfm.preconditioners.kronecker import Kronecker
from precfm.preconditioners.low_rank import LowRank
from precfm.preconditioners.per_frequency import PerFrequency
from precfm.preconditioners.whitening import Whitening
from precfm.selection.candidates import FEATURE_MAPS, default_candidates

CHANNELS, HEIGHT, WIDTH = 2, 3, 4
SHAPE = (CHANNELS, HEIGHT, WIDTH)
FEATURES = math.prod(SHAPE)


def data(rows: int = 400, seed: int = 0, shape: tuple[int, ...] = SHAPE) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    features = math.prod(shape)
    mixing = torch.randn(features, features, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    rotated = torch.randn(rows, features, generator=generator, dtype=torch.float64) @ mixing
    return (rotated * torch.logspace(0, -1, features, dtype=torch.float64) + 3).reshape(rows, *shape)


def matrix_of(fitted: Preconditioner) -> np.ndarray:
    """The linear part of an affine map, (features, features); its image of axis i is column i."""
    axes = torch.eye(FEATURES, dtype=torch.float64).reshape(FEATURES, *fitted.event_shape)
    return (fitted.forward(axes) - fitted.forward(torch.zeros_like(axes))).flatten(1).T.numpy()


def power(matrix: np.ndarray, exponent: float) -> np.ndarray:
    return scipy.linalg.fractional_matrix_power(matrix, -exponent)


@pytest.mark.parametrize("exponent", [0.5, 0.25])
def test_channels_are_whitened_alike_at_every_position(exponent: float) -> None:
    x = data()
    pixels = x.movedim(1, -1).reshape(-1, CHANNELS).numpy()
    root = power(np.cov(pixels.T), exponent)
    root /= np.sqrt(np.trace(root @ np.cov(pixels.T) @ root) / CHANNELS)
    fitted = ChannelWhitening(exponent, shrinkage=0).fit(x)
    assert np.allclose(matrix_of(fitted), np.kron(root, np.eye(HEIGHT * WIDTH)))
    assert np.allclose(fitted.mean.numpy(), pixels.mean(axis=0))
    assert fitted.num_parameters == 2 + 3


@pytest.mark.parametrize("exponent", [0.5, 0.25])
def test_kronecker_is_the_power_of_both_partial_traces(exponent: float) -> None:
    x = data()
    cov = np.cov(x.flatten(1).numpy().T).reshape(CHANNELS, HEIGHT * WIDTH, CHANNELS, HEIGHT * WIDTH)
    channels, positions = np.einsum("ipjp->ij", cov), np.einsum("ipiq->pq", cov)
    channels, positions = (each / np.trace(each) * len(each) for each in (channels, positions))
    roots = [power(each, exponent) for each in (channels, positions)]
    roots = [
        root / np.sqrt(np.trace(root @ each @ root) / len(each))
        for root, each in zip(roots, (channels, positions), strict=True)
    ]
    scale = np.sqrt(np.einsum("ipip->", cov) / FEATURES)
    fitted = Kronecker(exponent, shrinkage=0).fit(x)
    assert np.allclose(matrix_of(fitted), np.kron(*roots) / scale)
    assert fitted.num_parameters == FEATURES + 3 + 78 - 1


def test_kronecker_whitens_what_is_a_product() -> None:
    white = Whitening(shrinkage=0).fit(y := data()).forward(y)  # with the identity as sample covariance
    generator = torch.Generator().manual_seed(3)
    left, right = (torch.randn(n, n, generator=generator, dtype=torch.float64) for n in (2, 12))
    x = (left @ white.flatten(2) @ right).reshape(white.shape)
    assert condition_number(covariance(x)) > 100
    z = Kronecker(shrinkage=0).fit(x).forward(x)
    assert torch.allclose(covariance(z), torch.eye(FEATURES).double(), atol=1e-8)


def test_kronecker_shrinks_what_few_rows_say_of_positions() -> None:
    shape, few = (2, 60), 45
    white = torch.randn(4000, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = white * torch.logspace(0, -1.5, 60, dtype=torch.float64)
    shrunk, plain = (Kronecker(shrinkage=each).fit(x[:few]) for each in ("auto", 0))  # type: ignore[arg-type]
    on_fresh_rows = [condition_number(covariance(each.forward(x))) for each in (shrunk, plain)]
    assert on_fresh_rows[0] < 0.8 * on_fresh_rows[1]
    assert any("x, across positions, has 1." in note for note in shrunk.notes)
    with pytest.raises(PrecfmError, match=r"x: across positions, .*rank-deficient"):
        Kronecker(shrinkage=0).fit(x[:20])
    Kronecker().fit(x[:20])


@pytest.mark.parametrize("exponent", [0.5, 0.25])
def test_every_frequency_is_whitened_by_itself(exponent: float) -> None:
    x = data()
    transform = np.kron(*(scipy.fft.dct(np.eye(n), axis=0, norm="ortho") for n in (HEIGHT, WIDTH)))
    basis = np.kron(np.eye(CHANNELS), transform)
    cov = basis @ np.cov(x.flatten(1).numpy().T) @ basis.T
    kept = cov * np.kron(np.ones((CHANNELS, CHANNELS)), np.eye(HEIGHT * WIDTH))
    root = power(kept, exponent)
    root /= np.sqrt(np.trace(root @ kept @ root) / FEATURES)
    fitted = PerFrequency(exponent).fit(x)
    assert np.allclose(matrix_of(fitted), basis.T @ root @ basis)
    assert torch.allclose(fitted.forward(x).mean(dim=0), torch.zeros(SHAPE).double(), atol=1e-9)
    assert fitted.num_parameters == FEATURES + 12 * 3


def test_frequencies_need_variance() -> None:
    x = data()
    x = x - x.mean(dim=(2, 3), keepdim=True)
    with pytest.raises(PrecfmError, match=r"at frequency \(0, 0\), from 400 rows of 2 channels"):
        PerFrequency().fit(x)
    with pytest.raises(PrecfmError, match=r"at frequency .* from 2 rows"):
        PerFrequency().fit(data()[:2])


@pytest.mark.parametrize("rank", [1, 5, FEATURES - 1, FEATURES, None])
def test_low_rank_whitens_the_leading_correlations(rank: int | None) -> None:
    x = data()
    rows = x.flatten(1).numpy()
    values, vectors = np.linalg.eigh(np.corrcoef(rows.T))
    others = FEATURES - (rank or FEATURES)
    if others:
        values[:others] = values[:others].mean()
    expected = (vectors / np.sqrt(values)) @ vectors.T @ np.diag(1 / rows.std(axis=0, ddof=1))
    fitted = LowRank(rank).fit(x)
    assert np.allclose(matrix_of(fitted), expected)
    assert fitted.notes[0].startswith(f"{FEATURES - others} of {FEATURES} directions")


def test_low_rank_takes_no_rank_above_the_features() -> None:
    for fit in (LowRank(FEATURES + 1).fit, PreconditionedFlow(LowRank(FEATURES + 1)).fit):
        with pytest.raises(PrecfmError, match=rf"rank: got {FEATURES + 1}.* {FEATURES} "):
            fit(data())


def test_low_rank_of_many_features_rests_on_a_sketch(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    shared = torch.randn(300, 5, generator=generator, dtype=torch.float64) * torch.tensor(
        [9.0, 5.0, 1.0, 1.0, 1.0]
    )
    scales = torch.logspace(0, 3, 40, dtype=torch.float64)
    x = shared @ torch.randn(5, 40, generator=generator, dtype=torch.float64) * scales + 1
    whole = LowRank(rank=2).fit(x)
    monkeypatch.setattr(precfm.preconditioners.low_rank, "MOST_FEATURES", 10)
    sketched = LowRank(rank=2).fit(x)  # eight columns know a covariance of rank five
    assert torch.allclose(sketched.forward(x), whole.forward(x), rtol=1e-6, atol=1e-6)
    assert sketched.flops_per_fit != whole.flops_per_fit
    noisy = x + scales * torch.randn(x.shape, generator=generator, dtype=torch.float64)
    z = LowRank(rank=2).fit(noisy).forward(noisy)
    assert condition_number(covariance(z)) < condition_number(covariance(noisy / scales)) / 5


def test_low_rank_takes_fewer_rows_than_features_but_more_than_its_rank() -> None:
    x = data()[:12]
    fitted = LowRank(rank=5).fit(x)
    assert torch.allclose(fitted.inverse(fitted.forward(x)), x)
    with pytest.raises(PrecfmError, match=r"rank: got 11.*no more than 11 directions.*below 11"):
        LowRank(rank=11).fit(x)
    with pytest.raises(PrecfmError, match=r"constant in feature 3"):
        LowRank(rank=2).fit(torch.cat([data().flatten(1)[:, :3], torch.ones(400, 1).double()], dim=1))


def test_feature_maps_have_their_maps_among_the_candidates() -> None:
    added = set(default_candidates(event_shape=(4, 8, 8))) - set(default_candidates())
    assert added == set(FEATURE_MAPS)
    assert default_candidates(event_shape=(64,)) == default_candidates()
