"""Artifacts are whole or absent, equal or replaced, checked before use, and found again by their key."""

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch

from precfm.core.errors import PrecfmError
from precfm.pipeline.artifact import Artifact
from precfm.pipeline.build import build
from precfm.pipeline.fingerprints import SCRIPTS, fingerprint
from precfm.pipeline.node import RECORD, Node

NODE = Node("flows", "some-label", "0123456789ab", {"steps": 3}, {}, "", "mine")  # made by a test: of no code


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def make(job):
    job.write_json("numbers.json", {"a": 1})
    job.write_frame("table.csv", pd.DataFrame({"x": [0.1, 0.2]}))
    job.write_tensors("tensors.safetensors", {"x": torch.arange(3)})


def test_an_artifact_can_be_read_back():
    assert build(NODE, make) is True
    artifact = Artifact.open(NODE.folder)
    assert artifact.json("numbers.json") == {"a": 1}
    assert artifact.frame("table.csv")["x"].tolist() == [0.1, 0.2]
    assert artifact.tensors("tensors.safetensors")["x"].tolist() == [0, 1, 2]
    assert artifact.params == {"steps": 3}


def test_what_exists_is_not_made_again():
    build(NODE, make)
    assert build(NODE, lambda job: pytest.fail("made again")) is False


def test_two_builds_give_the_same_bytes():
    build(NODE, make)
    before = {file.name: file.read_bytes() for file in NODE.folder.iterdir()}
    shutil.rmtree(NODE.folder)
    build(NODE, make)
    assert {file.name: file.read_bytes() for file in NODE.folder.iterdir()} == before
    assert not any(str(Path.cwd()).encode() in content for content in before.values())


def test_scratch_of_a_job_that_was_killed_when_it_was_all_but_finished_is_removed():
    build(NODE, make)
    scratch = Path("results/.work/scratch") / f"{NODE.kind}-{NODE.key}"
    scratch.mkdir(parents=True)
    assert build(NODE, make) is False
    assert not scratch.exists()


def test_a_failed_job_leaves_nothing_but_its_scratch():
    def fail(job):
        job.write_json("half.json", 1)
        (job.scratch / "checkpoint").write_text("kept")
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError):
        build(NODE, fail)
    assert not NODE.folder.exists()

    def resume(job):
        assert (job.scratch / "checkpoint").read_text() == "kept"
        assert not (job.folder / "half.json").exists()
        make(job)

    assert build(NODE, resume)
    assert not list((NODE.folder.parents[2] / ".work/scratch").iterdir())


def test_a_killed_job_leaves_nothing_half_made(folder):
    script = textwrap.dedent(
        """
        import time
        from precfm.pipeline.node import Node
        from precfm.pipeline.build import build
        def make(job):
            job.write_json("half.json", 1)
            print("started", flush=True)
            time.sleep(60)
        build(Node("flows", "some-label", "0123456789ab", {"steps": 3}, {}, "", "mine"), make)
        """
    )
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    assert process.stdout.readline().strip() == b"started"
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not NODE.exists
    assert build(NODE, make) is True


def slow(job):
    (job.folder.parents[3] / f"made-by-{os.getpid()}").touch()
    time.sleep(0.5)
    make(job)


def test_two_runs_at_once_make_it_once(folder):
    context = multiprocessing.get_context("fork")
    runs = [context.Process(target=build, args=(NODE, slow)) for _ in range(3)]
    for run in runs:
        run.start()
    for run in runs:
        run.join()
    assert [run.exitcode for run in runs] == [0, 0, 0]
    assert len(list(folder.glob("made-by-*"))) == 1
    assert Artifact.open(NODE.folder).verified()


def test_a_flipped_byte_is_found_and_named():
    build(NODE, make)
    file = NODE.folder / "tensors.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(PrecfmError, match=r"tensors\.safetensors: damaged"):
        Artifact.open(NODE.folder).tensors("tensors.safetensors")


def test_missing_and_unknown_files_are_named():
    build(NODE, make)
    (NODE.folder / "table.csv").unlink()
    artifact = Artifact.open(NODE.folder)
    with pytest.raises(PrecfmError, match=r"table\.csv"):
        artifact.frame("table.csv")
    with pytest.raises(PrecfmError, match=r"other\.csv: not part"):
        artifact.frame("other.csv")


def test_a_damaged_record_is_named():
    build(NODE, make)
    (NODE.folder / RECORD).write_text("{")
    with pytest.raises(PrecfmError, match="damaged"):
        Artifact.open(NODE.folder)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"files": {}}'])
def test_a_record_that_is_none_is_damaged(text):
    build(NODE, make)
    (NODE.folder / RECORD).write_text(text)
    with pytest.raises(PrecfmError, match=r"artifact\.json: damaged"):
        Artifact.open(NODE.folder)


def test_one_changed_value_in_a_record_is_found_before_it_is_used():
    build(NODE, make)
    text = (NODE.folder / RECORD).read_text()
    assert '"steps": 3' in text
    (NODE.folder / RECORD).write_text(text.replace('"steps": 3', '"steps": 4'))
    with pytest.raises(PrecfmError, match="its own checksum is wrong"):
        Artifact.open(NODE.folder)


def test_an_absent_artifact_says_how_to_make_it():
    with pytest.raises(PrecfmError, match="make reproduce"):
        Artifact.open(NODE.folder)


def test_remains_of_an_incomplete_pull_are_replaced():
    NODE.folder.mkdir(parents=True)
    (NODE.folder / "stray").write_text("x")
    build(NODE, make)
    assert not (NODE.folder / "stray").exists()


def test_an_equal_artifact_of_another_experiment_is_copied():
    build(NODE, make)
    other = replace(NODE, experiment="other", label="another-label")
    assert build(other, lambda job: pytest.fail("made again")) is False
    assert NODE.exists
    assert (other.folder / RECORD).read_bytes() == (NODE.folder / RECORD).read_bytes()
    assert not any(path.is_symlink() or path.stat().st_nlink > 1 for path in other.folder.iterdir())


def test_of_equal_artifacts_elsewhere_a_whole_one_is_taken_and_a_damaged_one_named(capsys):
    """A damaged one in the attic, then one in an experiment, then a whole one in another."""
    build(NODE, make)
    whole = replace(NODE, experiment="other")
    build(whole, make)
    attic = NODE.folder.parents[2] / ".attic/flows" / NODE.name
    shutil.copytree(NODE.folder, attic)
    (attic / "table.csv").unlink()
    (NODE.folder / "numbers.json").write_text("{}")
    third = replace(NODE, experiment="third")
    assert build(third, lambda job: pytest.fail("made again")) is False
    assert Artifact.open(third.folder).verified()
    said = capsys.readouterr().err
    assert f"{attic}: not used" in said
    assert f"{NODE.folder}: not used" in said
    assert (attic / RECORD).is_file()


def test_where_all_equal_artifacts_are_damaged_it_is_made():
    build(NODE, make)
    (NODE.folder / "numbers.json").write_text("{}")
    assert build(replace(NODE, experiment="other"), make) is True
    assert not list((NODE.folder.parents[2] / ".work/parts").iterdir())


def test_what_changes_while_it_is_copied_is_not_taken(monkeypatch):
    """DVC moves files of another experiment while it records it."""
    build(NODE, make)
    copytree = shutil.copytree

    def interrupted(source, target):
        (Path(source) / "numbers.json").write_text("{}")
        return copytree(source, target)

    monkeypatch.setattr(shutil, "copytree", interrupted)
    other = replace(NODE, experiment="other")
    assert build(other, make) is True
    assert Artifact.open(other.folder).verified()


def test_nan_is_never_written():
    with pytest.raises(ValueError, match="JSON"):
        build(NODE, lambda job: job.write_json("numbers.json", {"a": float("nan")}))
    assert not NODE.exists


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_is_one_sentence(folder):
    folder.chmod(0o500)
    try:
        with pytest.raises(PrecfmError, match="write permission"):
            build(NODE, make)
    finally:
        folder.chmod(0o700)


def test_a_full_disk_is_one_sentence_and_loses_nothing():
    def full(job):
        make(job)
        raise OSError(28, "No space left on device", str(job.folder / "x"))

    build(replace(NODE, key="abcdef012345"), make)
    with pytest.raises(PrecfmError, match="No space left on device; free space"):
        build(NODE, full)
    assert Artifact.open(replace(NODE, key="abcdef012345").folder).verified()


def test_a_node_travels_as_json():
    node = replace(
        NODE, parents={"data": ("data/x-1", "data/y-2")}, targets=("precfm.flows.paths:LinearPath",)
    )
    assert Node.from_json(json.loads(json.dumps(node.to_json()))) == node


def test_code_that_changed_after_the_plan_makes_nothing():
    changed = replace(NODE, fingerprint="f" * 16)
    with pytest.raises(PrecfmError, match="changed after the plan was made"):
        build(changed, make)
    assert not NODE.exists
    right = replace(changed, fingerprint=fingerprint(SCRIPTS / NODE.script))
    assert build(right, make) is True


@pytest.mark.parametrize("text", ["value = 2", "value ="])
def test_code_that_changes_in_this_process_makes_nothing(folder, monkeypatch, text):
    """As under `precfm make`, where plan and jobs share what was read of the code."""
    script = folder / "scripts" / NODE.script
    script.parent.mkdir()
    script.write_text("value = 1")
    monkeypatch.setattr("precfm.pipeline.build.SCRIPTS", script.parent)
    planned = replace(NODE, fingerprint=fingerprint(script))
    assert build(replace(planned, key="abcdef012345"), make) is True

    def change(job):
        make(job)
        script.write_text(text)

    with pytest.raises(PrecfmError, match="changed after the plan was made"):
        build(planned, change)
    with pytest.raises(PrecfmError, match="changed after the plan was made"):
        build(planned, lambda job: pytest.fail("begun"))
    assert not planned.exists
    script.write_text("value = 1  # again")
    assert build(planned, make) is True
