"""Training: the update by hand, rates, averages, validation and checkpoints, and how mistakes are reported."""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from precfm.core.errors import DivergenceError, PrecfmError
from precfm.core.options import validated
from precfm.core.seeds import derived_seed, seeded_module
from precfm.flows.models.mlp import MLPVelocity
from precfm.flows.objectives import FlowMatching
from precfm.flows.paths import LinearPath
from precfm.training.checkpoints import read_verified
from precfm.training.draws import NotRandom, Objective
from precfm.training.optimizers import learning_rate_at
from precfm.training.options import TrainingOptions
from precfm.training.state import TrainingResult
from precfm.training.trainer import train

FULL = TrainingOptions(
    steps=24,
    batch_size=16,
    learning_rate=3e-3,
    schedule="cosine",
    warmup_steps=3,
    weight_decay=0.01,
    ema_decay=0.9,
    clip_norm=0.5,
    checkpoints=(4, 9, 20),
    validate_every=5,
    save_every=6,
)
ONES = (torch.ones(4, 1),)


def changed(**options: Any) -> TrainingOptions:
    return TrainingOptions(**{**FULL.model_dump(), **options})


def clusters() -> tuple[Tensor, Tensor]:
    source = torch.Generator().manual_seed(0)
    labels = torch.randint(3, (200,), generator=source)
    spread = torch.randn(200, 4, generator=source) * torch.tensor([2.0, 1.0, 0.3, 0.1])
    return spread + labels[:, None], labels


FLOW = FlowMatching().prepare(LinearPath(), clusters()[0])
SQUARES = NotRandom(lambda module, batch: module(batch[0]).square().mean())


class WithDropout(nn.Module):
    """A network that uses torch's global generator and has buffers that training changes."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.norm = MLPVelocity(4, 3, width=16, depth=2), nn.BatchNorm1d(4)

    def forward(self, x: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
        velocity: Tensor = self.net(nn.functional.dropout(self.norm(x), 0.1, self.training), t, labels)
        return velocity


class Killed(BaseException):
    """Stands for the end of the process at a chosen moment."""


@dataclass
class Dying:
    """The objective, until its loss has been asked for so many times."""

    left: int

    def draw(self, batch_size: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        return FLOW.draw(batch_size, generator)

    def loss(self, module: nn.Module, batch: tuple[Tensor, ...], draws: tuple[Tensor, ...]) -> Tensor:
        if self.left == 0:
            raise Killed
        self.left -= 1
        return FLOW.loss(module, batch, draws)


def held_out_loss(module: nn.Module) -> float:
    assert not module.training
    return float(FLOW.loss(module, clusters(), FLOW.draw(200, torch.Generator().manual_seed(9))))


class Outcome:
    """All that a training shows to the world."""

    def __init__(
        self, options: TrainingOptions, scratch: Path | None = None, objective: Objective = FLOW
    ) -> None:
        self.module = seeded_module(WithDropout, 0)
        self.handed_out: list[tuple[int, dict[str, Tensor]]] = []
        self.result: TrainingResult = train(
            self.module,
            objective,
            clusters(),
            options,
            seed=1,
            validation_loss=held_out_loss if options.validate_every else None,
            scratch=scratch,
            on_checkpoint=self.keep,
        )

    def keep(self, step: int, module: nn.Module) -> None:
        self.handed_out.append((step, {name: tensor.clone() for name, tensor in module.state_dict().items()}))

    def assert_equal(self, other: "Outcome") -> None:
        pd.testing.assert_frame_equal(self.result.history, other.result.history, check_exact=True)
        assert (self.result.best_step, self.result.steps_run) == (
            other.result.best_step,
            other.result.steps_run,
        )
        assert_same(self.module.state_dict(), other.module.state_dict())
        for (step, mine), (other_step, theirs) in zip(self.handed_out, other.handed_out, strict=True):
            assert step == other_step
            assert_same(mine, theirs)


@cache
def undisturbed(options: TrainingOptions) -> Outcome:
    return Outcome(options)


def assert_same(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    assert first.keys() == second.keys()
    for name in first:
        assert torch.equal(first[name], second[name]), name


# ---- what a step does


@pytest.mark.parametrize("clip_norm", [None, 0.1])
@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_weights_are_those_of_the_textbook_update(optimizer: Any, clip_norm: float | None) -> None:
    """A linear regression in float64, updated by hand; decoupled weight decay, bias-corrected moments."""
    options = TrainingOptions(
        steps=7,
        batch_size=5,
        learning_rate=0.05,
        optimizer=optimizer,
        weight_decay=0.1,
        clip_norm=clip_norm,
        ema_decay=0.5,
    )
    source = torch.Generator().manual_seed(3)
    x, y = (torch.randn(30, width, generator=source, dtype=torch.float64) for width in (3, 1))
    module = seeded_module(lambda: nn.Linear(3, 1, bias=False).double(), 4)
    weight = module.weight.detach().clone()
    average, first, second = weight.clone(), torch.zeros_like(weight), torch.zeros_like(weight)
    losses = []
    for step in range(options.steps):
        rows = torch.randint(30, (5,), generator=torch.Generator().manual_seed(derived_seed(2, "step", step)))
        residual = x[rows] @ weight.T - y[rows]
        losses.append(float(residual.square().mean()))
        gradient = 2 * residual.T @ x[rows] / 5
        if clip_norm is not None:
            gradient = gradient * min(1.0, clip_norm / (float(gradient.norm()) + 1e-6))
        if optimizer == "sgd":
            weight = weight - 0.05 * (gradient + 0.1 * weight)
        else:
            weight = weight * (1 - 0.05 * 0.1)
            first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
            corrected = first / (1 - 0.9 ** (step + 1)), second / (1 - 0.999 ** (step + 1))
            weight = weight - 0.05 * corrected[0] / (corrected[1].sqrt() + 1e-8)
        decay = min(0.5, (2 + step) / (11 + step))
        average = decay * average + (1 - decay) * weight

    regression = NotRandom(lambda module, batch: (module(batch[0]) - batch[1]).square().mean())
    result = train(module, regression, (x, y), options, seed=2)
    torch.testing.assert_close(module.weight.detach(), average, rtol=1e-9, atol=1e-12)
    assert result.history.loss.tolist() == pytest.approx(losses, rel=1e-9)
    assert result.history.step.tolist() == list(range(1, 8))
    assert result.history.learning_rate.tolist() == [0.05] * 7
    assert (result.steps_run, result.best_step) == (7, 7)


def test_muon_orthogonalises_hidden_steps_and_leaves_the_rest_to_adam() -> None:
    """One step, by the singular value decomposition that the Newton-Schulz iteration of Muon approximates."""
    rate = 0.01
    data = torch.randn(64, 8, generator=torch.Generator().manual_seed(0)), torch.zeros(64, dtype=torch.int64)
    gradients: dict[str, Tensor] = {}

    def loss(module: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
        value = (module(batch[0], batch[0][:, 0], batch[1]) - batch[0]).square().mean()
        names, weights = zip(*module.named_parameters(), strict=True)
        gradients.update(zip(names, torch.autograd.grad(value, weights, retain_graph=True), strict=True))
        return value

    def one_step(optimizer: Any) -> dict[str, Tensor]:
        module = seeded_module(lambda: MLPVelocity(8, 2, width=16, depth=3), 0)
        before = {name: weight.detach().clone() for name, weight in module.named_parameters()}
        options = TrainingOptions(steps=1, learning_rate=rate, optimizer=optimizer, ema_decay=None)
        train(module, NotRandom(loss), data, options, seed=0)
        return {name: weight.detach() - before[name] for name, weight in module.named_parameters()}

    moves, adams = one_step("muon"), one_step("adam")
    matrices = {"hidden.0.weight", "hidden.1.weight"}
    for name in moves.keys() - matrices:
        assert torch.equal(moves[name], adams[name]), name
    for name in matrices:
        u, values, v = torch.linalg.svd(gradients[name])
        inner = -(u.T @ moves[name] @ v.T) / (0.2 * 16**0.5 * rate)
        kept = values > 0.1 * values.max()  # the iteration reaches one fast only for the larger values
        assert bool(((inner.diagonal()[kept] > 0.6) & (inner.diagonal()[kept] < 1.3)).all())
        assert float((inner - inner.diagonal().diag())[kept][:, kept].abs().max()) < 0.1


@given(
    steps=st.integers(1, 400),
    warmup=st.integers(0, 399),
    rate=st.floats(1e-6, 1.0),
    schedule=st.sampled_from(["constant", "cosine"]),
)
def test_learning_rate_rises_to_its_peak_and_then_keeps_or_falls(
    steps: int, warmup: int, rate: float, schedule: Any
) -> None:
    warmup = min(warmup, steps - 1)
    options = TrainingOptions(steps=steps, learning_rate=rate, schedule=schedule, warmup_steps=warmup)
    rates = [learning_rate_at(step, options) for step in range(steps)]
    assert rates[:warmup] == pytest.approx([rate * (k + 1) / warmup for k in range(warmup)])
    assert rates[warmup] == pytest.approx(rate)
    rest = steps - warmup
    falls = [rate * math.cos(math.pi * k / rest / 2) ** 2 for k in range(rest)]  # the half-angle form
    assert rates[warmup:] == pytest.approx(falls if schedule == "cosine" else [rate] * rest, abs=1e-15)


def test_rows_stay_together_and_global_state_stays_as_it_was() -> None:
    seen, globally = list[Tensor](), list[float]()

    def loss(module: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
        seen.append(batch[1])
        globally.append(float(torch.rand(())))
        assert torch.equal(batch[0][:, 0], batch[1].float())
        return module(batch[0]).square().mean()

    module, before = nn.Linear(1, 1), torch.get_rng_state()
    data, options = (torch.arange(20.0)[:, None], torch.arange(20)), TrainingOptions(steps=60, batch_size=10)
    train(module, NotRandom(loss), data, options, seed=0)
    assert torch.equal(torch.get_rng_state(), before)
    counts = torch.cat(seen).bincount(minlength=20)
    assert bool(((counts > 5) & (counts < 60)).all())  # 30 expected of each
    torch.manual_seed(5)
    train(module, NotRandom(loss), data, TrainingOptions(steps=60, batch_size=10), seed=0)
    assert globally[:60] == globally[60:]
    assert len(set(globally)) == 60


# ---- validation, checkpoints


def scripted(values: list[float]) -> Callable[[nn.Module], float]:
    left = iter(values)
    return lambda module: next(left)


def scripted_training(
    values: list[float], **options: int
) -> tuple[TrainingResult, nn.Module, dict[int, Tensor]]:
    module, weights = seeded_module(lambda: nn.Linear(1, 1), 0), dict[int, Tensor]()
    result = train(
        module,
        NotRandom(lambda module, batch: (module(batch[0]) - 1).square().mean()),
        ONES,
        TrainingOptions(**{"steps": 10, "checkpoints": tuple(range(1, 11)), **options}),
        seed=0,
        validation_loss=scripted(values),
        on_checkpoint=lambda step, module: weights.update({step: next(module.parameters()).detach().clone()}),
    )
    return result, module, weights


def test_best_validated_weights_are_left_in_the_module_and_the_last_step_is_validated_too() -> None:
    result, module, weights = scripted_training([3.0, 1.0, 1.0, 4.0], validate_every=3)
    assert (result.best_step, result.steps_run) == (6, 10)
    assert torch.equal(next(module.parameters()), weights[6])
    assert not torch.equal(weights[6], weights[10])
    assert not module.training
    validated = result.history.dropna()
    assert validated.step.tolist() == [3, 6, 9, 10]
    assert validated.validation_loss.tolist() == [3.0, 1.0, 1.0, 4.0]


def test_patience_counts_validations_without_a_new_best() -> None:
    values = [5.0, 6.0, 4.0, 4.0, 4.5, 4.2, 1.0]
    result, module, weights = scripted_training(values, validate_every=1, patience=3)
    assert (result.best_step, result.steps_run, len(result.history)) == (3, 6, 6)
    assert torch.equal(next(module.parameters()), weights[3])
    assert sorted(weights) == [1, 2, 3, 4, 5, 6]


def test_checkpoints_hold_the_average_of_their_moment() -> None:
    constant = {"schedule": "constant", "validate_every": 0}
    whole = Outcome(changed(**constant))
    assert [step for step, _ in whole.handed_out] == [4, 9, 20]
    for step, weights in whole.handed_out:
        assert_same(Outcome(changed(**constant, steps=step, checkpoints=())).module.state_dict(), weights)


def test_average_has_the_buffers_of_the_trained_module() -> None:
    averaged, plain = (Outcome(changed(ema_decay=decay, validate_every=0)).module for decay in (0.9, None))
    assert not torch.equal(next(averaged.parameters()), next(plain.parameters()))
    assert_same(dict(averaged.named_buffers()), dict(plain.named_buffers()))


# ---- mistakes


def test_loss_that_is_not_finite_stops_the_training_and_keeps_the_last_good_state(tmp_path: Path) -> None:
    class Breaking(Dying):
        def loss(self, module: nn.Module, batch: tuple[Tensor, ...], draws: tuple[Tensor, ...]) -> Tensor:
            return super().loss(module, batch, draws) * (math.nan if self.left == 9 else 1)

    with pytest.raises(DivergenceError, match=r"loss .*step 15 .*step 12"):
        Outcome(changed(validate_every=0, checkpoints=()), tmp_path, Breaking(24))
    states = sorted(tmp_path.glob("state-*"))
    assert [state.name[:14] for state in states] == ["state-00000006", "state-00000012"]
    for name, tensor in read_verified(states[1])[0].items():
        assert "valid" in name or bool(tensor.isfinite().all()), name


def test_divergence_names_the_first_bad_step() -> None:
    """On f = w^2 a step with rate r multiplies w by 1 - 2 r: here by about -2e30, until float32 ends at 1e38."""
    module = nn.Linear(1, 1, bias=False)
    nn.init.ones_(module.weight)
    options = TrainingOptions(steps=250, optimizer="sgd", learning_rate=1e30)
    with pytest.raises(DivergenceError, match=r"step 2 .*1e\+30"):
        train(module, SQUARES, ONES, options, seed=0)


def test_weights_that_the_last_step_spoils_are_noticed() -> None:
    class Spoilt(torch.autograd.Function):
        @staticmethod
        def forward(ctx: object, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: object, gradient: Tensor) -> Tensor:  # type: ignore[override]
            return gradient * math.nan

    spoilt = NotRandom(lambda module, batch: Spoilt.apply(module(batch[0])).square().mean())
    with pytest.raises(DivergenceError, match=r"weights .* step 1 "):
        train(nn.Linear(1, 1), spoilt, ONES, TrainingOptions(steps=1), seed=0)


def test_validation_that_is_not_finite_stops_the_training() -> None:
    with pytest.raises(DivergenceError, match=r"validation loss .*step 4"):
        scripted_training([1.0, math.nan], validate_every=2)


WRONG: dict[str, list[Any]] = {
    "steps": [0, 10.0],
    "batch_size": [0, True],
    "learning_rate": [0.0, -1.0, math.inf, math.nan, "1e-3"],
    "schedule": ["linear"],
    "warmup_steps": [5000, -1],
    "optimizer": ["lion"],
    "weight_decay": [-1.0, math.nan],
    "ema_decay": [1.0, -0.1, math.nan],
    "clip_norm": [0.0],
    "checkpoints": [(5, 3), (5, 5), (5001,), [0], [1.5], ["1"], 3],
    "patience": [3],  # without validation
    "save_every": [-1],
    "momentum": [0.9],
}


@pytest.mark.parametrize(("field", "value"), [(field, value) for field in WRONG for value in WRONG[field]])
def test_an_option_out_of_its_range_is_named_with_its_value(field: str, value: Any) -> None:
    with pytest.raises(PrecfmError, match=rf"^{field}(\.0)?: got .*; [^\n]+$"):
        TrainingOptions(**{field: value})


def test_options_come_from_json_and_as_lists() -> None:
    expected = TrainingOptions(steps=9, checkpoints=(3, 9), ema_decay=None)
    assert TrainingOptions(steps=9, checkpoints=[3, 9], ema_decay=None) == expected  # type: ignore[arg-type]
    written = json.loads(json.dumps(expected.model_dump(mode="json")))
    assert validated(TrainingOptions, written) == expected
    with pytest.raises(PrecfmError, match=r"^steps: got '9'"):
        validated(TrainingOptions, {**written, "steps": "9"})


@pytest.mark.parametrize(
    ("what", "change"),
    [
        ("data: got .*4, 3", {"data": (ONES[0], ONES[0][:3])}),
        ("data: got ", {"data": ()}),
        ("data: got ", {"data": (ONES[0][:0],)}),
        ("data: got Tensor", {"data": ONES[0]}),
        (r"data\[0\]: got", {"data": ([1.0],)}),
        ("cpu, meta", {"module": nn.Linear(1, 1, device="meta")}),
        ("module: ", {"module": nn.Linear(1, 1).requires_grad_(False)}),
        ("optimizer: got 'muon'", {"options": TrainingOptions(steps=1, optimizer="muon")}),
        ("validate_every", {"options": TrainingOptions(steps=4, validate_every=2)}),
        ("options: got a dict", {"options": {"steps": 1}}),
        ("objective: got a function", {"objective": lambda module, batch: module(batch[0]).mean()}),
    ],
)
def test_arguments_that_do_not_fit_are_refused(what: str, change: dict[str, Any]) -> None:
    usual = {
        "module": nn.Linear(1, 1),
        "objective": SQUARES,
        "data": ONES,
        "options": TrainingOptions(steps=1),
    }
    with pytest.raises(PrecfmError, match=f"^flow 3: .*{what}"):
        train(**{**usual, **change}, seed=0, name="flow 3")


def test_data_that_are_not_finite_are_told_before_the_first_step():
    x = torch.zeros(20, 3)
    x[7, 1] = math.nan
    with pytest.raises(PrecfmError, match=r"data\[0\]: holds nan at \[7, 1\]"):
        train(
            nn.Linear(3, 3),
            NotRandom(lambda module, batch: module(batch[0]).sum()),
            (x,),
            TrainingOptions(steps=1),
            seed=0,
        )


def test_a_loss_that_is_no_number_is_refused():
    objective = NotRandom(lambda module, batch: module(batch[0]))
    with pytest.raises(PrecfmError, match=r"loss has shape \(\d+, 3\)"):
        train(nn.Linear(3, 3), objective, (torch.zeros(20, 3),), TrainingOptions(steps=1), seed=0)
