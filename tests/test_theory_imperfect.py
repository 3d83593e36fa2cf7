"""The bound in the residual condition number, and the imperfect preconditioners."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from precfm.core.errors import PrecfmError
from precfm.datasets.synthetic import gaussian
from precfm.theory.convergence import steps_to_total_fraction
from precfm.theory.imperfect_preconditioners import (
    from_samples,
    per_channel,
    power,
    residual_covariance,
    samples_kappa_bound,
    shrunk,
    steps_bound,
)


def kappa_of(cov: torch.Tensor) -> float:
    values = np.linalg.eigvalsh(cov.numpy())
    return values[-1] / values[0]


@given(
    st.lists(st.floats(1e-3, 1.0), min_size=1, max_size=8),
    st.lists(st.floats(1e-3, 10.0), min_size=8, max_size=8),
    st.floats(1e-3, 0.9),
    st.floats(0.05, 0.5),
)
@settings(max_examples=80, deadline=None)
def test_no_start_needs_more_steps_than_the_bound(spectrum, errors, fraction, rate):
    variance = torch.tensor(sorted(spectrum), dtype=torch.float64)
    start = torch.tensor(errors[: len(variance)], dtype=torch.float64)
    kappa = variance[-1] / variance[0]
    bound = steps_bound(kappa, fraction, rate)
    needed = steps_to_total_fraction(variance, start, rate / float(variance[-1]), fraction)
    whole = math.ceil(float(bound) * (1 - 1e-9))
    assert float(needed) <= whole
    # And it is attained: all the error along the slowest direction.
    slowest = torch.zeros_like(start)
    slowest[0] = 1.0
    attained = steps_to_total_fraction(variance, slowest, rate / float(variance[-1]), fraction)
    if float(bound) > 1:
        assert float(attained) == whole


@given(st.integers(2, 10), st.floats(0, 5), st.floats(0, 1), st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_power_and_shrunk_whitening_leave_the_kappa_that_is_said(dim, log_kappa, level, seed):
    law = gaussian(dim, 10**log_kappa, seed=seed)
    left = residual_covariance(law.cov, power(law.cov, level))
    assert kappa_of(left) == pytest.approx(10 ** (log_kappa * (1 - level)), rel=1e-6)
    left = residual_covariance(law.cov, shrunk(law.cov, level))
    low = float(law.eigenvalues[0])
    limit = math.inf if level > 0.999 else 1 + level / ((1 - level) * low)
    assert kappa_of(left) <= limit * (1 + 1e-6)
    assert float(left.trace()) == pytest.approx(dim)


def test_per_channel_scaling_cures_axes_and_not_rotations():
    aligned = gaussian(8, 1e4, rotated=False).cov
    moved = residual_covariance(aligned, per_channel(aligned))
    assert torch.allclose(moved, torch.eye(8, dtype=torch.float64))
    rotated = gaussian(8, 1e4, seed=1).cov
    assert kappa_of(residual_covariance(rotated, per_channel(rotated))) > 1e3


@pytest.mark.parametrize("kappa", [10.0, 1e4])
def test_whitening_from_samples_keeps_its_promise_whatever_kappa(kappa):
    dim, n = 6, 240
    law = gaussian(dim, kappa, seed=3)
    maps = [from_samples(law.cov, n, seed) for seed in range(40)]
    kappas = np.array([kappa_of(residual_covariance(law.cov, each)) for each in maps])
    assert np.mean(kappas <= samples_kappa_bound(n, dim)) >= 0.95
    assert np.median(kappas) > 1.2  # it is imperfect, or nothing was tested
    assert math.isinf(samples_kappa_bound(7, 6))


@pytest.mark.parametrize(
    ("call", "field"),
    [
        (lambda: steps_bound(0.5, 0.1), "residual_kappa"),
        (lambda: steps_bound(2.0, 1.0), "fraction"),
        (lambda: steps_bound(2.0, 0.1, 0.7), "rate"),
        (lambda: power(torch.eye(2), 1.5), "exponent"),
        (lambda: shrunk(torch.eye(2), -0.1), "shrinkage"),
        (lambda: power(torch.diag(torch.tensor([0.0, 1.0])), 1.0), "cov"),
        (lambda: from_samples(torch.eye(3), 3, 0), "n"),
    ],
)
def test_what_has_no_answer_is_refused(call, field):
    with pytest.raises(PrecfmError, match=f"^{field}: "):
        call()
