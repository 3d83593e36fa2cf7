"""Selection: what is chosen and why, who is out, and that the rule is the one-standard-error rule."""

import json
import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from precfm.core.errors import PrecfmError
from precfm.flows.settings import FlowSettings
from precfm.preconditioned_flow import DEFAULT_TRAINING
from precfm.preconditioners.scalar import Scalar
from precfm.selection.candidates import Candidate
from precfm.selection.select import Selection, select
from precfm.selection.standings import preferred, standings

DIM = 3
QUICK: dict[str, Any] = {"budget_steps": 5, "solver_steps": 2}
SMALL = FlowSettings(
    model={"name": "mlp", "width": 16, "depth": 2},
    training=DEFAULT_TRAINING.model_copy(update={"batch_size": 64}),
)
WHITENING = Candidate("whitening")
SKIP = Candidate("scalar", ("gaussian_skip",))


class Opaque(Scalar):
    """A map of which no likelihood can be had."""

    has_log_det = False


def gaussian(rows: int, kappa: float) -> Tensor:
    """Rotated Gaussian with a mean, shape (rows, DIM), float32."""
    source = torch.Generator().manual_seed(7)
    basis = torch.linalg.qr(torch.randn(DIM, DIM, generator=source))[0]
    stds = torch.logspace(0, -0.5 * math.log10(kappa), DIM)
    return (torch.randn(rows, DIM, generator=source) * stds) @ basis.T + 0.3


def chosen_from(x: Tensor, labels: Tensor | None = None, **changed: Any) -> Selection:
    return select(
        x, labels, **{"settings": SMALL, "budget_steps": 60, "validation_rows": 100, "seed": 1, **changed}
    )


@pytest.fixture(scope="module")
def ill() -> Selection:
    """A choice among all kinds: better maps, one that cannot be fitted, one without a likelihood."""
    candidates = {
        "whitening": WHITENING,
        "skip": SKIP,
        "by class": Candidate("class_whitening"),
        "opaque": Candidate("tests.test_selection:Opaque"),
        "greedy": Candidate({"name": "whitening", "rows": 10_000}),
        "diverging": Candidate({"name": "normalizing_flow", "conditional": False, "learning_rate": 1e4}),
    }
    return chosen_from(gaussian(600, 1e4), candidates=candidates)


def test_ill_conditioned_data_get_a_map_or_a_skip(ill: Selection) -> None:
    assert ill.chosen in ("whitening", "skip")
    rung = ill.record["rungs"][-1]
    assert [each["steps"] for each in ill.record["rungs"]] == [30, 60]
    assert rung["projected_to"] == 60  # so early nothing is projected
    row = rung["candidates"]["scalar"]
    assert row["difference"] > 4 * row["standard_error"] > 0
    assert not row["kept"]
    assert ill.chosen in ill.record["reason"]
    flow = ill.flow()
    assert flow.settings.training == SMALL.training
    assert flow.settings.wrappers == ill.wrappers
    assert flow.preconditioner is ill.preconditioner
    assert flow.preconditioner.fitted


def test_late_scores_are_projected_to_twice_the_steps() -> None:
    x = torch.randn(60, 2, generator=torch.Generator().manual_seed(0))
    found = select(
        x, candidates={"whitening": Candidate("whitening")}, settings=SMALL.shortened(40), budget_steps=20
    )
    assert [(each["steps"], each["projected_to"]) for each in found.record["rungs"]] == [(10, 10), (20, 40)]
    assert "projected to 40" in found.summary()


def test_a_candidate_that_cannot_be_used_is_out_with_its_reason(ill: Selection) -> None:
    out = {name: entry["out"] for name, entry in ill.record["candidates"].items()}
    assert out["scalar"] is out["whitening"] is out["skip"] is None
    assert "labels" in out["by class"]
    assert "determinant" in out["opaque"]
    assert "rows: got 10000" in out["greedy"]
    assert "learning_rate" in out["diverging"]
    assert ill.record["candidates"]["diverging"]["flops"] > 0  # a fit that was refused was paid for
    for name, reason in out.items():
        assert name in ill.summary()
        assert (reason or "") in ill.summary()


def test_the_record_is_plain_data_and_counts_all_costs(ill: Selection) -> None:
    assert json.loads(json.dumps(ill.record, allow_nan=False)) == ill.record
    entries = ill.record["candidates"]
    assert ill.record["flops"] == sum(entry["flops"] for entry in entries.values())
    flow = ill.flow().prepare(gaussian(600, 1e4))
    assert entries[ill.chosen]["flops"] > 3 * 90 * flow.flops_per_step
    assert (ill.record["rows"], ill.record["validation_rows"]) == (500, 100)
    assert next(iter(entries)) == "scalar"


def test_white_data_keep_the_default() -> None:
    x = gaussian(600, 1.0)
    found = chosen_from(x, candidates={"whitening": WHITENING}, budget_steps=30, solver_steps=8)
    assert (found.chosen, found.wrappers) == ("scalar", ())


def test_a_choice_is_a_function_of_data_and_seed() -> None:
    x, state = gaussian(100, 10.0), torch.get_rng_state()
    records = [chosen_from(x, candidates={"skip": SKIP}, seed=seed, **QUICK).record for seed in (1, 1, 2)]
    assert records[0] == records[1] != records[2]
    assert torch.equal(torch.get_rng_state(), state)


def test_halving_keeps_the_better_half_and_the_default() -> None:
    rows = torch.arange(400) % 2
    x = gaussian(400, 1e2) + rows[:, None]
    wider = {
        f"exponent {exponent}": Candidate({"name": "whitening", "exponent": exponent})
        for exponent in (0.1, 0.2, 0.3, 0.5)
    }
    found = chosen_from(x, rows, candidates=wider, **QUICK | {"budget_steps": 20})
    first, middle, last = found.record["rungs"]
    assert (first["steps"], middle["steps"], last["steps"]) == (5, 10, 20)
    assert all(row["kept"] for row in first["candidates"].values())
    projected = {name: row["projected"] for name, row in middle["candidates"].items() if name != "scalar"}
    better = sorted(projected, key=projected.__getitem__)[:2]
    assert {name for name, row in middle["candidates"].items() if row["kept"]} == {"scalar", *better}
    assert set(last["candidates"]) == {"scalar", *better}
    assert [name for name, row in last["candidates"].items() if row["kept"]] == [found.chosen]


def test_what_falls_faster_may_overtake_what_leads() -> None:
    before = {"scalar": torch.full((3, 1), 9.0), "early": torch.full((3, 1), 2.0)}
    now = {"scalar": torch.full((3, 1), 4.0), "early": torch.full((3, 1), 1.5)}
    assert preferred(standings(now))[0] == "early"
    table = standings(now, before, doublings=1.0)
    assert (table["scalar"].projected, table["early"].projected) == (-1.0, 1.0)
    assert preferred(table)[0] == "scalar"
    assert preferred(standings(now, before, doublings=0.5))[0] == "early"


def test_a_judge_decides_where_one_is_given() -> None:
    asked = []

    def prefers_two(samples: Tensor, labels: Tensor | None) -> Tensor:
        assert labels is not None
        asked.append((tuple(samples.shape), labels.bincount().tolist()))
        return -float((len(asked) - 1) // 3 % 2) * torch.ones(())  # of three trainings of each, in turn

    x, labels = gaussian(300, 1.0), torch.arange(300) % 3
    candidates = {"learned": Candidate({"name": "low_capacity_flow", "steps": 20, "tolerance": 1.0})}
    found = chosen_from(x, labels, candidates=candidates, judge=prefers_two, num_samples=30, budget_steps=10)
    assert found.chosen == "learned"  # which has no likelihood
    assert asked == [((30, DIM), [10, 10, 10])] * 12
    assert found.record["rungs"][0]["candidates"]["scalar"]["scores"] == [0.0] * 3
    with pytest.raises(PrecfmError, match=r"judge: gave 30"):
        chosen_from(x, candidates={}, judge=lambda samples, _: samples[:, 0], num_samples=30, budget_steps=10)
    with pytest.raises(PrecfmError, match=r"scalar \(.*not finite"):
        chosen_from(x, candidates={}, judge=lambda samples, _: samples.sum() * math.nan, budget_steps=10)


def test_given_validation_rows_judge_and_half_of_the_steps_are_taken() -> None:
    x, labels = gaussian(300, 10.0), torch.arange(300) % 2
    found = chosen_from(
        x,
        labels,
        candidates={"skip": SKIP},
        settings=SMALL.shortened(8),
        validation=(x[:150], labels[:150]),
        budget_steps=None,
        solver_steps=2,
    )
    assert (found.record["rows"], found.record["validation_rows"]) == (300, 100)
    assert torch.equal(found.preconditioner.forward(x), Scalar().fit(x).forward(x))
    assert [(rung["steps"], rung["projected_to"]) for rung in found.record["rungs"]] == [(2, 2), (4, 8)]


def test_wrong_calls_are_refused_by_field() -> None:
    x = gaussian(100, 1.0)
    wrong: list[tuple[str, dict[str, Any]]] = [
        ("candidates.scalar", {"candidates": {"scalar": WHITENING}}),
        ("candidates.mine: preconditioners", {"candidates": {"mine": Candidate("bleaching")}}),
        ("candidates.mine: wrappers", {"candidates": {"mine": Candidate("scalar", ("no_skip",))}}),
        ("settings.wrappers", {"settings": FlowSettings(wrappers=({"name": "gaussian_skip"},))}),
        ("models", {"settings": FlowSettings(model={"name": "mlp", "width": 0})}),
        ("num_seeds: got 2", {"num_seeds": 2}),
        ("validation_rows: got 1", {"validation_rows": 1}),
        ("validation: got labels", {"validation": (x, torch.zeros(100, dtype=torch.int64))}),
        ("validation: got 0 rows", {"validation": (x[:0], None)}),
        ("x: holds nan", {"x": x.clone().index_fill(0, torch.tensor([4]), math.nan)}),
        ("labels: have shape", {"labels": torch.zeros(99, dtype=torch.int64)}),
        ("candidates: none", {"x": torch.ones(100, DIM)}),
    ]
    for field, changed in wrong:
        with pytest.raises(PrecfmError, match=f"^{field}"):
            chosen_from(**{"x": x, **changed})


@given(
    means=st.lists(st.floats(-5, 5), min_size=1, max_size=5),
    spread=st.floats(0, 2),
    shape=st.tuples(st.integers(3, 5), st.integers(1, 4)),
    seed=st.integers(0, 99),
)
def test_the_choice_is_the_simplest_within_one_standard_error(
    means: list[float], spread: float, shape: tuple[int, int], seed: int
) -> None:
    noise = torch.randn(
        len(means), *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )
    scores = {f"map{position}": mean + spread * noise[position] for position, mean in enumerate(means)}
    table = standings(scores)
    chosen, reason = preferred(table)
    best = min(scores, key=lambda name: float(scores[name].mean()))
    assert table[best].difference == table[best].standard_error == 0
    for name, each in scores.items():
        gap = (each - scores[best]).numpy()
        variance = gap.mean(axis=1).var(ddof=1) / shape[0]
        if shape[1] > 1:
            variance += gap.mean(axis=0).var(ddof=1) / shape[1]
        assert table[name].standard_error == pytest.approx(math.sqrt(variance), abs=1e-12)
        assert table[name].difference == pytest.approx(gap.mean(), abs=1e-12)
        if name == chosen:
            break
        assert gap.mean() > math.sqrt(variance) - 1e-12
    assert table[chosen].difference <= table[chosen].standard_error
    assert chosen in reason
    assert best in reason
