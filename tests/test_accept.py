"""A rewrite keeps its keys if and only if it makes the same bytes; the evidence is kept."""

import json
import shutil
from functools import cache

import pytest

from precfm.audit.accept import _alone, accept
from precfm.audit.integrity import audit
from precfm.core.errors import PrecfmError
from precfm.pipeline import build as building
from precfm.pipeline import builder, fingerprints, job, keys
from precfm.pipeline.attic import tidy
from precfm.pipeline.build import build
from precfm.pipeline.job import script_of
from precfm.pipeline.plan import KINDS, load_plan
from precfm.pipeline.products import write_products
from tests.workflow import sealed

SCRIPT = """
from precfm.pipeline.job import Job


def make(job: Job) -> None:
    seed = job.params.get("seed", 0)
    job.write_json("value.json", {"seed": seed, "kind": job.node.kind})
"""
SAME = SCRIPT.replace('seed = job.params.get("seed", 0)', 'seed = dict(job.params).get("seed", 0) + 0')
OTHER = SCRIPT.replace('job.params.get("seed", 0)', 'job.params.get("seed", 0) // 2')


# Flows of one code and what is made of them: two seeds of one method, and a floor of one draw.
SMALL = {
    "methods": {
        **dict.fromkeys(("scalar", "whitening", "class_whitening", "normalizing_flow", "low_capacity_flow")),
        **dict.fromkeys(("gaussian_skip", "mixture_skip")),
    },
    "settings": {"plain": {"matched": None}, "tuned": None},
    "theory": dict.fromkeys(("linear_grid", "steps_to_accuracy", "residual_linear")),
    "search": None,
    "likelihood": None,
    "predict": None,
}


@pytest.fixture
def planned(planned, monkeypatch):
    """Plans of a small experiment."""
    monkeypatch.setattr(builder, "FLOOR_DRAWS", 1)
    return lambda change=None: planned(SMALL | (change or {}))


@pytest.fixture
def scripts(planned, project, monkeypatch):
    """Small scripts instead of the real ones, and no equivalences yet."""
    folder = project / "workflow_scripts"
    folder.mkdir()
    for kind in KINDS:
        (folder / f"{kind}.py").write_text(SCRIPT)
    for module in (building, fingerprints, job, keys):
        monkeypatch.setattr(module, "SCRIPTS", folder)
    monkeypatch.setattr(fingerprints, "EQUIVALENCES", project / "config/equivalences.json")
    monkeypatch.setattr(
        fingerprints, "version", cache(fingerprints.version)
    )  # for each record it reads files
    return folder


def rewrite(scripts, kind, text):
    (scripts / f"{kind}.py").write_text(text)


def make_all(of):
    return [node.id for node in of.nodes.values() if build(node, script_of(node))]


def recorded(project):
    return json.loads((project / "config/equivalences.json").read_text())


def test_an_equal_rewrite_keeps_every_key_and_says_why(scripts, planned, project):
    before = planned()
    make_all(before)
    rewrite(scripts, "flows", SAME)
    changed = planned()
    gone = {node_id for node_id in before.nodes if node_id not in changed.nodes}
    assert {node_id.split("/")[0] for node_id in gone} > {"flows", "frames"}

    (shown,) = accept("flows", ["mine"])
    assert planned().nodes.keys() == before.nodes.keys()
    assert make_all(planned()) == []
    entry = recorded(project)[shown.new]
    assert entry["same_as"] == shown.old == before.of("flows")[0].fingerprint
    assert set(entry["artifacts"]) == set(shown.artifacts)
    assert len(shown.artifacts) == 2
    for node_id, files in entry["artifacts"].items():
        held = json.loads((project / "results/mine" / node_id / "artifact.json").read_text())["files"]
        assert files == {name: stamp["sha256"] for name, stamp in held.items()}


def test_what_is_in_the_attic_counts_and_comes_back(scripts, planned):
    before = planned()
    make_all(before)
    rewrite(scripts, "flows", SAME)
    changed = planned()
    assert tidy(changed)[0]
    accept("flows", ["mine"])
    assert set(tidy(planned())[1]) == {node_id for node_id in before.nodes if node_id not in changed.nodes}
    assert make_all(planned()) == []


OLDEST, OLDER, NEWEST = SCRIPT, OTHER, OTHER.replace("// 2", "// 2 + 0")


def of_three_codes(scripts, planned, known_by):
    """Artifacts of code whose bytes differ from the oldest, and equal those of the newest; that of `OLDER`."""
    three = {"seeds": [2, 3]}
    make_all(planned(three))
    rewrite(scripts, "flows", OLDER)
    second = planned(three)
    tidy(second)
    make_all(second)
    (old,) = {node.fingerprint for node in second.of("flows")}
    if known_by == "manifest":
        write_products(second)
    rewrite(scripts, "flows", NEWEST)
    if known_by != "results":
        tidy(planned(three))
    return three, old


@pytest.mark.parametrize("known_by", ["results", "manifest"])
def test_of_several_older_codes_the_last_one_counts(scripts, planned, project, known_by):
    three, old = of_three_codes(scripts, planned, known_by)
    (shown,) = accept("flows", ["mine"])
    assert shown.old == old
    assert {entry["same_as"] for entry in recorded(project).values()} == {old}
    after = planned(three)
    tidy(after)
    assert make_all(after) == []
    assert accept("flows", ["mine"]) == []


def test_several_older_codes_of_which_none_was_the_last_are_refused(scripts, planned, project):
    of_three_codes(scripts, planned, "nothing")
    with pytest.raises(PrecfmError, match="flows"):
        accept("flows", ["mine"])
    assert not (project / "config/equivalences.json").exists()


def test_what_a_killed_run_left_is_removed_and_a_second_one_waits_outside(scripts, planned, project):
    make_all(planned())
    remains = project / "results/.work/accept/tmp123/payload"
    remains.mkdir(parents=True)
    assert accept("flows", ["mine"]) == []
    assert not remains.exists()
    with _alone(), pytest.raises(PrecfmError, match="accept"):
        accept("flows", ["mine"])


def test_other_bytes_are_refused_and_nothing_is_recorded(scripts, planned, project):
    make_all(planned({"seeds": [2, 3]}))
    rewrite(scripts, "flows", OTHER)
    after = planned({"seeds": [2, 3]}).key
    with pytest.raises(PrecfmError, match=r"flows/.*value\.json"):
        accept("flows", ["mine"])
    assert not (project / "config/equivalences.json").exists()
    assert planned({"seeds": [2, 3]}).key == after
    assert list((project / "results/.work/accept").iterdir()) == []


@pytest.mark.parametrize(("then", "said"), [({"python": "2.7", "gone": "1"}, "python 2.7, here"), ({}, None)])
def test_a_refusal_names_what_else_may_be_why_where_the_record_says_it(scripts, planned, then, said):
    plan = planned({"seeds": [2, 3]})
    make_all(plan)
    for node in plan.of("flows"):
        file = node.folder / "artifact.json"
        file.write_text(sealed(json.loads(file.read_text()) | {"made_on": then}))
    rewrite(scripts, "flows", OTHER)
    with pytest.raises(PrecfmError, match=r"value\.json") as caught:
        accept("flows", ["mine"], sample=1)
    assert (
        (f"(it was made with {said}" in str(caught.value)) if said else ("made with" not in str(caught.value))
    )


@pytest.mark.parametrize(
    "text",
    [SCRIPT.replace('"value.json"', '"renamed.json"'), SCRIPT + '    job.write_json("more.json", 1)\n'],
    ids=["renamed", "additional"],
)
def test_a_renamed_or_an_additional_file_is_refused(scripts, planned, text):
    make_all(planned())
    rewrite(scripts, "flows", text)
    with pytest.raises(PrecfmError, match="flows/"):
        accept("flows", ["mine"], sample=1)


def test_rewrites_follow_each_other(scripts, planned, project):
    before = planned()
    make_all(before)
    for text in (SAME, SAME.replace("+ 0", "* 1")):
        rewrite(scripts, "flows", text)
        assert len(accept("flows", ["mine"])) == 1
    assert planned().nodes.keys() == before.nodes.keys()
    assert {entry["same_as"] for entry in recorded(project).values()} == {before.of("flows")[0].fingerprint}
    assert len(recorded(project)) == 2


def test_a_job_still_refuses_code_that_changed_after_the_plan(scripts, planned):
    make_all(planned())
    rewrite(scripts, "flows", SAME)
    accept("flows", ["mine"])
    wanted = planned({"seeds": [5, 6]})
    node = wanted.of("flows")[0]
    rewrite(scripts, "flows", OTHER)
    with pytest.raises(PrecfmError, match="code"):
        build(node, script_of(node))


def test_what_a_kind_is_made_from_comes_first(scripts, planned):
    make_all(planned())
    for kind in ("latents", "flows"):
        rewrite(scripts, kind, SAME)
    with pytest.raises(PrecfmError, match=r"^flows: "):
        accept("flows", ["mine"])
    accept("latents", ["mine"])
    assert accept("flows", ["mine"])


def test_without_a_change_there_is_nothing_to_accept(scripts, planned, project):
    make_all(planned())
    assert accept("flows", ["mine"]) == []
    assert not (project / "config/equivalences.json").exists()


@pytest.mark.parametrize(("kind", "sample", "field"), [("flow", 1, "kind"), ("flows", 0, "sample")])
def test_mistakes(scripts, planned, kind, sample, field):
    planned()
    with pytest.raises(PrecfmError, match=field):
        accept(kind, ["mine"], sample)


WHOLE = {
    "kind": "flows",
    "same_as": "0" * 16,
    "made_on": {"python": "3.11.2"},
    "artifacts": {"flows/a-0": {"value.json": "0" * 64}},
}


@pytest.mark.parametrize(
    ("entries", "field"),
    [
        ("[", ""),
        pytest.param("[" * 100_000, "", id="too-deep"),
        ([], ""),
        ({"a": WHOLE}, "a"),
        ({"1" * 16: {}}, "1" * 16),
        ({"1" * 16: 3}, "1" * 16),
        ({"1" * 16: WHOLE | {"same_as": 5}}, "same_as"),
        ({"1" * 16: WHOLE | {"same_as": "0"}}, "same_as"),
        ({"1" * 16: WHOLE | {"kind": 5}}, "kind"),
        ({"1" * 16: WHOLE | {"made_on": {}}}, "made_on"),
        ({"1" * 16: WHOLE | {"artifacts": {}}}, "artifacts"),
        ({"1" * 16: WHOLE | {"artifacts": {"flows/a-0": {}}}}, "artifacts"),
        ({"1" * 16: WHOLE | {"artifacts": {"flows/a-0": {"a": "x"}}}}, "artifacts"),
        ({"1" * 16: WHOLE | {"kind": "data"}}, "artifacts"),
    ],
)
def test_damaged_equivalences_are_refused(scripts, planned, project, entries, field):
    text = entries if isinstance(entries, str) else json.dumps(entries)
    (project / "config/equivalences.json").write_text(text)
    with pytest.raises(PrecfmError, match=str(project / "config/equivalences.json")) as caught:
        load_plan("smoke")
    assert field in str(caught.value)


def evidence():
    """What the audit finds of the evidence, and what it notes."""
    report = audit(["mine"])
    errors = [finding.problem for finding in report.errors if "equivalences.json" in finding.file]
    return errors, [note for note in report.notes if "equivalences.json" in note]


def change(project, new, **fields):
    known = recorded(project)
    known[new] |= fields
    (project / "config/equivalences.json").write_text(json.dumps(known))


def test_the_audit_holds_evidence_against_what_is_here(scripts, planned, project):
    before = planned()
    make_all(before)
    rewrite(scripts, "flows", SAME)
    (shown,) = accept("flows", ["mine"])
    assert evidence() == ([], [])
    entry = recorded(project)[shown.new]
    first = sorted(shown.artifacts)[0]
    change(project, shown.new, artifacts=entry["artifacts"] | {first: {"value.json": "0" * 64}})
    assert [first in problem for problem in evidence()[0]] == [True]
    change(project, shown.new, artifacts={"flows/never-0123456789ab": {"value.json": "0" * 64}})
    assert [len(found) for found in evidence()] == [0, 1]
    change(project, shown.new, artifacts=entry["artifacts"])
    shutil.rmtree(project / "results/mine/flows")
    assert [len(found) for found in evidence()] == [0, len(entry["artifacts"])]
    (project / "config/equivalences.json").write_text("[")
    assert evidence()[0]


def test_a_damaged_artifact_is_no_evidence(scripts, planned):
    made = planned()
    make_all(made)
    for node in made.of("flows"):
        (node.folder / "value.json").write_text("x")
    rewrite(scripts, "flows", SAME)
    with pytest.raises(PrecfmError, match=r"value\.json"):
        accept("flows", ["mine"])


def test_the_shipped_equivalences_can_be_read():
    assert isinstance(fingerprints.equivalences(), dict)
