"""The Frechet distance against closed forms, published implementations and scipy."""

import math

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from precfm.core.errors import PrecfmError
from precfm.metrics.frechet import GaussianFit, frechet_distance, frechet_from_fits, gaussian_fit


def sample(n: int, dim: int, seed: int, *, scale: float = 1.0, shift: float = 0.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(dim, dim, generator=torch.Generator().manual_seed(99)) / math.sqrt(dim)
    return scale * torch.randn(n, dim, generator=generator) @ mixing + shift


def fidelity(x: Tensor, y: Tensor) -> float:
    fid = pytest.importorskip("torch_fidelity.metric_fid")
    statistics = [fid.fid_features_to_statistics(z.double()) for z in (x, y)]
    return float(fid.fid_statistics_to_metric(*statistics, False)["frechet_inception_distance"])


def torchmetrics_distance(x: Tensor, y: Tensor) -> float:
    fid = pytest.importorskip("torchmetrics.image.fid")
    statistics = [(z.double().mean(0), torch.cov(z.double().T)) for z in (x, y)]
    return float(fid._compute_fid(*statistics[0], *statistics[1]))


@pytest.mark.parametrize(("n", "dim"), [(400, 3), (1000, 16), (700, 64), (90, 64)])
def test_agrees_with_published_implementations(n: int, dim: int) -> None:
    x, y = sample(n, dim, 1, scale=1.3, shift=0.2), sample(n + 17, dim, 2)
    value = frechet_distance(x, y)
    assert value == pytest.approx(fidelity(x, y), rel=1e-6)
    assert value == pytest.approx(torchmetrics_distance(x, y), rel=1e-6)
    means, covariances = zip(
        *((z.double().numpy().mean(0), np.cov(z.double().numpy().T)) for z in (x, y)), strict=True
    )
    root = scipy.linalg.sqrtm(covariances[0] @ covariances[1])
    expected = np.sum((means[0] - means[1]) ** 2) + np.trace(covariances[0] + covariances[1] - 2 * root.real)
    assert value == pytest.approx(expected, rel=1e-6)


def test_agrees_where_samples_are_fewer_than_dimensions() -> None:
    x, y = sample(40, 96, 1, scale=1.5), sample(55, 96, 2)
    assert frechet_distance(x, y, few_samples="allow") == pytest.approx(fidelity(x, y), rel=1e-5)
    # One set on either side of the border: a Gram factor against a covariance factor.
    z = sample(300, 96, 3)
    assert frechet_distance(x, z, few_samples="allow") == pytest.approx(fidelity(x, z), rel=1e-5)


@given(st.integers(1, 12), st.integers(0, 10**6))
@settings(max_examples=30, deadline=None)
def test_commuting_covariances_have_a_closed_form(dim: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(dim, dim, generator=generator, dtype=torch.float64)).Q
    first, second = (
        10 ** (6 * torch.rand(dim, generator=generator, dtype=torch.float64) - 3) for _ in range(2)
    )
    mean = torch.randn(dim, generator=generator, dtype=torch.float64)
    value = frechet_from_fits(
        GaussianFit(mean, basis @ first.sqrt().diag()),
        GaussianFit(torch.zeros(dim), basis @ second.sqrt().diag()),
    )
    expected = mean.square().sum() + (first.sqrt() - second.sqrt()).square().sum()
    assert value == pytest.approx(float(expected), rel=1e-6, abs=1e-9 * float(first.sum() + second.sum()))


@given(st.integers(2, 8), st.integers(0, 10**6))
@settings(max_examples=20, deadline=None)
def test_symmetric_and_invariant_to_order_rotation_and_shift(dim: int, seed: int) -> None:
    x, y = (sample(60, dim, seed + k, scale=1.0 + k).double() for k in (0, 1))
    value = frechet_distance(x, y)
    generator = torch.Generator().manual_seed(seed)
    rotation = torch.linalg.qr(torch.randn(dim, dim, generator=generator, dtype=torch.float64)).Q
    order = torch.randperm(60, generator=generator)
    assert frechet_distance(y, x) == pytest.approx(value, rel=1e-9)
    assert frechet_distance(x[order], y) == pytest.approx(value, rel=1e-9)
    assert frechet_distance(x @ rotation + 5, y @ rotation + 5) == pytest.approx(value, rel=1e-8)
    assert frechet_distance(3 * x, 3 * y) == pytest.approx(9 * value, rel=1e-9)


@pytest.mark.parametrize("rank", [64, 20, 1])
def test_identical_sets_give_zero_even_with_singular_covariances(rank: int) -> None:
    x = sample(500, rank, 1) @ torch.randn(rank, 64, generator=torch.Generator().manual_seed(5))
    assert frechet_distance(x, x) <= 1e-10 * float(x.double().var(0).sum())
    assert frechet_distance(x[:30], x[:30], few_samples="allow") <= 1e-10 * float(x.double().var(0).sum())


def test_constant_features_are_no_trouble() -> None:
    x, y = torch.ones(50, 4), torch.zeros(50, 4)
    assert frechet_distance(x, y) == pytest.approx(4.0)
    mixed = torch.cat([sample(50, 3, 1), torch.ones(50, 1)], dim=1)
    assert frechet_distance(mixed, mixed + torch.tensor([0.0, 0.0, 0.0, 2.0])) == pytest.approx(4.0, rel=1e-6)


def test_a_nearly_identical_set_keeps_its_digits() -> None:
    """The distance of a set to its own shift is the shift alone, however much larger the traces are."""
    x = sample(300, 40, 1, scale=100.0).double()
    assert frechet_distance(x + 1e-4, x) == pytest.approx(40 * 1e-8, rel=1e-3)


@pytest.mark.parametrize("n", [2, 5, 9000])  # fewer rows than dimensions, and more than one chunk of rows
def test_fits_are_numpys(n: int) -> None:
    x = sample(n, 7, 3, shift=100.0)
    x = x[x[:, 0].argsort()]
    found = gaussian_fit(x)
    np.testing.assert_allclose(found.mean.numpy(), x.double().numpy().mean(0), rtol=1e-13)
    covariance = (found.factor @ found.factor.T).numpy()
    np.testing.assert_allclose(covariance, np.cov(x.double().numpy().T), rtol=1e-9, atol=1e-12)


def test_refuses_fewer_samples_than_dimensions_and_says_what_to_do() -> None:
    with pytest.raises(PrecfmError, match=r"^generated: 8 .*few_samples"):
        frechet_distance(sample(8, 8, 1), sample(50, 8, 2))
    with pytest.raises(PrecfmError, match=r"^reference: 5 "):
        frechet_distance(sample(50, 8, 1), sample(5, 8, 2))


def test_bad_features_are_named() -> None:
    x, y = sample(30, 4, 1), sample(30, 4, 2)
    broken = x.clone()
    broken[17, 2] = math.nan
    with pytest.raises(PrecfmError, match=r"^reference: row 17, column 2 .*nan"):
        frechet_distance(y, broken)
    broken[17, 2] = -math.inf
    with pytest.raises(PrecfmError, match=r"^generated: row 17, column 2 .*-inf"):
        frechet_distance(broken, y)
    with pytest.raises(PrecfmError, match=r"generated .*4.*reference .*3"):
        frechet_distance(x, y[:, :3])
    with pytest.raises(PrecfmError, match=r"^generated: 1 "):
        frechet_distance(x[:1], y)
    with pytest.raises(PrecfmError, match=r"shape \(30,\)"):
        frechet_distance(x[:, 0], y)
