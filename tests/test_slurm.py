"""The same plan on a Slurm cluster: the same keys, the same bytes. And several GPUs on one host, each for one job."""

import importlib.util
import multiprocessing
import os
import random
import shutil
import subprocess
import time
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import yaml

from precfm.gpus import first_free, one_gpu
from tests.faults.harness import SMALL_NAME, fresh_project, outcome
from tests.workflow import BIN, ROOT, run

fork = multiprocessing.get_context("fork")
NEEDED = ("slurmctld", "slurmd", "munged", "sbatch")


def what_is_missing():
    """Why no cluster can be set up here; empty if one can."""
    if os.geteuid() != 0:
        return "only root can set up a cluster"
    lacking = [name for name in NEEDED if shutil.which(name) is None]
    if lacking:
        return f"{', '.join(lacking)} not installed (Debian: slurmctld, slurmd, slurm-client, munge)"
    if importlib.util.find_spec("snakemake_executor_plugin_slurm") is None:
        return "the executor plugin is not installed (pip install -e '.[slurm]')"
    return ""


@pytest.fixture
def cluster(tmp_path_factory):
    reason = what_is_missing()
    if reason:
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("cluster")
    script = ROOT / "tests/faults/slurm_cluster.sh"
    subprocess.run(["sh", script, "start", folder], check=True)
    yield folder
    subprocess.run(["sh", script, "stop", folder], check=True)


@pytest.mark.slow
@pytest.mark.xdist_group("slurm")
def test_a_cluster_makes_the_same_bytes_as_this_machine(cluster, tmp_path):
    on_cluster, here = fresh_project(tmp_path / "cluster"), fresh_project(tmp_path / "here")
    paths = os.pathsep.join([str(on_cluster), *os.environ.get("PYTHONPATH", "").split(os.pathsep)])
    command = [BIN / "snakemake", "--workflow-profile", "profiles/slurm", "--slurm-status-command", "squeue"]
    run(on_cluster, *command, "--config", f"experiment={SMALL_NAME}", "--", "frames_all", PYTHONPATH=paths)
    assert run(on_cluster, "scontrol", "--oneliner", "show", "jobs").count("JobState=COMPLETED") == 2
    run(here, BIN / "precfm", "make", SMALL_NAME, "theory", "frames")
    made = {name: checksum for name, checksum in outcome(on_cluster).items() if name.startswith("results/")}
    assert made
    assert made == {name: checksum for name, checksum in outcome(here).items() if name.startswith("results/")}


def test_the_profile_differs_from_that_of_one_machine_only_in_where_jobs_run():
    profiles = {
        name: yaml.safe_load((ROOT / f"profiles/{name}/config.yaml").read_text())
        for name in ("default", "slurm")
    }
    where = {"cores", "resources", "executor", "jobs", "latency-wait", "default-resources"}
    default, slurm = ({key: profile[key] for key in profile.keys() - where} for profile in profiles.values())
    assert default == slurm


def hold(locks, names, events, seed):
    draw = random.Random(seed)
    for _ in range(5):
        with first_free(locks, names) as index:
            events.put((time.monotonic(), index, +1))
            time.sleep(draw.uniform(0, 0.02))
            events.put((time.monotonic(), index, -1))


@pytest.mark.parametrize(("gpus", "jobs"), [(1, 3), (2, 5), (4, 4)])
def test_no_two_jobs_hold_one_gpu(tmp_path, monkeypatch, gpus, jobs):
    monkeypatch.setattr("precfm.gpus.LOOK_EVERY", 0.002)
    events = fork.SimpleQueue()
    names = [f"GPU-{index}" for index in range(gpus)]
    workers = [fork.Process(target=hold, args=(tmp_path, names, events, seed)) for seed in range(jobs)]
    for worker in workers:
        worker.start()
    seen = sorted(events.get() for _ in range(jobs * 5 * 2))
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    held = [0] * gpus
    for _, index, change in seen:
        held[index] += change
        assert held[index] in (0, 1)


def test_jobs_at_once_take_different_gpus_and_a_killed_job_gives_its_back(tmp_path):
    names = ["GPU-a", "GPU-b"]
    taken = fork.SimpleQueue()

    def keep():
        with first_free(tmp_path, names) as index:
            taken.put(index)
            time.sleep(60)

    worker = fork.Process(target=keep)
    worker.start()
    theirs = taken.get()
    with first_free(tmp_path, names) as ours:
        assert {theirs, ours} == {0, 1}
        worker.kill()
        worker.join()
        with first_free(tmp_path, names) as again:
            assert again == theirs


def test_a_job_gets_the_first_free_gpu_as_its_current_one(tmp_path, monkeypatch):
    """With a counterfeit torch.cuda, for machines without GPUs."""
    uuids, current = ["a", "b", "c"], []
    monkeypatch.setattr("torch.cuda.device_count", lambda: len(uuids))
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda index: SimpleNamespace(uuid=uuids[index]))

    @contextmanager
    def device(index):
        current.append(index)
        yield
        current.pop()

    monkeypatch.setattr("torch.cuda.device", device)
    with one_gpu(tmp_path):
        assert current == [0]
        uuids.reverse()  # as another process counts them, which sees them through CUDA_VISIBLE_DEVICES
        with one_gpu(tmp_path):
            assert current == [0, 0]
            with one_gpu(tmp_path):
                assert current == [0, 0, 1]
    assert current == []
