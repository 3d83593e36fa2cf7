"""The audit finds and names every flipped byte, and whatever else is not as plan, manifest and ledger say."""

import json
import os
import random
import shutil
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from precfm.audit import environment as surroundings
from precfm.audit import equivalences as evidence
from precfm.audit import integrity as room
from precfm.audit.comparison import published_here, published_in
from precfm.audit.environment import check_times, check_versions
from precfm.audit.findings import Report
from precfm.audit.integrity import audit
from precfm.cli import app
from precfm.core.errors import PrecfmError
from precfm.pipeline import fingerprints as fingerprint
from precfm.pipeline import publication as store
from precfm.pipeline.attic import tidy
from precfm.pipeline.build import build
from precfm.pipeline.manifest import canonical, differing, published_entries, read_manifest
from precfm.pipeline.node import RECORD
from precfm.pipeline.plan import load_plan
from precfm.pipeline.publication import collect_claims, publish
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
    none = SimpleNamespace(EQUIVALENCES=fingerprint.EQUIVALENCES, read_equivalences=dict)
    monkeypatch.setattr(evidence, "code", none)  # what was accepted is about other artifacts
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


@pytest.mark.parametrize("role", [None, "flows"])
def test_an_id_in_the_manifest_that_is_none_is_damage(results, role):
    file = Path("results/mine/manifest.json")
    manifest = json.loads(file.read_text())
    entry = next(
        entry for entry in manifest["artifacts"].values() if role is None or role in entry["parents"]
    )
    if role is None:
        manifest["artifacts"]["odd"] = entry
    else:
        entry["parents"][role][0] = "odd"
    file.write_text(canonical(manifest))
    for read in (lambda: read_manifest(file.parent), lambda: published_entries(Path("results"))):
        with pytest.raises(PrecfmError, match=r"manifest\.json: damaged"):
            read()
    assert file.as_posix() in {finding.file for finding in errors(audit())}


def test_parents_in_the_manifest_are_held_against_the_record_without_a_plan(results, monkeypatch):
    def no_plan(name):
        raise PrecfmError("no plan")

    file = Path("results/mine/manifest.json")
    manifest = json.loads(file.read_text())
    node_id = results.of("flows")[0].id
    (role, ids), *_ = manifest["artifacts"][node_id]["parents"].items()
    label, _, key = ids[0].rpartition("-")
    monkeypatch.setattr(room, "load_plan", no_plan)
    for name, told in ((f"{label}x-{key}", []), (f"{label}-{key[::-1]}", ["parents"])):
        manifest["artifacts"][node_id]["parents"][role][0] = name
        file.write_text(canonical(manifest))
        found = [finding.problem for finding in errors(audit()) if finding.check == "record"]
        assert found == [
            f"damaged or stale: {field} of {node_id} is not what the artifact's own record says"
            for field in told
        ]


def test_fields_that_differ_are_named_in_order():
    whole = {
        "fingerprint": "a",
        "params": {"n": 1},
        "parents": {"r": ["data/x-1"]},
        "files": {},
        "made_on": {},
    }
    assert differing(whole, {}) == differing(whole, {**whole, "files": None, "made_on": None}) == []
    assert differing({**whole, "parents": {"r": ["data/1"]}}, whole) == []
    assert differing({}, whole) == ["fingerprint", "params", "parents", "files", "made_on"]
    for parents in ({"r": ["data/2"]}, {"r": []}, {"s": ["data/1"]}, {"r": 1}, {"r": [1]}, 1, None):
        assert differing({**whole, "parents": parents}, whole) == ["parents"]


HEADER = "kind,artifact,seconds,max_rss_mb\n"


def told(plan):
    report = Report(["mine"])
    check_times(report, "mine", plan)
    return [(finding.level, finding.file, finding.problem) for finding in report.findings], len(report.notes)


def test_times_are_those_of_the_commit_or_of_the_jobs(results):
    file, node = Path("results/mine/records/wall_time.csv"), results.of("flows")[0]
    benchmark = file.parent / "benchmarks/flows" / f"{node.name}.tsv"
    benchmark.parent.mkdir(parents=True)
    file.write_text(f"{HEADER}flows,{node.name},1.5,20.0\n")
    assert told(results) == ([], 1)  # no repository, no benchmark
    commit(file)
    assert told(results) == ([], 0)
    whole = file.read_bytes()
    for position in range(len(whole)):
        flip(file, position, 1)
        ((level, name, _),), notes = told(results)
        assert (level, name, notes) == ("error", file.as_posix(), 0)
        file.write_bytes(whole)
    file.write_text(f"{HEADER}flows,{node.name},2.25,20.0\n")
    assert "neither in the commit nor what the job's benchmark says" in told(results)[0][0][2]
    benchmark.write_text("s\th:m:s\tmax_rss\n2.25\t0:00:02\t20\n")
    assert told(results) == ([], 0)  # a job of this machine
    file.write_text(HEADER)
    assert "which the commit has, is missing" in told(results)[0][0][2]
    file.unlink()
    assert "missing, though the commit has it" in told(results)[0][0][2]


def test_a_row_of_times_that_is_there_twice_is_found(results):
    file, node = Path("results/mine/records/wall_time.csv"), results.of("flows")[0]
    file.parent.mkdir()
    row = f"flows,{node.name},1.5,20.0\n"
    file.write_text(HEADER + row)
    commit(file)
    file.write_text(HEADER + row + row)
    assert f"more than one row of {node.id}" in told(results)[0][0][2]


def test_behind_rows_that_nothing_explains_wrong_ones_are_found(results):
    file, (unknown, node, *_) = Path("results/mine/records/wall_time.csv"), results.of("flows")
    benchmark = file.parent / "benchmarks/flows" / f"{node.name}.tsv"
    benchmark.parent.mkdir(parents=True)
    benchmark.write_text("s\th:m:s\tmax_rss\n2.25\t0:00:02\t20\n")
    rows = f"{HEADER}flows,{unknown.name},1.5,20.0\nflows,{node.name},2.25,20.0\n"
    file.write_text(rows)
    assert told(results) == ([], 1)
    file.write_text(rows.replace("2.25", "2.75"))
    ((level, _, problem),), notes = told(results)
    assert (level, node.name in problem, notes) == ("error", True, 0)


def test_seconds_to_quality_are_those_of_the_commit_or_made_again(results, monkeypatch):
    file = Path("results/mine/records/time_to_quality.csv")
    file.parent.mkdir(exist_ok=True)
    file.with_name("wall_time.csv").write_text(HEADER)
    file.write_text("seconds\n1\n")
    commit(file.parent)
    assert told(results) == ([], 0)
    flip(file, 9, 1)
    assert [finding[:2] for finding in told(results)[0]] == [("error", file.as_posix())]
    monkeypatch.setattr(
        surroundings,
        "publish_time_to_quality",
        lambda home, plan: (home / "records" / file.name).write_bytes(file.read_bytes()),
    )
    assert told(results) == ([], 0)


def test_what_git_holds_and_is_not_as_committed_is_named(results):
    commit("results/mine/figures", "results/mine/tables")
    figure = next(Path("results/mine/figures").iterdir())
    report = audit()
    assert report.clean
    assert not any(finding.check == "commit" for finding in report.findings)
    flip(figure, 5, 1)
    assert figure.as_posix() in {finding.file for finding in errors(audit())}
    artifact = results.of("figure_files")[0]
    shutil.rmtree(artifact.folder)
    build(artifact, lambda job: (job.folder / f"{job.node.label}.png").write_bytes(b"new"))
    publish(results)
    report = audit()
    assert report.clean
    (finding,) = [finding for finding in report.findings if finding.check == "commit"]
    assert finding.names == (f"results/mine/figures/{artifact.label}.png",)


def commit(*files):
    if not Path(".git").is_dir():
        run(Path.cwd(), "git", "init", "-q")
    run(Path.cwd(), "git", "add", *map(str, files))
    run(Path.cwd(), "git", "-c", "user.name=t", "-c", "user.email=t@localhost", "commit", "-q", "-m", "more")


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
    monkeypatch.setattr(
        "precfm.pipeline.plan.fingerprint", lambda script, targets: f"{len(str(script)):016x}"
    )
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


def replace_by_folder(file):
    Path(file).unlink()
    Path(file).mkdir()


@pytest.mark.parametrize(
    ("spoil", "check", "name"),
    [
        (lambda node: (node.folder / "value.json").unlink(), "payload", "value.json"),
        (lambda node: (node.folder / "new.csv").write_text("1"), "payload", "new.csv"),
        (lambda node: (node.folder / ".gitignore").write_text(""), "payload", ".gitignore"),
        (lambda node: (node.folder / ".snakemake_timestamp").write_text(""), "payload", "_timestamp"),
        (lambda node: (node.folder / "empty").mkdir(), "payload", "empty"),
        (lambda node: os.mkfifo(node.folder / "deep/pipe"), "payload", "deep/pipe"),
        (lambda node: (node.folder / RECORD).unlink(), "plan", ""),
        (lambda node: (node.folder / RECORD).write_text("[" * 200_000), "record", RECORD),
        (lambda node: replace_by_folder("results/mine/manifest.json"), "manifest", "manifest.json"),
        (lambda node: replace_by_folder("results/mine/claims.json"), "product", "mine/claims.json"),
        (lambda node: Path("results/zzz.csv").write_text(""), "plan", "results/zzz.csv"),
        (lambda node: Path("results/.zzz").mkdir(), "plan", "results/.zzz"),
        (lambda node: Path("results/mine/records/zzz").write_text(""), "plan", "records/zzz"),
        (
            lambda node: (node.folder.parents[1] / "tables/.snakemake_timestamp").write_text("a"),
            "product",
            "tables/.snakemake_timestamp",
        ),
        (lambda node: (node.folder.parents[1] / "tables/empty").mkdir(), "product", "tables/empty"),
        (lambda node: (node.folder.parent / "stray").write_text(""), "plan", "stray"),
        (lambda node: os.link(node.folder / "value.json", "elsewhere"), "link", "value.json"),
        (lambda node: (node.folder / "away").symlink_to("/tmp"), "link", "away"),
        (lambda node: (node.folder.parents[1] / "tables/old.csv").write_text("a"), "product", "old.csv"),
        (lambda node: next((node.folder.parents[1] / "figures").iterdir()).unlink(), "product", ".png"),
        (lambda node: (node.folder.parents[1] / "notes.txt").write_text("a"), "plan", "notes.txt"),
    ],
)
def test_what_should_not_be_is_found(results, spoil, check, name):
    Path("results/mine/records").mkdir(exist_ok=True)
    Path("results/mine/tables/.snakemake_timestamp").write_text("")  # belongs there
    assert errors(audit()) == []
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
        ("2.0,1.0,3.0,2", "2.9,2.0,4.0,2", True, 0.9 / 2.9),  # within the stated intervals
        ("2.0,1.0,3.0,2", "2.9,2.5,3.5,2", False, 0.9 / 2.9),
        ("2.0,1.0,3.0,2", "3.5,3.1,4.0,2", False, 1.5 / 3.5),
        ("2.0,1.0,3.0,2", "2.0,1.0,3.0,3", False, 1 / 3),  # another number of seeds
        ("2.0,1.0,3.0,2", "2.0,1.0,9.0,2", False, None),  # of the same trainings
        ("2.0,1.0,3.0,2", "2.0,1.0,3.1,2", True, None),
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
    warned = [finding for finding in report.findings if "cannot be judged" in finding.problem]
    assert len(warned) == comparison.unjudged == (agrees and (largest or 0) > 0.05)


def test_what_the_other_run_lacks_is_an_error_only_if_it_was_asked_for(other):
    Path("results/newer").mkdir()
    place = str(other.parents[3])
    report = audit((), place)
    assert [note for note in report.notes if "results/newer" in note]
    assert report.comparisons
    shutil.rmtree(other.parents[1])
    for names in (["newer"], ["mine"], []):
        with pytest.raises(PrecfmError, match="holds no published numbers"):
            audit(names, place)


def test_without_git_there_is_no_revision(results, monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(PrecfmError, match="no revision"):
        published_in("git:HEAD", "mine")


def test_a_table_of_a_revision_that_is_no_text_is_a_difference(results):
    table = next(Path("results/mine/tables").glob("*.csv"))
    whole = table.read_bytes()
    table.write_bytes(b"\xff" + whole)
    commit("results/mine/tables", "results/mine/claims.json")
    table.write_bytes(whole)
    found = [finding for finding in errors(audit((), "git:HEAD")) if finding.check == "against"]
    assert [(finding.file, "cannot be read" in finding.names[0]) for finding in found] == [
        (table.as_posix(), True)
    ]


def test_a_revision_is_read_from_git(results):
    place = Path.cwd()
    run(place, "git", "init", "-q")
    run(place, "git", "add", "results/mine/tables", "results/mine/claims.json")
    run(place, "git", "-c", "user.name=t", "-c", "user.email=t@localhost", "commit", "-q", "-m", "first")
    assert published_in("git:HEAD", "mine") == published_here("mine")
    for wrong in ("git:nothing", "git:--all", "nowhere", "", ".", "results"):
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
    for wrong in (
        ["nothing"],
        [""],
        ["."],
        ["mine/flows"],
        [".."],
        ["--against", "nowhere"],
        ["--against", ""],
    ):
        assert invoke(app, ["audit", *wrong]).exit_code == 2
    assert invoke(app, ["audit", "--unknown"]).exit_code == 2


def test_every_kind_of_product_is_known():
    assert set(store.PRODUCTS) <= set(room.KINDS)
