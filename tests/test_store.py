"""The results folder follows the plan: the attic takes what leaves it and gives back what returns."""

import json

import pytest

from precfm import store
from precfm.artifacts import RECORD, build
from precfm.store import collect_garbage, publish, summary, tidy

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
    (project / "results/mine/tables/stale.csv").write_text("old")
    publish(plan)
    names = {path.name for path in (project / "results/mine/tables").iterdir()}
    assert {f"{node.label}.md" for node in plan.of("table_files")} <= names
    assert "stale.csv" not in names
    manifest = json.loads((project / "results/mine/manifest.json").read_text())
    assert manifest["artifacts"].keys() == plan.nodes.keys()
    assert all(entry["files"] for entry in manifest["artifacts"].values())


def test_publishing_a_partial_checkout_keeps_what_the_manifest_knew(planned, project):
    import shutil

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


def test_a_record_without_payload_is_no_reason_to_lose_it(planned):
    plan = planned()
    make_all(plan, {"data"})
    node = plan.of("data")[0]
    (node.folder / "data.json").unlink()
    assert (node.folder / RECORD).is_file()
    with pytest.raises(ValueError, match=r"data\.json"):
        store.Artifact.open(node.folder).verified()
