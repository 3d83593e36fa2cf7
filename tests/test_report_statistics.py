"""The statistics of the report against independent computations and their defining properties."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from precfm.core.statistics import (
    geometric_estimate,
    holm,
    joint_estimate,
    rank_correlation,
    slope,
    smallest_resolvable,
    t_estimate,
)

samples = st.lists(st.floats(-100, 100), min_size=2, max_size=12).filter(lambda v: np.std(v) > 1e-3)


@given(samples, st.floats(-5, 5))
def test_t_estimate_agrees_with_scipy(values, null):
    ours, theirs = t_estimate(values, null=null), stats.ttest_1samp(values, null)
    interval = theirs.confidence_interval(0.95)
    assert ours.p == pytest.approx(theirs.pvalue, rel=1e-6, abs=1e-12)
    assert (ours.low, ours.high) == pytest.approx((interval.low, interval.high), rel=1e-6, abs=1e-9)


def test_t_interval_covers_the_mean_as_often_as_it_says():
    rng = np.random.default_rng(0)
    estimates = [t_estimate(rng.normal(3.0, 2.0, size=4)) for _ in range(2000)]
    covered = np.mean([estimate.low <= 3.0 <= estimate.high for estimate in estimates])
    assert abs(covered - 0.95) < 4 * math.sqrt(0.95 * 0.05 / 2000)


def test_joint_intervals_cover_although_all_seeds_share_what_they_err_with():
    """Seeds of sd 1 and a shared error of sd 1 that their scatter does not show; replicates are drawn around it."""
    rng, covered = np.random.default_rng(0), {"joint": 0, "seeds": 0}
    for _ in range(1000):
        shared = rng.normal()
        sample = shared + rng.normal(size=5)
        replicates = sample[:, None] + rng.normal(size=100)
        for name, estimate in (("joint", joint_estimate(sample, replicates)), ("seeds", t_estimate(sample))):
            covered[name] += estimate.low <= 0.0 <= estimate.high
    assert 930 <= covered["joint"] <= 980
    assert covered["seeds"] < 800


@given(samples, st.floats(-5, 5))
def test_one_sided_tests_agree_with_scipy(values, null):
    for side in ("less", "greater"):
        theirs = stats.ttest_1samp(values, null, alternative=side).pvalue
        assert joint_estimate(values, null=null, alternative=side).p == pytest.approx(
            theirs, rel=1e-6, abs=1e-12
        )


def test_what_does_not_vary_over_seeds_has_the_interval_of_its_replicates():
    rng = np.random.default_rng(1)
    estimate = joint_estimate([2.0, 2.0], 2.0 + np.tile(rng.normal(size=100), (2, 1)))
    assert estimate.high - estimate.value == pytest.approx(stats.t.ppf(0.975, 99), rel=0.25)
    assert math.isnan(joint_estimate([2.0], [[1.0, 3.0]]).low)  # of one seed nobody knows the scatter


def test_one_value_has_no_interval_and_none_has_no_value():
    one, none = t_estimate([1.5]), t_estimate([])
    assert one.value == 1.5
    assert math.isnan(one.low)
    assert math.isnan(one.p)
    assert math.isnan(none.value)
    assert none.n == 0


@pytest.mark.parametrize("value", [2.0, 0.0, -1e-9, 1e9])
def test_values_that_do_not_vary_have_neither_interval_nor_p(value):
    for estimate in (t_estimate([value] * 5), t_estimate([value] * 5, null=value)):
        assert (estimate.value, estimate.n) == (pytest.approx(value), 5)
        assert math.isnan(estimate.low)
        assert math.isnan(estimate.high)
        assert math.isnan(estimate.p)


@given(st.lists(st.floats(0.01, 100), min_size=2, max_size=10), st.floats(0.1, 10))
def test_geometric_estimate_scales_with_its_values(values, factor):
    plain, scaled = geometric_estimate(values), geometric_estimate(np.array(values) * factor)
    assert scaled.value == pytest.approx(plain.value * factor, rel=1e-9)
    assert not plain.low > plain.value * (1 + 1e-12)  # no interval if the values do not vary


@given(st.lists(st.floats(0, 1), min_size=1, max_size=10))
def test_holm_rejects_what_the_step_down_procedure_rejects(p_values):
    adjusted, level = holm(p_values), 0.05
    rejected = set()
    for rank, index in enumerate(np.argsort(p_values, kind="stable")):
        if p_values[index] * (len(p_values) - rank) > level:
            break
        rejected.add(int(index))
    assert {i for i, p in enumerate(adjusted) if p <= level} == rejected
    assert all(after >= before for before, after in zip(p_values, adjusted, strict=True))


def test_holm_leaves_untested_entries_out():
    adjusted = holm([0.02, math.nan, 0.01])
    assert adjusted[2] == pytest.approx(0.02)
    assert adjusted[0] == pytest.approx(0.02)
    assert math.isnan(adjusted[1])


@given(st.integers(2, 20), st.floats(0.01, 10), st.sampled_from([0.5, 0.8, 0.95]))
@settings(max_examples=10, deadline=None)
def test_the_smallest_resolvable_difference_is_found_that_often(n, deviation, power):
    spread = np.linspace(-1, 1, n)
    difference = smallest_resolvable(deviation * spread / spread.std(ddof=1), power=power)
    draws = np.random.default_rng(0).normal(difference, deviation, (20000, n))
    found = stats.ttest_1samp(draws, 0.0, axis=1).pvalue < 0.05
    assert found.mean() == pytest.approx(power, abs=0.02)


def test_one_pair_resolves_nothing_and_equal_pairs_everything():
    assert math.isnan(smallest_resolvable([1.0]))
    assert smallest_resolvable([0.3, 0.3, 0.3]) == 0


@given(st.lists(st.tuples(st.floats(-5, 5), st.floats(-5, 5)), min_size=4, max_size=15))
def test_rank_correlation_is_spearman_inside_its_interval(points):
    x, y = np.array(points).T
    ours = rank_correlation(x, y)
    if len(set(x)) == 1 or len(set(y)) == 1:
        assert math.isnan(ours.value)
        return
    assert ours.value == pytest.approx(stats.spearmanr(x, y).statistic, abs=1e-9)
    assert -1 <= ours.low <= ours.high <= 1
    assert ours.low <= ours.value <= ours.high


def test_a_perfect_correlation_of_few_points_keeps_an_interval():
    few, many = rank_correlation(range(5), range(5)), rank_correlation(range(20), range(20))
    assert few.value == pytest.approx(1.0)
    assert few.low < 0.5 < many.low < many.high
    assert math.isnan(rank_correlation(range(3), range(3)).low)


@given(st.floats(-3, 3), st.floats(-3, 3), st.lists(st.integers(-9, 9), min_size=2, max_size=8, unique=True))
def test_slope_of_a_line(gradient, offset, x):
    assert slope(x, gradient * np.array(x) + offset) == pytest.approx(gradient, abs=1e-9)
    assert math.isnan(slope([1, 1], [0, 1]))
