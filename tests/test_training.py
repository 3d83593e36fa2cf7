import hashlib
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from precfm.core.errors import PrecfmError
from precfm.core.seeds import derived_seed, seeded_module
from precfm.flows.models.mlp import MLPVelocity
from precfm.flows.objectives import flow_matching_loss
from precfm.flows.paths import LinearPath
from precfm.training.checkpoints import is_intact, read_verified, write_verified
from precfm.training.trainer import LossFunction, TrainingOptions, TrainingResult, learning_rate_at, train

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


class Killed(BaseException):
    """Stands for the end of the process at a chosen moment."""


def clusters() -> tuple[Tensor, Tensor]:
    source = torch.Generator().manual_seed(0)
    labels = torch.randint(3, (200,), generator=source)
    return torch.randn(200, 4, generator=source) * torch.tensor([2.0, 1.0, 0.3, 0.1]) + labels[
        :, None
    ], labels


class WithDropout(nn.Module):
    """A network that uses torch's global generator and has buffers that training changes."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.norm = MLPVelocity(4, 3, width=16, depth=2), nn.BatchNorm1d(4)

    def forward(self, x: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
        velocity: Tensor = self.net(nn.functional.dropout(self.norm(x), 0.1, self.training), t, labels)
        return velocity


def network() -> nn.Module:
    return seeded_module(WithDropout, 0)


def flow_loss(module: nn.Module, batch: tuple[Tensor, ...], generator: torch.Generator) -> Tensor:
    return flow_matching_loss(module, LinearPath(), batch[0], batch[1], generator)


def held_out_loss(module: nn.Module) -> float:
    assert not module.training
    return float(flow_loss(module, clusters(), torch.Generator().manual_seed(9)))


def dying_after(steps: int) -> LossFunction:
    """The loss, until it has been asked for so many times."""
    asked = [0]

    def loss(module: nn.Module, batch: tuple[Tensor, ...], generator: torch.Generator) -> Tensor:
        if asked[0] == steps:
            raise Killed
        asked[0] += 1
        return flow_loss(module, batch, generator)

    return loss


class Outcome:
    """All that a training shows to the world."""

    def __init__(
        self, options: TrainingOptions, scratch: Path | None, loss: LossFunction = flow_loss
    ) -> None:
        self.module = network()
        self.handed_out: list[tuple[int, dict[str, Tensor]]] = []
        self.result: TrainingResult = train(
            self.module,
            loss,
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
        assert self.result.best_step == other.result.best_step
        assert self.result.steps_run == other.result.steps_run
        assert_same(self.module.state_dict(), other.module.state_dict())
        assert [step for step, _ in self.handed_out] == [step for step, _ in other.handed_out]
        for (_, mine), (_, theirs) in zip(self.handed_out, other.handed_out, strict=True):
            assert_same(mine, theirs)


def assert_same(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    assert first.keys() == second.keys()
    for name in first:
        assert torch.equal(first[name], second[name]), name


# ---- what a step does


@pytest.mark.parametrize("clip_norm", [None, 0.1])
@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_weights_are_those_of_the_textbook_update(optimizer: str, clip_norm: float | None) -> None:
    """A linear regression in float64, updated by hand; decoupled weight decay, bias-corrected moments."""
    options = TrainingOptions(
        steps=7,
        batch_size=5,
        learning_rate=0.05,
        optimizer=optimizer,  # type: ignore[arg-type]
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

    def loss(module: nn.Module, batch: tuple[Tensor, ...], generator: torch.Generator) -> Tensor:
        return (module(batch[0]) - batch[1]).square().mean()

    result = train(module, loss, (x, y), options, seed=2)
    torch.testing.assert_close(module.weight.detach(), average, rtol=1e-9, atol=1e-12)
    assert result.history.loss.tolist() == pytest.approx(losses, rel=1e-9)
    assert result.history.step.tolist() == list(range(1, 8))
    assert result.history.learning_rate.tolist() == [0.05] * 7
    assert (result.steps_run, result.best_step) == (7, 7)


def test_muon_orthogonalises_hidden_steps_and_leaves_the_rest_to_adam() -> None:
    """One step, by the singular value decomposition that the Newton-Schulz iteration of Muon approximates."""
    rate = 0.01
    data = (
        torch.randn(64, 8, generator=torch.Generator().manual_seed(0)),
        torch.zeros(64, dtype=torch.int64),
    )
    gradients: dict[str, Tensor] = {}

    def loss(module: nn.Module, batch: tuple[Tensor, ...], generator: torch.Generator) -> Tensor:
        value = (module(batch[0], batch[0][:, 0], batch[1]) - batch[0]).square().mean()
        names, weights = zip(*module.named_parameters(), strict=True)
        gradients.update(zip(names, torch.autograd.grad(value, weights, retain_graph=True), strict=True))
        return value

    def one_step(optimizer: str) -> dict[str, Tensor]:
        module = seeded_module(lambda: MLPVelocity(8, 2, width=16, depth=3), 0)
        before = {name: weight.detach().clone() for name, weight in module.named_parameters()}
        options = TrainingOptions(steps=1, learning_rate=rate, optimizer=optimizer)  # type: ignore[arg-type]
        train(module, loss, data, options, seed=0)
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
    steps: int, warmup: int, rate: float, schedule: str
) -> None:
    warmup = min(warmup, steps - 1)
    options = TrainingOptions(steps=steps, learning_rate=rate, schedule=schedule, warmup_steps=warmup)  # type: ignore[arg-type]
    rates = [learning_rate_at(step, options) for step in range(steps)]
    assert rates[:warmup] == pytest.approx([rate * (k + 1) / warmup for k in range(warmup)])
    assert rates[warmup] == pytest.approx(rate)
    rest = steps - warmup
    falls = [rate * math.cos(math.pi * k / rest / 2) ** 2 for k in range(rest)]  # the half-angle form
    assert rates[warmup:] == pytest.approx(falls if schedule == "cosine" else [rate] * rest, abs=1e-15)


def test_data_are_learnt() -> None:
    options = TrainingOptions(steps=300, batch_size=64, learning_rate=5e-2)
    target = torch.tensor([[1.0, -2.0]])
    x = torch.randn(100, 2, generator=torch.Generator().manual_seed(0))
    module = seeded_module(lambda: nn.Linear(2, 1), 0)
    train(module, lambda m, b, g: (m(b[0]) - b[1]).square().mean(), (x, x @ target.T + 3), options, seed=0)
    torch.testing.assert_close(module.weight.detach(), target, rtol=0, atol=0.05)


# ---- randomness


def test_randomness_of_a_step_is_a_function_of_seed_and_step() -> None:
    drawn: dict[tuple[int, int], list[Tensor]] = {}

    def spying(seed: int, calls: int) -> LossFunction:
        def loss(module: nn.Module, batch: tuple[Tensor, ...], generator: torch.Generator) -> Tensor:
            step = sum(key[0] == seed for key in drawn)
            # How much a step draws must not matter to the next one.
            noise = torch.stack([torch.rand(4, generator=generator) for _ in range(calls)])[0]
            drawn[seed, step] = [batch[0], noise, torch.rand(4)]
            return module(batch[0]).square().mean()

        return loss

    rows = torch.arange(50.0)[:, None]
    seen = []
    for seed, calls in [(0, 1), (0, 3), (1, 1)]:
        drawn.clear()
        train(
            nn.Linear(1, 1), spying(seed, calls), (rows,), TrainingOptions(steps=5, batch_size=8), seed=seed
        )
        seen.append([torch.cat([t.flatten() for t in drawn[seed, step]]) for step in range(5)])
    for first, second, other in zip(*seen, strict=True):
        assert torch.equal(first, second)
        assert not torch.equal(first, other)
    assert len({tuple(draws.tolist()) for draws in seen[0]}) == 5


def test_rows_stay_together_and_global_state_stays_as_it_was() -> None:
    seen: list[Tensor] = []

    def loss(module: nn.Module, batch: tuple[Tensor, ...], generator: torch.Generator) -> Tensor:
        seen.append(batch[1])
        assert torch.equal(batch[0][:, 0], batch[1].float())
        return module(batch[0]).square().mean()

    before = torch.get_rng_state()
    module = nn.Linear(1, 1)
    torch.set_rng_state(before)
    data = (torch.arange(20.0)[:, None], torch.arange(20))
    train(module, loss, data, TrainingOptions(steps=60, batch_size=10), seed=0)
    assert torch.equal(torch.get_rng_state(), before)
    counts = torch.cat(seen).bincount(minlength=20)
    assert bool(((counts > 5) & (counts < 60)).all())  # 30 expected of each


# ---- validation, checkpoints


def scripted(values: list[float]) -> Callable[[nn.Module], float]:
    left = iter(values)
    return lambda module: next(left)


def scripted_training(
    values: list[float], **options: int
) -> tuple[TrainingResult, nn.Module, dict[int, Tensor]]:
    module, weights = nn.Linear(1, 1), dict[int, Tensor]()
    result = train(
        module,
        lambda m, b, g: (m(b[0]) - 1).square().mean(),
        (torch.ones(4, 1),),
        TrainingOptions(**{"steps": 10, "checkpoints": tuple(range(1, 11)), **options}),  # type: ignore[arg-type]
        seed=0,
        validation_loss=scripted(values),
        on_checkpoint=lambda step, module: weights.update({step: next(module.parameters()).detach().clone()}),
    )
    return result, module, weights


def test_best_validated_weights_are_left_in_the_module() -> None:
    result, module, weights = scripted_training([3.0, 1.0, 2.0, 1.0, 4.0], validate_every=2)
    assert (result.best_step, result.steps_run) == (4, 10)
    assert torch.equal(next(module.parameters()), weights[4])
    assert not torch.equal(weights[4], weights[10])
    assert not module.training
    validated = result.history.dropna()
    assert validated.step.tolist() == [2, 4, 6, 8, 10]
    assert validated.validation_loss.tolist() == [3.0, 1.0, 2.0, 1.0, 4.0]


def test_last_step_is_validated_too() -> None:
    result, _, _ = scripted_training([3.0, 2.0, 1.0], validate_every=4)
    assert result.history.dropna().step.tolist() == [4, 8, 10]
    assert result.best_step == 10


def test_patience_counts_validations_without_a_new_best() -> None:
    values = [5.0, 6.0, 4.0, 4.0, 4.5, 4.2, 1.0]
    result, module, weights = scripted_training(values, validate_every=1, patience=3)
    assert (result.best_step, result.steps_run) == (3, 6)
    assert len(result.history) == 6
    assert torch.equal(next(module.parameters()), weights[3])
    assert sorted(weights) == [1, 2, 3, 4, 5, 6]


def test_checkpoints_hold_the_average_of_their_moment() -> None:
    whole = Outcome(replace(FULL, schedule="constant", validate_every=0), None)
    assert [step for step, _ in whole.handed_out] == [4, 9, 20]
    for step, weights in whole.handed_out:
        short = replace(FULL, schedule="constant", validate_every=0, steps=step, checkpoints=())
        assert_same(Outcome(short, None).module.state_dict(), weights)


def test_average_has_the_buffers_of_the_trained_module() -> None:
    averaged, plain = (
        Outcome(replace(FULL, ema_decay=decay, validate_every=0), None).module for decay in (0.9, None)
    )
    assert not torch.equal(next(averaged.parameters()), next(plain.parameters()))
    assert_same(dict(averaged.named_buffers()), dict(plain.named_buffers()))


def test_scratch_folder_changes_nothing(tmp_path: Path) -> None:
    Outcome(FULL, None).assert_equal(Outcome(FULL, tmp_path / "scratch"))


# ---- resume


@pytest.mark.parametrize(
    "options",
    [
        FULL,
        replace(FULL, optimizer="sgd", ema_decay=None, validate_every=0),
        replace(FULL, optimizer="muon", ema_decay=None, validate_every=0),
    ],
)
@pytest.mark.parametrize("died_after", [3, 6, 7, 13, 23])
def test_killed_and_resumed_equals_never_killed(
    tmp_path: Path, options: TrainingOptions, died_after: int
) -> None:
    with pytest.raises(Killed):
        Outcome(options, tmp_path, dying_after(died_after))
    left = options.steps - died_after // options.save_every * options.save_every
    with pytest.raises(Killed):
        Outcome(options, tmp_path, dying_after(left - 1))
    Outcome(options, tmp_path).assert_equal(Outcome(options, None))


def test_finished_training_is_not_repeated(tmp_path: Path) -> None:
    first = Outcome(FULL, tmp_path)
    Outcome(FULL, tmp_path, dying_after(0)).assert_equal(first)


def test_early_stop_is_remembered(tmp_path: Path) -> None:
    def run(loss: LossFunction) -> TrainingResult:
        options = TrainingOptions(steps=10, validate_every=1, patience=2)
        module = seeded_module(lambda: nn.Linear(1, 1), 0)
        values = scripted([1.0, 2.0, 3.0])
        return train(
            module, loss, (torch.ones(4, 1),), options, seed=0, validation_loss=values, scratch=tmp_path
        )

    first = run(lambda m, b, g: m(b[0]).square().mean())
    again = run(dying_after(0))
    assert (first.steps_run, first.best_step) == (again.steps_run, again.best_step) == (3, 1)


@pytest.mark.parametrize("moment", range(6))
@pytest.mark.parametrize("before_rename", [True, False])
def test_killed_while_saving(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: int, before_rename: bool
) -> None:
    saves, rename = [0], Path.replace

    def dying(self: Path, target: Path) -> Path:
        saves[0] += 1
        if saves[0] == moment + 1 and before_rename:
            raise Killed
        moved = rename(self, target)
        if saves[0] == moment + 1:
            raise Killed
        return moved

    (tmp_path / "state-00000006-1.part").write_bytes(b"left by an earlier process")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", dying)
        with pytest.raises(Killed):
            Outcome(FULL, tmp_path)
    Outcome(FULL, tmp_path).assert_equal(Outcome(FULL, None))
    assert not list(tmp_path.glob("*.part"))


KILLING = """
import hashlib, json, os, random, signal, sys, time
from pathlib import Path
import test_training as room  # imports torch once; each child below is a fork that trains and may be killed

OPTIONS = room.replace(room.FULL, optimizer=sys.argv[2], steps=400, save_every=7, checkpoints=(50, 390))

def child(folder):
    outcome = room.Outcome(OPTIONS, folder / "scratch")
    digest = hashlib.sha256(outcome.result.history.to_csv().encode())
    for name in sorted(path.name for path in (folder / "scratch").iterdir()):
        digest.update(name.encode())  # which carries the checksum of the file
    for weights in (outcome.module.state_dict(), *(weights for _, weights in outcome.handed_out)):
        for tensor in weights.values():
            digest.update(tensor.numpy().tobytes())
    (folder / "digest").write_text(digest.hexdigest())

def run(folder, patience):
    folder.mkdir(exist_ok=True)
    pid = os.fork()
    if pid == 0:
        child(folder)
        os._exit(0)
    if patience is not None:
        time.sleep(patience)
        os.kill(pid, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

chance, base = random.Random(0), Path(sys.argv[1])
exits = [run(base / "killed", chance.uniform(0.05, 0.6)) for _ in range(4)] + [run(base / "killed", None)]
exits.append(run(base / "never", None))
digests = [(base / name / "digest").read_text() for name in ("killed", "never")]
print(json.dumps({"exits": exits, "digests": digests}))
"""


@pytest.mark.skipif(os.name != "posix", reason="needs fork and SIGKILL")
@pytest.mark.parametrize("optimizer", ["adam", "muon"])
def test_killed_processes_end_in_the_same_bytes(tmp_path: Path, optimizer: str) -> None:
    here = Path(__file__).parent
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(here), str(here.parent)]),
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-c", KILLING, str(tmp_path), optimizer]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert -9 in report["exits"][:4]
    assert report["exits"][4:] == [0, 0]
    assert report["digests"][0] == report["digests"][1]


# ---- damaged and foreign saves


def damage(path: Path, how: str) -> None:
    content = bytearray(path.read_bytes())
    if how == "truncated":
        del content[len(content) // 2 :]
    elif how == "flipped":
        content[len(content) // 2] ^= 1
    else:
        content.clear()
    path.write_bytes(content)


def interrupted(scratch: Path) -> list[Path]:
    """A training killed after step 20: states at 12 and 18, checkpoints at 4, 9 and 20."""
    with pytest.raises(Killed):
        Outcome(FULL, scratch, dying_after(20))
    states = sorted(scratch.glob("state-*"))
    assert [state.name[:14] for state in states] == ["state-00000012", "state-00000018"]
    return states


@pytest.mark.parametrize("how", ["truncated", "flipped", "emptied"])
def test_damaged_state_gives_way_to_the_one_before(
    tmp_path: Path, how: str, capsys: pytest.CaptureFixture[str]
) -> None:
    states = interrupted(tmp_path)
    damage(states[1], how)
    with pytest.raises(Killed):  # twelve steps are left after step 12
        Outcome(FULL, tmp_path, dying_after(11))
    assert f"{states[1].name} is damaged" in capsys.readouterr().err
    Outcome(FULL, tmp_path).assert_equal(Outcome(FULL, None))


def test_all_states_damaged_starts_over(tmp_path: Path) -> None:
    for state in interrupted(tmp_path):
        damage(state, "flipped")
    with pytest.raises(Killed):
        Outcome(FULL, tmp_path, dying_after(1))
    Outcome(FULL, tmp_path).assert_equal(Outcome(FULL, None))


@pytest.mark.parametrize("step", [4, 20])
def test_damaged_checkpoint_is_made_again(tmp_path: Path, step: int) -> None:
    interrupted(tmp_path)
    damage(next(tmp_path.glob(f"checkpoint-{step:08d}-*")), "truncated")
    Outcome(FULL, tmp_path).assert_equal(Outcome(FULL, None))


def test_checkpoint_after_the_resumed_state_is_made_again(tmp_path: Path) -> None:
    """Another machine may have written other bytes for a step that this one trains again."""
    interrupted(tmp_path)
    own = next(tmp_path.glob("checkpoint-00000020-*"))
    weights, facts = read_verified(own)
    other = own
    while other.name >= own.name:  # so that it would be found first
        weights = {name: tensor + 1 for name, tensor in weights.items()}
        other = write_verified(tmp_path, "checkpoint-00000020", weights, facts)
    Outcome(FULL, tmp_path).assert_equal(Outcome(FULL, None))


def test_only_the_last_two_states_are_kept(tmp_path: Path) -> None:
    Outcome(FULL, tmp_path)
    kinds = [(path.name.split("-")[0], int(path.name.split("-")[1])) for path in sorted(tmp_path.iterdir())]
    assert kinds == [("checkpoint", 4), ("checkpoint", 9), ("checkpoint", 20), ("state", 18), ("state", 24)]


def test_scratch_of_another_training_is_refused(tmp_path: Path) -> None:
    interrupted(tmp_path)
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(
        PrecfmError, match=r"another training, with options.learning_rate = 0.003 where .* 0.004"
    ):
        Outcome(replace(FULL, learning_rate=4e-3), tmp_path)
    for changed, field in [
        ({"seed": 2}, "seed = 1"),
        ({"data": (clusters()[0] + 1, clusters()[1])}, "data = "),
        ({"module": seeded_module(WithDropout, 1)}, "initial_weights = "),
    ]:
        arguments = {"module": network(), "data": clusters(), "seed": 1, **changed}
        module, data = arguments.pop("module"), arguments.pop("data")
        with pytest.raises(PrecfmError, match=f"another training, with {field}"):
            train(module, flow_loss, data, FULL, validation_loss=held_out_loss, scratch=tmp_path, **arguments)  # type: ignore[arg-type]
    assert sorted(path.name for path in tmp_path.iterdir()) == before


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(position=st.integers(0, 10**6), bit=st.integers(0, 7), cut=st.integers(0, 10**6))
def test_any_damage_is_noticed(tmp_path: Path, position: int, bit: int, cut: int) -> None:
    tensors = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor(True), "c": torch.zeros(0)}
    path = write_verified(tmp_path, "state-00000001", tensors, {"seed": 1, "list": [1, 2.5, None]})
    content = path.read_bytes()
    loaded, facts = read_verified(path)
    assert_same(loaded, tensors)
    assert facts == {"seed": 1, "list": [1, 2.5, None]}
    assert write_verified(tmp_path, "state-00000001", tensors, facts) == path
    flipped = bytearray(content)
    flipped[position % len(content)] ^= 1 << bit
    for damaged in (bytes(flipped), content[: cut % len(content)], content + b"\0"):
        path.write_bytes(damaged)
        assert not is_intact(path)
        with pytest.raises(PrecfmError, match="is damaged"):
            read_verified(path)


def test_a_file_named_for_its_bytes_that_is_no_save_is_not_intact(tmp_path: Path) -> None:
    content = b"something else"
    path = tmp_path / f"state-00000001-{hashlib.sha256(content).hexdigest()}.safetensors"
    path.write_bytes(content)
    assert not is_intact(path)


# ---- mistakes


def test_loss_that_is_not_finite_stops_the_training_and_keeps_the_last_good_state(tmp_path: Path) -> None:
    asked = [0]

    def loss(module: nn.Module, batch: tuple[Tensor, ...], generator: torch.Generator) -> Tensor:
        asked[0] += 1
        return flow_loss(module, batch, generator) * (math.nan if asked[0] == 15 else 1)

    message = r"the loss is not finite at step 15 with learning rate .*after step 12 is kept"
    with pytest.raises(PrecfmError, match=message):
        Outcome(replace(FULL, validate_every=0, checkpoints=()), tmp_path, loss)
    states = sorted(tmp_path.glob("state-*"))
    assert [state.name[:14] for state in states] == ["state-00000006", "state-00000012"]
    for state in states:
        assert all(
            bool(tensor.isfinite().all())
            for name, tensor in read_verified(state)[0].items()
            if "valid" not in name
        )


def test_divergence_names_the_first_bad_step() -> None:
    options = TrainingOptions(steps=250, optimizer="sgd", learning_rate=1e30)
    with pytest.raises(
        PrecfmError, match=r"lower learning_rate or set clip_norm \(no state was saved\)"
    ) as caught:
        train(nn.Linear(1, 1), lambda m, b, g: m(b[0]).square().mean(), (torch.ones(4, 1),), options, seed=0)
    assert "the loss is not finite at step" in str(caught.value)


def test_weights_that_the_last_step_spoils_are_noticed() -> None:
    class Spoilt(torch.autograd.Function):
        @staticmethod
        def forward(ctx: object, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: object, gradient: Tensor) -> Tensor:  # type: ignore[override]
            return gradient * math.nan

    with pytest.raises(PrecfmError, match="the weights are not finite at step 1 "):
        train(
            nn.Linear(1, 1),
            lambda m, b, g: Spoilt.apply(m(b[0])).square().mean(),
            (torch.ones(4, 1),),
            TrainingOptions(steps=1),
            seed=0,
        )


def test_validation_that_is_not_finite_stops_the_training() -> None:
    with pytest.raises(PrecfmError, match="the validation loss is nan at step 4"):
        scripted_training([1.0, math.nan], validate_every=2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps is 0; it must be at least 1"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0; it must be positive"),
        ({"learning_rate": math.inf}, "learning_rate is inf"),
        ({"schedule": "linear"}, "schedule is 'linear'"),
        ({"warmup_steps": 5000}, r"warmup_steps is 5000; it must be in 0\.\.4999"),
        ({"optimizer": "lion"}, "optimizer is 'lion'"),
        ({"weight_decay": -1.0}, "weight_decay is -1.0"),
        ({"ema_decay": 1.0}, "ema_decay is 1.0"),
        ({"clip_norm": 0.0}, "clip_norm is 0.0"),
        ({"checkpoints": (5, 3)}, r"checkpoints is \(5, 3\); it must be increasing steps"),
        ({"checkpoints": (5001,)}, r"checkpoints is \(5001,\)"),
        ({"patience": 3}, "patience is 3; it must be 0, or positive together with validate_every"),
        ({"save_every": -1}, "save_every is -1"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(PrecfmError, match=message):
        TrainingOptions(**options)  # type: ignore[arg-type]


def test_arguments_that_do_not_fit_are_refused() -> None:
    x, options = torch.ones(4, 1), TrainingOptions(steps=1)

    def run(module: nn.Module, data: tuple[Tensor, ...], options: TrainingOptions = options) -> None:
        train(module, lambda m, b, g: m(b[0]).square().mean(), data, options, seed=0, name="flow none/seed 0")

    with pytest.raises(PrecfmError, match=r"flow none/seed 0: the data tensors have lengths \[4, 3\]"):
        run(nn.Linear(1, 1), (x, x[:3]))
    with pytest.raises(PrecfmError, match=r"lengths \[\]"):
        run(nn.Linear(1, 1), ())
    with pytest.raises(PrecfmError, match="lie on cpu, meta"):
        run(nn.Linear(1, 1, device="meta"), (x,))
    with pytest.raises(PrecfmError, match="nothing to train"):
        run(nn.Linear(1, 1).requires_grad_(False), (x,))
    with pytest.raises(PrecfmError, match="no matrix in a part called 'hidden'"):
        run(nn.Linear(1, 1), (x,), TrainingOptions(steps=1, optimizer="muon"))
    with pytest.raises(PrecfmError, match="validate_every is 2; give validation_loss too"):
        run(nn.Linear(1, 1), (x,), TrainingOptions(steps=4, validate_every=2))
