"""Whole runs under faults: after each, the same command ends well, with the bytes of a run that met none."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager

import pytest

from tests.faults.harness import (
    NAME,
    SMALL_NAME,
    Counts,
    damage,
    disturbed,
    family,
    fresh_project,
    outcome,
    reproduce,
    role,
    start,
    wait_for,
)
from tests.workflow import BIN, clone

pytestmark = [pytest.mark.slow, pytest.mark.faults, pytest.mark.xdist_group("faults")]

SMALL = reproduce(SMALL_NAME)
TWO_JOBS = (*SMALL, "--target", "frames")
SNAKEMAKE = (
    BIN / "snakemake",
    "--workflow-profile",
    "profiles/default",
    "--config",
    f"experiment={SMALL_NAME}",
)


def finish(folder, *command, code=0):
    """Run a command to its end; what it said."""
    log = folder.parent / f"{folder.name}.log"
    before = log.stat().st_size if log.exists() else 0
    assert start(folder, *command, log=log).wait() == code, log.read_text()[-4000:]
    return log.read_text()[before:]


def made(folder):
    """Checksums of what the first two jobs make."""
    kinds = tuple(f"results/{SMALL_NAME}/{kind}/" for kind in ("theory", "frames"))
    return {name: checksum for name, checksum in outcome(folder).items() if name.startswith(kinds)}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return fresh_project(tmp_path_factory.mktemp("faults") / "source")


@pytest.fixture(scope="module")
def small(source):
    """Checksums of the small experiment, made once without a fault."""
    folder = clone(source, source.parent / "small")
    finish(folder, *SMALL)
    return outcome(folder)


@pytest.fixture(scope="module")
def two_jobs(small, source):
    return made(source.parent / "small")


@pytest.fixture
def folder(source, tmp_path):
    return clone(source, tmp_path / "project")


def test_two_runs_from_scratch_and_one_with_kills_are_equal(source, folder, tmp_path, capsys):
    undisturbed = clone(source, tmp_path / "undisturbed")
    finish(undisturbed, *reproduce(NAME))
    again = clone(source, tmp_path / "again")
    begun = time.monotonic()
    finish(again, *reproduce(NAME))
    seconds = time.monotonic() - begun
    assert outcome(again) == outcome(undisturbed)
    counts = Counts(rounds=1)
    disturbed(folder, 12, random.Random(0), counts, mean_seconds=seconds / 15)
    counts.recovered += 1
    counts.equal += outcome(folder) == outcome(undisturbed)
    with capsys.disabled():
        print(f" [{counts}]")
    assert counts.equal == 1
    assert counts.kills.total() >= 6
    assert len(counts.kills) >= 3
    assert set(counts.stages) - {"between jobs"}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_stops_all_and_says_how_to_go_on(folder, two_jobs, number):
    log = folder.parent / "log"
    process = start(folder, *TWO_JOBS, log=log)
    job = wait_for(process, "theory")
    members = family(process)
    process.send_signal(number)
    assert process.wait() == 128 + number
    assert not job.is_running()
    assert not [member for member in members if member.is_running()]
    said = log.read_text()
    assert "the same command goes on" in said
    assert "Traceback" not in said
    finish(folder, *TWO_JOBS)
    assert made(folder) == two_jobs


def test_a_second_signal_kills_what_did_not_heed_the_first(folder):
    """Instead of Snakemake a command that ignores SIGTERM."""
    deaf = (
        "import signal, time; signal.signal(15, signal.SIG_IGN); print('deaf', flush=True); time.sleep(600)"
    )
    command = "import sys, reproduce; reproduce.run_group([sys.executable, '-c', sys.argv[1]], {}, 1)"
    environment = {**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{folder / 'workflow_scripts'}"}
    process = subprocess.Popen(
        [sys.executable, "-c", command, deaf], cwd=folder, env=environment, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "deaf\n"
    (child,) = [member for member in family(process) if member.pid != process.pid]
    process.terminate()
    time.sleep(0.5)
    assert process.poll() is None
    process.terminate()
    assert process.wait(60) == 128 + signal.SIGTERM
    assert not child.is_running()


def test_a_killed_snakemake_leaves_no_job_behind(folder, two_jobs):
    process = start(folder, *TWO_JOBS, log=folder.parent / "log")
    job = wait_for(process, "theory")
    next(member for member in family(process) if role(member) == "snakemake").kill()
    assert process.wait() != 0
    job.wait(60)
    finish(folder, *TWO_JOBS)
    assert made(folder) == two_jobs


def test_a_second_run_waits_for_what_a_killed_one_left_running(folder, two_jobs):
    process = start(folder, *TWO_JOBS, log=folder.parent / "log")
    wait_for(process, "theory")
    process.kill()
    said = finish(folder, *TWO_JOBS)
    assert "another run is at work" in said
    assert made(folder) == two_jobs


def test_two_runs_at_once_end_well(folder, two_jobs):
    runs = [start(folder, *TWO_JOBS, log=folder.parent / f"log-{number}") for number in range(2)]
    assert [run.wait() for run in runs] == [0, 0]
    assert made(folder) == two_jobs


@pytest.mark.parametrize("killed", [False, True])
def test_a_second_run_while_dvc_records_waits_for_it(folder, small, killed):
    """Also where only DVC is left of the first; what it moves is not taken for damaged."""
    first = start(folder, *SMALL, log=folder.parent / "log")
    wait_for(first, "dvc")
    if killed:
        first.kill()
    said = finish(folder, *SMALL)
    assert f"{'ledger' if killed else SMALL_NAME}: another run is at work" in said
    assert "made again" not in said
    assert first.wait() == (-signal.SIGKILL if killed else 0)
    assert not damage(folder)
    assert outcome(folder) == small


def test_two_snakemakes_at_once_end_well(folder, two_jobs):
    """Without the command that lets only one work; Snakemake's own lock is off."""
    first = start(folder, *SNAKEMAKE, log=folder.parent / "log-0")
    wait_for(first, "theory")
    second = start(folder, *SNAKEMAKE, log=folder.parent / "log-1")
    assert (first.wait(), second.wait()) == (0, 0), (folder.parent / "log-1").read_text()[-3000:]
    finish(folder, *TWO_JOBS)
    assert made(folder) == two_jobs


def test_dvc_killed_while_it_records(folder, small, capsys):
    draw, kills = random.Random(0), 0
    for _ in range(6):
        process = start(folder, *SMALL, log=folder.parent / "log")
        try:
            recording = wait_for(process, "dvc")
        except AssertionError:
            break  # recorded before it could be killed
        time.sleep(draw.uniform(0.2, 1.5))
        kills += process.poll() is None
        for member in reversed(family(process)):
            member.kill()
        recording.wait()
        process.wait()
    finish(folder, *SMALL)
    assert kills >= 2
    assert not damage(folder)
    assert outcome(folder) == small
    with capsys.disabled():
        print(f" [{kills} kills]")


def test_dvc_repro_killed(folder, small):
    finish(folder, *SMALL)
    for kind in ("theory", "frames"):
        command = (BIN / "dvc", "repro", "--force", "--single-item", f"{kind}@{SMALL_NAME}")
        for record in folder.glob(f"results/{SMALL_NAME}/{kind}/*/artifact.json"):
            shutil.rmtree(record.parent)
        process = start(folder, *command, log=folder.parent / "log")
        wait_for(process, kind)
        process.kill()
        process.wait()  # until then DVC takes the dead one, which it asks for by its id, for alive
        finish(folder, *command)
    finish(folder, *SMALL)
    assert outcome(folder) == small


@pytest.fixture
def mounts():
    """Mount over folders; undone afterwards."""
    mounted = []

    def mount(folder, *options):
        folder.mkdir(exist_ok=True)
        done = subprocess.run(["mount", *options, str(folder)], capture_output=True, text=True)
        if done.returncode:
            assert not mounted, done.stderr
            pytest.skip(f"mounting is not permitted here: {done.stderr.strip()}")
        if not any("remount" in option for option in options):
            mounted.append(folder)

    yield mount
    for folder in mounted:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@contextmanager
def read_only(folder, mounts):
    """A second mount on top, so that files which are open for writing keep nobody from it."""
    mounts(folder, "--bind", str(folder))
    mounts(folder, "-o", "remount,bind,ro")
    yield
    mounts(folder, "-o", "remount,bind,rw")


@pytest.mark.skipif(sys.platform != "linux", reason="mounts a small file system, as Linux does")
@pytest.mark.parametrize("kilobytes", [40, 80])
def test_a_full_disk(folder, two_jobs, mounts, kilobytes):
    shutil.rmtree(folder / "results", ignore_errors=True)
    mounts(folder / "results", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs")
    said = finish(folder, *TWO_JOBS, code=1)
    assert "No space left on device" in said
    assert not damage(folder)
    mounts(folder / "results", "-o", "remount,size=50m")
    finish(folder, *TWO_JOBS)
    assert made(folder) == two_jobs


@pytest.mark.skipif(sys.platform != "linux", reason="mounts read-only, as Linux does")
def test_read_only_results(folder, two_jobs, mounts):
    results = folder / "results"
    results.mkdir(exist_ok=True)
    with read_only(results, mounts):
        assert "permission to read and write" in finish(folder, *TWO_JOBS, code=1)
    process = start(folder, *TWO_JOBS, log=folder.parent / "log")
    wait_for(process, "theory")
    with read_only(results, mounts):
        assert process.wait() == 1
    finish(folder, *TWO_JOBS)
    assert not damage(folder)
    assert made(folder) == two_jobs


def test_a_cut_ledger_is_the_old_one_again(folder, small):
    """As a DVC leaves it that is killed while it writes: every length is tried that a buffer might end at."""
    finish(folder, *SMALL)
    ledger = (folder / "dvc.lock").read_bytes()
    kept = folder / "results/.work/ledger" / SMALL_NAME
    for length in (0, 10, len(ledger) // 2, len(ledger) - 40):
        kept.write_bytes(ledger)
        os.truncate(folder / "dvc.lock", length)
        finish(folder, *SMALL)
        assert outcome(folder) == small
        assert not kept.exists()
