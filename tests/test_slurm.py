"""The same plan on a Slurm cluster: the same keys, the same bytes. And several GPUs on one host, each for one job."""

import importlib.util
import multiprocessing
import os
import random
import re
import shutil
import subprocess
import time
from collections import Counter
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch
import yaml

from precfm.pipeline.gpus import first_free, held_gpus
from precfm.pipeline.plan import load_plan
from tests.faults.harness import NAME, at_work, fresh_project, outcome, role, start
from tests.workflow import BIN, ROOT, run

fork = multiprocessing.get_context("fork")
NEEDED = ("slurmctld", "slurmd", "munged", "sbatch")
CONFIGURATION = Path("/etc/slurm/slurm.conf")
# Trainings that last a few seconds and are saved often, so that there is a moment to kill one.
LONG = {
    "description": "A flow that takes seconds to train; made by the tests of a cluster.",
    "extends": NAME,
    "flow": {"training": {"steps": 4000, "checkpoints": [4000], "save_every": 100}},
}
ON_GPU = {"description": "Jobs that ask for a GPU.", "extends": NAME, "device": "cuda"}
LONGEST = 1200  # seconds that a run on the cluster may take before it counts as hung


def what_is_missing():
    """Why no cluster can be set up here; empty if one can."""
    if os.geteuid() != 0:
        return "only root can set up a cluster"
    lacking = [name for name in NEEDED if shutil.which(name) is None]
    if lacking:
        return f"{', '.join(lacking)} not installed (Debian: slurmctld, slurmd, slurm-client, munge)"
    if importlib.util.find_spec("snakemake_executor_plugin_slurm") is None:
        return "the executor plugin is not installed (pip install -e '.[slurm]')"
    if CONFIGURATION.is_file() and not CONFIGURATION.is_symlink():
        return f"this machine belongs to a cluster ({CONFIGURATION})"
    return ""


@pytest.fixture
def cluster(tmp_path_factory):
    reason = what_is_missing()
    if reason:
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("cluster")
    script = ROOT / "tests/faults/slurm_cluster.sh"
    try:
        subprocess.run(["sh", script, "start", folder], check=True)
        yield folder
    finally:
        subprocess.run(["sh", script, "stop", folder], check=True)


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A fresh project as the working folder, with an experiment of its own in addition."""

    def make(name, experiment):
        folder = fresh_project(tmp_path / "on_cluster")
        (folder / f"config/{name}.yaml").write_text(yaml.safe_dump(experiment))
        monkeypatch.chdir(folder)
        return folder

    return make


def submit(folder, experiment, *targets):
    """Start Snakemake with the profile of a cluster, as a user does where Slurm keeps no accounts."""
    settings = ("--slurm-status-command", "squeue", "--slurm-init-seconds-before-status-checks", "8")
    command = (BIN / "snakemake", "--workflow-profile", "profiles/slurm", *settings)
    log = folder.parent / "snakemake.log"
    return start(folder, *command, "--config", f"experiment={experiment}", "--", *targets, log=log)


def ended(process, folder):
    """The exit code of a run on the cluster, and what it said, once no process of its jobs is left."""
    code, begun = process.wait(LONGEST), time.monotonic()
    while left := at_work(folder):
        assert time.monotonic() < begun + LONGEST, f"these outlived their run: {left}"
        time.sleep(0.1)
    return code, (folder.parent / "snakemake.log").read_text()[-4000:]


def states(folder):
    """How many jobs Slurm ended in which state."""
    return Counter(re.findall(r"JobState=(\w+)", run(folder, "scontrol", "--oneliner", "show", "jobs")))


def records(nodes):
    return [f"{node.folder}/artifact.json" for node in nodes]


def family_of(plan, node):
    """An artifact and all that it is made from."""
    found = {node.id}
    for ids in node.parents.values():
        for parent in ids:
            found |= family_of(plan, plan.node(parent))
    return found


def saves(node):
    """The saved states of a training."""
    return list(Path(f"results/.work/scratch/{node.kind}-{node.key}").rglob("state-*.safetensors"))


def stopped(folder, node):
    """The process that makes an artifact, which holds its lock; stopped, so that it does not end meanwhile."""
    for process in at_work(folder):
        try:
            if any(Path(file.path).name == f"{node.kind}-{node.key}.lock" for file in process.open_files()):
                process.suspend()
                return process
        except psutil.Error:  # it has just ended
            continue
    raise AssertionError(f"the training of {node.id} ended before it was stopped")


def kill(script):
    """End a job's script, as the kernel does where memory runs out."""
    script.kill()


def cancel(script):
    """Cancel the job of a script: Slurm wakes it (SIGCONT), terminates it and, after KillWait, kills it."""
    run(Path.cwd(), "scancel", script.environ()["SLURM_JOB_ID"])


@pytest.mark.slow
@pytest.mark.xdist_group("slurm")
def test_a_cluster_makes_the_same_bytes_as_this_machine_also_where_jobs_die(cluster, project, tmp_path):
    folder = project("long", LONG)
    here = shutil.copytree(folder, tmp_path / "here")
    plan = load_plan("long")
    first = {node.kind: node for node in reversed(plan.nodes.values())}
    victims = [
        node
        for node in plan.nodes.values()
        if node.kind == "flows" and node.label.endswith(("L16-none-s0", "L16-normalizing_flow-s0"))
    ]
    wanted = {node.id for node in (first["theory"], first["classifiers"])}
    wanted |= set().union(*(family_of(plan, victim) for victim in victims))
    batches = {(node.kind, node.batch) for node in map(plan.node, wanted) if node.batch}
    wanted |= {node.id for node in plan.nodes.values() if (node.kind, node.batch) in batches}
    # Of each job the last artifact, for which Snakemake asks, too.
    asked = {(node.kind, node.batch or name): node for name, node in plan.nodes.items() if name in wanted}
    targets = records(asked.values())

    process = submit(folder, "long", *targets)
    ends = dict(zip([victim.id for victim in victims], (kill, cancel), strict=True))
    while ends:
        assert process.poll() is None, "a training was never saved"
        for name in [name for name in ends if saves(plan.node(name))]:
            ends.pop(name)(stopped(folder, plan.node(name)))
        time.sleep(0.01)
    code, said = ended(process, folder)
    assert code == 1, said
    undisturbed = len(asked) - len(victims)
    assert states(folder) == {"COMPLETED": undisturbed, "FAILED": 1, "CANCELLED": 1}
    assert [name for name in sorted(wanted) if not plan.node(name).exists] == sorted(v.id for v in victims)

    code, said = ended(submit(folder, "long", *targets), folder)
    assert code == 0, said
    assert states(folder) == {"COMPLETED": len(asked), "FAILED": 1, "CANCELLED": 1}

    run(here, BIN / "precfm", "make", "long", *sorted(wanted))
    made, reference = (
        {name: checksum for name, checksum in outcome(place).items() if name.startswith("results/")}
        for place in (folder, here)
    )
    assert len(made) > len(wanted)
    assert made == reference


def environments(folder):
    """What the jobs that are at work now were told of GPUs, by process."""
    found = {}
    for process in at_work(folder):
        try:
            if role(process) in ("make", "classifiers"):  # the first until it holds its artifact's lock
                found[process.pid] = process.environ().get("CUDA_VISIBLE_DEVICES")
        except psutil.Error:  # it has just ended
            continue
    return found


@pytest.mark.slow
@pytest.mark.xdist_group("slurm")
@pytest.mark.skipif(torch.cuda.is_available(), reason="its GPUs are counterfeit; torch must find none")
def test_each_job_of_a_cluster_gets_a_gpu_of_its_own(cluster, project):
    folder = project("on_gpu", ON_GPU)
    classifiers = [node for node in load_plan("on_gpu").nodes.values() if node.kind == "classifiers"]
    process = submit(folder, "on_gpu", "all_classifiers")
    seen = []
    while process.poll() is None:
        seen.append(environments(folder))
        time.sleep(0.05)
    code, said = ended(process, folder)
    assert code == 1, said
    together = [each for each in seen if len(each) == 2]
    assert together, "two jobs were never at work at once"
    assert all(set(each.values()) == {"0", "1"} for each in together)

    jobs = run(folder, "scontrol", "--oneliner", "show", "jobs").splitlines()
    asked = {re.search(r"rule_(\w+)_wildcards", job)[1]: re.findall(r"TresPerJob=(\S+)", job) for job in jobs}
    assert asked == {"split_data": [], "train_classifier": ["gres:gpu:1"]}
    for node in classifiers:
        said = Path(f"results/on_gpu/records/logs/{node.id}.error").read_text()
        needed = "device: 'cuda', but torch finds no GPU here; a GPU, or `device: cpu`, is needed"
        assert said == f"precfm: {node.id}: {needed}\n"


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
        with first_free(locks, names) as (index,):
            events.put((time.monotonic(), index, +1))
            time.sleep(draw.uniform(0, 0.02))
            events.put((time.monotonic(), index, -1))


@pytest.mark.parametrize(("gpus", "jobs"), [(1, 3), (2, 5), (4, 4)])
def test_no_two_jobs_hold_one_gpu(tmp_path, monkeypatch, gpus, jobs):
    monkeypatch.setattr("precfm.pipeline.gpus.LOOK_EVERY", 0.002)
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
        with first_free(tmp_path, names) as (index,):
            taken.put(index)
            time.sleep(60)

    worker = fork.Process(target=keep)
    worker.start()
    theirs = taken.get()
    with first_free(tmp_path, names) as (ours,):
        assert {theirs, ours} == {0, 1}
        worker.kill()
        worker.join()
        with first_free(tmp_path, names) as (again,):
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
    with held_gpus(tmp_path):
        assert current == [0]
        uuids.reverse()  # as another process counts them, which sees them through CUDA_VISIBLE_DEVICES
        with held_gpus(tmp_path):
            assert current == [0, 0]
            with held_gpus(tmp_path):
                assert current == [0, 0, 1]
    assert current == []
