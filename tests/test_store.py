"""The results folder follows the plan: the attic takes what leaves it and gives back what returns."""

import fcntl
import importlib.util
import json
import os
import shutil
import subprocess
import threading
from pathlib import Path

import pandas as pd
import pytest
from filelock import FileLock

from precfm.core.errors import PrecfmError
from precfm.pipeline import publication as store
from precfm.pipeline.attic import collect_garbage, tidy
from precfm.pipeline.build import build
from precfm.pipeline.node import RECORD
from precfm.pipeline.publication import is_published, publish, summary
from tests.test_report_comparisons import budget_rows, curve_records
from tests.workflow import ROOT, bytes_below, sealed

WHITENING = {"methods": {"whitening": {"preconditioner": {"exponent": 0.25}}}}


def make_all(plan, kinds=None):
    def fake(job):
        job.write_json(f"{job.node.kind}.json", {"key": job.node.key})
        if job.node.kind in ("table_files", "figure_files"):
            (job.folder / f"{job.node.label}.md").write_text(job.node.key)

    made = [
        node.id for node in plan.nodes.values() if (kinds is None or node.kind in kinds) and build(node, fake)
    ]
    return set(made)


def test_a_changed_method_goes_to_the_attic_and_comes_back(planned):
    first = planned()
    make_all(first)
    second = planned(WHITENING)
    left, returned = tidy(second)
    gone = {node_id for node_id in first.nodes if node_id not in second.nodes}
    assert set(left) == gone
    assert returned == []
    assert make_all(second) == {node_id for node_id in second.nodes if node_id not in first.nodes}

    _, returned = tidy(planned())
    assert set(returned) == gone
    assert make_all(planned()) == set()


def test_tidy_of_a_whole_experiment_does_nothing(planned):
    make_all(planned())
    assert tidy(planned()) == ([], [])


def test_another_experiment_shares_what_is_equal(planned):
    make_all(planned())
    twin = planned(name="twin")
    _, returned = tidy(twin)
    assert len(returned) == sum(node.kind not in store.PRODUCTS for node in twin.nodes.values())


def test_garbage_is_the_attic_and_abandoned_scratch(planned, project):
    make_all(planned())
    tidy(planned(WHITENING))
    unfinished = next(node for node in planned(WHITENING).of("flows") if not node.exists)
    finished = next(node for node in planned(WHITENING).of("flows") if node.exists)
    for name in (f"flows-{unfinished.key}", f"flows-{finished.key}", "flows-000000000000"):
        (project / "results/.work/scratch" / name).mkdir(parents=True)
        (project / "results/.work/scratch" / name / "state").write_text("x" * 1000)
    assert collect_garbage([planned(WHITENING)]) > 1000
    assert not (project / "results/.attic").exists()
    assert [path.name for path in (project / "results/.work/scratch").iterdir()] == [
        f"flows-{unfinished.key}"
    ]


def test_publishing_copies_products_and_removes_stale_ones(planned, project):
    plan = planned()
    make_all(plan)
    (project / "results/mine/tables").mkdir(parents=True)
    for name in ("stale.csv", ".snakemake_timestamp"):
        (project / "results/mine/tables" / name).write_text("old")
    publish(plan)
    names = {path.name for path in (project / "results/mine/tables").iterdir()}
    assert {f"{node.label}.md" for node in plan.of("table_files")} <= names
    assert "stale.csv" not in names
    assert ".snakemake_timestamp" in names
    manifest = json.loads((project / "results/mine/manifest.json").read_text())
    assert manifest["artifacts"].keys() == plan.nodes.keys()
    assert all(entry["files"] for entry in manifest["artifacts"].values())


def test_publishing_a_partial_checkout_keeps_what_the_manifest_knew(planned, project):
    plan = planned()
    make_all(plan)
    publish(plan)
    before = (project / "results/mine/manifest.json").read_text()
    shutil.rmtree(project / "results/mine/flows")
    publish(plan)
    assert (project / "results/mine/manifest.json").read_text() == before


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("verdicts.json", None),
        ("verdicts.json", "{}"),
        ("tables/metrics.md", None),
        ("tables/metrics.md", "0.0"),
        ("tables/stray.csv", "a,b"),
        ("figures/spectra.md", None),
        ("figures/spectra.md", ""),
        ("manifest.json", None),
        ("manifest.json", "{"),
        ("manifest.json", "[]"),
        ("manifest.json", '{"artifacts": {}}'),
        ("manifest.json", '{"artifacts": 3}'),
    ],
)
def test_what_is_published_and_then_deleted_or_damaged_is_published_again(planned, project, name, content):
    plan = planned()
    make_all(plan, store.PRODUCTS)
    publish(plan)
    home = project / "results/mine"
    stamp = home / "records" / f"published-{plan.key}"
    stamp.parent.mkdir(exist_ok=True)
    stamp.touch()
    reproduce = script("reproduce")
    reproduce.publish_again_unless_whole(plan)
    assert stamp.exists()
    before = bytes_below(home)
    (home / name).unlink(missing_ok=True)
    if content is not None:
        (home / name).write_text(content)
    reproduce.publish_again_unless_whole(plan)
    assert not stamp.exists()
    publish(plan)
    stamp.touch()
    assert bytes_below(home) == before
    assert is_published(plan)


def test_nothing_is_published_as_long_as_a_product_is_not_made(planned):
    plan = planned()
    assert not is_published(plan)
    make_all(plan, {"table_files", "figure_files"})
    assert not is_published(plan)


def test_publishing_waits_for_another(planned, project):
    plan = planned()
    make_all(plan, store.PRODUCTS)
    publish(plan)
    (project / "results/mine/manifest.json").unlink()
    with FileLock(project / "results/.work/locks/publish-mine.lock"):
        second = threading.Thread(target=publish, args=(plan,))
        second.start()
        second.join(0.5)
        assert not is_published(plan)
    second.join()
    assert is_published(plan)


def test_time_to_quality_in_seconds_is_published_beside_the_wall_times(planned, project):
    plan = planned()
    make_all(plan, store.PRODUCTS)
    (frames,) = plan.of("frames")
    about = frames.params["about"]["flows"]
    dataset = about[0]["dataset"]
    methods = sorted({told["method"] for told in about if told["dataset"] == dataset})
    seeds = len({told["seed"] for told in about})

    def collect(job):
        curves = {method: [[4.0, 2.0, 1.0]] * seeds for method in methods}
        job.write_frame("records.csv", curve_records(curves, dataset=dataset))
        job.write_frame("budgets.csv", budget_rows(dict.fromkeys(methods, (1, 0)), seeds, dataset))

    build(frames, collect)
    records = project / "results/mine/records"
    publish(plan)
    assert not (records / "time_to_quality.csv").exists()
    for kind, seconds in (("flows", 500), ("preconditioners", 2)):
        (records / "benchmarks" / kind).mkdir(parents=True)
        for node in plan.of(kind):
            (records / "benchmarks" / kind / f"{node.name}.tsv").write_text(f"s\tmax_rss\n{seconds}\t7\n")
    publish(plan)
    table = pd.read_csv(records / "time_to_quality.csv")
    assert set(table["method"]) == set(methods)
    assert table["seconds"].dropna().tolist() == pytest.approx([502] * len(methods))


def test_the_summary_counts_what_exists(planned):
    plan = planned()
    make_all(plan, {"data", "classifiers"})
    counted = {kind: (wanted, existing) for kind, wanted, existing in summary(plan)}
    assert counted["data"] == (1, 1)
    assert counted["classifiers"] == (2, 2)
    assert counted["flows"][1] == 0


def test_neither_a_stray_file_nor_a_part_of_an_artifact_replaces_a_whole_one_in_the_attic(planned, project):
    make_all(planned(), {"flows"})
    old = planned().of("flows")[0]
    kind = old.folder.parent
    store.to_attic(old.folder, "flows")
    old.folder.mkdir()
    (old.folder / "flows.json").write_text("half")
    assert not store.to_attic(old.folder, "flows")
    old.folder.write_text("stray")
    (kind / "link").symlink_to(project / "config")
    assert not store.to_attic(old.folder, "flows")
    assert not store.to_attic(kind / "link", "flows")
    assert old.name not in {path.name for path in kind.iterdir()}
    assert (project / "config/smoke.yaml").is_file()
    assert [path.name for path in (project / "results/.attic/flows").iterdir()] == [old.name]
    store.Artifact.open(project / "results/.attic/flows" / old.name).verified()


def test_the_attic_keeps_two_artifacts_of_one_name_apart(planned, project):
    """Equal keys, other bytes, as from two machines; the newer one comes back, and the older one after it."""
    (old,) = planned().of("data")

    def put_aside(number):
        build(old, lambda job: job.write_json("data.json", number))
        kept = bytes_below(old.folder)
        assert store.to_attic(old.folder, "data")
        return kept

    attic = project / "results/.attic/data"
    first = put_aside(1)
    shutil.copytree(attic / old.name, old.folder)
    store.to_attic(old.folder, "data")  # an equal one: there is nothing to keep apart
    assert [path.name for path in attic.iterdir()] == [old.name]
    (attic / old.name).rename(project / "kept")
    second = put_aside(2)
    shutil.copytree(project / "kept", old.folder)
    store.to_attic(old.folder, "data")
    older = f"{old.label}.1-{old.key}"
    assert {path.name: bytes_below(path) for path in attic.iterdir()} == {old.name: first, older: second}
    tidy(planned())
    assert bytes_below(old.folder) == first
    shutil.rmtree(old.folder)
    tidy(planned())
    assert bytes_below(old.folder) == second


def test_garbage_spares_running_jobs(planned, project):
    work = project / "results/.work"
    names = ["flows-000000000000", "flows-111111111111"]
    for name in names:
        for remains in (work / "scratch" / name, work / "parts" / f"{name}.part-host.domain-77"):
            remains.mkdir(parents=True)
            (remains / "state").write_text("x" * 1000)
    (work / "locks").mkdir()
    with FileLock(work / "locks" / f"{names[0]}.lock"):
        assert collect_garbage([planned()]) == 2000
        assert [path.name for path in (work / "scratch").iterdir()] == [names[0]]
        assert [path.name for path in (work / "parts").iterdir()] == [f"{names[0]}.part-host.domain-77"]
    assert collect_garbage([planned()]) == 2000


def test_an_artifact_whose_payload_is_gone_is_not_copied_to_another_experiment(planned, capsys):
    make_all(planned(), {"data"})
    (planned().of("data")[0].folder / "data.json").unlink()
    assert tidy(planned(name="twin")) == ([], [])
    assert "data.json: No such file" in capsys.readouterr().err
    assert not planned(name="twin").of("data")[0].exists


def script(name):
    """A script of workflow_scripts/ as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / f"workflow_scripts/{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def pulled(planned):
    """An experiment that is recorded, and what `make pull` does before it asks DVC."""
    plan = planned()
    make_all(plan)
    publish(plan)
    return plan, script("pull").set_aside


def test_before_a_pull_right_artifacts_stay_and_unknown_ones_go_to_the_attic(pulled, project):
    plan, set_aside = pulled
    flow = plan.of("flows")[0]
    assert set_aside("mine", ["flows"]) == []
    unknown = flow.folder.with_name("unknown-0123456789ab")
    shutil.copytree(flow.folder, unknown)
    assert set_aside("mine", ["flows"]) == [Path("results/mine/flows") / unknown.name]
    assert (project / "results/.attic/flows" / unknown.name / RECORD).is_file()
    assert all(node.exists for node in plan.of("flows"))


@pytest.mark.parametrize("file", ["flows.json", RECORD])
def test_before_a_pull_a_damaged_artifact_is_removed(pulled, project, file):
    plan, set_aside = pulled
    flow = plan.of("flows")[0]
    (flow.folder / file).write_text("[")
    assert set_aside("mine", ["flows"]) == []
    assert not flow.folder.exists()
    assert not (project / "results/.attic").exists()


def test_a_pull_without_a_manifest_says_so(pulled, project):
    (project / "results/mine/manifest.json").unlink()
    with pytest.raises(PrecfmError, match=r"manifest\.json: missing"):
        pulled[1]("mine", ["flows"])


FIELDS = {
    "params": {"forged": True},
    "fingerprint": "0" * 16,
    "made_on": {"device": "elsewhere"},
    "parents": {},
    "key": "0" * 12,
    "files": {},
}


@pytest.mark.parametrize("field", FIELDS)
def test_whatever_a_record_says_otherwise_than_the_manifest_is_refused(pulled, project, field):
    """The bytes may be right: what they stand for would be wrong. Neither is it fetched back from the attic."""
    plan, _ = pulled
    flow = plan.of("flows")[0]
    refuse_wrong = script("pull").refuse_wrong
    assert refuse_wrong("mine", ["flows"]) == []
    record = json.loads((flow.folder / RECORD).read_text())
    (flow.folder / RECORD).write_text(sealed({**record, field: FIELDS[field]}))
    forged = bytes_below(flow.folder)
    assert refuse_wrong("mine", ["flows"]) == [flow.folder]
    assert bytes_below(project / "results/.attic/refused/flows" / flow.name) == forged
    assert tidy(plan) == ([], [])
    assert not flow.exists


def test_after_a_pull_that_broke_off_the_remains_are_removed_and_the_rest_is_judged(
    pulled, project, monkeypatch
):
    """DVC's exit code comes last: what is wrong is refused even where DVC failed."""
    plan, _ = pulled
    pull = script("pull")
    right, cut, unknown = plan.of("flows")[:3]
    (project / "params.yaml").write_text("experiments: [mine]\nsources: []\n")

    def fails(command, **how):
        (cut.folder / RECORD).unlink()
        unknown.folder.rename(unknown.folder.with_name("made-here-0123456789ab"))
        return subprocess.CompletedProcess(command, 1)

    monkeypatch.setattr(pull.subprocess, "run", fails)
    with pytest.raises(
        PrecfmError, match=r"flows/made-here-0123456789ab: not what mine's manifest(.|\n)*could not pull"
    ):
        pull.main("mine", "flows")
    assert right.exists
    assert not cut.folder.exists()
    assert (project / "results/.attic/refused/flows/made-here-0123456789ab" / RECORD).is_file()


@pytest.mark.parametrize("lock", ["mine", "ledger"])
def test_a_pull_waits_for_a_run_and_its_dvc_keeps_others_away(pulled, project, monkeypatch, capfd, lock):
    pull = script("pull")
    (project / "params.yaml").write_text("experiments: [mine]\nsources: []\n")
    asked = []

    def dvc(command, pass_fds, **how):
        asked.append(command)
        assert len([held for held in pass_fds if os.fstat(held)]) == 2
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(pull.subprocess, "run", dvc)
    with store.alone(lock):
        waiting = threading.Thread(target=pull.main, args=("mine", "flows"))
        waiting.start()
        waiting.join(0.5)
        assert not asked
    waiting.join()
    assert len(asked) == 1
    assert f"{lock}: another run is at work" in capfd.readouterr().out


def test_a_second_run_of_an_experiment_waits_until_the_first_is_recorded(pulled, project, monkeypatch):
    """What DVC moves while it records must not be taken for damaged."""
    reproduce, recorded = script("reproduce"), []

    def dvc(command, environment, held):
        for what in ("mine", "ledger"):
            with (
                pytest.raises(BlockingIOError),
                (project / f"results/.work/locks/run-{what}.lock").open() as file,
            ):
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        recorded.append(command)
        return 0

    (project / "params.yaml").write_text("experiments: [mine]\nsources: []\n")
    monkeypatch.setattr(reproduce, "run_snakemake", lambda *_: None)
    monkeypatch.setattr(reproduce, "collect_claims", lambda: None)
    monkeypatch.setattr(reproduce, "run_group", dvc)
    (project / "results/mine/records").mkdir(exist_ok=True)
    reproduce.main("mine", "everything", 1)
    assert len(recorded) == 1


def test_an_unknown_target_is_refused_before_anything_is_moved(pulled, project):
    before = bytes_below(project / "results")
    with pytest.raises(
        PrecfmError, match=r"--target: 'x;y' is none; it must be one of everything, products, data_all"
    ):
        script("reproduce").main("mine", "x;y", 1)
    assert bytes_below(project / "results") == before


def test_a_file_that_changed_after_it_was_recorded_is_looked_at_again(pulled, project):
    plan, _ = pulled
    (project / "dvc.yaml").touch()
    state = script("reproduce").ledger_state
    before = state(plan)
    assert state(plan) == before
    file = plan.of("flows")[0].folder / "flows.json"
    content = bytearray(file.read_bytes())
    content[0] ^= 1
    file.write_bytes(content)
    assert state(plan) != before


def test_what_is_damaged_is_removed_and_not_recorded(pulled, project, monkeypatch):
    plan, _ = pulled
    reproduce = script("reproduce")
    flow = plan.of("flows")[0]
    (flow.folder / "flows.json").write_text("[]")
    (project / "params.yaml").write_text("experiments: []\nsources: []\n")
    monkeypatch.setattr(reproduce, "run_group", lambda *_: pytest.fail("recorded"))
    with pytest.raises(SystemExit, match=rf"{flow.id} was damaged after it was made \(1 in all\)"):
        reproduce.record(plan, 0)
    assert [node for node in plan.nodes.values() if not node.exists] == [flow]


def test_garbage_that_cannot_be_removed_is_no_freed_space(project, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    (project / "results/.attic/flows").mkdir(parents=True)
    monkeypatch.setattr(store, "remove", refuse)
    with pytest.raises(PermissionError):
        collect_garbage([])


def test_where_nothing_was_made_there_is_no_garbage(project):
    assert collect_garbage([]) == 0
    assert not (project / "results").exists()


def test_mending_after_a_killed_dvc_waits_for_one_that_outlived_its_run(pulled, project, monkeypatch):
    plan, _ = pulled
    reproduce, snakemake = script("reproduce"), []
    monkeypatch.setattr(reproduce, "run_snakemake", lambda *_: snakemake.append("began"))
    marker = project / reproduce.LOCKS_BEFORE / "mine"
    marker.parent.mkdir(parents=True)
    marker.write_text("")
    file = plan.of("flows")[0].folder / "flows.json"
    moved = file.rename(project / "in DVC's hands")
    with store.alone("ledger"):
        second = threading.Thread(target=reproduce.main, args=("mine", "flows_all", 1))
        second.start()
        second.join(0.5)
        assert not snakemake
        moved.rename(file)
    second.join()
    assert snakemake == ["began"]
    assert all(node.exists for node in plan.of("flows"))
    assert not marker.exists()


@pytest.mark.parametrize(
    ("before", "cut", "after"),
    [
        ("", "", None),
        ("", "stages:\n  a: [", None),
        ("", None, None),
        ("", "stages: {b: {cmd: y}}", "stages: {b: {cmd: y}}"),
        ("stages: {a: {cmd: x}}", "", "stages: {a: {cmd: x}}"),
        ("stages: {a: {cmd: x}}", None, "stages: {a: {cmd: x}}"),
        ("stages: {a: {cmd: x}}", "stages: {b: {cmd: y}}", "stages: {a: {cmd: x}}"),
        ("stages: {a: {cmd: x}}", "stages: {a: {cmd: z}, b: {}}", "stages: {a: {cmd: z}, b: {}}"),
    ],
)
def test_a_ledger_that_a_killed_dvc_has_cut_is_the_one_before(planned, project, before, cut, after):
    """Where nothing was recorded before, there is none: DVC refuses an empty one."""
    plan, reproduce = planned(), script("reproduce")
    marker = project / reproduce.LOCKS_BEFORE / "mine"
    marker.parent.mkdir(parents=True)
    marker.write_text(before)
    ledger = project / "dvc.lock"
    if cut is not None:
        ledger.write_text(cut)
    reproduce.mend_after_killed_dvc(plan)
    assert (ledger.read_text() if ledger.exists() else None) == after
    assert not marker.exists()


@pytest.mark.parametrize(("content", "kept"), [("", False), ('{"a": {"wri', False), ("{}", True)])
def test_dvc_s_own_list_is_removed_where_a_killed_dvc_has_cut_it(planned, project, content, kept):
    reproduce = script("reproduce")
    own, marker = project / reproduce.DVC_AT_WORK, project / reproduce.LOCKS_BEFORE / "mine"
    for file, text in ((own, content), (marker, "")):
        file.parent.mkdir(parents=True)
        file.write_text(text)
    reproduce.mend_after_killed_dvc(planned())
    assert own.exists() == kept
