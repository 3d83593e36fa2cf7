"""The audit finds and names every flipped byte, and whatever else is not as plan, manifest and ledger say."""

import json
import os
import random
import shutil
import subprocess
from collections import Counter
from pathlib import Path

import pytest
from typer.testing import CliRunner

from precfm import audit as room
from precfm import store
from precfm.against import compare, published_here, published_in
from precfm.artifacts import RECORD, build
from precfm.audit import audit
from precfm.cli import app
from precfm.errors import PrecfmError
from precfm.findings import Report
from precfm.plan import load_plan
from precfm.published import read_manifest
from precfm.store import collect_claims, publish, tidy
from precfm.surroundings import ask_ledger, check_ledger, check_times, check_versions
from tests.workflow import run

SMALL = {"seeds": [0]}
TABLE = """dataset,method,step,metric,value,low,high,n
mnist5k-L16,none,5,frechet,2.0,1.0,3.0,2
mnist5k-L16,whitening,5,frechet,1.0,,,1
"""


def make(job):
    node = job.node
    if node.kind == "verdicts":
        (job.folder / "claims.json").write_text('{\n  "claims": []\n}\n')
        (job.folder / "claims.md").write_text("# Verdicts\n")
    elif node.kind == "table_files":
        (job.folder / f"{node.label}.csv").write_text(TABLE)
        (job.folder / f"{node.label}.md").write_text(node.key)
    elif node.kind == "figure_files":
        (job.folder / f"{node.label}.png").write_bytes(random.Random(node.key).randbytes(300))
    else:
        job.write_json("value.json", {"key": node.key})
        (job.folder / "deep").mkdir()
        (job.folder / "deep/model.safetensors").write_bytes(random.Random(node.key).randbytes(500))


@pytest.fixture
def results(planned, project, monkeypatch):
    """A small experiment, made and published; its plan is asked for once."""
    plan = planned(SMALL)
    for node in plan.nodes.values():
        build(node, make)
    publish(plan)
    collect_claims()
    monkeypatch.setattr(room, "load_plan", lambda name: plan)
    return plan


def errors(report):
    return [finding for finding in report.findings if finding.level == "error"]


def test_a_whole_experiment_is_clean(results):
    report = audit()
    assert errors(report) == []
    assert report.clean
    assert report.not_here == {}
    on_disk = [path for path in Path("results").rglob("*") if path.is_file() and ".work" not in path.parts]
    assert report.files == len(on_disk)


def flipped_files(seed=0, more=20):
    """Every file in results/ once, and some again: where to flip which bit."""
    files = [
        path for path in sorted(Path("results").rglob("*")) if path.is_file() and ".work" not in path.parts
    ]
    draw = random.Random(seed)
    for file in [*files, *draw.choices(files, k=more)]:
        yield file, draw.randrange(file.stat().st_size), 1 << draw.randrange(8)


def flip(file, position, bit):
    data = bytearray(file.read_bytes())
    data[position] ^= bit
    file.write_bytes(data)


def test_every_flipped_byte_is_found_and_named(results, monkeypatch):
    monkeypatch.setattr(room, "check_machine", lambda *_: None)
    old = next(node for node in results.nodes.values() if node.kind == "theory")
    shutil.copytree(old.folder, Path("results/.attic/theory") / f"{old.label}-{old.key}")
    flips, found, missed = 0, Counter(), []
    for file, position, bit in flipped_files():
        before = file.read_bytes()
        flip(file, position, bit)
        named = {finding.file for finding in errors(audit())}
        file.write_bytes(before)
        flips += 1
        if file.as_posix() in named:
            found[file.parts[2] if len(file.parts) > 2 else file.name] += 1
        else:
            missed.append((file.as_posix(), position, bit, sorted(named)))
    assert missed == []
    assert found.total() == flips > 100
    assert {"flows", "frames", "tables", "figures", "manifest.json", "claims.json", "claims.md"} <= set(found)
    assert errors(audit()) == []


def test_a_bit_in_the_manifest_is_not_blamed_on_an_artifact(results):
    file = Path("results/mine/manifest.json")
    text = file.read_text()
    sha256 = json.loads(text)["artifacts"][results.of("flows")[0].id]["files"]["value.json"]["sha256"]
    file.write_text(text.replace(sha256, "0" * 64))
    assert {finding.file for finding in errors(audit())} == {"results/mine/manifest.json"}


ENTRY_FIELDS = (
    "files",
    "params",
    "parents",
    "fingerprint",
    "made_on",
    "artifacts",
    "experiment",
    "sha256",
    "bytes",
)


def test_a_bit_in_the_names_of_the_manifests_fields_is_found(results):
    home, file = Path("results/mine"), Path("results/mine/manifest.json")
    whole = file.read_bytes()
    assert read_manifest(home)["artifacts"].keys() == results.nodes.keys()
    for name in ENTRY_FIELDS:
        first, last = whole.find(f'"{name}"'.encode()), whole.rfind(f'"{name}"'.encode())
        for place in (last,) if name == "experiment" else (first, last):  # its first one is a parameter
            for position, bit in ((1, 4), (len(name), 1)):  # within the name
                flip(file, place + position, bit)
                with pytest.raises(PrecfmError, match=r"manifest\.json: damaged"):
                    read_manifest(home)
                file.write_bytes(whole)
    for name in ("params", "files"):
        flip(file, whole.find(f'"{name}"'.encode()) + 2, 1)
        assert {finding.file for finding in errors(audit())} == {file.as_posix()}
        file.write_bytes(whole)


def test_times_are_held_against_the_commit(results):
    file = Path("results/mine/records/wall_time.csv")
    file.parent.mkdir(exist_ok=True)
    file.write_text("kind,seconds\nflows,1.0\n")

    def told():
        report = Report(["mine"])
        check_times(report, "mine")
        return [(finding.level, finding.file) for finding in report.findings], len(report.notes)

    assert told() == ([], 1)  # no repository
    run(Path.cwd(), "git", "init", "-q")
    assert told() == ([], 1)
    run(Path.cwd(), "git", "add", str(file))
    run(Path.cwd(), "git", "-c", "user.name=t", "-c", "user.email=t@localhost", "commit", "-q", "-m", "first")
    assert told() == ([], 0)
    flip(file, 20, 1)
    assert told() == ([("warning", file.as_posix())], 0)
    assert any(finding.check == "times" for finding in audit().findings)
    file.unlink()
    assert told() == ([("warning", file.as_posix())], 0)


def test_what_is_not_here_is_no_error_and_products_are_still_checked(results):
    for kind in {node.kind for node in results.nodes.values()}:
        shutil.rmtree(Path("results/mine") / kind)
    report = audit()
    assert report.clean
    assert sum(report.not_here["mine"].values()) == len(results.nodes)
    table = next(Path("results/mine/tables").glob("*.csv"))
    table.write_text(table.read_text().replace("2.0", "2.1"))
    assert [finding.file for finding in errors(audit())] == [table.as_posix()]


def test_results_of_other_code_are_told_as_that(results, monkeypatch):
    monkeypatch.setattr("precfm.plan.fingerprint", lambda script, targets: f"{len(str(script)):016x}")
    present = load_plan("mine")
    monkeypatch.setattr(room, "load_plan", lambda name: present)
    report = audit()
    told = " ".join(str(finding) for finding in errors(report))
    assert "made by other code than the present" in told
    assert "make reproduce EXPERIMENT=mine" in told
    extra = {
        name for finding in errors(report) if "not in the plan" in finding.problem for name in finding.names
    }
    assert extra == results.nodes.keys() - present.nodes.keys()
    lacking = {name for finding in errors(report) if "missing" in finding.problem for name in finding.names}
    assert lacking == present.nodes.keys() - results.nodes.keys()
    assert any(finding.check == "manifest" and "out of date" in finding.problem for finding in errors(report))
    assert not any(finding.check in ("payload", "record") for finding in errors(report))


def test_other_parameters_are_told_as_that(results, planned, monkeypatch):
    present = planned({**SMALL, "methods": {"whitening": {"preconditioner": {"exponent": 0.25}}}})
    monkeypatch.setattr(room, "load_plan", lambda name: present)
    told = [finding.problem for finding in errors(audit())]
    assert any("1 preconditioners) were made with other parameters" in problem for problem in told)
    assert any("were made from other inputs" in problem for problem in told)
    tidy(present)
    told = [finding.problem for finding in errors(audit())]
    assert not any("not in the plan" in problem for problem in told)


@pytest.mark.parametrize(
    ("spoil", "check", "name"),
    [
        (lambda node: (node.folder / "value.json").unlink(), "payload", "value.json"),
        (lambda node: (node.folder / "new.csv").write_text("1"), "payload", "new.csv"),
        (lambda node: (node.folder / RECORD).unlink(), "plan", ""),
        (lambda node: (node.folder.parent / "stray").write_text(""), "plan", "stray"),
        (lambda node: os.link(node.folder / "value.json", "elsewhere"), "link", "value.json"),
        (lambda node: (node.folder / "away").symlink_to("/tmp"), "link", "away"),
        (lambda node: (node.folder.parents[1] / "tables/old.csv").write_text("a"), "product", "old.csv"),
        (lambda node: next((node.folder.parents[1] / "figures").iterdir()).unlink(), "product", ".png"),
        (lambda node: (node.folder.parents[1] / "notes.txt").write_text("a"), "plan", "notes.txt"),
    ],
)
def test_what_should_not_be_is_found(results, spoil, check, name):
    spoil(results.of("flows")[0])
    found = [finding for finding in errors(audit()) if finding.check == check and finding.file.endswith(name)]
    assert found


def test_an_artifact_that_claims_other_code_is_found(results):
    file = results.of("flows")[0].folder / RECORD
    record = json.loads(file.read_text())
    record["fingerprint"] = "0" * 16
    record["checksum"] = room.record_checksum(record)
    file.write_text(json.dumps(record, indent=1, sort_keys=True) + "\n")
    assert [finding.file for finding in errors(audit()) if finding.check == "code"] == [file.as_posix()]


def made_elsewhere(node, **place):
    file = node.folder / RECORD
    record = json.loads(file.read_text())
    record["made_on"] |= place
    record["checksum"] = room.record_checksum(record)
    file.write_text(json.dumps(record, indent=1, sort_keys=True) + "\n")


def test_tables_that_mix_devices_and_other_machines_are_warnings(results):
    made_elsewhere(results.of("flows")[0], device="GPU X")
    publish(results)
    report = audit()
    assert report.clean
    told = {finding.check: str(finding) for finding in report.findings}
    assert "GPU X" in told["devices"]
    assert "tables/" in told["devices"]
    assert "flows" in told["environment"]


def test_other_versions_are_a_warning(project):
    report = Report([])
    check_versions(report)
    assert "requirements.lock" in report.notes[0]
    Path("requirements.lock").write_text(
        "torch==1.0 \\\n    --hash=sha256:00\nnothing-of-this-name==2\nnumpy>=0\ntorch==1.0 ; python_version < '3'\n"
    )
    check_versions(report)
    (finding,) = report.findings
    assert finding.level == "warning"
    assert [name.split()[0] for name in finding.names] == ["torch", "nothing-of-this-name"]


def test_the_ledger_speaks_of_files_only_where_it_must():
    report = Report(["mine"])
    stages = {
        "flows@mine": [{"changed deps": {"config": "modified", "results/mine/latents": "modified"}}],
        "samples@mine": [{"changed outs": {"results/mine/samples": "deleted"}}],
        "latents@mine": [{"changed outs": {"results/mine/flows": "modified"}}],
        "data@other": [{"changed outs": {"results/other/data": "modified"}}],
    }
    changed = {
        "modified": ["results/mine/flows/", "results/mine/flows/a"],
        "deleted": ["results/mine/flows/b"],
    }
    check_ledger(report, stages, {"uncommitted": changed}, "")
    assert [(finding.level, finding.file) for finding in report.findings] == [
        ("error", "results/mine/flows/a"),
        ("warning", "dvc.lock"),
        ("error", "dvc.lock"),
    ]


def test_what_is_not_here_is_no_finding_of_the_ledger(results):
    absent = {"flows@mine": [{"changed outs": {"results/mine/never_pulled": "not in cache"}}]}
    present = {"flows@mine": [{"changed outs": {"results/mine/flows": "not in cache"}}]}
    report = Report(["mine"])
    check_ledger(report, absent, {}, "")
    assert report.findings == []
    check_ledger(report, present, {}, "")
    assert [finding.file for finding in report.findings] == ["results/mine/flows"]


def test_the_real_ledger_against_files(results, monkeypatch):
    stage = {
        "matrix": {"experiment": "${experiments}"},
        "cmd": "none",
        "outs": [{"results/${item.experiment}/flows": {"persist": True}}],
    }
    Path("dvc.yaml").write_text(json.dumps({"stages": {"flows": stage}}))
    Path("params.yaml").write_text("experiments: [mine]\n")
    Path(".gitignore").write_text("results/\n")
    for command in (["git", "init", "-q"], ["dvc", "init", "-q"], ["dvc", "commit", "-q", "-f"]):
        run(Path.cwd(), *command)
    assert audit().clean
    file = results.of("flows")[0].folder / RECORD
    record = json.loads(file.read_text())
    # As written before records and manifests told where it was made: only the ledger knows.
    del record["checksum"]
    manifest = json.loads(Path("results/mine/manifest.json").read_text())
    for entry in manifest["artifacts"].values():
        del entry["made_on"]
    Path("results/mine/manifest.json").write_text(json.dumps(manifest, indent=1, sort_keys=True) + "\n")
    record["made_on"]["python"] = "3.11.99"
    file.write_text(json.dumps(record, indent=1, sort_keys=True) + "\n")
    assert {finding.file for finding in errors(audit()) if finding.check == "ledger"} == {file.as_posix()}
    lock = Path("dvc.lock")
    lock.write_text("stages: [")
    (finding,) = [finding for finding in errors(audit()) if finding.file == "dvc.lock"]
    assert "git checkout -- dvc.lock" in finding.remedy


@pytest.mark.parametrize(
    ("said", "found", "noted"),
    [
        ("ERROR: Unable to acquire lock. Most likely another DVC process is running or was terminated", 0, 1),
        ("ERROR: 'results' is busy, it is being blocked by:\n  (PID 7): dvc commit", 0, 1),
        ("ERROR: unexpected error", 1, 0),
    ],
)
def test_a_busy_ledger_is_no_finding_and_a_whole_one_is_kept(project, monkeypatch, said, found, noted):
    failed = subprocess.CompletedProcess([], 255, "", said)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: failed)
    Path("dvc.lock").write_text("schema: '2.0'\n")
    report = Report(["mine"])
    check_ledger(report, *ask_ledger())
    assert (len(report.findings), len(report.notes)) == (found, noted)
    assert "checkout" not in "".join(finding.remedy for finding in report.findings)
    assert all("try again" in note for note in report.notes)


@pytest.fixture
def other(results, tmp_path_factory):
    folder = tmp_path_factory.mktemp("other")
    shutil.copytree("results/mine", folder / "results/mine")
    return folder / "results/mine/tables" / next(Path("results/mine/tables").glob("*.csv")).name


@pytest.mark.parametrize(
    ("old", "new", "agrees", "largest"),
    [
        ("1.0,,,1", "1.04,,,1", True, 0.04 / 1.04),
        ("1.0,,,1", "1.2,,,1", False, 0.2 / 1.2),
        ("2.0,1.0,3.0,2", "2.9,2.0,4.0,2", True, 0.9 / 2.9),  # within the stated interval
        ("2.0,1.0,3.0,2", "3.5,3.1,4.0,2", False, 1.5 / 3.5),
        ("2.0,1.0,3.0,2", "2.0,1.0,3.0,3", False, 1 / 3),  # another number of seeds
        ("1.0,,,1", ",,,1", False, float("inf")),
        ("1.0,,,1", "1.0000001,,,1", True, None),
        ("whitening", "scalar", False, None),
    ],
)
def test_numbers_of_another_run_are_compared_with_the_tolerance(other, old, new, agrees, largest):
    assert old in TABLE
    other.write_text(TABLE.replace(old, new))
    report = audit((), str(other.parents[3]))
    (comparison,) = [one for one in report.comparisons if one.file.endswith(other.name)]
    assert (comparison.beyond == ()) is agrees
    assert report.clean is agrees
    assert comparison.largest == (pytest.approx(largest) if largest else None)


def test_verdicts_and_keys_of_classifiers_are_compared_as_what_they_are():
    def claims(verdict, value):
        statistic = {"statistic": "gap", "method": "a", "value": value, "low": None, "high": None, "n": 5}
        return json.dumps({"claims": [{"claim": "C1", "verdict": verdict, "statistics": [statistic]}]})

    (same,) = compare({"claims.json": claims("supported", 1.0)}, {"claims.json": claims("supported", 1.01)})
    assert same.beyond == ()
    (other,) = compare(
        {"claims.json": claims("supported", 1.0)}, {"claims.json": claims("inconclusive", 1.0)}
    )
    assert "inconclusive" in other.beyond[0]
    rows = [f"extractor,value\nclassifier-0@{key * 12},1.0\n" for key in "ab"]
    (renamed,) = compare({"t.csv": rows[0]}, {"t.csv": rows[1]})
    assert (renamed.rows, renamed.beyond) == (1, ())


@pytest.mark.parametrize(
    ("mine", "other", "agrees"),
    [
        (1e-12, 1e-11, False),
        (8e-11, 9e-12, False),
        (1.05e-6, 1e-7, False),
        (0.0, 1e-7, False),
        (1e-12, 3e-12, True),
        (-2e-12, 3e-12, True),
        (5e-6, 4.5e-6, True),
        (0.0, 4e-15, True),
        (3e-16, 8e-15, True),
        (1e-6, 3e-6, False),
    ],
)
def test_small_errors_are_held_against_one_another(mine, other, agrees):
    for pair in ((mine, other), (other, mine)):
        (one,) = compare(*({"t.csv": f"statistic,value\nerror,{value!r}\n"} for value in pair))
        assert (one.beyond == ()) is agrees


@pytest.mark.parametrize(
    ("mine", "told"),
    [
        ("method,value\na,1.0\nb,1.0\n", "1 rows are only here"),
        ("method,value,share\na,1.0,0.5\n", "the column share is only here"),
        ("method,share\na,0.5\n", "the column value is only there"),
        ("method,value\na,high\n", "the column value is only there"),
        (None, "it is not published here"),
    ],
)
def test_what_only_one_run_has_is_a_difference(mine, told):
    here, there = {} if mine is None else {"t.csv": mine}, {"t.csv": "method,value\na,1.0\n"}
    (one,) = compare(here, there)
    assert told in one.beyond
    (turned,) = compare(there, here)
    swapped = {"here": "there", "there": "here"}
    assert " ".join([*told.split()[:-1], swapped[told.split()[-1]]]) in turned.beyond


def test_a_revision_is_read_from_git(results):
    place = Path.cwd()
    run(place, "git", "init", "-q")
    run(place, "git", "add", "results/mine/tables", "results/mine/claims.json")
    run(place, "git", "-c", "user.name=t", "-c", "user.email=t@localhost", "commit", "-q", "-m", "first")
    assert published_in("git:HEAD", "mine") == published_here("mine")
    for wrong in ("git:nothing", "git:--all", "nowhere"):
        with pytest.raises(PrecfmError, match="against"):
            published_in(wrong, "mine")


def test_exit_codes_and_json(results):
    invoke = CliRunner().invoke
    said = invoke(app, ["audit", "--json"])
    assert said.exit_code == 0
    assert json.loads(said.stdout)["clean"]
    table = next(Path("results/mine/tables").glob("*.csv"))
    table.write_text("x")
    said = invoke(app, ["audit", "mine", "--json"])
    assert said.exit_code == 1
    assert table.as_posix() in {finding["file"] for finding in json.loads(said.stdout)["findings"]}
    assert f"error: {table}" in invoke(app, ["audit"]).stdout
    for wrong in (["audit", "nothing"], ["audit", "--against", "nowhere"], ["audit", "--unknown"]):
        assert invoke(app, wrong).exit_code == 2


def test_every_kind_of_product_is_known():
    assert set(store.PRODUCTS) <= set(room.KINDS)
