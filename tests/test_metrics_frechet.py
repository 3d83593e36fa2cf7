"""The Frechet distance against closed forms, published implementations and scipy, and its few-sample variants."""

import math

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from precfm.core.errors import PrecfmError
from precfm.metrics.few_samples import extrapolated_frechet, frechet_in_components, principal_components
from precfm.metrics.frechet import (
    covariance_factor,
    frechet_distance,
    frechet_from_covariances,
    mean_and_covariance,
    moments,
)


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
    value = frechet_from_covariances(
        mean, basis @ first.diag() @ basis.T, torch.zeros(dim), basis @ second.diag() @ basis.T
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


def test_mean_and_covariance_are_numpys_in_any_block_size() -> None:
    x = sample(5000, 7, 3, shift=100.0)
    x = x[x[:, 0].argsort()]
    for budget in (1, 2**20):
        mean, covariance = mean_and_covariance(x, memory_budget=budget)
        np.testing.assert_allclose(mean.numpy(), x.double().numpy().mean(0), rtol=1e-13)
        np.testing.assert_allclose(covariance.numpy(), np.cov(x.double().numpy().T), rtol=1e-9, atol=1e-12)


@given(st.integers(1, 20), st.integers(1, 20), st.integers(0, 10**6))
@settings(max_examples=30, deadline=None)
def test_factors_reproduce_the_covariance(dim: int, rank: int, seed: int) -> None:
    root = torch.randn(dim, rank, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    factor = covariance_factor(root @ root.T)
    torch.testing.assert_close(factor @ factor.T, root @ root.T, rtol=1e-9, atol=1e-9)
    few = sample(max(2, min(dim, 5)), dim, seed)
    if len(few) <= dim:
        part = moments(few).factor
        torch.testing.assert_close(
            part @ part.T, torch.cov(few.double().T).reshape(dim, dim), rtol=1e-9, atol=1e-9
        )


def test_refuses_fewer_samples_than_dimensions_and_says_what_to_do() -> None:
    with pytest.raises(PrecfmError, match=r"generated: 8 samples in 8 dimensions.*few_samples='allow'"):
        frechet_distance(sample(8, 8, 1), sample(50, 8, 2))
    with pytest.raises(PrecfmError, match="reference: 5 samples"):
        frechet_distance(sample(50, 8, 1), sample(5, 8, 2))


def test_bad_features_are_named() -> None:
    x, y = sample(30, 4, 1), sample(30, 4, 2)
    broken = x.clone()
    broken[17, 2] = math.nan
    with pytest.raises(PrecfmError, match="reference: row 17, column 2 is nan"):
        frechet_distance(y, broken)
    broken[17, 2] = -math.inf
    with pytest.raises(PrecfmError, match="generated: row 17, column 2 is -inf"):
        frechet_distance(broken, y)
    with pytest.raises(PrecfmError, match="generated: row 17"):
        frechet_distance(
            torch.cat([broken, broken], dim=1)[:, :8][:20].repeat(1, 4), y.repeat(1, 8), few_samples="allow"
        )
    with pytest.raises(PrecfmError, match="generated has 4 features per row and reference has 3"):
        frechet_distance(x, y[:, :3])
    with pytest.raises(PrecfmError, match="generated: 1 rows; at least 2"):
        frechet_distance(x[:1], y)
    with pytest.raises(PrecfmError, match=r"shape \(30,\)"):
        frechet_distance(x[:, 0], y)


def test_extrapolation_removes_the_bias() -> None:
    """Two samples of one Gaussian: the truth is zero, the plain distance is all bias."""
    plain, extrapolated = [], []
    for seed in range(8):
        result = extrapolated_frechet(sample(800, 24, 2 * seed + 1), sample(800, 24, 2 * seed + 2), seed=seed)
        plain.append(result.plain)
        extrapolated.append(result.value)
    assert abs(np.mean(extrapolated)) < 0.2 * np.mean(plain)
    again = extrapolated_frechet(sample(800, 24, 15), sample(800, 24, 16), seed=7)
    assert again.value == extrapolated[-1]
    with pytest.raises(PrecfmError, match="an extrapolation needs more than 49"):
        extrapolated_frechet(sample(49, 24, 1), sample(800, 24, 2))


def test_components_are_the_leading_directions_of_the_training_set() -> None:
    scales = torch.tensor([5.0, 3.0, 0.1, 0.05])
    training = torch.randn(4000, 4, generator=torch.Generator().manual_seed(0)) * scales
    components = principal_components(training, 2)
    assert components.explained == pytest.approx(34 / 34.0125, abs=1e-4)
    torch.testing.assert_close(
        components.directions.abs(), torch.eye(4, dtype=torch.float64)[:, :2], atol=0.05, rtol=0
    )
    x, y = training[:300] + 0.5, training[300:700]
    expected = frechet_distance(components.project(x), components.project(y))
    assert frechet_in_components(x, y, components) == expected
    few = principal_components(training[:3].repeat(1, 2), 2)
    torch.testing.assert_close(few.directions.T @ few.directions, torch.eye(2, dtype=torch.float64))
    with pytest.raises(PrecfmError, match="components: 5 of 4000 training samples in 4 dimensions"):
        principal_components(training, 5)
    with pytest.raises(PrecfmError, match="fitted on 4"):
        components.project(torch.randn(5, 3))
