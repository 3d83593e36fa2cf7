"""Auto: what it measures against closed forms, what it chooses, and what it records."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from precfm.core.errors import PrecfmError
from precfm.core.seeds import generator_for
from precfm.preconditioners.auto import Auto, choose
from precfm.preconditioners.base import Preconditioner
from precfm.preconditioners.class_whitening import ClassWhitening
from precfm.preconditioners.identity import Identity
from precfm.preconditioners.low_capacity_flow import LowCapacityFlow
from precfm.preconditioners.normalizing_flow import NormalizingFlow
from precfm.preconditioners.saving import JSON_FILE, load, save
from precfm.preconditioners.scalar import Scalar
from precfm.preconditioners.scoring import cross_validated_eigenvalues, score
from precfm.preconditioners.whitening import Whitening

DIM = 4
SMALL: dict[str, Any] = {"steps": 40, "width": 8, "validate_every": 20, "batch_size": 64}
LINEAR: tuple[dict[str, Any], ...] = (
    {"name": "none"},
    {"name": "scalar"},
    {"name": "whitening", "exponent": 0.25},
    {"name": "whitening"},
    {"name": "class_whitening"},
)


def gaussian(rows: int, seed: int, kappa: float) -> Tensor:
    """Rotated Gaussian with a mean, shape (rows, DIM), float64."""
    fixed = torch.Generator().manual_seed(7)
    basis = torch.linalg.qr(torch.randn(DIM, DIM, generator=fixed, dtype=torch.float64))[0]
    stds = torch.logspace(0, -0.5 * math.log10(kappa), DIM, dtype=torch.float64)
    noise = torch.randn(rows, DIM, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (noise * stds) @ basis.T + 0.3


def mixture(rows: int, seed: int) -> tuple[Tensor, Tensor]:
    """Three components of equal trace whose condition numbers are 1, 100 and 1e4, in different rotations."""
    fixed = torch.Generator().manual_seed(8)
    labels = torch.arange(rows) % 3
    x = torch.randn(rows, DIM, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    for label, kappa in enumerate((1.0, 1e2, 1e4)):
        variances = torch.logspace(0, -math.log10(kappa), DIM, dtype=torch.float64)
        basis = torch.linalg.qr(torch.randn(DIM, DIM, generator=fixed, dtype=torch.float64))[0]
        chosen = labels == label
        x[chosen] = (x[chosen] * (variances / variances.mean()).sqrt()) @ basis.T + label
    return x, labels


def names(auto: Auto) -> str:
    return str(auto.candidates[auto.record["chosen"]]["name"])


@pytest.mark.parametrize(("rows", "kappa"), [(8, 1.0), (43, 100.0), (500, 1e4)])
def test_cross_validated_eigenvalues_are_variances_of_left_out_rows(rows: int, kappa: float) -> None:
    z = gaussian(rows, 0, kappa)
    computed = cross_validated_eigenvalues(z, seed=3)
    expected = np.zeros(DIM)
    order = torch.randperm(rows, generator=generator_for(3, "folds")).numpy()
    for fold in np.array([order[start::5] for start in range(5)], dtype=object):
        left_out = fold.astype(int)
        others = np.delete(z.numpy(), left_out, axis=0)
        vectors = np.linalg.eigh(np.cov(others, rowvar=False))[1]
        for row in z.numpy()[left_out]:
            expected += (vectors.T @ (row - others.mean(axis=0))) ** 2
    assert np.allclose(computed.numpy(), expected / rows, rtol=1e-9)


def test_few_rows_do_not_spread_the_eigenvalues_of_white_data() -> None:
    source = torch.Generator().manual_seed(0)
    z = torch.randn(80, 16, generator=source, dtype=torch.float64)
    values, sample = cross_validated_eigenvalues(z), torch.linalg.eigvalsh(z.T.cov())
    assert float(values.max() / values.min()) < 3 < 4 < float(sample[-1] / sample[0])


def test_a_score_agrees_with_closed_forms() -> None:
    kappa = 1e3
    train, x = gaussian(5000, 0, kappa), gaussian(20_000, 1, kappa)
    variances = np.logspace(0, -3, DIM)
    t = (np.arange(200_000) + 0.5) / 200_000
    low, high = variances[-1] / variances.mean(), variances[0] / variances.mean()
    along = np.mean((t**2 * high + (1 - t) ** 2) / (t**2 * low + (1 - t) ** 2))
    scalar = score(Scalar().fit(train), x, accuracy=0.01)
    assert scalar.condition_number == pytest.approx(kappa, rel=0.05)
    assert scalar.predicted_steps == pytest.approx(math.log(100) * along, rel=0.05)
    entropy = 0.5 * np.log(2 * math.pi * math.e * variances).sum()
    whitened = score(Whitening().fit(train), x)
    assert whitened.negative_log_likelihood == pytest.approx(entropy, abs=0.02)
    assert whitened.predicted_steps == pytest.approx(math.log(10), rel=0.1)
    assert whitened.round_trip_error is not None
    assert whitened.round_trip_error < 1e-9
    assert whitened.worst_class is None
    assert score(Identity().fit(train), x).round_trip_error == 0


def test_a_score_names_the_worst_class() -> None:
    train, x = mixture(3000, 0), mixture(3000, 1)
    for fitted, worst in ((Scalar().fit(*train), 1e4), (ClassWhitening().fit(*train), 1.2)):
        found = score(fitted, *x)
        assert found.classes_scored == 3
        assert found.worst_class_condition_number == pytest.approx(worst, rel=0.2)
    assert score(Scalar().fit(*train), *x).worst_class == 2
    few = torch.cat([(x[1] == 2).nonzero()[:7, 0], (x[1] != 2).nonzero()[:, 0]])
    found = score(Scalar().fit(*train), x[0][few], x[1][few])
    assert (found.worst_class, found.classes_scored) == (1, 2)
    quick = LowCapacityFlow(tolerance=1.0, **SMALL).fit(train[0][:300], train[1][:300])
    assert score(quick, x[0][:300], x[1][:300]).negative_log_likelihood is None


def test_scores_on_too_little_data_are_refused() -> None:
    fitted = Scalar().fit(gaussian(100, 0, 10))
    with pytest.raises(PrecfmError, match=r"^validation: got 7"):
        score(fitted, gaussian(7, 1, 10))
    with pytest.raises(PrecfmError, match=r"^validation: got 0"):
        score(fitted, gaussian(7, 1, 10)[:0])
    with pytest.raises(PrecfmError, match="accuracy"):
        score(fitted, gaussian(70, 1, 10), accuracy=1.0)


def test_a_rotated_gaussian_is_whitened() -> None:
    auto = Auto(LINEAR[:4]).fit(gaussian(1000, 0, 1e4).float())
    assert names(auto) == "whitening"
    assert auto.chosen.options == Whitening().options
    table = auto.record["candidates"]
    assert [row["out"] for row in table] == [None] * 4
    steps = [row["predicted_steps"] for row in table]
    assert steps[3] < steps[2] < steps[1]
    assert not auto.needs_labels


def test_of_equally_good_maps_the_one_with_fewest_parameters_is_chosen() -> None:
    x, labels = gaussian(4000, 0, 1.0), torch.arange(4000) % 2
    auto = Auto(LINEAR).fit(x, labels)
    assert names(auto) == "none"
    auto = Auto(LINEAR[1:]).fit(x, labels)
    assert names(auto) == "scalar"
    assert not auto.needs_labels
    assert auto.classes == ()
    assert torch.equal(auto.forward(x), auto.forward(x, labels))


def test_badly_conditioned_components_get_a_map_of_their_own() -> None:
    x, labels = mixture(1500, 0)
    auto = Auto(LINEAR).fit(x, labels)
    assert names(auto) == "class_whitening"
    assert auto.needs_labels
    assert auto.classes == (0, 1, 2)
    with pytest.raises(PrecfmError, match=r"labels: .*missing"):
        auto.forward(x)
    # The same data without labels: the reason why the best map is out is recorded.
    blind = Auto(LINEAR).fit(x)
    assert names(blind) != "class_whitening"
    assert "labels" in blind.record["candidates"][4]["out"]
    assert any("class_whitening" in note for note in blind.notes)


def test_the_map_is_that_of_the_chosen_candidate_alone() -> None:
    data, validation = mixture(900, 0), mixture(300, 1)
    flow = {"name": "normalizing_flow", **SMALL}
    auto = Auto(({"name": "none"}, flow), margin=0.0).fit(*data, validation=validation, seed=5)
    alone: Preconditioner = NormalizingFlow(**SMALL).fit(*data, validation=validation, seed=5)
    assert names(auto) == "normalizing_flow"
    assert torch.equal(auto.forward(*data), alone.forward(*data))
    assert auto.num_parameters == alone.num_parameters
    assert auto.record["rows"] == 900
    assert [note.removeprefix("normalizing_flow") for note in auto.notes[-len(alone.notes) :]] != []
    assert all(any(note.endswith(own) for note in auto.notes) for own in alone.notes)


def test_the_cost_is_that_of_all_fits() -> None:
    data, validation = mixture(600, 0), mixture(300, 1)
    candidates = (
        {"name": "scalar"},
        {"name": "class_whitening"},
        {"name": "low_capacity_flow", "tolerance": 1.0, **SMALL},
    )
    auto = Auto(candidates).fit(*data, validation=validation, seed=1)
    alone = (Scalar(), ClassWhitening(), LowCapacityFlow(tolerance=1.0, **SMALL))
    costs = [fitted.fit(*data, validation=validation, seed=1).flops_per_fit for fitted in alone]
    assert [row["flops_per_fit"] for row in auto.record["candidates"]] == costs
    assert auto.flops_per_fit == sum(costs)


def test_the_record_survives_a_file(tmp_path: Path) -> None:
    x, labels = mixture(600, 0)
    auto = Auto((*LINEAR, {"name": "composition", "stages": ({"name": "scalar"}, {"name": "whitening"})}))
    auto.fit(x, labels, seed=2)
    save(auto, tmp_path)
    again = load(tmp_path)
    assert again.record == auto.record == json.loads((tmp_path / JSON_FILE).read_text())["record"]
    assert again.notes == auto.notes
    assert isinstance(again, Auto)
    assert again.needs_labels
    assert torch.equal(again.forward(x, labels), auto.forward(x, labels))
    assert again.round_trip_tolerance == auto.chosen.round_trip_tolerance
    row = auto.record["candidates"][auto.record["chosen"]]
    assert row["out"] is None
    assert row["num_parameters"] == again.num_parameters
    del (described := json.loads((tmp_path / JSON_FILE).read_text()))["record"]
    (tmp_path / JSON_FILE).write_text(json.dumps(described))
    with pytest.raises(PrecfmError, match="no saved preconditioner"):
        load(tmp_path)


def test_a_candidate_that_is_refused_does_not_stop_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    x, labels = mixture(600, 0)
    diverging = {"name": "normalizing_flow", **SMALL, "learning_rate": 100.0}
    honest = Whitening._inverse
    wrong = {"name": "whitening", "exponent": 0.4}

    def open_ended(self: Whitening, z: Tensor, classes: Tensor | None) -> Tensor:
        return honest(self, z, classes) + (0.1 if self.exponent == 0.4 else 0.0)

    monkeypatch.setattr(Whitening, "_inverse", open_ended)
    auto = Auto((diverging, wrong, {"name": "whitening", "rows": 10_000}, {"name": "scalar"})).fit(x, labels)
    out = [row["out"] for row in auto.record["candidates"]]
    assert "learning_rate" in out[0]
    assert "round-trip" in out[1]
    assert "rows: got 10000" in out[2]
    assert out[3] is None
    assert names(auto) == "scalar"
    # A training that was refused at its end was paid for.
    assert auto.record["candidates"][0]["flops_per_fit"] > 1e6
    with pytest.raises(PrecfmError, match=r"normalizing_flow.*whitening"):
        Auto((diverging, wrong)).fit(x, labels)


def test_constant_channels_are_refused_with_the_reason_of_every_candidate() -> None:
    x = gaussian(300, 0, 10.0)
    x[:, 2] = 1.0
    with pytest.raises(PrecfmError, match=r"scalar.*whitening.*feature 2"):
        Auto(({"name": "scalar"}, {"name": "whitening"})).fit(x)


def test_too_few_rows_to_judge_are_refused_before_any_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Scalar, "_fit", None)
    with pytest.raises(PrecfmError, match=r"^validation: got 7"):
        Auto(LINEAR).fit(gaussian(35, 0, 10.0))


def test_a_class_of_one_row_stays_in_the_fit() -> None:
    x, labels = mixture(600, 0)
    labels[17] = 9
    auto = Auto(({"name": "class_whitening"},)).fit(x, labels)
    assert auto.classes == (0, 1, 2, 9)
    assert auto.record["rows"] + auto.record["validation_rows"] == 600
    assert auto.record["validation_rows"] == 40 + 40 + 39


def test_learned_candidates_keep_their_training_state_apart(tmp_path: Path) -> None:
    x, labels = mixture(300, 0)
    flows = ({"name": "normalizing_flow", **SMALL}, {"name": "low_capacity_flow", "tolerance": 1.0, **SMALL})
    first = Auto(flows).fit(x, labels, scratch=tmp_path)
    assert sorted(folder.name for folder in tmp_path.iterdir()) == ["candidate-0", "candidate-1"]
    again = Auto(flows).fit(x, labels, scratch=tmp_path)
    assert torch.equal(first.forward(x, labels), again.forward(x, labels))


@given(
    rows=st.lists(
        st.tuples(st.floats(1, 100), st.integers(0, 50), st.booleans()), min_size=1, max_size=6
    ).filter(lambda rows: any(usable for _, _, usable in rows)),
    margin=st.floats(0, 1),
)
def test_the_choice_is_the_smallest_among_the_fast(
    rows: list[tuple[float, int, bool]], margin: float
) -> None:
    table = [
        {
            "candidate": {"name": f"map{position}"},
            "predicted_steps": steps,
            "num_parameters": parameters,
            "out": None if usable else "refused",
        }
        for position, (steps, parameters, usable) in enumerate(rows)
    ]
    chosen, reason = choose(table, margin)
    usable = [row for row in rows if row[2]]
    bound = (1 + margin) * min(steps for steps, _, _ in usable)
    steps, parameters, used = rows[chosen]
    assert used
    assert steps <= bound
    assert parameters == min(count for other, count, _ in usable if other <= bound)
    assert f"map{chosen}" in reason
