"""What DVC itself has recorded is found whole, and what was changed in it, or in what it speaks of, is found."""

import re
import shutil
from pathlib import Path

import pytest
import yaml

from precfm.audit import ledger
from precfm.audit.ledger import STAGES, check_ledger
from precfm.audit.report import Report
from precfm.pipeline.locks import alone
from precfm.pipeline.plan import KINDS
from tests.workflow import ROOT, run


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """A project with an experiment of invented files, recorded by DVC itself as the real stages say."""
    folder = tmp_path_factory.mktemp("ledger") / "project"
    home = folder / "results/mine"
    files = [
        home / f"{kind}/{label}-0/{name}"
        for kind in KINDS
        for label in "ab"
        for name in ("artifact.json", "d/é")
    ]
    files += [
        home / name for name in ("tables/t.csv", "figures/f.png", "manifest.json", "claims.json", "claims.md")
    ]
    files += [
        folder / "data/raw/pictures/cats/1.png",
        folder / "data/sources.yaml",
        folder / "requirements.lock",
    ]
    files += [folder / name / "x.py" for name in ("config", "precfm/datasets", "workflow_scripts")]
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(str(file.relative_to(folder)))
    (folder / "params.yaml").write_text("experiments: [mine]\nsources: [pictures]\n")
    for name in ("dvc.yaml", ".dvcignore", ".gitignore"):
        shutil.copyfile(ROOT / name, folder / name)
    for command in (["git", "init", "-q"], ["dvc", "init", "-q"], ["dvc", "commit", "-q", "-f"]):
        run(folder, *command)
    return folder


@pytest.fixture
def project(recorded, tmp_path, monkeypatch):
    shutil.copytree(recorded, tmp_path / "project")
    monkeypatch.chdir(tmp_path / "project")
    return tmp_path / "project"


def checked(absent=()):
    report = Report(absent={"mine": dict.fromkeys(absent, 1)})
    check_ledger(report, ["mine"])
    return report


def named(level="error"):
    return [finding.file for finding in checked().findings if finding.level == level]


def test_what_dvc_recorded_is_whole_with_and_without_its_cache(project):
    stages = yaml.safe_load(Path("dvc.lock").read_text())["stages"]
    assert {*(f"{stage}@mine" for stage in STAGES), "raw@pictures"} == stages.keys()
    for _ in range(2):
        report = checked()
        assert report.findings == report.notes == []
        shutil.rmtree(".dvc/cache", ignore_errors=True)


@pytest.mark.parametrize(
    ("change", "place"),
    [
        (lambda: Path("results/mine/flows/a-0/d/é").write_text("x"), "results/mine/flows"),
        (lambda: Path("results/mine/flows/a-0/new").write_text("x"), "results/mine/flows"),
        (lambda: Path("results/mine/flows/a-0/d/é").unlink(), "results/mine/flows"),
        (lambda: Path("results/mine/tables/t.csv").write_text("x"), "results/mine/tables"),
        (lambda: Path("results/mine/manifest.json").write_text("x"), "results/mine/manifest.json"),
        (lambda: Path("data/raw/pictures/cats/1.png").write_text("x"), "data/raw/pictures"),
    ],
)
def test_every_change_of_a_file_is_an_error(project, change, place):
    change()
    assert named() == [place]
    shutil.rmtree(".dvc/cache")
    assert named() == [place]


def test_a_recorded_checksum_that_is_not_that_of_the_files_is_an_error(project):
    file = Path("dvc.lock")
    lines = file.read_text().splitlines(keepends=True)
    start = lines.index("    outs:\n", lines.index("  flows@mine:\n"))
    number = next(
        index for index in range(start, len(lines)) if "md5: " in lines[index] and ".dir" in lines[index]
    )
    place = re.search(r"md5: ", lines[number]).end()
    lines[number] = (
        lines[number][:place] + ("0" if lines[number][place] != "0" else "1") + lines[number][place + 1 :]
    )
    file.write_text("".join(lines))
    assert "results/mine/flows" in named()


def test_what_is_not_here_is_no_finding(project):
    for name in ("results/mine/flows", "data/raw/pictures", "results/mine/tables"):
        shutil.rmtree(name)
    shutil.rmtree("results/mine/samples/a-0")
    report = checked(absent=["samples"])
    assert report.findings == []
    assert ["results/mine/samples" in note for note in report.notes] == [True]


def rewrite(file, old, new):
    text = Path(file).read_text()
    assert old in text
    Path(file).write_text(text.replace(old, new))


def damage(**fields):
    content = yaml.safe_load(Path("dvc.lock").read_text())
    content["stages"]["flows@mine"] |= fields
    Path("dvc.lock").write_text(yaml.safe_dump(content))


ENTRY = {"path": "config", "hash": "md5", "md5": "0" * 32, "size": 1}


@pytest.mark.parametrize(
    ("change", "file", "word"),
    [
        (lambda: Path("dvc.lock").unlink(), "dvc.lock", "mine"),
        (lambda: Path("params.yaml").unlink(), "params.yaml", "no such file"),
        (lambda: Path("params.yaml").write_text("experiments: [mi"), "params.yaml", "YAML"),
        (lambda: rewrite("params.yaml", "[mine]", "[]"), "params.yaml", "mine"),
        (lambda: rewrite("params.yaml", "[mine]", "[mime]"), "dvc.lock", "mime"),
        (lambda: rewrite("params.yaml", "[mine]", "3"), "params.yaml", "experiments"),
        (lambda: rewrite("params.yaml", "[pictures]", "[]"), "params.yaml", "pictures"),
        (lambda: rewrite("dvc.lock", "flows@mine", "flowz@mine"), "dvc.lock", "mine"),
        (lambda: rewrite("dvc.lock", "products@mine", "x"), "dvc.lock", "mine"),
        (lambda: Path("dvc.lock").write_text(""), "dvc.lock", ""),
        (lambda: Path("dvc.lock").write_text(Path("dvc.lock").read_text()[:2000]), "dvc.lock", ""),
        (lambda: Path("dvc.lock").write_text("stages: ["), "dvc.lock", "YAML"),
        (lambda: Path("dvc.lock").write_text("[" * 200_000), "dvc.lock", "YAML"),
        (
            lambda: Path("dvc.lock").write_text("schema: '2.0'\nstages: {flows@mine: 3}"),
            "dvc.lock",
            "flows@mine",
        ),
        (lambda: rewrite("dvc.lock", "'2.0'", "'3.0'"), "dvc.lock", "schema"),
        (lambda: damage(outs="results"), "dvc.lock", "outs"),
        (lambda: damage(outs=[]), "dvc.lock", "outs"),
        (lambda: damage(outs=[{**ENTRY, "md5": "0" * 31}]), "dvc.lock", "md5"),
        (lambda: Path("dvc.yaml").write_text("["), "dvc.lock", "dvc.yaml"),
    ],
)
def test_what_was_recorded_stays_in_the_ledger(project, change, file, word):
    change()
    problems = [finding for finding in checked().errors if finding.file == file]
    assert any(word in f"{finding.problem} {finding.names}" for finding in problems)
    assert all("\n" not in finding.problem for finding in problems)


def test_what_was_never_recorded_is_a_warning(project):
    Path("dvc.lock").unlink()
    Path("params.yaml").write_text("experiments: []\nsources: []\n")
    assert named() == []
    assert named("warning") == ["dvc.lock"]


def test_without_dvc_and_while_a_run_records_nothing_is_compared(project, monkeypatch):
    rewrite("dvc.lock", "flows@mine", "flowz@mine")
    with alone("ledger"):
        report = checked()
    assert (report.findings, len(report.notes)) == ([], 1)
    monkeypatch.setattr(ledger, "find_spec", lambda name: None)
    report = checked()
    assert (report.findings, len(report.notes)) == ([], 1)
