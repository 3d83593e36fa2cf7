"""What the learned maps and compositions promise on top of the contract."""

import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from precfm.core.errors import PrecfmError
from precfm.preconditioners.base import Preconditioner
from precfm.preconditioners.class_whitening import ClassWhitening
from precfm.preconditioners.composition import Composition
from precfm.preconditioners.low_capacity_flow import LowCapacityFlow
from precfm.preconditioners.normalizing_flow import NormalizingFlow
from precfm.preconditioners.per_channel import PerChannel
from precfm.preconditioners.round_trip import tail_round_trip_error
from precfm.preconditioners.whitening import Whitening
from tests.preconditioner_cases import FLOW_LAST, TINY_FLOW, Case, ill_conditioned, make

Labelled = tuple[Tensor, Tensor]
FEW_SOLVER_STEPS = {**TINY_FLOW, "max_solver_steps": 25}  # a refusal comes soon


@pytest.fixture(scope="module")
def data() -> Labelled:
    return ill_conditioned(450, seed=0)


@pytest.mark.parametrize("case", [("normalizing_flow", TINY_FLOW), ("low_capacity_flow", TINY_FLOW)])
def test_learned_maps_refuse_a_constant_channel_unless_shrunk(data: Labelled, case: Case) -> None:
    x = data[0].clone()
    x[:, 1, 0] = -3.0
    with pytest.raises(PrecfmError, match=r"feature 3 .*shrinkage"):
        make(case).fit(x, data[1])
    shrunk = make((case[0], {**case[1], "shrinkage": 0.01})).fit(x, data[1])
    assert any("constant in feature 3" in note for note in shrunk.notes)
    assert torch.allclose(shrunk.inverse(shrunk.forward(x, data[1]), data[1]), x, atol=1e-3)


def test_the_flow_beats_whitening_on_curved_data() -> None:
    x, labels = ill_conditioned(1500, seed=0)
    new, new_labels = ill_conditioned(1500, seed=1)
    flow = NormalizingFlow(width=32, steps=300).fit(x, labels)
    assert mean_log_likelihood(flow, new, new_labels) > mean_log_likelihood(Whitening().fit(x), new) + 0.5
    assert not any("does not beat" in note for note in flow.notes)


def mean_log_likelihood(preconditioner: Preconditioner, x: Tensor, labels: Tensor | None = None) -> float:
    z = preconditioner.forward(x, labels).flatten(1)
    base = torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(dim=1)
    return float((base + preconditioner.log_abs_det_jacobian(x, labels)).mean())


def test_the_flow_does_not_depend_on_given_validation_labels_when_unconditional(data: Labelled) -> None:
    x, labels = data
    flow = NormalizingFlow(conditional=False, **TINY_FLOW)
    given_labels = flow.fit(x, labels, validation=(x[:50], labels[:50])).forward(x)
    assert torch.equal(flow.fit(x, validation=(x[:50], None)).forward(x), given_labels)


@pytest.mark.parametrize("kind", ["coupling", "autoregressive", "spline"])
def test_bounds_hold_for_any_weights(kind: Any, data: Labelled) -> None:
    # Weights far larger than training gives: the bounds come from the parametrisation, not from luck.
    x, labels = data
    flow = NormalizingFlow(kind=kind, max_log_scale=0.5, transforms=2, **{**TINY_FLOW, "steps": 1}).fit(
        x, labels
    )
    source = torch.Generator().manual_seed(0)
    for parameter in flow.network.parameters():
        parameter.copy_(10 * torch.randn(parameter.shape, generator=source))
    z = 1.5 * torch.randn(x.shape, generator=source, dtype=torch.float64)
    white = flow.whitening.forward(flow.inverse(z, labels).flatten(1))
    if kind == "spline":
        assert float(white.abs().max()) <= max(5.0, float(z.abs().max())) + 1e-6
    else:
        once = math.exp(0.5) * (float(z.abs().max()) + 5)
        assert float(white.abs().max()) <= math.exp(0.5) * (once + 5) + 1e-6
    assert torch.allclose(flow.forward(flow.inverse(z, labels), labels), z, atol=1e-6)


def test_a_diverging_flow_is_refused(data: Labelled, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = NormalizingFlow._negative_log_likelihood
    calls = itertools.count()

    def diverging(self: NormalizingFlow, network: Any, *batch: Tensor) -> Tensor:
        return honest(self, network, *batch) * (math.nan if next(calls) > 5 else 1.0)

    monkeypatch.setattr(NormalizingFlow, "_negative_log_likelihood", diverging)
    flow = NormalizingFlow(**TINY_FLOW)
    with pytest.raises(PrecfmError, match="not finite"):
        flow.fit(*data)
    with pytest.raises(PrecfmError, match="before fit"):
        flow.forward(*data)


@pytest.mark.parametrize("case", [("normalizing_flow", TINY_FLOW), ("low_capacity_flow", FEW_SOLVER_STEPS)])
@pytest.mark.parametrize("learning_rate", [10.0, 100.0])
def test_a_flow_that_diverges_to_finite_weights_is_refused(
    data: Labelled, case: Case, learning_rate: float
) -> None:
    flow = make((case[0], {**case[1], "learning_rate": learning_rate}))
    with pytest.raises(PrecfmError, match=r"learning_rate|max_solver_steps"):
        flow.fit(*data)
    with pytest.raises(PrecfmError, match="before fit"):
        flow.forward(*data)


@pytest.mark.parametrize("wrong", [1.0, math.nan, math.inf])
@pytest.mark.parametrize(
    "case",
    [("normalizing_flow", TINY_FLOW), ("low_capacity_flow", FEW_SOLVER_STEPS), FLOW_LAST],
    ids=lambda c: c[0],
)
def test_a_map_that_does_not_close_is_refused(
    data: Labelled, case: Case, wrong: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    cls = type(make(case))
    honest = cls._inverse
    monkeypatch.setattr(cls, "_inverse", lambda self, z, classes: honest(self, z, classes) + wrong)
    with pytest.raises(PrecfmError, match="round-trip error"):
        make(case).fit(*data)


def test_a_killed_fit_resumes_from_its_scratch_folder(
    data: Labelled, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = NormalizingFlow._negative_log_likelihood

    def fit(calls_allowed: float, scratch: Path | None) -> tuple[NormalizingFlow, int]:
        flow = NormalizingFlow(**{**TINY_FLOW, "validate_every": 60})
        flow.recipe = flow.recipe.model_copy(update={"save_every": 10})
        calls = itertools.count()

        def counted(self: NormalizingFlow, network: Any, *batch: Tensor) -> Tensor:
            if next(calls) >= calls_allowed:
                raise KeyboardInterrupt
            return honest(self, network, *batch)

        with monkeypatch.context() as patch:
            patch.setattr(NormalizingFlow, "_negative_log_likelihood", counted)
            flow.fit(*data, scratch=scratch)
        return flow, next(calls)

    with pytest.raises(KeyboardInterrupt):
        fit(50, tmp_path)
    whole, calls_whole = fit(math.inf, None)
    resumed, calls_resumed = fit(math.inf, tmp_path)
    assert calls_resumed == calls_whole - 40
    assert torch.equal(resumed.forward(*data), whole.forward(*data))
    with pytest.raises(PrecfmError, match="another training"):  # whose network looks the same
        NormalizingFlow(**{**TINY_FLOW, "validate_every": 60, "max_log_scale": 1.0}).fit(
            *data, scratch=tmp_path
        )


def test_more_midpoint_steps_where_a_tighter_tolerance_asks_for_them() -> None:
    x, labels = ill_conditioned(450, seed=0)
    options = {**TINY_FLOW, "solver_steps": 4}
    loose = LowCapacityFlow(tolerance=1.0, **options).fit(x, labels)
    tight = LowCapacityFlow(tolerance=1e-3, **options).fit(x, labels)
    assert int(tight.midpoint_steps) > int(loose.midpoint_steps)
    assert tail_round_trip_error(tight, x, labels) <= 1e-3 < tail_round_trip_error(loose, x, labels)
    # What decides is the number of steps, nothing else: the loose map's network is as good.
    loose.midpoint_steps.copy_(tight.midpoint_steps)
    assert tail_round_trip_error(loose, x, labels) <= 1e-3
    with pytest.raises(PrecfmError, match=r"max_solver_steps: got 8"):
        LowCapacityFlow(tolerance=1e-6, max_solver_steps=8, **options).fit(x, labels)


def test_the_low_capacity_flow_straightens_curved_data() -> None:
    # A parabola with noise: the features are uncorrelated, so whitening leaves the curve as it is.
    def parabola(seed: int) -> Tensor:
        noise = torch.randn(1500, 2, generator=torch.Generator().manual_seed(seed))
        return torch.stack([noise[:, 0], noise[:, 0].square() - 1 + 0.5 * noise[:, 1]], dim=1)

    def curvature(z: Tensor) -> float:
        return abs(float(torch.corrcoef(torch.stack([z[:, 0].square(), z[:, 1]]))[0, 1]))

    flow = LowCapacityFlow(conditional=False, width=32, steps=300).fit(parabola(0))
    assert curvature(Whitening().fit(parabola(0)).forward(parabola(1))) > 0.9
    assert curvature(flow.forward(parabola(1))) < 0.4


def test_a_composition_is_its_stages_in_order(data: Labelled) -> None:
    x, labels = data
    stages: Any = (
        {"name": "per_channel"},
        {"name": "class_whitening"},
        {"name": "whitening", "exponent": 0.1},
    )
    whole = Composition(stages).fit(x, labels)
    first = PerChannel().fit(x)
    second = ClassWhitening().fit(first.forward(x), labels)
    z = second.forward(first.forward(x), labels)
    third = Whitening(exponent=0.1).fit(z)
    assert torch.allclose(whole.forward(x, labels), third.forward(z), atol=1e-9)
    assert whole.num_parameters == sum(stage.num_parameters for stage in (first, second, third))
    assert whole.flops_per_fit == sum(stage.flops_per_fit for stage in (first, second, third))
    assert whole.needs_labels


def test_notes_of_a_composition_name_the_stage() -> None:
    x = ill_conditioned(100, seed=0)[0]
    whole = Composition(({"name": "scalar"}, {"name": "whitening", "shrinkage": 0.5})).fit(x)
    assert len(whole.notes) == 1
    assert whole.notes[0].startswith("stage 1 (whitening): ")


def test_a_composition_that_is_not_reversible_enough_is_refused(data: Labelled) -> None:
    # In the space behind the whitening the tolerance means more: its inverse stretches the error.
    flow = {"name": "low_capacity_flow", "solver_steps": 1, "tolerance": 0.5, **TINY_FLOW}
    with pytest.raises(PrecfmError, match="tolerance"):
        Composition(({"name": "whitening"}, flow)).fit(*data)
