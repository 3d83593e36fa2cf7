"""The ledger holds what DVC itself has recorded, and whatever is changed in it, or in what it speaks of, is found."""

import re
import shutil
from pathlib import Path

import pytest
import yaml

from precfm.audit import ledger
from precfm.audit.findings import Report
from precfm.audit.ledger import Claim, check_ledger, state
from precfm.pipeline.locks import alone
from precfm.pipeline.plan import KINDS
from tests.workflow import ROOT, git, run

PUBLISHED = [f"{kind}/{label}-0" for kind in KINDS for label in ("a", "b")]
CLAIM = Claim("mine", PUBLISHED, ["pictures"])
CODE = ("config/mine.yaml", "precfm/datasets/a.py", "workflow_scripts/b.py", "requirements.lock")


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """A project with an experiment of invented files, recorded by DVC itself as the real stages say."""
    folder = tmp_path_factory.mktemp("ledger") / "project"
    home, raw = folder / "results/mine", folder / "data/raw/pictures"
    for name in (*CODE, "data/sources.yaml"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    for place in (folder / "precfm", folder / "precfm/datasets"):
        (place / "__pycache__").mkdir()
        (place / "__pycache__/a.pyc").write_text("x")
        (place / "c.pyc").write_text("x")
    for node_id in PUBLISHED:
        for name in ("artifact.json", "deep/er/model", "é ü.csv", "Z.csv", "a-b", "a.b", "a/b"):
            (home / node_id / name).parent.mkdir(parents=True, exist_ok=True)
            (home / node_id / name).write_text(f"{node_id} {name}")
    shutil.rmtree(home / "kernels")
    (home / "kernels").mkdir()
    for name in (
        "tables/t.csv",
        "tables/.snakemake_timestamp",
        "figures/f.png",
        "manifest.json",
        "claims.json",
    ):
        (home / name).parent.mkdir(exist_ok=True)
        (home / name).write_text("" if name.endswith("stamp") else name)
    (raw / "cats").mkdir(parents=True)
    (raw / "cats/1.png").write_bytes(b"1")
    (folder / "params.yaml").write_text("experiments: [mine]\nsources: [pictures]\n")
    shutil.copyfile(ROOT / "dvc.yaml", folder / "dvc.yaml")
    shutil.copyfile(ROOT / ".dvcignore", folder / ".dvcignore")
    (folder / ".gitignore").write_text(
        "/results/*/*/\n/data/raw/\n!/results/*/tables/\n!/results/*/figures/\n"
    )
    for command in (["git", "init", "-q"], ["dvc", "init", "-q"], ["dvc", "commit", "-q", "-f"]):
        run(folder, *command)
    return folder


@pytest.fixture
def project(recorded, tmp_path, monkeypatch):
    shutil.copytree(recorded, tmp_path / "project")
    monkeypatch.chdir(tmp_path / "project")
    return tmp_path / "project"


def findings():
    report = Report(["mine"])
    published = [node_id for node_id in PUBLISHED if not node_id.startswith("kernels/")]
    check_ledger(report, [Claim("mine", published, ["pictures"])])
    return report


def told(level="error"):
    return [(finding.file, finding.problem) for finding in findings().findings if finding.level == level]


def test_what_dvc_recorded_is_whole_with_and_without_its_cache(project):
    stages = yaml.safe_load(Path("dvc.lock").read_text())["stages"]
    assert {*(f"{kind}@mine" for kind in KINDS), "publish@mine", "raw@pictures"} == stages.keys()
    for stage in stages.values():
        for entry in (*stage["deps"], *stage["outs"]):
            assert state(Path(entry["path"])) == ledger.Entry(**entry).state
    assert findings().findings == findings().notes == []
    shutil.rmtree(".dvc/cache")
    assert findings().findings == findings().notes == []


def test_dvc_ignores_what_is_ignored_here():
    lines = (ROOT / ".dvcignore").read_text().split()
    assert [line.rstrip("/") for line in lines] == list(ledger.IGNORED)


def test_every_change_of_the_ledger_is_found(project):
    """As an error, but for checksums of code that stand there once and may be those of older code: a warning."""
    file, tried, missed = Path("dvc.lock"), 0, []
    lines = file.read_text().splitlines(keepends=True)
    stage = path = ""
    for number, line in enumerate(lines):
        stage = line.strip() if re.match(r"  \w", line) else stage
        path = line if "path:" in line else path
        if stage not in ("data@mine:", "kernels@mine:", "publish@mine:", "raw@pictures:") and number > 1:
            continue
        once = "md5: " in line and ("data/sources.yaml" in path or "precfm/datasets" in path)
        for index in {re.search(r"\w", line).start(), re.search(r"\w\W*$", line).start()}:
            changed = line[:index] + ("0" if line[index] != "0" else "1") + line[index + 1 :]
            file.write_text("".join([*lines[:number], changed, *lines[number + 1 :]]))
            found = {finding.level for finding in findings().findings}
            tried += 1
            if "error" not in found and not (found and once):
                missed.append((number, changed))
    assert missed == []
    assert tried > 150


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda: Path("results/mine/flows/a-0/a.b").write_text("x"), "results/mine/flows/a-0/a.b"),
        (lambda: Path("results/mine/flows/a-0/new").write_text("x"), "results/mine/flows/a-0/new"),
        (lambda: Path("results/mine/flows/a-0/a.b").unlink(), "results/mine/flows/a-0/a.b"),
        (lambda: Path("results/mine/tables/t.csv").write_text("x"), "results/mine/tables"),
        (lambda: Path("results/mine/manifest.json").write_text("x"), "results/mine/manifest.json"),
        (lambda: Path("data/raw/pictures/cats/1.png").write_text("x"), "data/raw/pictures/cats/1.png"),
        (lambda: Path("results/mine/kernels/x").write_text("x"), "results/mine/kernels/x"),
    ],
)
def test_every_change_of_a_file_is_an_error(project, change, named):
    change()
    assert [file for file, _ in told()] == [named]
    shutil.rmtree(".dvc/cache")
    ((folder, problem),) = told()
    assert named.startswith(folder)
    assert problem == "is not what dvc.lock holds"


def test_other_code_is_a_warning(project):
    Path("precfm/datasets/a.py").write_text("other")
    assert told() == []
    assert [problem.split()[-1] for _, problem in told("warning")] == ["precfm", "precfm/datasets"]


def test_what_is_not_here_is_no_finding(project):
    for name in ("results/mine/flows", "data/raw/pictures", "results/mine/tables"):
        shutil.rmtree(name)
    shutil.rmtree("results/mine/samples/a-0")
    Path("results/mine/flows").mkdir()
    shutil.rmtree(".dvc/cache")
    report = findings()
    assert report.findings == []
    (note,) = report.notes
    assert note.startswith("results/mine/samples: here in part")


def test_of_what_is_not_here_the_ledger_is_held_against_the_commit(project):
    shutil.rmtree("data/raw/pictures")
    file = Path("dvc.lock")
    whole = file.read_text()
    place = re.search(r"path: data/raw/pictures\n.*\n +md5: ", whole).end()
    changed = whole[:place] + ("0" if whole[place] != "0" else "1") + whole[place + 1 :]
    file.write_text(changed)
    assert told() == []  # nothing to hold it against
    file.write_text(whole)
    git(project, "add", "dvc.lock")
    git(project, "commit", "-q", "-m", "recorded")
    assert told() == []
    file.write_text(changed)
    assert ["not here to tell" in problem for _, problem in told()] == [True]


def rewrite(file, old, new):
    text = Path(file).read_text()
    assert old in text
    Path(file).write_text(text.replace(old, new))


def damage(file, stage="flows@mine", **fields):
    content = yaml.safe_load(Path(file).read_text())
    content["stages"][stage] |= fields
    Path(file).write_text(yaml.safe_dump(content))


ENTRY = {"path": "config", "hash": "md5", "md5": "0" * 32, "size": 1}


@pytest.mark.parametrize(
    ("change", "file", "words"),
    [
        (lambda: Path("dvc.lock").unlink(), "dvc.lock", "missing, though mine was recorded"),
        (lambda: Path("dvc.yaml").unlink(), "dvc.yaml", "missing, though mine was recorded"),
        (lambda: Path("params.yaml").unlink(), "params.yaml", "missing, though mine was recorded"),
        (lambda: rewrite("params.yaml", "[mine]", "[]"), "params.yaml", "mine is missing"),
        (
            lambda: rewrite("params.yaml", "[mine]", "[mime]"),
            "params.yaml",
            "lists mime, but dvc.lock does not",
        ),
        (lambda: rewrite("params.yaml", "[mine]", "3"), "params.yaml", "experiments: got 3"),
        (lambda: rewrite("params.yaml", "[pictures]", "[]"), "params.yaml", "pictures is missing"),
        (lambda: rewrite("params.yaml", "[pictures]", "[a, pictures]"), "params.yaml", "lists a"),
        (lambda: rewrite("dvc.lock", "flows@mine", "flowz@mine"), "dvc.lock", "1 stages of mine are missing"),
        (lambda: rewrite("dvc.lock", "publish@mine", "x"), "dvc.lock", "1 stages of mine are missing"),
        (lambda: Path("dvc.lock").write_text(""), "dvc.lock", "should be a valid dictionary"),
        (lambda: Path("dvc.lock").write_text("stages: ["), "dvc.lock", "no valid YAML"),
        (lambda: Path("dvc.lock").write_text("stages: " + "9" * 5000), "dvc.lock", "no valid YAML"),
        (lambda: Path("dvc.lock").write_text("[" * 200_000), "dvc.lock", "no valid YAML"),
        (
            lambda: Path("dvc.lock").write_text("schema: '2.0'\nstages: {flows@mine: 3}"),
            "dvc.lock",
            "flows@mine",
        ),
        (lambda: rewrite("dvc.lock", "'2.0'", "'3.0'"), "dvc.lock", "schema"),
        (lambda: rewrite("dvc.lock", "  flows@mine:", "  3:"), "dvc.lock", "stages.3"),
        (lambda: damage("dvc.lock", deps=5), "dvc.lock", "stages.flows@mine.deps"),
        (lambda: damage("dvc.lock", deps={}), "dvc.lock", "stages.flows@mine.deps"),
        (lambda: damage("dvc.lock", outs="results"), "dvc.lock", "stages.flows@mine.outs"),
        (lambda: damage("dvc.lock", cmd=None), "dvc.lock", "stages.flows@mine.cmd"),
        (lambda: damage("dvc.lock", deps=[{**ENTRY, "nfiles": "3"}]), "dvc.lock", "deps.0.nfiles"),
        (lambda: damage("dvc.lock", deps=[{**ENTRY, "nfiles": -1}]), "dvc.lock", "deps.0.nfiles"),
        (lambda: damage("dvc.lock", deps=[{**ENTRY, "size": "1"}]), "dvc.lock", "deps.0.size"),
        (lambda: damage("dvc.lock", deps=[{**ENTRY, "md5": "0" * 31}]), "dvc.lock", "deps.0.md5"),
        (lambda: damage("dvc.lock", deps=[{**ENTRY, "more": 1}]), "dvc.lock", "deps.0.more"),
        (lambda: rewrite("dvc.yaml", "stages:", "stages:\n  empty:"), "dvc.yaml", "stages.empty"),
        (lambda: damage("dvc.yaml", "flows", deps=5), "dvc.yaml", "stages.flows.deps"),
        (lambda: damage("dvc.yaml", "flows", outs=[{}]), "dvc.yaml", "stages.flows.outs.0"),
        (lambda: damage("dvc.yaml", "flows", cmd=3), "dvc.yaml", "stages.flows.cmd"),
        (lambda: Path("dvc.yaml").write_text("[" * 200_000), "dvc.yaml", "no valid YAML"),
        (lambda: Path("dvc.yaml").write_text("3"), "dvc.yaml", "should be a valid"),
    ],
)
def test_what_was_recorded_stays_in_the_ledger(project, change, file, words):
    change()
    assert [problem for name, problem in told() if name == file and words in problem]


def test_what_was_never_recorded_is_a_warning(project):
    for name in ("dvc.lock", "params.yaml"):
        Path(name).unlink()
    assert told() == []
    ((file, problem),) = told("warning")
    assert (file, "never recorded" in problem) == ("dvc.lock", True)
    run(project, "git", "add", "results/mine/manifest.json")
    assert ("dvc.lock", "missing, though mine was recorded") in told()


def test_while_a_run_records_the_ledger_is_not_compared(project):
    rewrite("dvc.lock", "flows@mine", "flowz@mine")
    with alone("ledger"):
        report = findings()
    assert report.findings == []
    assert "try again" in report.notes[0]
    assert told() != []
