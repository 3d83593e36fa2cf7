"""The audit finds and names every flipped byte, and whatever else is not as plan, records and manifests say."""

import json
import os
import random
import shutil
from collections import Counter
from contextlib import chdir
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from precfm.audit import integrity, local
from precfm.audit.environment import check_versions
from precfm.audit.integrity import audit
from precfm.audit.report import Report
from precfm.cli import app
from precfm.core.errors import PrecfmError
from precfm.pipeline import publication
from precfm.pipeline.attic import tidy
from precfm.pipeline.build import build
from precfm.pipeline.manifest import manifest_text
from precfm.pipeline.node import MACHINE, MODELS, PUBLISHED, RECORD
from precfm.pipeline.plan import Plan, load_plan
from precfm.pipeline.products import write_products
from precfm.pipeline.publication import publish
from tests.workflow import ROOT, git, run, sealed

# Every kind that the audit looks at in its own way, few artifacts of each, since an audit reads them all.
SMALL = {
    "seeds": [0],
    "methods": dict.fromkeys(
        ("class_whitening", "normalizing_flow", "low_capacity_flow", "gaussian_skip", "mixture_skip")
    ),
    "settings": {"plain": {"matched": None}, "tuned": None},
    "theory": {"steps_to_accuracy": None, "residual_linear": None},
    "search": None,
    "likelihood": None,
    "predict": None,
}
HOME = Path("results/mine")
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
    elif node.kind == "pages":
        (job.folder / "report.html").write_text(node.key)
    elif node.kind == "frames":
        (job.folder / "records.csv").write_text("value\n1\n")
        (job.folder / "grids.safetensors").write_bytes(b"1")
    else:
        job.write_json("value.json", {"key": node.key})
        (job.folder / "deep").mkdir()
        (job.folder / "deep/model.safetensors").write_bytes(random.Random(node.key).randbytes(500))


def commit(*files):
    if not Path(".git").is_dir():
        run(Path.cwd(), "git", "init", "-q")
    git(Path.cwd(), "add", "--force", *map(str, files))
    git(Path.cwd(), "commit", "-q", "-m", "more")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A project with a small experiment, made and published, and its plan."""
    folder = tmp_path_factory.mktemp("audit")
    (folder / "data").mkdir()
    shutil.copyfile(ROOT / "data/sources.yaml", folder / "data/sources.yaml")
    shutil.copytree(ROOT / "config", folder / "config")
    (folder / "config/mine.yaml").write_text(yaml.safe_dump({"extends": "smoke", **SMALL}))
    with chdir(folder):
        plan = load_plan("mine")
        for node in plan.nodes.values():
            build(node, make)
        write_products(plan)
        commit("config", "data")
        publish(plan)
        commit(PUBLISHED)
    return folder, plan


@pytest.fixture
def results(whole, project, monkeypatch):
    """A copy of that project, which is the working folder; the plan."""
    folder, plan = whole
    shutil.copytree(folder, project, dirs_exist_ok=True)
    for module in (local, publication):
        monkeypatch.setattr(module, "load_plan", lambda name: plan)
    return plan


def errors(report, check=None):
    return [finding for finding in report.errors if check in (None, finding.check)]


def below_results():
    return [
        path for path in sorted(Path("results").rglob("*")) if path.is_file() and ".work" not in path.parts
    ]


def test_a_whole_experiment_is_clean(results):
    report = audit()
    assert report.findings == []
    assert report.absent == {}
    assert report.files == len(below_results()) + 2 * len(list(MODELS.glob("*.json")))


def flip(file, position, bit):
    """Change one bit and keep the file's times."""
    before, data = file.stat(), bytearray(file.read_bytes())
    data[position] ^= bit
    file.write_bytes(data)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_every_flipped_byte_is_found_and_named(results, monkeypatch):
    """By the records alone, without a cache of DVC. One in each file at once, but for what others are held against."""
    monkeypatch.setattr(integrity, "check_machine", lambda *_: None)
    old = results.of("theory")[0]
    shutil.copytree(old.folder, Path("results/.attic/theory") / f"{old.label}-{old.key}")
    draw, files = random.Random(0), below_results()
    manifests = [file for file in files if file.name == "manifest.json"]
    tops = [file for file in files if file.name == RECORD or file.parent == PUBLISHED]
    others = [file for file in files if file not in [*manifests, *tops]]
    flipped = Counter()
    for batch in [*[tops, others] * 3, *[[manifest] for manifest in manifests * 5]]:
        flips = [(file, draw.randrange(file.stat().st_size), 1 << draw.randrange(8)) for file in batch]
        for change in flips:
            flip(*change)
        named = {finding.file for finding in audit().findings}
        for change in flips:
            flip(*change)
        assert [change for change in flips if change[0].as_posix() not in named] == []
        flipped.update(file.parent.parent.name if file.name == RECORD else file.name for file in batch)
    assert flipped.total() > 300
    assert {
        "flows",
        "frames",
        "records.csv",
        "README.md",
        "manifest.json",
        "claims.json",
        "claims.md",
        "report.html",
    } <= flipped.keys()
    assert audit().findings == []


def test_a_wrong_manifest_is_blamed_and_no_artifact(results):
    """Also where its own checksum was made right again."""
    file = HOME / "manifest.json"
    content = {key: value for key, value in json.loads(file.read_text()).items() if key != "checksum"}
    node = results.of("flows")[0]
    (role, ids), *_ = content["artifacts"][node.id]["parents"].items()
    label, _, key = ids[0].rpartition("-")
    for field, value in {
        "files": {},
        "fingerprint": "0" * 16,
        "made_on": {"python": "2"},
        "parents": {role: [f"{label}-{key[::-1]}"]},
    }.items():
        changed = json.loads(json.dumps(content))
        changed["artifacts"][node.id][field] = value
        file.write_bytes(manifest_text(changed))
        assert {finding.file for finding in errors(audit())} == {file.as_posix()}
    content["artifacts"][node.id]["parents"][role][0] = f"{label}x-{key}"  # a label is no content
    file.write_bytes(manifest_text(content))
    assert errors(audit()) == []


@pytest.mark.parametrize("role", [None, "flows"])
def test_an_id_in_a_manifest_that_is_none_is_damage(results, role):
    file = HOME / "manifest.json"
    content = json.loads(file.read_text())
    entry = next(entry for entry in content["artifacts"].values() if role is None or role in entry["parents"])
    if role is None:
        content["artifacts"]["odd"] = entry
    else:
        entry["parents"][role][0] = "odd"
    file.write_bytes(manifest_text(content))
    assert file.as_posix() in {finding.file for finding in errors(audit(), "manifest")}


def test_what_is_published_needs_nothing_local_and_notes_its_revision(results):
    shutil.rmtree(HOME)
    report = audit()
    assert report.findings == []
    revision = git(Path.cwd(), "rev-parse", "HEAD~1").strip()[:12]
    count = len(results.nodes)
    assert any(revision in note and f"{count} of {count} keys" in note for note in report.notes)


def test_other_counts_of_current_keys_are_a_warning_and_other_verdicts_an_error(results, monkeypatch):
    readme = Path("README.md")
    readme.write_text("# Ours\n\n<!-- claims: as said -->\n<!-- end -->\nMore.\n")
    assert CliRunner().invoke(app, ["claims"]).exit_code == 0
    count = len(results.nodes)
    verdicts = Path("results/published/claims.md")
    assert f"{count} of {count} keys are current" in verdicts.read_text()
    assert " images are better | " in readme.read_text()
    assert readme.read_text().endswith(" |\n<!-- end -->\nMore.\n")
    assert audit().findings == []
    merged = {f"results/published/{name}" for name in ("claims.json", "claims.md", "report.html")}

    def other(name):
        raise PrecfmError("no plan")

    for load in (lambda name: Plan(name), other):
        monkeypatch.setattr(publication, "load_plan", load)
        assert {(finding.level, finding.file) for finding in audit().findings} == {
            ("warning", file) for file in merged
        }
    assert CliRunner().invoke(app, ["claims"]).exit_code == 0
    assert f"0 of {count} keys are current" in verdicts.read_text()
    assert {finding.check for finding in audit().findings} == {"commit"}
    for file in merged:
        Path(file).write_text(Path(file).read_text().replace("mine", "ours"))
    readme.write_text(readme.read_text().replace(" | not tested | ", " | supported | "))
    assert {finding.file for finding in errors(audit())} == merged | {"README.md"}


@pytest.mark.parametrize(
    ("spoil", "name"),
    [
        (lambda home: (home / "manifest.json").unlink(), "mine/manifest.json"),
        (lambda home: next((home / "tables").iterdir()).unlink(), "tables/"),
        (lambda home: (home / "frames/records.csv").unlink(), "frames/README.md"),
        (lambda home: (home / "frames/new.csv").write_text("1"), "frames/new.csv"),
        (lambda home: (home / "frames/README.md").unlink(), "frames/README.md"),
        (lambda home: (home / "flows").mkdir(), "mine/flows"),
        (lambda home: (home / "claims.json").write_text('{"claims": []}'), "mine/claims.json"),
        (lambda home: (home.parent / "claims.md").unlink(), "published/claims.md"),
        (lambda home: (home.parent / "claims.json").write_text("{}"), "published/claims.json"),
        (lambda home: (home.parent / "notes.txt").write_text(""), "published/notes.txt"),
    ],
)
def test_what_was_published_stays_as_it_was(results, spoil, name):
    spoil(PUBLISHED / "mine")
    assert any(name in finding.file for finding in errors(audit()))


def test_an_early_publication_has_no_frames(results):
    shutil.rmtree(PUBLISHED / "mine/frames")
    assert errors(audit()) == []


def test_what_is_published_but_not_committed_is_named(results):
    figure = next((PUBLISHED / "mine/figures").iterdir())
    node = results.of("figure_files")[0]
    shutil.rmtree(node.folder)
    build(node, lambda job: (job.folder / f"{node.label}.png").write_bytes(b"new"))
    write_products(results)
    publish(results)
    report = audit()
    assert not report.errors
    (finding,) = [finding for finding in report.findings if finding.check == "commit"]
    assert (PUBLISHED / f"mine/figures/{node.label}.png").as_posix() in finding.names
    flip(figure, 0, 1)
    assert figure.as_posix() in {finding.file for finding in errors(audit())}


def test_what_is_not_here_is_no_error_and_products_are_still_checked(results):
    for kind in {node.kind for node in results.nodes.values()}:
        shutil.rmtree(HOME / kind)
    report = audit()
    assert not report.errors
    assert sum(report.absent["mine"].values()) == len(results.nodes)
    table = next((HOME / "tables").glob("*.csv"))
    table.write_text(table.read_text().replace("2.0", "2.1"))
    assert [finding.file for finding in errors(audit())] == [table.as_posix()]


def test_before_the_products_are_written_they_are_not_missed(results):
    for name in ("tables", "figures"):
        shutil.rmtree(HOME / name)
    for name in ("manifest.json", "claims.json", "claims.md", "report.html"):
        (HOME / name).unlink()
    assert errors(audit()) == []


def test_results_of_other_code_are_named_as_that(results, monkeypatch):
    monkeypatch.setattr(
        "precfm.pipeline.keys.fingerprint", lambda script, targets=(): f"{len(str(script)):016x}"
    )
    shutil.rmtree("results/.work/plans")
    present = load_plan("mine")
    assert not present.nodes.keys() & results.nodes.keys()
    monkeypatch.setattr(local, "load_plan", lambda name: present)
    report = audit()
    unwanted = [finding for finding in errors(report, "plan") if "not in the plan" in finding.problem]
    assert {name for finding in unwanted for name in finding.names} == results.nodes.keys()
    assert any("other code" in finding.problem for finding in unwanted)
    missing = [finding for finding in errors(report, "plan") if "missing" in finding.problem]
    assert {name for finding in missing for name in finding.names} == present.nodes.keys()
    assert errors(report, "manifest")
    assert not errors(report, "payload") + errors(report, "record")


def test_other_parameters_are_named_as_that(results, planned, monkeypatch):
    present = planned(
        {**SMALL, "methods": SMALL["methods"] | {"whitening": {"preconditioner": {"exponent": 0.25}}}}
    )
    monkeypatch.setattr(local, "load_plan", lambda name: present)

    def unwanted():
        return [each.problem for each in errors(audit(), "plan") if "not in the plan" in each.problem]

    assert any("preconditioners" in problem and "other parameters" in problem for problem in unwanted())
    assert any("from other inputs" in problem for problem in unwanted())
    tidy(present)
    assert unwanted() == []


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
        (lambda node: replace_by_folder(HOME / "manifest.json"), "manifest", "manifest.json"),
        (lambda node: replace_by_folder(HOME / "claims.json"), "product", "mine/claims.json"),
        (lambda node: Path("results/zzz.csv").write_text(""), "plan", "results/zzz.csv"),
        (lambda node: Path("results/.zzz").mkdir(), "plan", "results/.zzz"),
        (lambda node: (HOME / "tables/.snakemake_timestamp").write_text("a"), "product", "_timestamp"),
        (lambda node: (HOME / "tables/empty").mkdir(), "product", "tables/empty"),
        (lambda node: (node.folder.parent / "stray").write_text(""), "plan", "stray"),
        (lambda node: os.link(node.folder / "value.json", "elsewhere"), "link", "value.json"),
        (lambda node: (node.folder / "away").symlink_to("/tmp"), "link", "away"),
        (lambda node: (HOME / "tables/old.csv").write_text("a"), "product", "old.csv"),
        (lambda node: next((HOME / "figures").iterdir()).unlink(), "product", ".png"),
        (lambda node: (HOME / "notes.txt").write_text("a"), "plan", "notes.txt"),
    ],
)
def test_what_should_not_be_is_found(results, spoil, check, name):
    (HOME / "tables/.snakemake_timestamp").write_text("")  # belongs there
    assert errors(audit()) == []
    spoil(results.of("flows")[0])
    assert [finding for finding in errors(audit(), check) if finding.file.endswith(name)]


def changed_record(node, **fields):
    file = node.folder / RECORD
    file.write_text(sealed(json.loads(file.read_text()) | fields))
    return file.as_posix()


def test_an_artifact_that_claims_other_code_is_found(results):
    file = changed_record(results.of("flows")[0], fingerprint="0" * 16)
    assert [finding.file for finding in errors(audit(), "code")] == [file]


def test_several_devices_and_other_machines_are_warnings(results):
    node = results.of("flows")[0]
    place = json.loads((node.folder / RECORD).read_text())["made_on"]
    changed_record(node, made_on=place | {"device": "GPU X", "python": "2.7"})
    write_products(results)
    report = audit()
    assert not report.errors
    named = {finding.check: finding for finding in report.findings}
    assert {"devices", "environment"} <= named.keys()
    assert node.id in named["environment"].names


def test_other_versions_of_what_made_an_artifact_are_a_warning_and_records_without_them_none(results):
    flow, other = results.of("flows")[0], results.of("preconditioners")[0]
    place = json.loads((flow.folder / RECORD).read_text())["made_on"]
    assert place["torchdiffeq"] == version("torchdiffeq")
    changed_record(other, made_on={name: value for name, value in place.items() if name in MACHINE})
    changed_record(flow, made_on=place | {"torchdiffeq": "0.0", "no-such-library": "1"})
    write_products(results)
    report = audit()
    assert not report.errors
    said = {finding.problem.rpartition("(")[2]: finding.names for finding in report.findings}
    assert said == {
        f"torchdiffeq 0.0, here {version('torchdiffeq')})": (flow.id,),
        "no-such-library 1, here none)": (flow.id,),
    }


def test_other_versions_are_a_warning(project):
    report = Report()
    check_versions(report)
    assert "requirements.lock" in report.notes[0]
    Path("requirements.lock").write_text(
        "torch==1.0 \\\n    --hash=sha256:00\nnothing-of-this-name==2\nnumpy>=0\ntorch==1.0 ; python_version < '3'\n"
    )
    check_versions(report)
    (finding,) = report.findings
    assert finding.level == "warning"
    assert [name.split()[0] for name in finding.names] == ["torch", "nothing-of-this-name"]


def test_exit_codes_and_json(results):
    invoke = CliRunner().invoke
    said = invoke(app, ["audit", "--json"])
    assert said.exit_code == 0
    assert json.loads(said.stdout)["clean"]
    table = next((HOME / "tables").glob("*.csv"))
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
        ["published"],
        ["-x"],
    ):
        assert invoke(app, ["audit", *wrong]).exit_code == 2
