"""The results folder follows the plan: the attic takes what leaves it and gives back what returns."""

import fcntl
import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import threading
from pathlib import Path

import pytest
from filelock import FileLock

from precfm.core.errors import PrecfmError
from precfm.pipeline import attic as attic_module
from precfm.pipeline.artifact import Artifact
from precfm.pipeline.attic import collect_garbage, tidy, to_attic
from precfm.pipeline.build import build
from precfm.pipeline.locks import alone
from precfm.pipeline.manifest import read_manifest
from precfm.pipeline.node import PUBLISHED, RECORD, homes
from precfm.pipeline.plan import KINDS
from precfm.pipeline.products import PRODUCTS, are_written, summary, write_products
from precfm.pipeline.publication import LARGEST_FRAME, publish
from tests.workflow import ROOT, bytes_below, git, sealed

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
    assert len(returned) == sum(node.kind not in PRODUCTS for node in twin.nodes.values())


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


def test_products_are_copied_and_stale_ones_removed(planned, project):
    plan = planned()
    make_all(plan)
    (project / "results/mine/tables").mkdir(parents=True)
    for name in ("stale.csv", ".snakemake_timestamp"):
        (project / "results/mine/tables" / name).write_text("old")
    write_products(plan)
    names = {path.name for path in (project / "results/mine/tables").iterdir()}
    assert {f"{node.label}.md" for node in plan.of("table_files")} <= names
    assert "stale.csv" not in names
    assert ".snakemake_timestamp" in names
    manifest = json.loads((project / "results/mine/manifest.json").read_text())
    assert manifest["artifacts"].keys() == plan.nodes.keys()
    assert all(entry["files"] for entry in manifest["artifacts"].values())


def test_the_manifest_of_a_partial_checkout_keeps_what_it_knew(planned, project):
    plan = planned()
    make_all(plan)
    write_products(plan)
    before = (project / "results/mine/manifest.json").read_text()
    shutil.rmtree(project / "results/mine/flows")
    write_products(plan)
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
def test_a_product_that_was_deleted_or_damaged_is_written_again(planned, project, name, content):
    plan = planned()
    make_all(plan, PRODUCTS)
    write_products(plan)
    home = project / "results/mine"
    stamp = home / "records" / f"products-{plan.key}"
    stamp.parent.mkdir(exist_ok=True)
    stamp.touch()
    reproduce = script("reproduce")
    reproduce.write_products_again_unless_whole(plan)
    assert stamp.exists()
    before = bytes_below(home)
    (home / name).unlink(missing_ok=True)
    if content is not None:
        (home / name).write_text(content)
    reproduce.write_products_again_unless_whole(plan)
    assert not stamp.exists()
    write_products(plan)
    stamp.touch()
    assert bytes_below(home) == before
    assert are_written(plan)


def test_nothing_is_written_as_long_as_a_product_is_not_made(planned):
    plan = planned()
    assert not are_written(plan)
    make_all(plan, {"table_files", "figure_files"})
    assert not are_written(plan)


def test_writing_products_waits_for_another(planned, project):
    plan = planned()
    make_all(plan, PRODUCTS)
    write_products(plan)
    (project / "results/mine/manifest.json").unlink()
    with FileLock(project / "results/.work/locks/products-mine.lock"):
        second = threading.Thread(target=write_products, args=(plan,))
        second.start()
        second.join(0.5)
        assert not are_written(plan)
    second.join()
    assert are_written(plan)


@pytest.fixture
def complete(planned, project):
    """An experiment that is made and whose verdicts can be merged, in a git checkout."""
    plan = planned()
    for node in plan.nodes.values():

        def fake(job):
            job.write_json(f"{job.node.kind}.json", {"key": job.node.key})
            if job.node.kind == "frames":
                (job.folder / "records.csv").write_text("step,value\n1,2.0\n")
                (job.folder / "history.csv").write_text("x" * (LARGEST_FRAME + 1))
            if job.node.kind == "verdicts":
                (job.folder / "claims.json").write_text('{"claims": []}')

        build(node, fake)
    (project / ".gitignore").write_text("/results/*\n!/results/published/\n")
    git(project, "init", "--quiet")
    git(project, "add", "--all")
    git(project, "commit", "--quiet", "--message", "start")
    return plan


def test_publishing_writes_products_frames_and_the_revision(complete, project):
    head = git(project, "rev-parse", "HEAD").strip()
    home = project / PUBLISHED / "mine"
    (home / "tables").mkdir(parents=True)
    (home / "tables/stale.csv").write_text("old")
    assert publish(complete) == ["history.csv"]
    assert not (home / "tables/stale.csv").exists()
    assert (home / "frames/records.csv").is_file()
    assert not (home / "frames/history.csv").exists()
    assert "history.csv" in (home / "frames/README.md").read_text()
    local = read_manifest(Path("results/mine"))
    assert local is None, "publishing writes nothing but what is published"
    manifest = read_manifest(PUBLISHED / "mine")
    assert manifest["revision"] == {"commit": head, "clean": True}
    assert manifest["artifacts"].keys() == complete.nodes.keys()
    assert {path.name for path in (project / "results").iterdir()} == {".work", "mine", "published"}
    before = bytes_below(home)
    publish(complete)
    assert bytes_below(home) == before


@pytest.mark.parametrize("name", ["config/theory.yaml", "config/new.yaml"])
def test_a_change_that_is_not_committed_is_said(complete, project, name):
    (project / name).write_text("changed: true")
    publish(complete)
    assert read_manifest(PUBLISHED / "mine")["revision"]["clean"] is False
    assert "uncommitted changes" in (project / PUBLISHED / "claims.md").read_text()


def test_only_a_complete_experiment_is_published(complete, project):
    shutil.rmtree(complete.of("flows")[0].folder)
    with pytest.raises(PrecfmError, match=rf"mine: 1 of {len(complete.nodes)} artifacts are missing"):
        publish(complete)
    assert not (project / PUBLISHED).exists()


def test_without_git_nothing_is_published(complete, project):
    shutil.rmtree(project / ".git")
    with pytest.raises(PrecfmError, match="a git checkout"):
        publish(complete)
    assert not (project / PUBLISHED).exists()


def test_the_summary_counts_what_exists(planned):
    plan = planned()
    make_all(plan, {"data", "classifiers"})
    counted = {kind: (wanted, existing) for kind, wanted, existing in summary(plan)}
    assert counted["data"] == (1, 1)
    assert counted["classifiers"] == (3, 3)  # two report, one selects
    assert counted["flows"][1] == 0


def test_neither_a_stray_file_nor_a_part_of_an_artifact_replaces_a_whole_one_in_the_attic(planned, project):
    make_all(planned(), {"flows"})
    old = planned().of("flows")[0]
    kind = old.folder.parent
    to_attic(old.folder, "flows")
    old.folder.mkdir()
    (old.folder / "flows.json").write_text("half")
    assert not to_attic(old.folder, "flows")
    old.folder.write_text("stray")
    (kind / "link").symlink_to(project / "config")
    assert not to_attic(old.folder, "flows")
    assert not to_attic(kind / "link", "flows")
    assert old.name not in {path.name for path in kind.iterdir()}
    assert (project / "config/smoke.yaml").is_file()
    assert [path.name for path in (project / "results/.attic/flows").iterdir()] == [old.name]
    Artifact.open(project / "results/.attic/flows" / old.name).verified()


def test_the_attic_keeps_two_artifacts_of_one_name_apart(planned, project):
    """Equal keys, other bytes, as from two machines; the newer one comes back, and the older one after it."""
    (old,) = planned().of("data")

    def put_aside(number):
        build(old, lambda job: job.write_json("data.json", number))
        kept = bytes_below(old.folder)
        assert to_attic(old.folder, "data")
        return kept

    attic = project / "results/.attic/data"
    first = put_aside(1)
    shutil.copytree(attic / old.name, old.folder)
    to_attic(old.folder, "data")  # an equal one: there is nothing to keep apart
    assert [path.name for path in attic.iterdir()] == [old.name]
    (attic / old.name).rename(project / "kept")
    second = put_aside(2)
    shutil.copytree(project / "kept", old.folder)
    to_attic(old.folder, "data")
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
    write_products(plan)
    return plan, script("pull").set_aside


@pytest.fixture
def in_ledger(pulled, project):
    """The ledger names the experiment, its manifest and its raw data."""
    (project / "params.yaml").write_text("experiments: [mine]\nsources: [mnist5k]\n")
    content = (project / "results/mine/manifest.json").read_bytes()
    paths = {f"{kind}@mine": [f"results/mine/{kind}"] for kind in KINDS}
    names = ("tables", "figures", "claims.json", "claims.md", "report.html", "manifest.json")
    paths |= {
        "raw@mnist5k": ["data/raw/mnist5k"],
        "products@mine": [f"results/mine/{name}" for name in names],
    }
    md5 = hashlib.md5(content).hexdigest()
    stages = {stage: {"outs": [{"path": path, "md5": md5} for path in of]} for stage, of in paths.items()}
    (project / "dvc.lock").write_text(json.dumps({"stages": stages}))


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
    set_aside = pulled[1]
    assert set_aside("mine", ["flows"], refuse=True) == []
    record = json.loads((flow.folder / RECORD).read_text())
    (flow.folder / RECORD).write_text(sealed({**record, field: FIELDS[field]}))
    forged = bytes_below(flow.folder)
    assert set_aside("mine", ["flows"], refuse=True) == [flow.folder]
    assert bytes_below(project / "results/.attic/refused/flows" / flow.name) == forged
    assert tidy(plan) == ([], [])
    assert not flow.exists


def test_after_a_pull_that_broke_off_the_remains_are_removed_and_the_rest_is_looked_at(
    pulled, in_ledger, project, monkeypatch
):
    """DVC's exit code comes last: what is wrong is refused even where DVC failed."""
    plan, _ = pulled
    pull = script("pull")
    right, cut, unknown = plan.of("flows")[:3]

    def fails(command, **how):
        if "products@mine" in command:
            return subprocess.CompletedProcess(command, 0)
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


def test_a_manifest_that_the_ledger_does_not_name_is_refused_before_anything_else(
    pulled, in_ledger, project, monkeypatch
):
    """Whoever holds the remote could forge the manifest together with the artifacts."""
    pull, asked = script("pull"), []
    manifest = project / "results/mine/manifest.json"
    before = bytes_below(project / "results/mine")

    def forges(command, **how):
        asked.append(command)
        manifest.write_text(manifest.read_text().replace("params", "PARAMS", 1))
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(pull.subprocess, "run", forges)
    with pytest.raises(PrecfmError, match=r"manifest\.json: not the one that dvc\.lock names"):
        pull.main("mine", "flows")
    assert len(asked) == 1
    assert bytes_below(project / "results/mine") == before


def test_products_are_as_before_where_dvc_has_deleted_them(pulled, in_ledger, project, monkeypatch):
    """Also those that a pull had deleted when it was killed."""
    pull, home = script("pull"), project / "results/mine"
    (home / "claims.md").write_text("old")
    before = bytes_below(home)

    def fails(command, **how):
        shutil.rmtree(home / "tables")
        (home / "claims.md").write_text("new")
        collect_garbage([])  # of somebody else, who must spare the copy
        return subprocess.CompletedProcess(command, 1)

    monkeypatch.setattr(pull.subprocess, "run", fails)
    for _ in range(2):
        with pytest.raises(PrecfmError, match="could not pull"):
            pull.main("mine", "flows")
        assert bytes_below(home) == before
    assert not list((project / "results/.work/parts").glob("*.products"))
    kept = project / "results/.work/parts/run-mine.products"
    kept.mkdir(parents=True)
    (home / "tables").rename(kept / "tables")
    monkeypatch.setattr(
        pull.subprocess, "run", lambda command, **how: subprocess.CompletedProcess(command, 1)
    )
    with pytest.raises(PrecfmError, match="could not pull"):
        pull.main("mine", "flows")
    assert bytes_below(home) == before


def test_raw_data_that_no_remote_holds_come_from_their_source(in_ledger, project, monkeypatch, capsys):
    pull, asked = script("pull"), []

    def dvc(command, **how):
        asked.append(command[-1])
        return subprocess.CompletedProcess(command, int("raw@mnist5k" in command))

    monkeypatch.setattr(pull.subprocess, "run", dvc)
    pull.main("mine", None, None)
    assert asked[-1] == "raw@mnist5k"
    assert "note: data/raw/mnist5k" in capsys.readouterr().out
    (project / "data/raw/mnist5k").mkdir(parents=True)
    (project / "data/raw/mnist5k/mine.csv").touch()
    asked.clear()
    pull.main("mine", None, None)
    assert "raw@mnist5k" not in asked


def test_a_folder_without_a_file_is_no_experiment(project):
    (project / "results/mine/tables").mkdir(parents=True)
    assert homes() == []
    (project / "results/mine/tables/t.csv").touch()
    assert homes() == [Path("results/mine")]


@pytest.mark.parametrize("lock", ["mine", "ledger"])
def test_a_pull_waits_for_a_run_and_its_dvc_keeps_others_away(in_ledger, monkeypatch, capfd, lock):
    pull = script("pull")
    asked = []

    def dvc(command, pass_fds, **how):
        asked.append(command)
        assert len([held for held in pass_fds if os.fstat(held)]) == 2
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(pull.subprocess, "run", dvc)
    with alone(lock):
        waiting = threading.Thread(target=pull.main, args=("mine", "flows"))
        waiting.start()
        waiting.join(0.5)
        assert not asked
    waiting.join()
    assert len(asked) == 2
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
    monkeypatch.setattr(reproduce, "run_group", dvc)
    (project / "results/mine/records").mkdir(exist_ok=True)
    reproduce.main("mine", "all", 1)
    assert len(recorded) == 1


def test_an_unknown_target_is_refused_before_anything_is_moved(pulled, project):
    before = bytes_below(project / "results")
    with pytest.raises(PrecfmError, match=r"--target: 'x;y'"):
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


def test_what_is_damaged_is_made_again_before_it_is_recorded(pulled, project, monkeypatch):
    plan, _ = pulled
    reproduce, done = script("reproduce"), []
    flow = plan.of("flows")[0]
    (flow.folder / "flows.json").write_text("[]")
    (project / "params.yaml").write_text("experiments: []\nsources: []\n")
    (project / "results/mine/records").mkdir(exist_ok=True)

    def snakemake(plan, targets, cores, held):
        done.append(targets)
        make_all(plan, {"flows"})

    monkeypatch.setattr(reproduce, "run_snakemake", snakemake)
    monkeypatch.setattr(reproduce, "run_group", lambda command, *_: done.append(command[1]) or 0)
    reproduce.main("mine", "all", 1)
    assert done == [["all"], [str(flow.folder / RECORD)], "commit"]


@pytest.mark.parametrize("cut", ["stages:\n  a: [", "stages: {a: 3}", "[]"])
def test_nothing_is_recorded_in_a_ledger_that_was_cut(pulled, project, monkeypatch, cut):
    plan, _ = pulled
    reproduce = script("reproduce")
    (project / "dvc.lock").write_text(cut)
    monkeypatch.setattr(reproduce, "run_group", lambda *_: pytest.fail("recorded"))
    with pytest.raises(PrecfmError, match=r"^dvc\.lock: "):
        reproduce.record(plan, 0)
    assert (project / "dvc.lock").read_text() == cut
    assert not (project / "keys").exists()


def test_what_dvc_repro_is_about_to_record_is_made_again_where_it_is_damaged(pulled, project, monkeypatch):
    plan, _ = pulled
    reproduce, asked = script("reproduce"), []
    flow, latents = plan.of("flows")[0], plan.of("latents")[0]
    (flow.folder / "flows.json").write_text("[]")
    (latents.folder / RECORD).write_text("{}")
    monkeypatch.setattr(reproduce, "run_snakemake", lambda plan, targets, *_: asked.append(targets))
    reproduce.main("mine", "products", 1)
    reproduce.main("mine", "flows", 1)
    assert asked == [["products", str(latents.folder / RECORD)], ["all_flows", str(flow.folder / RECORD)]]


def test_an_experiment_that_is_here_in_part_leaves_the_ledger_alone(pulled, project, monkeypatch, capsys):
    plan, _ = pulled
    reproduce = script("reproduce")
    shutil.rmtree(plan.of("flows")[0].folder)
    monkeypatch.setattr(reproduce, "run_group", lambda *_: pytest.fail("recorded"))
    reproduce.record(plan, 0)
    assert plan.of("flows")[0].id in capsys.readouterr().out
    assert not (project / "keys").exists()


def test_garbage_that_cannot_be_removed_is_no_freed_space(project, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    (project / "results/.attic/flows").mkdir(parents=True)
    monkeypatch.setattr(attic_module, "remove", refuse)
    with pytest.raises(PermissionError):
        collect_garbage([])


def test_where_nothing_was_made_there_is_no_garbage(project):
    assert collect_garbage([]) == 0
    assert not (project / "results").exists()


def test_repairing_after_a_killed_dvc_waits_for_one_that_outlived_its_run(pulled, project, monkeypatch):
    plan, _ = pulled
    reproduce, snakemake = script("reproduce"), []
    monkeypatch.setattr(reproduce, "run_snakemake", lambda *_: snakemake.append("began"))
    marker = project / reproduce.LOCKS_BEFORE / "mine"
    marker.parent.mkdir(parents=True)
    marker.write_text("")
    file = plan.of("flows")[0].folder / "flows.json"
    moved = file.rename(project / "in DVC's hands")
    with alone("ledger"):
        second = threading.Thread(target=reproduce.main, args=("mine", "flows", 1))
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
    reproduce.repair_after_killed_dvc(plan)
    assert (ledger.read_text() if ledger.exists() else None) == after
    assert not marker.exists()


@pytest.mark.parametrize(("content", "kept"), [("", False), ('{"a": {"wri', False), ("{}", True)])
def test_dvc_s_own_list_is_removed_where_a_killed_dvc_has_cut_it(planned, project, content, kept):
    reproduce = script("reproduce")
    own, marker = project / reproduce.DVC_AT_WORK, project / reproduce.LOCKS_BEFORE / "mine"
    for file, text in ((own, content), (marker, "")):
        file.parent.mkdir(parents=True)
        file.write_text(text)
    reproduce.repair_after_killed_dvc(planned())
    assert own.exists() == kept
