"""A training that was killed at any moment, or whose saves were damaged, ends in the same bytes."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from precfm.core.errors import PrecfmError
from precfm.core.seeds import seeded_module
from precfm.training.checkpoints import is_intact, read_verified, write_verified
from precfm.training.draws import Objective
from precfm.training.options import TrainingOptions
from precfm.training.state import TrainingResult
from precfm.training.trainer import train
from tests.test_training import (
    FLOW,
    FULL,
    ONES,
    SQUARES,
    Dying,
    Killed,
    Outcome,
    WithDropout,
    assert_same,
    changed,
    clusters,
    held_out_loss,
    scripted,
    undisturbed,
)  # fmt: skip


@pytest.mark.parametrize(
    "options",
    [FULL, *(changed(optimizer=name, ema_decay=None, validate_every=0) for name in ("sgd", "muon"))],
    ids=lambda options: options.optimizer,
)
@pytest.mark.parametrize("died_after", [3, 6, 7, 13, 23])
def test_killed_and_resumed_equals_never_killed(
    tmp_path: Path, options: TrainingOptions, died_after: int
) -> None:
    with pytest.raises(Killed):
        Outcome(options, tmp_path, Dying(died_after))
    left = options.steps - died_after // options.save_every * options.save_every
    with pytest.raises(Killed):
        Outcome(options, tmp_path, Dying(left - 1))
    resumed = Outcome(options, tmp_path)
    resumed.assert_equal(undisturbed(options))
    Outcome(options, tmp_path, Dying(0)).assert_equal(resumed)  # what is finished is not repeated


def test_early_stop_is_remembered(tmp_path: Path) -> None:
    def run(objective: Objective) -> TrainingResult:
        options = TrainingOptions(steps=10, validate_every=1, patience=2)
        module, values = seeded_module(lambda: nn.Linear(1, 1), 0), scripted([1.0, 2.0, 3.0])
        return train(module, objective, ONES, options, seed=0, validation_loss=values, scratch=tmp_path)

    for objective in (SQUARES, Dying(0)):
        result = run(objective)
        assert (result.steps_run, result.best_step) == (3, 1)


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
    Outcome(FULL, tmp_path).assert_equal(undisturbed(FULL))
    assert not list(tmp_path.glob("*.part"))


KILLING = """
import hashlib, json, os, random, signal, sys, time
from pathlib import Path
from tests.test_training import Outcome, changed  # imports torch once; each child is a fork that may be killed

OPTIONS = changed(optimizer=sys.argv[2], steps=400, save_every=7, checkpoints=(50, 390))

def child(folder):
    outcome = Outcome(OPTIONS, folder / "scratch")
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
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", KILLING, str(tmp_path), optimizer]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert -9 in report["exits"][:4]
    assert report["exits"][4:] == [0, 0]
    assert report["digests"][0] == report["digests"][1]


# ---- damaged and foreign saves


def interrupted(scratch: Path) -> None:
    """A training killed after step 20: states at 12 and 18, checkpoints at 4, 9 and 20."""
    with pytest.raises(Killed):
        Outcome(FULL, scratch, Dying(20))
    assert sorted(int(path.name.split("-")[1]) for path in scratch.glob("state-*")) == [12, 18]


@pytest.mark.parametrize(
    ("files", "how", "steps_left"),
    [
        ("state-*18-*", "truncated", 12),
        ("state-*18-*", "flipped", 12),
        ("state-*18-*", "emptied", 12),
        ("state-*", "flipped", 24),
        ("checkpoint-*04-*", "truncated", 24),  # no state is of use without it
        ("checkpoint-*20-*", "truncated", 6),
    ],
)
def test_what_is_damaged_is_told_and_made_again(
    tmp_path: Path, files: str, how: str, steps_left: int, capsys: pytest.CaptureFixture[str]
) -> None:
    interrupted(tmp_path)
    damaged = sorted(tmp_path.glob(files))
    for path in damaged:
        content = bytearray(path.read_bytes())
        half = len(content) // 2
        flipped = content[:half] + bytes([content[half] ^ 1]) + content[half + 1 :]
        path.write_bytes({"truncated": content[:half], "flipped": flipped, "emptied": b""}[how])
    resumed = Dying(steps_left)
    Outcome(FULL, tmp_path, resumed).assert_equal(undisturbed(FULL))
    assert resumed.left == 0
    said = capsys.readouterr().err
    assert all(f"{path.name} is damaged" in said for path in damaged)


def test_checkpoint_after_the_resumed_state_is_made_again(tmp_path: Path) -> None:
    """Another machine may have written other bytes for a step that this one trains again."""
    interrupted(tmp_path)
    own = next(tmp_path.glob("checkpoint-00000020-*"))
    weights, facts = read_verified(own)
    other = own
    while other.name >= own.name:  # so that it would be found first
        weights = {name: tensor + 1 for name, tensor in weights.items()}
        other = write_verified(tmp_path, "checkpoint-00000020", weights, facts)
    Outcome(FULL, tmp_path).assert_equal(undisturbed(FULL))


def test_scratch_changes_nothing_and_keeps_two_states(tmp_path: Path) -> None:
    Outcome(FULL, tmp_path).assert_equal(undisturbed(FULL))
    kinds = [(path.name.split("-")[0], int(path.name.split("-")[1])) for path in sorted(tmp_path.iterdir())]
    assert kinds == [("checkpoint", 4), ("checkpoint", 9), ("checkpoint", 20), ("state", 18), ("state", 24)]


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"options": changed(learning_rate=4e-3)}, "options.learning_rate"),
        ({"seed": 2}, "seed"),
        ({"data": (clusters()[0] + 1, clusters()[1])}, "data"),
        ({"module": seeded_module(WithDropout, 1)}, "initial_weights"),
        ({"facts": {"path": "curved"}}, "path"),
        ({"facts": None}, "path"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_scratch_of_another_training_is_refused(tmp_path: Path, change: dict[str, Any], field: str) -> None:
    def run(objective: Objective, change: dict[str, Any]) -> None:
        usual = {"module": seeded_module(WithDropout, 0), "data": clusters(), "options": FULL, "seed": 1}
        given = {**usual, "facts": {"path": "straight"}, **change}
        train(objective=objective, validation_loss=held_out_loss, scratch=tmp_path, **given)

    with pytest.raises(Killed):
        run(Dying(20), {})
    before = sorted(tmp_path.iterdir())
    with pytest.raises(PrecfmError, match=f"another training, with {field} = "):
        run(FLOW, change)
    assert sorted(tmp_path.iterdir()) == before


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
