"""Moments from batches against numpy on all rows."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from precfm.core.errors import PrecfmError
from precfm.geometry.moments import Moments


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(2, 60),
    dim=st.integers(1, 5),
    cuts=st.lists(st.integers(0, 60), max_size=5),
    offset=st.sampled_from([0.0, 1e6]),
    diagonal=st.booleans(),
    seed=st.integers(0, 99),
)
def test_any_batches_give_the_moments_of_all_rows(
    rows: int, dim: int, cuts: list[int], offset: float, diagonal: bool, seed: int
) -> None:
    x = torch.randn(rows, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + offset
    ends = [0, *sorted(min(cut, rows) for cut in cuts), rows]
    whole, parts = Moments(diagonal=diagonal), []
    for start, stop in itertools.pairwise(ends):
        whole.update(x[start:stop])
        parts.append(Moments(diagonal=diagonal).update(x[start:stop]))
    merged = Moments(diagonal=diagonal)
    for part in parts:
        merged.merge(part)
    expected = np.cov(x.numpy(), rowvar=False).reshape(dim, dim)
    for found in (whole, merged):
        assert found.count == rows
        assert np.allclose(found.mean.numpy(), x.numpy().mean(0), rtol=1e-14)
        wanted = expected.diagonal() if diagonal else expected
        assert np.allclose(found.covariance().numpy(), wanted, rtol=1e-8, atol=1e-9)


def test_constants_have_no_variance_at_all() -> None:
    x = torch.randn(30, 3)
    x[:, 1] = 0.1
    moments = Moments()
    for batch in x.split(7):
        moments.update(batch)
    assert torch.equal(moments.covariance()[1], torch.zeros(3).double())


def test_batches_of_any_shape_are_flattened_to_float64() -> None:
    moments = Moments().update(torch.ones(2, 3, 4)).update(torch.zeros(1, 3, 4))
    assert moments.mean.shape == (12,)
    assert moments.covariance().dtype == torch.float64
    assert torch.allclose(moments.covariance(), torch.full((12, 12), 1 / 3).double())


@pytest.mark.parametrize("rows", [0, 1])
def test_too_few_rows_have_no_covariance(rows: int) -> None:
    with pytest.raises(PrecfmError, match="2 rows"):
        Moments().update(torch.ones(rows, 3)).covariance()
