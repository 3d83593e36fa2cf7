"""What the learned maps of feature maps, and a map per class, promise on top of the contract."""

import math
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from torch import Tensor

from precfm.core.errors import PrecfmError
from precfm.preconditioners.composition import Composition
from precfm.preconditioners.conv_low_capacity_flow import PROBES, ConvLowCapacityFlow
from precfm.preconditioners.conv_normalizing_flow import ConvNormalizingFlow, MultiscaleFlow
from precfm.preconditioners.low_capacity_flow import LowCapacityFlow
from precfm.preconditioners.low_rank import LowRank
from precfm.preconditioners.per_class import PerClass
from precfm.preconditioners.per_frequency import PerFrequency
from precfm.preconditioners.round_trip import round_trip_error, tail_round_trip_error
from workflow_scripts import likelihoods

TINY = {"steps": 30, "width": 8, "batch_size": 32, "validate_every": 10}


def maps(rows: int, *shape: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Smooth maps of two classes whose strength differs from row to row; no Gaussian has that."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(rows) % 2
    x = torch.randn(rows, *shape, generator=generator, dtype=torch.float64)
    x = x + x.roll(1, -1) + x.roll(1, -2)
    strength = torch.rand(rows, generator=generator, dtype=torch.float64) * 3 + 0.1
    return x * strength.reshape(-1, 1, 1, 1) + labels.reshape(-1, 1, 1, 1), labels


def with_random_weights(flow: MultiscaleFlow, scale: float) -> MultiscaleFlow:
    generator = torch.Generator().manual_seed(1)
    for parameter in flow.parameters():
        parameter.data = scale * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return flow.double().requires_grad_(False)


@pytest.mark.parametrize("shape", [(2, 4, 4), (1, 4, 2), (3, 1, 3), (5, 2, 2)])
def test_the_multiscale_flow_is_a_bijection_with_the_log_det_it_claims(shape: tuple[int, int, int]) -> None:
    flow = MultiscaleFlow(shape, 2, scales=3, transforms=2, width=4, depth=2, max_log_scale=1.0)
    with_random_weights(flow, 0.5)
    features = math.prod(shape)
    x = torch.randn(2, features, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    classes = torch.tensor([0, 1])
    z, log_det = flow(x, classes)
    assert torch.allclose(flow.inverse(z, classes), x, atol=1e-9)
    assert not torch.allclose(flow(x, 1 - classes)[0], z)
    for row in range(2):
        jacobian = torch.autograd.functional.jacobian(
            lambda v, c=classes[row : row + 1]: flow(v, c)[0], x[row : row + 1]
        )
        expected = torch.linalg.slogdet(jacobian.reshape(features, features)).logabsdet
        assert torch.allclose(log_det[row], expected, atol=1e-8)


def test_the_multiscale_flow_starts_as_the_identity_and_stays_bounded() -> None:
    flow = MultiscaleFlow((4, 4, 4), 0, scales=3, transforms=2, width=4, depth=2, max_log_scale=0.2)
    x = torch.randn(8, 64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(flow(x)[0], x)
    with_random_weights(flow, 10.0)
    z = flow(x.double())[0]
    # Six pairs at most: each rotates, scales by at most exp(0.2) and shifts each number by at most 5.
    bound = math.exp(1.2) * (float(x.norm(dim=1).max()) + 6 * 5 * 8)
    assert float(z.norm(dim=1).max()) <= bound


@pytest.mark.parametrize(
    ("shape", "scales"), [((3, 8, 8), 3), ((3, 6, 6), 2), ((3, 5, 8), 1), ((1, 6, 6), 1)]
)
def test_as_many_scales_as_the_shape_halves(shape: tuple[int, int, int], scales: int) -> None:
    x, labels = maps(60, *shape)
    flow = ConvNormalizingFlow(**{**TINY, "steps": 2}).fit(x, labels)  # type: ignore[arg-type]
    assert any(f"{scales} of 3 scales" in note for note in flow.notes) is (scales < 3)
    assert round_trip_error(flow, x, labels) <= flow.round_trip_tolerance
    assert tail_round_trip_error(flow, x, labels) <= flow.round_trip_tolerance


def test_one_channel_that_does_not_halve_is_refused() -> None:
    with pytest.raises(PrecfmError, match=r"x: has one channel"):
        ConvNormalizingFlow(steps=1).fit(*maps(60, 1, 3, 3))


@pytest.mark.parametrize("flow", [ConvNormalizingFlow(**TINY), ConvLowCapacityFlow(solver_steps=10, **TINY)])  # type: ignore[arg-type]
def test_fewer_rows_than_features_suffice(flow: ConvNormalizingFlow | ConvLowCapacityFlow) -> None:
    x, labels = maps(80, 4, 8, 8)
    flow.fit(x, labels)
    new, new_labels = maps(30, 4, 8, 8, seed=1)
    assert round_trip_error(flow, new.float(), new_labels) <= flow.round_trip_tolerance
    assert tail_round_trip_error(flow, new, new_labels) <= flow.round_trip_tolerance
    tail = flow.inverse(
        1.5 * torch.randn(200, 4, 8, 8, generator=torch.Generator().manual_seed(2)), labels[:1].expand(200)
    )
    assert float(tail.abs().max()) <= 3 * float(x.abs().max())


def test_the_convolutional_flow_beats_the_map_before_it() -> None:
    (x, labels), (new, new_labels) = maps(400, 2, 8, 8), maps(200, 2, 8, 8, seed=1)

    def log_likelihood(fitted: ConvNormalizingFlow | PerFrequency) -> float:
        z = fitted.forward(new, new_labels).flatten(1)
        base = torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(dim=1)
        return float((base + fitted.log_abs_det_jacobian(new, new_labels)).mean())

    flow = ConvNormalizingFlow(width=16, steps=100, learning_rate=3e-3, validate_every=20).fit(x, labels)
    assert log_likelihood(flow) > log_likelihood(PerFrequency().fit(x)) + 5
    assert not any("does not beat" in note for note in flow.notes)


def test_the_estimated_log_det_is_near_that_of_the_numerical_solution() -> None:
    x, labels = maps(120, 2, 6, 6)
    flow = ConvLowCapacityFlow(**{**TINY, "learning_rate": 2e-2, "solver_steps": 5, "tolerance": 0.1}).fit(
        x, labels
    )  # type: ignore[arg-type]
    assert any(f"{PROBES} random vectors" in note for note in flow.notes)
    rows, classes = x[:3].flatten(1), labels[:3]
    exact = LowCapacityFlow._log_abs_det(flow, rows, classes)
    before = flow.whitening.log_abs_det_jacobian(x[:3])
    assert float((exact - before).abs().min()) > 0.1
    estimates = before + flow._divergences(flow.whitening._forward(rows, None), classes)
    error = estimates.std(dim=0) / PROBES**0.5
    assert torch.all((flow.log_abs_det_jacobian(x[:3], classes) - exact).abs() <= 4 * error)
    deviations = flow.log_abs_det_deviations(x[:3], classes)
    assert torch.allclose(deviations.std(dim=0) / PROBES**0.5, error)
    whole = Composition([flow, "per_channel"]).fit(x, labels)
    assert torch.equal(whole.log_abs_det_deviations(x[:3], classes), deviations)
    assert flow.whitening.log_abs_det_deviations(x[:3]).shape == (0, 3)


def test_the_error_of_the_estimated_log_det_is_in_the_interval_of_a_likelihood(tmp_path: Path) -> None:
    """Of one row many times: rows do not scatter, so that the error that they share is all there is."""
    x, labels = maps(120, 2, 6, 6)
    flow = ConvLowCapacityFlow(**{**TINY, "learning_rate": 2e-2, "solver_steps": 5, "tolerance": 0.1})  # type: ignore[arg-type]
    flow.fit(x, labels).save(tmp_path / "map")
    latents, preconditioner, written = Mock(), Mock(), {}
    latents.tensors.return_value = {"latents": x[:1].repeat(10, 1, 1, 1), "labels": labels[:1].repeat(10)}
    preconditioner.verified.return_value = tmp_path / "map"
    params = {"likelihood": {"seed": 0, "points": 10}, "source": "preconditioner", "replicates": 1000}
    job = Mock(params=params)
    job.parent.side_effect = {"latents": latents, "preconditioner": preconditioner}.get
    job.write_frame.side_effect = written.__setitem__
    likelihoods.make(job)
    (record,), (run,) = (written[f"{name}.csv"].to_dict("records") for name in ("records", "bootstrap"))
    error = float(flow.log_abs_det_deviations(x[:1], labels[:1]).std()) / PROBES**0.5
    assert error > 0.01
    assert record["standard_error"] == pytest.approx(error, rel=1e-6)
    assert record["note"] == f"standard error of the map's log-determinant: {error:.2g}"
    replicates = torch.tensor([float(value) for value in run["replicates"].split()], dtype=torch.float64)
    assert float(replicates.std()) == pytest.approx(error, rel=0.1)
    assert float(replicates.mean()) == pytest.approx(record["value"], abs=0.2 * error)


def test_each_class_has_the_map_that_its_rows_alone_give() -> None:
    x, labels = maps(200, 2, 4, 4)
    x[labels == 1] *= 9
    fitted = PerClass().fit(x, labels)
    for label in (0, 1):
        alone = PerFrequency().fit(x[labels == label])
        chosen = labels == label
        assert torch.allclose(fitted.forward(x, labels)[chosen], alone.forward(x[chosen]))
        expected = alone.log_abs_det_jacobian(x[chosen])
        assert torch.allclose(fitted.log_abs_det_jacobian(x, labels)[chosen], expected)
    assert fitted.num_parameters == 2 * alone.num_parameters
    assert fitted.notes == []


@pytest.mark.parametrize("kind", ["per_frequency", "channel_whitening", "per_channel"])
def test_small_classes_lean_on_the_pooled_moments(kind: str) -> None:
    x, labels = maps(200, 3, 4, 4)
    labels[0], labels[2:5] = 7, 5  # classes of one and three rows, from which no map can be made alone
    fitted = PerClass(kind).fit(x, labels)
    assert [note.split()[1] for note in fitted.notes if "pooled" in note] == ["5", "7"]
    z = fitted.forward(x, labels)
    assert torch.allclose(fitted.inverse(z, labels), x, atol=1e-8)
    assert 0.3 < float(z[labels < 2].var()) < 3
    with pytest.raises(PrecfmError):
        PerClass("per_frequency", rows_per_channel=0).fit(x, labels)


@pytest.mark.parametrize(
    "wrong",
    ["normalizing_flow", "class_whitening", "per_frequncy", 3, PerFrequency().fit(maps(9, 2, 2, 2)[0])],
)
def test_a_map_per_class_needs_an_unfitted_one_that_moments_determine(wrong: object) -> None:
    with pytest.raises(PrecfmError, match="map"):
        PerClass(wrong)


def test_shrinkage_takes_frequencies_without_variance_and_few_rows() -> None:
    x, _ = maps(40, 3, 4, 4)
    few = x[:3]
    with pytest.raises(PrecfmError, match="at frequency"):
        PerFrequency().fit(few)
    for shrinkage in (0.3, "auto"):
        fitted = PerFrequency(shrinkage=shrinkage).fit(few)  # type: ignore[arg-type]
        assert torch.allclose(fitted.inverse(fitted.forward(x)), x, atol=1e-8)
    half = PerFrequency(shrinkage=1).fit(x)
    identity = half.matrices[0] / half.matrices[0, 0, 0]
    assert torch.allclose(identity, torch.eye(3).double(), atol=1e-9)


def test_shrunk_low_rank_takes_more_directions_than_rows_have() -> None:
    x = maps(12, 2, 3, 3)[0]
    with pytest.raises(PrecfmError, match="rank: got 15"):
        LowRank(15).fit(x)
    fitted = LowRank(15, shrinkage=0.2).fit(x)
    assert torch.allclose(fitted.inverse(fitted.forward(x)), x, atol=1e-8)
    assert torch.allclose(LowRank(2, shrinkage=1).fit(x).forward(x).var(0), torch.ones(2, 3, 3).double())
