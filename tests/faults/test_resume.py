"""Every job killed at any moment and started again ends in the same bytes; a damaged save gives way to the one before.

Jobs are forks of this process, so that a kill costs no new start of Python.
"""

import multiprocessing
import os
import random
import shutil
import signal
import sys
import time
from functools import partial

import pytest
import torch
import yaml
from typer.testing import CliRunner

import precfm.preconditioners.learned as learned
from precfm.cli import app
from precfm.core.errors import PrecfmError
from precfm.pipeline.build import build
from precfm.pipeline.job import script_of
from precfm.pipeline.node import RESULTS
from precfm.training.checkpoints import Scratch
from precfm.training.options import TrainingOptions
from tests.faults.harness import NAME, SMALL, SMALL_NAME, TINY, damage, outcome, start
from tests.workflow import BIN

TRAINED = ("classifiers", "encoders", "preconditioners", "recipes", "flows")
fork = multiprocessing.get_context("fork")


def job(node, dies_after_save=None, log=None):
    """Make one artifact; perhaps die by SIGKILL right after a save of the training's state."""
    if log is not None:
        sys.stderr = log.open("a")  # pytest's own is no longer that of the descriptor 2
    if dies_after_save is not None:
        save, saved = Scratch.save_state, []

        def save_and_die(self, step, tensors):
            save(self, step, tensors)
            saved.append(step)
            if len(saved) == dies_after_save:
                os.kill(os.getpid(), signal.SIGKILL)

        Scratch.save_state = save_and_die
    build(node, script_of(node))


def run_job(node, *, kill_after=None, **how):
    """The exit code of a job in a fork; `kill_after` seconds it is killed from outside."""
    child = fork.Process(target=job, args=(node,), kwargs=how)
    child.start()
    if kill_after is not None:
        child.join(kill_after)
        child.kill()
    child.join()
    return child.exitcode


def states_of(node):
    return sorted((RESULTS / ".work/scratch" / f"{node.kind}-{node.key}").rglob("state-*.safetensors"))


def flip(file, draw):
    content = bytearray(file.read_bytes())
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    file.write_bytes(content)


def cut(file, draw):
    os.truncate(file, draw.randrange(file.stat().st_size))


def trained_jobs(plan):
    """Both frozen networks, both learned preconditioners, one search, one main flow, and what they read."""
    first = {}
    for node in plan.nodes.values():
        learned_map = node.kind == "preconditioners" and any("flow:" in target for target in node.targets)
        if node.kind != "preconditioners" or learned_map:
            first.setdefault(node.label if learned_map else node.kind, node)
    chosen = {node.id for node in first.values() if node.kind in TRAINED}
    for node in reversed(plan.nodes.values()):
        if node.id in chosen:
            chosen.update(*node.parents.values())
    return [node for node in plan.nodes.values() if node.id in chosen]


@pytest.mark.slow
def test_jobs_killed_at_any_moment_end_in_the_same_bytes(planned, project, monkeypatch, capsys):
    # Preconditioners have no option for it, and their trainings here are shorter than one save.
    monkeypatch.setattr(learned, "TrainingOptions", partial(TrainingOptions, save_every=4))
    learned_maps = {"low_capacity_flow": {"preconditioner": {"name": "low_capacity_flow", "steps": 20}}}
    change = {
        "methods": TINY["methods"] | learned_maps,
        "search": {"learning_rate": [1e-3, 2e-3], "steps": 20},
    }
    nodes = trained_jobs(planned(TINY | change, name=NAME))
    torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))])  # what torch imports late, the forks have, too
    seconds = {}
    for node in nodes:
        script_of(node)
        begun = time.monotonic()
        assert run_job(node) == 0, node.id
        seconds[node.id] = time.monotonic() - begun
    wanted = outcome(project)
    shutil.rmtree(project / "results")

    draw, log = random.Random(0), project / "log"
    kills, resumed, damaged = 0, [], 0
    for node in nodes:
        saves = 0
        if node.kind in TRAINED:
            while (
                saves < 3 and run_job(node, dies_after_save=draw.choice((1, 2)), log=log) == -signal.SIGKILL
            ):
                saves += 1
                assert states_of(node)
                assert not node.exists
                if saves == 2:
                    draw.choice((flip, cut))(states_of(node)[-1], draw)
                    damaged += 1
            if saves:
                resumed.append(node)
        kills += saves
        kills += run_job(node, kill_after=draw.uniform(0, seconds[node.id]), log=log) == -signal.SIGKILL
        assert not damage(project)
        assert run_job(node, log=log) == 0, node.id
    assert outcome(project) == wanted
    assert log.read_text().count("is damaged; going on without it") == damaged >= len(TRAINED)
    assert kills >= 2 * len(resumed)
    assert {node.kind for node in resumed} == set(TRAINED)
    assert sum(node.kind == "preconditioners" for node in resumed) == 2
    with capsys.disabled():
        print(
            f" [{kills} kills in {len(nodes)} jobs, {len(resumed)} trainings resumed, {damaged} saves damaged]"
        )


def test_a_search_does_not_take_the_save_of_another_training_for_divergence(planned, project):
    """Here one with another number of threads, whose last digits differ."""
    plan = planned(TINY, name=NAME)
    (search,) = plan.of("recipes")
    for node in plan.with_missing_parents([search.id])[:-1]:
        build(node, script_of(node))

    def on_more_threads():
        torch.set_num_threads(torch.get_num_threads() + 1)
        job(search, dies_after_save=1)

    child = fork.Process(target=on_more_threads)
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    with pytest.raises(PrecfmError, match=r"of another training, with threads = \d+ where this one has"):
        build(search, script_of(search))
    assert not search.exists
    shutil.rmtree(RESULTS / ".work/scratch")
    assert build(search, script_of(search))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_making_without_snakemake_stops_cleanly_and_says_how_to_go_on(project, number):
    (project / f"config/{SMALL_NAME}.yaml").write_text(yaml.safe_dump(SMALL))
    log = project / "log"
    process = start(project, BIN / "precfm", "make", SMALL_NAME, log=log)
    locks = project / "results/.work/locks"
    while not any(locks.glob("*")):  # until the first job begins
        time.sleep(0.01)
        assert process.poll() is None
    process.send_signal(number)
    code, said = process.wait(), log.read_text()
    assert code == 128 + signal.SIGINT, said
    assert "the same command goes on" in said
    assert "Traceback" not in said
    assert not any((project / "results/.work/parts").glob("*"))


@pytest.mark.parametrize(("asked", "code"), [(True, 128 + signal.SIGINT), (False, 1)])
def test_an_interruption_that_compiled_code_turns_into_an_error_is_one_all_the_same(
    project, monkeypatch, asked, code
):
    def built(node, script):
        try:
            if asked:
                signal.raise_signal(signal.SIGTERM)
        finally:
            raise RuntimeError("KeyboardInterrupt:")

    (project / f"config/{SMALL_NAME}.yaml").write_text(yaml.safe_dump(SMALL))
    monkeypatch.setattr("precfm.pipeline.build.build", built)
    before = signal.getsignal(signal.SIGTERM)
    done = CliRunner().invoke(app, ["make", SMALL_NAME])
    assert signal.getsignal(signal.SIGTERM) is before
    assert done.exit_code == code
    assert ("the same command goes on" in done.output) == asked
