"""The evaluation of one set against another: values with their protocols."""

import json

import pytest
import torch
from torch import Tensor

from precfm.core.errors import PrecfmError
from precfm.metrics.evaluate import METRICS, evaluate_features
from precfm.metrics.frechet import frechet_distance
from precfm.metrics.kernels import kid
from precfm.metrics.values import records


def sample(n: int, dim: int, seed: int, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(n, dim, generator=torch.Generator().manual_seed(seed))


def test_values_come_in_the_order_asked_for_with_their_protocol() -> None:
    x, y = sample(200, 5, 1), sample(150, 5, 2)
    order = METRICS[::-1]
    values = evaluate_features(x, y, metrics=order, seed=4, extractor="net", extractor_hash="ab")
    assert tuple(value.metric for value in values) == order
    for value in values:
        protocol = value.protocol
        assert (protocol.n_real, protocol.n_generated, protocol.evaluation_seed) == (150, 200, 4)
        assert (protocol.extractor, protocol.extractor_hash, protocol.reference) == ("net", "ab", "held-out")
    by_name = {value.metric: value for value in values}
    assert by_name["frechet"].value == frechet_distance(x, y)
    assert dict(by_name["precision"].protocol.settings) == {"k": 3}
    frame = records(values).set_index("metric")
    assert json.loads(frame.loc["kid", "settings"])["degree"] == 3
    assert frame.loc["recall", "value"] == by_name["recall"].value


def test_the_same_input_gives_the_same_bytes_and_leaves_the_global_state_alone() -> None:
    x, y = sample(120, 4, 1), sample(110, 4, 2)
    torch.manual_seed(3)
    before = torch.get_rng_state()
    first = records(evaluate_features(x, y)).to_csv()
    assert torch.equal(torch.get_rng_state(), before)
    assert records(evaluate_features(x, y)).to_csv() == first


def test_the_scale_of_the_features_does_not_matter_to_a_scaled_kid() -> None:
    x, y = sample(150, 6, 1) + 0.3, sample(140, 6, 2)
    plain = evaluate_features(x, y, metrics=["kid"])[0].value
    assert evaluate_features(1e3 * x + 7, 1e3 * y + 7, metrics=["kid"])[0].value == pytest.approx(
        plain, rel=1e-3
    )
    assert evaluate_features(x, y, metrics=["kid"], kid_scale="none")[0].value == kid(x, y).value


def test_few_samples_are_refused_or_noted() -> None:
    x, y = sample(10, 12, 1), sample(80, 12, 2)
    with pytest.raises(PrecfmError, match=r"^generated: 10 "):
        evaluate_features(x, y)
    value = evaluate_features(x, y, metrics=["frechet"], few_samples="allow")[0]
    assert "10" in value.record()["note"]


def test_an_unknown_metric_is_refused() -> None:
    with pytest.raises(PrecfmError, match="metrics: got 'fid'"):
        evaluate_features(sample(50, 3, 1), sample(40, 3, 2), metrics=["fid"])
