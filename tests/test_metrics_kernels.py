"""Kernel discrepancies against their definition, published implementations and their own sampling error."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from precfm.core.errors import PrecfmError
from precfm.metrics import kernels
from precfm.metrics.kernels import cubic_kernel, kid, median_distance, mmd, mmd_rbf, rbf_kernel


def sample(n: int, dim: int, seed: int, shift: float = 0.0) -> Tensor:
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed)) + shift


def by_definition(x: Tensor, y: Tensor, kernel) -> float:  # type: ignore[no-untyped-def]
    """The U-statistic with loops, as Gretton et al. write it."""
    a, b = x.double(), y.double()
    within = [
        np.mean([kernel(s, t) for i, s in enumerate(z) for j, t in enumerate(z) if i != j]) for z in (a, b)
    ]
    return float(sum(within) - 2 * np.mean([kernel(s, t) for s in a for t in b]))


@given(st.integers(2, 9), st.integers(2, 9), st.integers(1, 4), st.integers(0, 10**6))
@settings(max_examples=20, deadline=None)
def test_is_the_u_statistic_of_its_definition(n: int, m: int, dim: int, seed: int) -> None:
    x, y = sample(n, dim, seed), sample(m, dim, seed + 1, 0.5)
    cubic = by_definition(x, y, lambda s, t: float((s @ t / dim + 1) ** 3))
    assert kid(x, y).value == pytest.approx(cubic, rel=1e-9, abs=1e-9)
    gaussian = by_definition(x, y, lambda s, t: float(torch.exp(-(s - t).square().sum() / (2 * 1.7**2))))
    assert mmd_rbf(x, y, bandwidth=1.7).value == pytest.approx(gaussian, rel=1e-9, abs=1e-9)


def test_agrees_with_torch_fidelity_on_all_samples() -> None:
    published = pytest.importorskip("torch_fidelity.metric_kid")
    x, y = sample(150, 16, 1).double(), sample(150, 16, 2, 0.3).double()
    options = {"kid_subsets": 1, "kid_subset_size": 150, "rng_seed": 2020, "verbose": False}
    cubic = {"kid_kernel": "poly", "kid_kernel_poly_degree": 3, "kid_kernel_poly_coef0": 1.0}
    for kernel, ours in (
        (cubic, kid(x, y)),
        ({"kid_kernel": "rbf", "kid_kernel_rbf_sigma": 3.0}, mmd_rbf(x, y, bandwidth=3.0)),
    ):
        expected = published.kid_features_to_metric(x, y, **options, **kernel)
        assert ours.value == pytest.approx(expected["kernel_inception_distance_mean"], rel=1e-6)


def test_agrees_with_torchmetrics_on_all_samples() -> None:
    published = pytest.importorskip("torchmetrics.image.kid")
    x, y = sample(150, 8, 1).double(), sample(150, 8, 2, 0.2).double()
    assert kid(x, y).value == pytest.approx(float(published.poly_mmd(y, x)), rel=1e-6)


def test_chunks_order_and_swapping_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = sample(700, 5, 1), sample(500, 5, 2, 0.1)
    value = kid(x, y).value
    with monkeypatch.context() as patch:
        patch.setattr(kernels, "_CHUNK", 7000)
        assert kid(x, y).value == pytest.approx(value, rel=1e-9)
    assert kid(x.flip(0), y.flip(0)).value == pytest.approx(value, rel=1e-9)
    assert kid(y, x).value == pytest.approx(value, rel=1e-9)


@pytest.mark.parametrize("shift", [0.0, 0.5])
@pytest.mark.parametrize("name", ["cubic", "rbf"])
def test_unbiased_with_the_stated_standard_error(shift: float, name: str) -> None:
    """Over many draws the estimates scatter as they say, around the mean of many more samples."""
    kernel = cubic_kernel if name == "cubic" else rbf_kernel(2.0)
    results = [mmd(sample(80, 3, 2 * s), sample(60, 3, 2 * s + 1, shift), kernel) for s in range(300)]
    values = np.array([result.value for result in results])
    errors = np.array([result.standard_error for result in results])
    truth = 0.0 if shift == 0 else mmd(sample(4000, 3, 8001), sample(4000, 3, 8002, shift), kernel).value
    assert abs(values.mean() - truth) < 4 * values.std() / math.sqrt(300) + (0.02 * truth)
    assert np.sqrt(np.mean(errors**2)) == pytest.approx(values.std(), rel=0.25)


def test_larger_for_a_worse_set() -> None:
    real = sample(400, 4, 0)
    distances = [mmd_rbf(sample(400, 4, 1, shift), real).value for shift in (0.0, 0.3, 1.0)]
    assert distances == sorted(distances)
    assert distances[1] > distances[0] + 0.005


def test_median_distance_uses_the_whole_of_an_ordered_set() -> None:
    ordered = torch.cat([torch.zeros(3000, 1), torch.ones(3000, 1)]) + 1e-3 * sample(6000, 1, 0)
    assert 1e-4 < median_distance(ordered) < 1.1
    assert median_distance(sample(1000, 50, 0)) == pytest.approx(10.0, rel=0.05)
    with pytest.raises(PrecfmError, match="equal"):
        median_distance(torch.ones(20, 3))


def test_bad_input_is_named() -> None:
    with pytest.raises(PrecfmError, match="bandwidth: got -1"):
        rbf_kernel(-1.0)
    with pytest.raises(PrecfmError, match=r"^generated: row 3, column 0"):
        kid(torch.tensor([[0.0], [1.0], [2.0], [math.nan]]), sample(5, 1, 0))
