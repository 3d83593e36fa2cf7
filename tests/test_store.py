"""The results folder follows the plan: the attic takes what leaves it and gives back what returns."""

import importlib.util
import json
import shutil
from pathlib import Path

import pytest
from filelock import FileLock

from precfm import store
from precfm.artifacts import RECORD, build
from precfm.errors import PrecfmError
from precfm.store import collect_garbage, publish, summary, tidy
from tests.workflow import ROOT

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
    wanted = planned(WHITENING).of("flows")[0]
    for name in (f"flows-{wanted.key}", "flows-000000000000"):
        (project / "results/.work/scratch" / name).mkdir(parents=True)
        (project / "results/.work/scratch" / name / "state").write_text("x" * 1000)
    assert collect_garbage([planned(WHITENING)]) > 1000
    assert not (project / "results/.attic").exists()
    assert [path.name for path in (project / "results/.work/scratch").iterdir()] == [f"flows-{wanted.key}"]


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


def test_an_artifact_whose_payload_is_gone_is_not_copied_to_another_experiment(planned):
    make_all(planned(), {"data"})
    (planned().of("data")[0].folder / "data.json").unlink()
    with pytest.raises(ValueError, match=r"data\.json.*delete this folder"):
        tidy(planned(name="twin"))
    assert not planned(name="twin").of("data")[0].exists


@pytest.fixture
def pulled(planned):
    """An experiment that is recorded, and what `make pull` does before it asks DVC."""
    plan = planned()
    make_all(plan)
    publish(plan)
    spec = importlib.util.spec_from_file_location("pull", ROOT / "workflow_scripts/pull.py")
    pull = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(pull)
    return plan, pull.set_aside


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
