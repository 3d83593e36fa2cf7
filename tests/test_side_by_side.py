"""A batch of flows: all seeds of a method in one computation, and each artifact as if it were made alone."""

import shutil
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from precfm.core.errors import DivergenceError
from precfm.pipeline.artifact import Artifact
from precfm.pipeline.build import build, build_side_by_side
from precfm.pipeline.job import script_of
from precfm.pipeline.node import RECORD, RESULTS, Node
from precfm.pipeline.plan import in_batches
from precfm.pipeline.snakemake_entry import run_job
from precfm.preconditioners.saving import save
from precfm.preconditioners.whitening import Whitening
from precfm.training.batched import StackedState
from tests.test_training import clusters

STEPS, SEEDS = 30, (0, 4, 9)
TRAINING = {
    "steps": STEPS,
    "batch_size": 16,
    "learning_rate": 3e-3,
    "ema_decay": 0.9,
    "checkpoints": (20, STEPS),
    "save_every": 10,
}
FLOW = {
    "model": {"name": "mlp", "width": 16, "depth": 2},
    "wrappers": [{"name": "gaussian_skip"}],
    "path": {"name": "linear"},
    "objective": {"name": "flow_matching"},
    "training": TRAINING,
}
LATENTS = Node("latents", "data", "a" * 12, {}, {}, "", "mine")
MAPS = [Node("preconditioners", f"map-s{seed}", f"{seed}" * 12, {}, {}, "", "mine") for seed in SEEDS]
FLOWS = [
    Node(
        "flows", f"white-s{seed}", f"{seed}" * 12, {"flow": FLOW, "seed": seed},
        {"latents": (LATENTS.id,), "preconditioner": (each.id,)}, "", "mine", batch="white",
    )
    for seed, each in zip(SEEDS, MAPS, strict=True)
]  # fmt: skip


@pytest.fixture(autouse=True)
def parents(tmp_path, monkeypatch):
    """Latents, and a map for each seed, as learned ones have it."""
    monkeypatch.chdir(tmp_path)
    x1, labels = clusters()
    build(LATENTS, lambda job: job.write_tensors("train.safetensors", {"latents": x1, "labels": labels}))
    for place, node in enumerate(MAPS):
        fitted = Whitening(shrinkage=place / 10).fit(x1)
        build(node, lambda job, fitted=fitted: save(fitted, job.folder))


def removed(nodes):
    """What is in the files of artifacts, which are then no more."""
    found = [{file.name: file.read_bytes() for file in node.folder.iterdir()} for node in nodes]
    for node in nodes:
        shutil.rmtree(node.folder)
    return found


def test_artifacts_are_those_made_one_by_one(tmp_path):
    assert build_side_by_side(FLOWS) == FLOWS
    together = tmp_path / "together"
    (RESULTS / "mine/flows").rename(together)
    for node in FLOWS:
        assert build(node, script_of(node))
        there = together / node.name
        assert {file.name for file in node.folder.iterdir()} == {file.name for file in there.iterdir()}
        for name in ("flow.json", "cost.json"):
            assert (node.folder / name).read_text() == (there / name).read_text()
        tables = [pd.read_csv(folder / "history.csv") for folder in (node.folder, there)]
        pd.testing.assert_frame_equal(*tables, rtol=1e-5, atol=1e-7)
        for step in TRAINING["checkpoints"]:
            file = f"step-{step:06d}.safetensors"
            torch.testing.assert_close(
                load_file(there / file), load_file(node.folder / file), rtol=1e-5, atol=1e-6
            )


def test_a_killed_batch_goes_on_and_ends_in_the_same_bytes(monkeypatch):
    build_side_by_side(FLOWS)
    whole = removed(FLOWS)
    descend, taken = StackedState.descend, []

    def counted(state, losses):
        if len(taken) == 25:
            raise KeyboardInterrupt
        taken.append(state.step)
        descend(state, losses)

    monkeypatch.setattr(StackedState, "descend", counted)
    with pytest.raises(KeyboardInterrupt):
        build_side_by_side(FLOWS)
    assert not any(node.exists for node in FLOWS)
    assert not any((RESULTS / ".work/parts").iterdir())
    taken.append(None)
    assert build_side_by_side(FLOWS) == FLOWS
    assert taken[26:] == list(range(20, STEPS))
    assert removed(FLOWS) == whole
    assert not any((RESULTS / ".work/scratch").iterdir())


def test_what_exists_is_left_as_it_is_and_one_alone_is_no_batch():
    build(FLOWS[1], script_of(FLOWS[1]))
    before = (FLOWS[1].folder / RECORD).stat()
    assert build_side_by_side(FLOWS) == [FLOWS[0], FLOWS[2]]
    assert (FLOWS[1].folder / RECORD).stat() == before
    shutil.rmtree(FLOWS[2].folder)
    assert build_side_by_side(FLOWS) == []


def test_where_one_cannot_be_made_the_others_are(tmp_path, capsys):
    (MAPS[1].folder / RECORD).unlink()
    log = tmp_path / "logs/job.log"
    job = SimpleNamespace(
        params=SimpleNamespace(nodes=[node.to_json() for node in FLOWS]), log=[str(log)], threads=1
    )
    with pytest.raises(SystemExit) as stopped:
        run_job(job)
    assert [node.exists for node in FLOWS] == [True, False, True]
    assert str(stopped.value).startswith(f"precfm: {FLOWS[1].id}: {MAPS[1].folder}: no complete artifact")
    assert "white: not made side by side" in capsys.readouterr().err


def test_where_one_cannot_be_finished_no_training_is_lost(monkeypatch):
    seal = build.__globals__["_seal"]

    def full(node, *rest):
        if node.id == FLOWS[1].id:
            raise OSError(28, "No space left on device")
        seal(node, *rest)

    with monkeypatch.context() as patched:
        patched.setitem(build.__globals__, "_seal", full)
        assert build_side_by_side(FLOWS) == []
    assert not any(node.exists for node in FLOWS)

    def trained_again(*_):
        raise AssertionError("no step is left to take")

    monkeypatch.setattr(StackedState, "descend", trained_again)
    assert build_side_by_side(FLOWS) == FLOWS
    assert all(Artifact.open(node.folder).record["made_on"]["side_by_side"] == 3 for node in FLOWS)


def test_one_that_is_left_after_others_were_taken_over_is_made_alone():
    build_side_by_side(FLOWS)
    for node in FLOWS[1:]:
        there = RESULTS / "other" / node.id
        there.parent.mkdir(parents=True, exist_ok=True)
        node.folder.rename(there)
    shutil.rmtree(FLOWS[0].folder)
    assert build_side_by_side(FLOWS) == []
    assert [node.exists for node in FLOWS] == [False, True, True]
    assert build(FLOWS[0], script_of(FLOWS[0]))
    assert "side_by_side" not in Artifact.open(FLOWS[0].folder).record["made_on"]


def test_what_a_killed_job_left_of_other_parents_is_not_gone_on_with(monkeypatch):
    calls = []

    def killed(job):
        calls.append(sorted(file.name for file in job.scratch.iterdir()))
        (job.scratch / "state").touch()
        raise KeyboardInterrupt

    for again in (False, False, True):
        if again:
            shutil.rmtree(MAPS[0].folder)
            build(MAPS[0], lambda job: save(Whitening(shrinkage=0.5).fit(clusters()[0]), job.folder))
        with pytest.raises(KeyboardInterrupt):
            build(FLOWS[0], killed)
    assert calls == [["parents.json"], ["parents.json", "state"], ["parents.json"]]


def test_a_training_that_diverges_does_so_alone(capsys):
    x1, _ = clusters()
    shutil.rmtree(MAPS[1].folder)
    build(MAPS[1], lambda job: save(Whitening().fit(x1 * 1e-25), job.folder))
    assert build_side_by_side(FLOWS) == []
    assert "white: not made side by side" in capsys.readouterr().err
    for node in FLOWS:
        with pytest.raises(DivergenceError) if node is FLOWS[1] else nullcontext():
            build(node, script_of(node))
    assert [node.exists for node in FLOWS] == [True, False, True]


def test_a_batch_comes_after_all_that_any_of_it_needs():
    samples = replace(FLOWS[0], kind="samples", parents={"flow": (FLOWS[0].id,)}, batch="")
    nodes = [LATENTS, MAPS[0], FLOWS[0], samples, MAPS[1], FLOWS[1], MAPS[2], FLOWS[2]]
    made = list(in_batches(nodes))
    assert sorted(node.id for batch in made for node in batch) == sorted(node.id for node in nodes)
    assert FLOWS in made
    assert made.index(FLOWS) > max(made.index([each]) for each in MAPS)
    assert made.index([samples]) > made.index(FLOWS)
