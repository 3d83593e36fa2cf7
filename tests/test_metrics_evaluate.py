"""The evaluation of one set against another: values, protocols, classes, intervals, paired comparisons."""

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from precfm.core.errors import PrecfmError
from precfm.metrics.evaluate import ALL_METRICS, METRICS, evaluate_features, evaluate_per_class
from precfm.metrics.few_samples import principal_components
from precfm.metrics.frechet import frechet_distance
from precfm.metrics.intervals import paired_comparisons, seed_interval, smallest_resolvable_difference
from precfm.metrics.kernels import kid
from precfm.metrics.resampling import resampled_interval
from precfm.metrics.values import RECORD_COLUMNS, records


def sample(n: int, dim: int, seed: int, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(n, dim, generator=torch.Generator().manual_seed(seed))


def test_values_come_in_the_order_asked_for_with_their_protocol() -> None:
    x, y = sample(200, 5, 1), sample(150, 5, 2)
    components = principal_components(sample(90, 5, 3), 2)
    values = evaluate_features(
        x, y, metrics=ALL_METRICS, components=components, seed=4, extractor="net", extractor_hash="ab"
    )
    assert tuple(value.metric for value in values) == ALL_METRICS
    for value in values:
        protocol = value.protocol
        assert (protocol.n_real, protocol.n_generated, protocol.evaluation_seed) == (150, 200, 4)
        assert (protocol.extractor, protocol.extractor_hash, protocol.reference) == ("net", "ab", "held-out")
    by_name = {value.metric: value for value in values}
    assert by_name["frechet"].value == frechet_distance(x, y)
    assert dict(by_name["frechet_components"].protocol.settings)["components"] == 2
    assert dict(by_name["precision"].protocol.settings) == {"k": 3}
    frame = records(values)
    assert tuple(frame.columns) == RECORD_COLUMNS
    assert json.loads(frame.loc[frame["metric"] == "kid", "settings"].item())["degree"] == 3


def test_the_same_input_gives_the_same_bytes_and_leaves_the_global_state_alone() -> None:
    x, y = sample(120, 4, 1), sample(110, 4, 2)
    torch.manual_seed(3)
    before = torch.get_rng_state()
    first = records(evaluate_features(x, y, replicates=5, seed=1)).to_csv()
    assert torch.equal(torch.get_rng_state(), before)
    assert records(evaluate_features(x, y, replicates=5, seed=1)).to_csv() == first
    assert records(evaluate_features(x, y, replicates=5, seed=2)).to_csv() != first


def test_the_scale_of_the_features_does_not_matter_to_a_scaled_kid() -> None:
    x, y = sample(150, 6, 1) + 0.3, sample(140, 6, 2)
    plain = evaluate_features(x, y, metrics=["kid"])[0].value
    assert evaluate_features(1e3 * x + 7, 1e3 * y + 7, metrics=["kid"])[0].value == pytest.approx(
        plain, rel=1e-3
    )
    assert evaluate_features(x, y, metrics=["kid"], kid_scale="none")[0].value == kid(x, y).value


def test_each_class_is_measured_by_itself() -> None:
    x, y = sample(120, 3, 1), sample(90, 3, 2)
    first, second = torch.arange(120) % 2, torch.arange(90) % 2
    values = evaluate_per_class(x, first, y, second, metrics=("frechet", "recall"))
    assert [value.metric for value in values] == ["frechet[0]", "recall[0]", "frechet[1]", "recall[1]"]
    assert values[2].value == frechet_distance(x[1::2], y[1::2])
    assert values[2].protocol.n_real == 45
    with pytest.raises(PrecfmError, match="class 1: reference: 0 rows"):
        evaluate_per_class(x, first, y, second * 0)
    with pytest.raises(PrecfmError, match=r"generated_labels: shape \(119,\); \(120,\)"):
        evaluate_per_class(x, first[:-1], y, second)


def test_few_samples_are_refused_or_noted() -> None:
    x, y = sample(10, 12, 1), sample(80, 12, 2)
    with pytest.raises(PrecfmError, match="10 samples in 12 dimensions"):
        evaluate_features(x, y)
    value = evaluate_features(x, y, metrics=["frechet"], few_samples="allow")[0]
    assert "10 samples in 12 dimensions: biased upwards" in value.record()["notes"]


def test_protocols_are_comparable_if_only_the_seed_differs() -> None:
    x, y = sample(50, 3, 1), sample(40, 3, 2)
    first, other, smaller = (
        evaluate_features(a, y, metrics=["kid"], seed=s)[0].protocol for a, s in ((x, 1), (x, 2), (x[:30], 1))
    )
    assert first.comparable(other)
    assert not first.comparable(smaller)


def test_unknown_or_incomplete_metrics_are_refused() -> None:
    x, y = sample(50, 3, 1), sample(40, 3, 2)
    with pytest.raises(PrecfmError, match="metrics: 'fid' is unknown; known are frechet, kid"):
        evaluate_features(x, y, metrics=["fid"])
    with pytest.raises(PrecfmError, match="components: None"):
        evaluate_features(x, y, metrics=["frechet_components"])


@pytest.mark.parametrize("scheme", ["half", "bootstrap"])
def test_resampled_errors_are_those_of_the_mean_difference(scheme: str) -> None:
    """A statistic with a known standard error: the difference of two means."""

    def statistic(a: Tensor, b: Tensor) -> float:
        return float(a.mean() - b.mean())

    x, y = sample(300, 1, 1, 2.0), sample(200, 1, 2)
    interval = resampled_interval(statistic, x, y, replicates=2000, scheme=scheme, seed=5)  # type: ignore[arg-type]
    expected = math.sqrt(float(x.var()) / 300 + float(y.var()) / 200)
    assert interval.standard_error == pytest.approx(expected, rel=0.08)
    assert interval.high - interval.value == pytest.approx(1.96 * interval.standard_error, rel=1e-3)
    fixed = resampled_interval(
        statistic,
        x,
        y,
        replicates=2000,
        scheme=scheme,
        seed=5,
        resample_reference=False,  # type: ignore[arg-type]
    )
    assert fixed.standard_error == pytest.approx(math.sqrt(float(x.var()) / 300), rel=0.08)


@pytest.mark.parametrize("metric", METRICS)
def test_intervals_have_the_size_of_the_scatter_between_samples(metric: str) -> None:
    """Standard errors out of single pairs of sets, against the scatter over many pairs."""
    generated, reference = (lambda s: sample(150, 3, s) + 0.4), (lambda s: sample(150, 3, s))
    values = [
        evaluate_features(generated(2 * s), reference(2 * s + 1), metrics=[metric], bandwidth=2.0)[0].value
        for s in range(60)
    ]
    errors = [
        evaluate_features(
            generated(2 * s), reference(2 * s + 1), metrics=[metric], bandwidth=2.0, replicates=60, seed=s
        )[0].standard_error
        for s in range(6)
    ]
    assert np.mean(np.asarray(errors, dtype=float)) == pytest.approx(np.std(values, ddof=1), rel=0.4)


def test_bad_resampling_options_are_refused() -> None:
    x, y = sample(3, 2, 1), sample(9, 2, 2)
    with pytest.raises(PrecfmError, match="replicates: 1"):
        resampled_interval(lambda a, b: 0.0, y, y, replicates=1)
    with pytest.raises(PrecfmError, match=r"confidence: 1\.0"):
        resampled_interval(lambda a, b: 0.0, y, y, confidence=1.0)
    with pytest.raises(PrecfmError, match="'half' of 3 rows"):
        resampled_interval(lambda a, b: 0.0, x, y)


def test_seed_intervals_are_students() -> None:
    values = [1.55, 1.72, 1.61, 1.49, 1.66]
    expected = stats.ttest_1samp(values, 0.0).confidence_interval(0.9)
    assert seed_interval(values, confidence=0.9) == pytest.approx(
        (np.mean(values), expected.low, expected.high)
    )
    with pytest.raises(PrecfmError, match="1 scores; at least 2"):
        seed_interval([1.0])
    with pytest.raises(PrecfmError, match="score 1 is nan"):
        seed_interval([1.0, math.nan])


def test_paired_comparisons_use_the_pairing_and_holms_steps() -> None:
    seeds = np.random.default_rng(0).normal(0, 1, 8)  # what a seed does to all methods alike
    noise = np.random.default_rng(1).normal(0, 0.05, (3, 8))
    scores = {"none": seeds + noise[0], "same": seeds + noise[1], "better": seeds - 0.3 + noise[2]}
    table = paired_comparisons(scores, "none").set_index("method")
    assert stats.ttest_ind(scores["better"], scores["none"]).pvalue > 0.1
    assert table.loc["better", "p_holm"] < 0.001
    assert table.loc["same", "p"] == pytest.approx(stats.ttest_rel(scores["same"], scores["none"]).pvalue)
    assert table.loc["better", "p_holm"] == pytest.approx(2 * table.loc["better", "p"])
    assert table.loc["better", "p_wilcoxon"] == stats.wilcoxon(scores["better"] - scores["none"]).pvalue
    assert table.loc["better", "difference"] == pytest.approx(np.mean(scores["better"] - scores["none"]))
    assert 0 < table.loc["better", "resolvable"] < 0.3
    equal = paired_comparisons({"a": [1.0, 2.0], "b": [1.0, 2.0]}, "a").iloc[0]
    assert np.isnan(equal["p"])  # differences that do not vary say nothing of their scatter
    assert (equal["p_wilcoxon"], equal["resolvable"]) == (1.0, 0.0)
    with pytest.raises(PrecfmError, match="better: 7 scores against 8 of 'none'"):
        paired_comparisons({**scores, "better": scores["better"][1:]}, "none")
    with pytest.raises(PrecfmError, match="baseline: 'nothing' has no scores; known are none, same, better"):
        paired_comparisons(scores, "nothing")


@given(st.integers(3, 20), st.floats(0.01, 10), st.sampled_from([0.5, 0.8, 0.95]))
@settings(max_examples=10, deadline=None)
def test_the_resolvable_difference_is_found_that_often(n: int, deviation: float, power: float) -> None:
    difference = smallest_resolvable_difference(deviation, n, power=power)
    draws = np.random.default_rng(0).normal(difference, deviation, (20000, n))
    found = stats.ttest_1samp(draws, 0.0, axis=1).pvalue < 0.05
    assert found.mean() == pytest.approx(power, abs=0.02)
