"""`precfm status`: what is made, running and missing is read from the disk, and the time left from recorded times."""

import hashlib
import io
import json
import os
import subprocess
import sys
import time

import pytest
from tqdm import tqdm
from typer.testing import CliRunner

from precfm.cli import app
from precfm.cli.watching import Bars, follow, shown
from precfm.pipeline.costs import COSTS, Cost, costs_text
from precfm.pipeline.estimates import HERE, THERE, Done, estimate
from precfm.pipeline.locks import alone, is_being_run, lock
from precfm.pipeline.node import PUBLISHED, RESULTS, Node
from precfm.pipeline.plan import Plan
from precfm.pipeline.status import Course, Running, Training, last_progress, status

RECORDS = RESULTS / "mine/records"


def node(kind, label, *parents):
    key = hashlib.sha256(label.encode()).hexdigest()[:12]
    return Node(kind, label, key, {}, {"all": tuple(each.id for each in parents)}, "", "mine")


DATA = node("data", "digits")
FLOWS = [node("flows", f"{name}-s{seed}", DATA) for name in ("none", "whitening") for seed in (0, 1)]
EVALUATIONS = [node("evaluations", f"flow-{flow.label}", flow) for flow in FLOWS]
PLAN = Plan("mine", nodes={each.id: each for each in [DATA, *FLOWS, *EVALUATIONS]})


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(file, text):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def make(node, seconds):
    write(node.folder / "artifact.json", "{}")
    write(RECORDS / "benchmarks" / f"{node.id}.tsv", f"s\tmax_rss\n{seconds}\tNA\n")


def publish(**costs):
    write(
        PUBLISHED / "mine" / COSTS, costs_text({kind: Cost(**cost) for kind, cost in costs.items()}).decode()
    )


def log(node, text):
    write(RECORDS / "logs" / f"{node.id}.log", text)


def test_nothing_is_known_of_what_never_ran():
    found = status(PLAN, cores=2)
    assert (found.finished, found.total, found.running, found.is_going_on) == (0, 9, {}, False)
    assert (found.estimate.seconds, found.estimate.unknown) == (None, 9)
    assert "unknown" in found.estimate.sentence("mine")


@pytest.mark.parametrize(("cores", "seconds"), [(1, 20 + 30 + 30 + 4 * 5), (2, 50), (100, 35)])
def test_times_of_this_machine_come_first_and_work_is_shared_by_cores(cores, seconds):
    """One flow without a map is left (20 s), two with one (as their kind: 30 s), four evaluations (published: 5 s)."""
    make(DATA, 3)
    make(FLOWS[0], 20)
    make(FLOWS[2], 40)
    publish(flows={"artifacts": 4, "seconds": 4000}, evaluations={"artifacts": 4, "seconds": 20})
    plan = Plan(
        "mine", nodes={**PLAN.nodes, **{each.id: each for each in (node("flows", "scalar-s0", DATA),)}}
    )
    found = status(plan, cores).estimate
    assert found.times_from == {HERE: 3, THERE: 4}
    # whitening-s1 as whitening-s0 (40), none-s1 as none-s0 (20), scalar as all flows (30); evaluations 4 x 5
    total, chain = 20 + 40 + 30 + 20, 40 + 5
    assert found.seconds == max(total / cores, chain)


def test_what_has_no_recorded_time_is_said_and_not_counted():
    publish(flows={"artifacts": 4, "seconds": 40}, data={"artifacts": 1, "seconds": 2})
    found = status(PLAN, cores=1).estimate
    assert (found.seconds, found.unknown) == (42, 4)
    assert "without a recorded time: 4" in found.sentence("mine")
    assert str(PUBLISHED / "mine" / COSTS) in found.sentence("mine")


def test_threads_and_a_gpu_limit_what_runs_at_a_time():
    costs = [(HERE, {"flows": Cost(artifacts=4, seconds=40), "evaluations": Cost(artifacts=4, seconds=4)})]
    missing = dict.fromkeys((each.id for each in [*FLOWS, *EVALUATIONS]), Done())
    two_threads = Plan("mine", threads=2, nodes=PLAN.nodes)
    on_gpu = {each.id: Node(**{**vars(each), "device": "cuda"}) for each in PLAN.nodes.values()}
    assert estimate(two_threads, missing, 4, costs).seconds == 22
    assert estimate(Plan("mine", device="cuda", nodes=on_gpu), missing, 64, costs).seconds == 44


def test_a_training_under_way_takes_the_rest_of_its_time():
    make(FLOWS[0], 20)
    log(FLOWS[1], "flow:  75%|#####  | 45/60 [00:10<00:03, 4.5it/s, loss=0.5]")
    with lock(FLOWS[1]):
        found = status(PLAN, cores=1)
    assert found.running == {FLOWS[1].id: Running(0.0, Training("flow", 45, 60, "4.5it/s", "loss=0.5"))}
    assert found.estimate.seconds == 20 * 3 - 15


def test_of_another_job_the_seconds_since_it_began_are_known():
    publish(evaluations={"artifacts": 4, "seconds": 400})
    for each in (DATA, *FLOWS):
        make(each, 1)
    part = RESULTS / f".work/parts/evaluations-{EVALUATIONS[0].key}.part-host-1"
    part.mkdir(parents=True)
    os.utime(part, (time.time() - 3600,) * 2)
    with lock(EVALUATIONS[0]):
        found = status(PLAN, cores=1)
    assert found.running[EVALUATIONS[0].id].seconds >= 3600
    assert found.estimate.seconds == 300  # it takes longer than expected, and should end any moment


def test_a_run_for_a_part_counts_that_part():
    publish(flows={"artifacts": 4, "seconds": 40}, data={"artifacts": 1, "seconds": 2})
    found = Course(PLAN, 1, {DATA.id, FLOWS[0].id}).look()
    assert (found.total, found.estimate.seconds, found.estimate.unknown) == (2, 12, 0)


HOLDER = """
import sys, time
from precfm.pipeline.locks import alone, lock
from precfm.pipeline.node import Node
with alone("mine"), lock(Node("flows", "none-s0", sys.argv[1], {}, {}, "", "mine")):
    print("ready", flush=True)
    time.sleep(600)
"""


def test_a_killed_run_is_not_running():
    process = subprocess.Popen([sys.executable, "-c", HOLDER, FLOWS[0].key], stdout=subprocess.PIPE)
    try:
        assert process.stdout.readline() == b"ready\n"
        found = status(PLAN, cores=1)
        assert found.at_work
        assert list(found.running) == [FLOWS[0].id]
        assert found.lines()[-1] == "a run is going on"
    finally:
        process.kill()
        process.communicate()
    found = status(PLAN, cores=1)
    assert (found.at_work, found.running) == (False, {})
    assert "make reproduce EXPERIMENT=mine" in found.lines()[-1]


def test_to_ask_takes_no_lock_and_writes_nothing(folder):
    status(PLAN, cores=1)
    assert not list(folder.iterdir())
    with alone("mine"), lock(FLOWS[0]):
        status(PLAN, cores=1)
    assert not is_being_run("mine")
    with lock(FLOWS[0], timeout=0):
        pass


def test_the_last_line_of_tqdm_is_read():
    text = io.StringIO()
    for name in ("recipe 1", "recipe 2"):
        with tqdm(total=600, desc=name, initial=100, file=text, mininterval=0) as bar:
            assert last_progress(text.getvalue()) == Training(name, 100, 600, "?it/s", "")
            bar.set_postfix(loss="0.25", refresh=False)
            bar.update(200)
            found = last_progress(text.getvalue())
            assert (found.name, found.step, found.steps, found.last) == (name, 300, 600, "loss=0.25")
            assert found.rate.endswith("it/s")
    assert last_progress("Traceback (most recent call last):") is None


def test_what_failed_is_named_until_it_is_made():
    write(
        RECORDS / "logs" / f"{FLOWS[0].id}.error",
        f"precfm: {FLOWS[0].id}: device: 'cuda', but none is here\n",
    )
    assert status(PLAN, 1).failed == {FLOWS[0].id: "device: 'cuda', but none is here"}
    make(FLOWS[0], 1)
    assert status(PLAN, 1).failed == {}


def test_a_log_gets_plain_lines_and_a_whole_run_none(capsys):
    with shown(PLAN, 1, PLAN.nodes):
        wait_for(lambda: "0 of 9 artifacts made" in capsys.readouterr().out)
    for each in PLAN.nodes.values():
        make(each, 1)
    with shown(PLAN, 1, PLAN.nodes):
        pass
    assert capsys.readouterr() == ("", "")


def wait_for(condition):
    while not condition():
        time.sleep(0.01)


def test_a_run_does_not_fail_for_want_of_a_look_at_it(capsys):
    write(PUBLISHED / "mine" / COSTS, "[")
    with shown(PLAN, 1, PLAN.nodes):
        pass
    assert capsys.readouterr() == ("", "")


def test_bars_show_the_run_and_each_training(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    log(FLOWS[1], "flow:  75%|#####  | 45/60 [00:10<00:03, 4.5it/s, loss=0.5]")
    make(DATA, 1)
    with lock(FLOWS[1]):
        follow(Course(PLAN, 2), 2, lambda found, seconds: True)
    said = capsys.readouterr().err
    assert "1/9" in said
    assert f"{FLOWS[1].id}, flow" in said
    assert "45/60, 4.5it/s loss=0.5  flows/" in said
    assert len(Bars(1000)._jobs) < 1000  # more would not fit on a screen


def test_the_command_prints_json_for_programs(folder, monkeypatch):
    (folder / "config").mkdir()
    monkeypatch.setattr("precfm.pipeline.plan.load_plan", {"mine": PLAN}.__getitem__)
    make(DATA, 1)
    said = json.loads(CliRunner().invoke(app, ["status", "mine", "--json", "--cores", "3"]).stdout)
    assert (said["experiment"], said["estimate"]["cores"], said["running"]) == ("mine", 3, {})
    assert said["wanted"] == {"data": 1, "flows": 4, "evaluations": 4}
    assert said["made"] == {"data": 1, "flows": 0, "evaluations": 0}
    assert "1 of 9" in CliRunner().invoke(app, ["status", "mine"]).stdout
