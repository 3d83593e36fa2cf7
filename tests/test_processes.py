"""Several processes that train one flow: the losses of one process, resume, and what is refused."""

import json
import os
import signal
import subprocess
import sys
import time

import pandas as pd
import psutil
import pytest
import torch
from safetensors.torch import load_file

from precfm.core.errors import PrecfmError
from precfm.pipeline.build import build
from precfm.pipeline.gpus import first_free
from precfm.pipeline.job import script_of
from precfm.pipeline.node import Node
from precfm.pipeline.processes import require_gpus
from tests.workflow import ROOT

STEPS = 60
FLOW = {
    "model": {"name": "mlp", "width": 16, "depth": 2},
    "training": {
        "steps": STEPS,
        "batch_size": 32,
        "clip_norm": 1.0,
        "checkpoints": [10, STEPS],
        "save_every": 5,
    },
}


def node(devices, flow=FLOW):
    parents = {"latents": ("latents/mine-0",), "preconditioner": ("preconditioners/mine-1",)}
    params = {"flow": flow, "seed": 3}
    return Node("flows", "mine", f"{devices}", params, parents, "", "mine", devices=devices)


@pytest.fixture
def parents(tmp_path, monkeypatch):
    """Artifacts of latents and of a map; the working folder is that of an empty project."""
    from precfm.preconditioners.saving import save
    from precfm.preconditioners.whitening import Whitening

    monkeypatch.chdir(tmp_path)
    x1 = torch.randn(300, 4, generator=torch.Generator().manual_seed(0)) * torch.tensor([2.0, 1.0, 0.3, 0.1])
    split = {"latents": x1, "labels": torch.arange(300) % 3}
    empty = {"params": {}, "parents": {}, "fingerprint": "", "experiment": "mine"}
    build(Node("latents", "mine", "0", **empty), lambda job: job.write_tensors("train.safetensors", split))
    fitted = Whitening().fit(x1)
    build(Node("preconditioners", "mine", "1", **empty), lambda job: save(fitted, job.folder))


def losses(made):
    return torch.tensor(pd.read_csv(made.folder / "history.csv").loss.to_numpy())


JOB = """
import json, sys
from precfm.pipeline.build import build
from precfm.pipeline.job import script_of
from precfm.pipeline.node import Node
if __name__ == "__main__":
    node = Node.from_json(json.loads(sys.argv[1]))
    build(node, script_of(node))
"""


def test_two_processes_train_as_one_and_go_on_after_a_kill(parents, tmp_path):
    """By gloo on the processor; each process also cuts its share into two parts."""
    one, two = node(1), node(2, {**FLOW, "training": {**FLOW["training"], "accumulate": 2}})
    build(one, script_of(one))
    (tmp_path / "job.py").write_text(JOB)
    command = [sys.executable, "job.py", json.dumps(two.to_json())]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    job = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    scratch = tmp_path / "results/.work/scratch/flows-2"
    while job.poll() is None and not list(scratch.glob("state-*")):
        time.sleep(0.002)
    started = psutil.Process(job.pid).children(recursive=True)
    job.send_signal(signal.SIGKILL)
    job.wait()
    while any(each.is_running() and each.status() != psutil.STATUS_ZOMBIE for each in started):
        time.sleep(0.01)  # they end with the job
    assert not two.exists
    assert 5 <= max(int(each.name.split("-")[1]) for each in scratch.glob("state-*")) < STEPS
    build(two, script_of(two))
    torch.testing.assert_close(losses(two), losses(one), rtol=1e-5, atol=1e-6)
    for step in (10, STEPS):
        mine, theirs = (load_file(each.folder / f"step-{step:06d}.safetensors") for each in (one, two))
        torch.testing.assert_close(theirs, mine, rtol=1e-4, atol=1e-5)
    assert json.loads((two.folder / "artifact.json").read_text())["made_on"]["devices"] == 2


@pytest.mark.parametrize("flow", [{**FLOW, "training": {**FLOW["training"], "learning_rate": 1e30}}])
def test_what_goes_wrong_in_processes_is_one_sentence(parents, flow):
    wrong = node(2, flow)
    with pytest.raises(PrecfmError, match="learning rate"):
        build(wrong, script_of(wrong))
    assert not wrong.exists


def test_more_gpus_than_there_are_and_batches_that_cannot_be_cut_are_refused(planned, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("torch.cuda.is_available", lambda: True)
        patch.setattr("torch.cuda.device_count", lambda: 2)
        require_gpus(node(2))
        with pytest.raises(PrecfmError, match="devices"):
            require_gpus(node(4))
        with pytest.raises(PrecfmError, match="devices"):
            planned({"device": "cuda", "devices": 4})
    with pytest.raises(PrecfmError, match="batch_size"):
        planned({"devices": 7})
    coupled = {"objective": {"name": "flow_matching", "coupling": "optimal_transport"}}
    with pytest.raises(PrecfmError, match="objective"):
        planned({"devices": 2, "flow": coupled})


def test_devices_are_in_no_key_and_only_flows_take_several(planned):
    several = planned({"devices": 2}).nodes
    assert several.keys() == planned().nodes.keys()
    assert {each.kind for each in several.values() if each.devices == 2} == {"flows"}


def test_a_job_takes_all_its_gpus_or_none(tmp_path):
    names = ["a", "b", "c"]
    with first_free(tmp_path, names, 2) as two, first_free(tmp_path, names) as one:
        assert (two, one) == ((0, 1), (2,))
    with first_free(tmp_path, names, 3) as all_of_them:
        assert all_of_them == (0, 1, 2)
