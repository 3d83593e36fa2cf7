"""What DVC itself has recorded is found whole, and what was changed in it, or in what it speaks of, is found."""

import json
import re
import shutil
from contextlib import chdir
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from precfm.audit import ledger
from precfm.audit.ledger import STAGES, check_ledger
from precfm.audit.report import Report
from precfm.cli import app
from precfm.core.errors import PrecfmError
from precfm.datasets.sources import SOURCES
from precfm.pipeline.key_lists import key_lists, write_key_lists
from precfm.pipeline.ledger import forget
from precfm.pipeline.locks import alone
from precfm.pipeline.node import Node
from precfm.pipeline.plan import KINDS, Plan
from tests.workflow import ROOT, git, run


def node(kind, label, key):
    return Node(kind, label, key * 12, params={}, parents={}, fingerprint="", experiment="mine")


def planned(nodes):
    return Plan("mine", nodes={each.id: each for each in nodes})


NODES = [node(kind, label, "0") for kind in KINDS for label in "ba"]
PLAN = planned(NODES)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """A project with an experiment of invented files, recorded by DVC itself as the real stages say; committed."""
    folder = tmp_path_factory.mktemp("ledger") / "project"
    home = Path("results/mine")
    files = [each.folder / name for each in NODES for name in ("artifact.json", "d/é")]
    files += [
        home / name
        for name in (
            "tables/t.csv",
            "figures/f.png",
            "manifest.json",
            "claims.json",
            "claims.md",
            "report.html",
        )
    ]
    files += [Path("data/raw/pictures/cats/1.png"), SOURCES]
    for file in files:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text(str(file))
    (folder / SOURCES).write_text("pictures: {checksum: '1'}\n")
    (folder / "config").mkdir()
    (folder / "params.yaml").write_text("experiments: [mine]\nsources: [pictures]\n")
    for name in ("dvc.yaml", ".dvcignore", ".gitignore"):
        shutil.copyfile(ROOT / name, folder / name)
    with chdir(folder):
        write_key_lists(PLAN)
    for command in (["git", "init", "-q"], ["dvc", "init", "-q"], ["dvc", "commit", "-q", "-f"]):
        run(folder, *command)
    git(folder, "add", "--all")
    git(folder, "commit", "-q", "-m", "recorded")
    return folder


@pytest.fixture
def project(recorded, tmp_path, monkeypatch):
    shutil.copytree(recorded, tmp_path / "project")
    monkeypatch.chdir(tmp_path / "project")
    monkeypatch.setattr(ledger, "load_plan", lambda name: PLAN)
    return tmp_path / "project"


@pytest.fixture
def without_dvc(monkeypatch):
    """Skip the comparison with the files, which takes a second."""
    monkeypatch.setattr(ledger, "find_spec", lambda name: None)


def checked(absent=(), blamed=(), **options):
    """What the ledger's check finds after others, which have blamed some files or artifacts."""
    report = Report(absent={"mine": dict.fromkeys(absent, 1)})
    for file, names in blamed:
        report.error("payload", f"results/mine{file}", "wrong", "none", names)
    check_ledger(report, ["mine"], **options)
    report.findings = [finding for finding in report.findings if finding.check != "payload"]
    return report


def named(level="error", **options):
    return [finding.file for finding in checked(**options).findings if finding.level == level]


def test_what_dvc_recorded_is_whole_with_and_without_its_cache(project):
    stages = yaml.safe_load(Path("dvc.lock").read_text())["stages"]
    assert {*(f"{stage}@mine" for stage in STAGES), "raw@pictures"} == stages.keys()
    for _ in range(2):
        report = checked()
        assert report.findings == report.notes == []
        shutil.rmtree(".dvc/cache", ignore_errors=True)


def test_every_change_of_a_file_is_found_with_and_without_a_cache(project):
    """An error where something else is wrong in the folder, too; else another machine's bytes."""
    changed = ["results/mine/tables/t.csv", "results/mine/manifest.json", "data/raw/pictures/cats/1.png"]
    changed += [f"results/mine/{kind}/a-000000000000/d/é" for kind in ("flows", "samples", "latents")]
    for file in changed:
        Path(file).write_text("x")
    Path("results/mine/samples/a-000000000000/d/é").unlink()
    Path("results/mine/latents/a-000000000000/d/é").rename("results/mine/latents/new")
    kinds = [f"results/mine/{kind}" for kind in ("flows", "latents", "manifest.json", "samples", "tables")]
    for _ in range(2):
        report = checked()
        assert [finding.file for finding in report.errors] == ["data/raw/pictures"]
        (other,) = [finding for finding in report.findings if finding.level == "warning"]
        assert (other.file, list(other.names)) == ("results/mine", kinds)
        blamed = [("/flows/a-000000000000/d/é", ()), ("", ["samples/a-000000000000"])]
        assert named(blamed=blamed) == ["data/raw/pictures", "results/mine/flows", "results/mine/samples"]
        assert named(blamed=[("/manifest.json", ())]) == ["data/raw/pictures", *kinds]
        shutil.rmtree(".dvc/cache", ignore_errors=True)


def test_without_git_the_files_are_not_compared(project):
    shutil.rmtree(".git")
    report = checked()
    assert report.findings == []
    assert any("no git repository" in note for note in report.notes)


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
    assert "results/mine/flows" in named(blamed=[("/flows/a-000000000000", ())])


def test_what_is_not_here_is_no_finding(project):
    for name in ("results/mine/flows", "data/raw/pictures", "results/mine/tables"):
        shutil.rmtree(name)
    shutil.rmtree("results/mine/samples/a-000000000000")
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


@pytest.mark.parametrize(
    ("change", "file"),
    [
        (lambda: Path("dvc.lock").unlink(), "dvc.lock"),
        (lambda: Path("params.yaml").unlink(), "params.yaml"),
        (lambda: Path("params.yaml").write_text("experiments: [mi"), "params.yaml"),
        (lambda: rewrite("params.yaml", "[mine]", "[]"), "params.yaml"),
        (lambda: rewrite("params.yaml", "[mine]", "[mime]"), "dvc.lock"),
        (lambda: rewrite("params.yaml", "[mine]", "3"), "params.yaml"),
        (lambda: rewrite("params.yaml", "[pictures]", "[]"), "params.yaml"),
        (lambda: rewrite("dvc.lock", "flows@mine", "flowz@mine"), "dvc.lock"),
        (lambda: rewrite("dvc.lock", "products@mine", "x"), "dvc.lock"),
        (lambda: rewrite("dvc.lock", "raw@pictures", "1"), "dvc.lock"),
        (lambda: Path("dvc.lock").write_text(""), "dvc.lock"),
        (lambda: Path("dvc.lock").write_text(Path("dvc.lock").read_text()[:2000]), "dvc.lock"),
        (lambda: Path("dvc.lock").write_text("stages: ["), "dvc.lock"),
        (lambda: Path("dvc.lock").write_text("[" * 200_000), "dvc.lock"),
        (lambda: Path("dvc.lock").write_text("schema: '2.0'\nstages: {flows@mine: 3}"), "dvc.lock"),
        (lambda: damage(outs="results"), "dvc.lock"),
        (lambda: damage(outs=[]), "dvc.lock"),
        (lambda: damage(outs=[{"path": "config", "hash": "md5", "md5": "0" * 31}]), "dvc.lock"),
    ],
)
def test_what_was_recorded_stays_in_the_ledger(project, without_dvc, change, file):
    change()
    problems = [finding for finding in checked().errors if finding.file == file]
    assert problems
    assert all("\n" not in finding.problem for finding in problems)


@pytest.mark.parametrize(
    "change",
    [
        lambda: rewrite("dvc.lock", "'2.0'", "'3.0'"),
        lambda: rewrite("dvc.lock", "outs:", "ours: []\n    outs:"),
        lambda: Path("dvc.yaml").write_text("["),
    ],
)
def test_what_dvc_does_not_understand_is_one_sentence(project, change):
    change()
    (error,) = checked().errors
    assert (error.file, error.problem.count("\n")) == ("dvc.lock", 0)


@pytest.mark.parametrize("field", ["size: ", "nfiles: ", "cmd: "])
def test_a_ledger_that_is_not_as_committed_is_a_note(project, without_dvc, field):
    """Every honest run elsewhere leaves such a one."""
    assert not any("as committed" in note for note in checked().notes)
    rewrite("dvc.lock", field, f"{field}9")
    report = checked()
    assert report.findings == []
    assert any("as committed" in note for note in report.notes)


def test_what_was_never_recorded_is_a_warning(project, without_dvc):
    shutil.rmtree("keys")
    Path("dvc.lock").unlink()
    Path("params.yaml").write_text("experiments: []\nsources: []\n")
    assert named() == []
    assert named("warning") == ["dvc.lock"]


def test_a_kind_that_was_never_recorded_is_a_warning_and_a_lost_one_an_error(project, without_dvc):
    rewrite("dvc.lock", "flows@mine", "gone@mine")
    assert checked().errors[0].names == ("flows@mine",)
    git(project, "commit", "--quiet", "--all", "--message", "never recorded")
    assert named() == []
    assert named("warning") == ["dvc.lock"]


def test_without_dvc_the_files_and_while_a_run_records_nothing_is_compared(project, monkeypatch):
    rewrite("dvc.lock", "flows@mine", "flowz@mine")
    with alone("ledger"):
        report = checked()
    assert (report.findings, len(report.notes)) == ([], 1)
    monkeypatch.setattr(ledger, "find_spec", lambda name: None)
    report = checked()
    assert [finding.file for finding in report.errors] == ["dvc.lock"]
    assert any("DVC is not installed" in note for note in report.notes)


FLOWS = Path("keys/mine/flows.txt")


@pytest.mark.parametrize(
    ("change", "file", "line"),
    [
        (lambda: FLOWS.write_text(FLOWS.read_text().replace("b-0", "b-1")), FLOWS, "line 2 "),
        (lambda: FLOWS.write_text(FLOWS.read_text()[:20]), FLOWS, "line 2 "),
        (lambda: FLOWS.write_text(FLOWS.read_text()[:-1]), FLOWS, "line 3 "),
        (lambda: FLOWS.write_bytes(b"\xff\n"), FLOWS, "line 1 "),
        (lambda: FLOWS.unlink(), FLOWS, ""),
        (lambda: shutil.rmtree("keys"), Path("keys/mine/data.txt"), ""),
        (lambda: Path("keys/mine/flowz.txt").touch(), Path("keys/mine/flowz.txt"), ""),
    ],
)
def test_keys_that_are_not_the_plans_are_one_error_and_are_written_again(
    project, without_dvc, monkeypatch, change, file, line
):
    monkeypatch.setattr("precfm.pipeline.plan.load_plan", lambda name: PLAN)
    invoke = CliRunner().invoke
    assert invoke(app, ["keys", "--check"]).exit_code == 0
    change()
    (error,) = checked().errors
    assert (error.file, line in error.problem) == (str(file), True)
    said = invoke(app, ["keys", "--check"])
    assert (said.exit_code, said.stderr.count("\n"), str(file) in said.stderr) == (1, 1, True)
    invoke(app, ["keys"])
    assert run(project, "git", "status", "--porcelain") == ""


def test_a_configuration_that_gives_no_plan_is_an_error(project, without_dvc, monkeypatch):
    def broken(name):
        raise PrecfmError("broken")

    monkeypatch.setattr(ledger, "load_plan", broken)
    assert named() == ["keys/mine"]
    assert named(named=["other"]) == []


def test_a_broken_configuration_leaves_the_keys_of_others_alone(project, monkeypatch):
    def plan(name):
        if name == "mine":
            return PLAN
        raise PrecfmError(f"config/{name}.yaml: broken")

    monkeypatch.setattr("precfm.pipeline.plan.load_plan", plan)
    Path("params.yaml").write_text("experiments: [broken, mine]\nsources: []\n")
    FLOWS.unlink()
    for arguments in (["--check"], []):
        said = CliRunner().invoke(app, ["keys", *arguments])
        assert (said.exit_code, "config/broken.yaml" in said.stderr) == (1, True)
        assert (str(FLOWS) in said.stderr) is bool(arguments)
    assert FLOWS.is_file()


@pytest.mark.parametrize("name", ["keys/gone", "keys/stray.txt"])
def test_keys_of_no_recorded_experiment_are_a_warning(project, without_dvc, monkeypatch, name):
    monkeypatch.setattr("precfm.pipeline.plan.load_plan", lambda name: PLAN)
    shutil.copytree("keys/mine", name) if name == "keys/gone" else Path(name).touch()
    assert (named(), named("warning")) == ([], [name])
    said = CliRunner().invoke(app, ["keys", "--check"])
    assert (said.exit_code, name in said.stderr) == (1, True)


def test_an_experiment_that_is_forgotten_leaves_the_ledger_alone(project, monkeypatch):
    """With what no other one uses; DVC goes on with the rest, and the audit has nothing to say."""
    sources = {"mine": "pictures", "other": "films"}
    monkeypatch.setattr(
        "precfm.pipeline.ledger.load_plan", lambda name: Plan(name, sources={"": sources[name]})
    )
    for old, new in (
        ("results/mine", "results/other"),
        ("data/raw/pictures", "data/raw/films"),
        ("keys/mine", "keys/other"),
    ):
        shutil.copytree(old, new)
    Path(SOURCES).write_text("pictures: {checksum: '1'}\nfilms: {checksum: '2'}\n")
    before = Path("dvc.lock").read_bytes()
    Path("params.yaml").write_text("experiments: [mine, other]\nsources: [films, pictures]\n")
    run(project, "dvc", "commit", "-q", "-f")
    assert CliRunner().invoke(app, ["forget", "other"]).exit_code == 0
    stages = yaml.safe_load(before)["stages"]
    assert yaml.safe_load(Path("dvc.lock").read_text())["stages"] == stages
    assert yaml.safe_load(Path("params.yaml").read_text()) == {
        "experiments": ["mine"],
        "sources": ["pictures"],
    }
    assert not Path("keys/other").exists()
    assert Path("results/other/manifest.json").is_file()
    assert [*json.loads(run(project, "dvc", "status", "--json"))] == ["keys@mine"]
    assert checked().findings == []
    with pytest.raises(PrecfmError, match="'other' was never recorded"):
        forget("other")
    forget("mine")
    assert json.loads(run(project, "dvc", "status", "--json")) == {}


def test_an_experiment_that_only_the_ledger_has_is_told_with_the_way_out(project, without_dvc):
    rewrite("params.yaml", "[mine]", "[]")
    (error,) = [finding for finding in checked().errors if finding.file == "params.yaml"]
    assert "precfm forget mine" in error.remedy


def test_dvc_sees_a_change_of_code_where_a_key_has_changed(project, monkeypatch):
    """And the command says how many of which kind."""
    changed = planned(node(each.kind, each.label, "1" if each.kind == "flows" else "0") for each in NODES)
    for module in ("precfm.pipeline.plan.load_plan", "precfm.audit.ledger.load_plan"):
        monkeypatch.setattr(module, lambda name: changed)
    assert CliRunner().invoke(app, ["keys", "mine"]).stdout == "mine: 2 flows changed\n"
    assert CliRunner().invoke(app, ["keys", "mine"]).stdout == "mine: unchanged\n"
    (finding,) = checked().findings
    assert (finding.level, finding.file, finding.names) == ("warning", "keys/mine", ("flows",))
    assert '"flows@mine": [{"changed deps": {"keys/mine/flows.txt": "modified"}}]' in run(
        project, "dvc", "status", "--json"
    )
    assert "samples@mine" not in run(project, "dvc", "status", "--json")


@pytest.mark.parametrize("published", [NODES, NODES[1:], [node("data", "b", "2"), *NODES[1:]]])
def test_a_ledger_of_what_is_published_is_a_note(project, without_dvc, monkeypatch, published):
    changed = planned([node(each.kind, each.label, "1") for each in NODES])
    monkeypatch.setattr(ledger, "load_plan", lambda name: changed)
    monkeypatch.setattr(ledger, "entries", lambda home: {each.id: {} for each in published})
    write_key_lists(changed)
    report = checked()
    found = [finding.file for finding in report.findings], [note for note in report.notes if "mine" in note]
    assert (found[0], len(found[1])) == (([], 1) if published == NODES else (["keys/mine"], 0))


def test_there_is_a_sorted_list_for_every_kind(project):
    lists = key_lists(planned(NODES[:2]))
    assert [file.stem for file in lists] == list(KINDS)
    assert sorted(map(len, lists.values()))[-2:] == [0, 2 * len("a-000000000000\n")]
    assert next(iter(lists.values())).startswith("a-")
