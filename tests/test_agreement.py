"""`precfm compare`: which runs are compared, what is said of them, and the exit code."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from precfm.audit.agreement import AGREEMENT, BEYOND, SCATTER, WIDTH, agreement_with_published, agreements
from precfm.cli import app
from precfm.cli.checking import MISUSE
from precfm.core.errors import PrecfmError
from precfm.pipeline.node import PUBLISHED, RESULTS
from tests.test_store import script
from tests.workflow import ROOT, git, run

HERE, THERE = RESULTS / "mine", PUBLISHED / "mine"
KEYS = [f"flows/a-{key * 12}" for key in "abc"]


def write(home, value="1.0", bounds=",", n=1, verdict="supported", experiment="mine", keys=KEYS):
    """An experiment's results: one table of one number, one verdict, a manifest."""
    (home / "tables").mkdir(parents=True, exist_ok=True)
    (home / "tables/t.csv").write_text(f"method,value,low,high,n\na,{value},{bounds},{n}\n")
    claim = {"claim": "C1", "experiment": experiment, "verdict": verdict, "statistics": []}
    (home / "claims.json").write_text(json.dumps({"claims": [claim]}))
    made_by = {"commit": "0123456789abcdef", "clean": True}
    (home / "manifest.json").write_text(json.dumps({"artifacts": dict.fromkeys(keys), "revision": made_by}))


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A checkout with local and published results that agree, a commit, and another checkout beside it."""
    checkout = tmp_path / "checkout"
    (checkout / "config").mkdir(parents=True)
    monkeypatch.chdir(checkout)
    for home in (HERE, THERE, PUBLISHED / "older", Path("../other") / HERE):
        write(home, experiment=home.name)
    (PUBLISHED / "claims.json").write_text('{"claims": []}')
    run(checkout, "git", "init", "-q")
    git(checkout, "add", "--force", PUBLISHED)
    git(checkout, "commit", "-q", "-m", "published")
    return checkout


def compare(*arguments):
    """Exit code, standard output, standard error of the command."""
    said = CliRunner().invoke(app, ["compare", *arguments])
    return said.exit_code, said.stdout, said.stderr


def test_what_agrees_to_rounding(project):
    write(THERE, "1.000001")
    code, said, _ = compare()
    assert code == AGREEMENT
    assert said.splitlines()[-1] == (
        "mine: agrees with the published run: 1 of 1 verdicts, 2 of 2 numbers within 1e-5"
    )
    (found,) = agreements()
    assert (found.counts["rounding"], found.exit_code) == (2, AGREEMENT)


@pytest.mark.parametrize(
    ("here", "there", "code", "words"),
    [
        (("1.0", "0.8,1.2", 5), ("1.1", "0.9,1.3", 5), SCATTER, "3 within the scatter of seeds"),
        (("1.0", "0.8,1.2", 2), ("1.1", "0.9,1.3", 2), SCATTER, "3 cannot be told: two seeds"),
        (("1.0", "0.9,1.1", 5), ("1.5", "1.4,1.6", 5), BEYOND, "3 beyond"),
        (("1.0",), ("1.01",), BEYOND, "1 beyond"),
        (("1.0", ",", 1, "supported"), ("1.0", ",", 1, "inconclusive"), BEYOND, "0 of 1 verdicts"),
    ],
)
def test_exit_codes_say_what_kind_of_difference_it_is(project, here, there, code, words):
    write(HERE, *here)
    write(THERE, *there)
    found, said, _ = compare()
    assert found == code
    assert words in said.splitlines()[-1]
    assert found == compare("--json")[0]


@pytest.mark.parametrize("side", [HERE, THERE])
@pytest.mark.parametrize(
    "change",
    [
        lambda home: (home / "tables/new.csv").write_text("method,value\na,1.0\n"),
        lambda home: (home / "tables/t.csv").write_text("method,value,low,high,n\na,1.0,,,1\nb,1.0,,,1\n"),
        lambda home: (home / "tables/t.csv").write_text("method,value,low,high,n,more\na,1.0,,,1,2\n"),
        lambda home: (home / "claims.json").unlink(),
        lambda home: (home / "claims.json").write_bytes(b"\xff"),
    ],
)
def test_what_one_run_has_alone_is_beyond(project, side, change):
    change(side)
    code, said, _ = compare()
    assert code == BEYOND
    assert "1 rows, columns or files of one run alone" in said.splitlines()[-1]
    assert any(line.startswith("beyond: ") for line in said.splitlines())


def test_the_run_of_other_code_is_said_to_be_that(project):
    write(THERE, "1.5", keys=[KEYS[0], KEYS[1].replace("/a-", "/renamed-"), f"flows/a-{'d' * 12}"])
    (found,) = agreements()
    assert found.line.endswith("made by revision 0123456789ab, 2 of its 3 keys are those of this run")
    (THERE / "manifest.json").write_text("[")  # the audit's business
    assert agreements()[0].origin == ""


@pytest.mark.parametrize(
    "place",
    [
        "HEAD",
        "git:HEAD",
        "main",
        "results/published",
        "../other",
        "../other/results",
        "../other/results/mine",
    ],
)
def test_the_other_run_is_a_revision_or_a_folder(project, place):
    git(project, "branch", "-f", "-M", "main")
    write(HERE, "1.5")
    (found,) = [each for each in agreements(place) if each.experiment == "mine"]
    assert [each.there for each in found.differences] == ["1"]


def test_an_abbreviated_commit_and_an_ancestor_are_revisions(project):
    write(THERE, "1.7")
    git(project, "commit", "-q", "-a", "-m", "again")
    assert agreements("HEAD", ["mine"])[0].differences
    assert not agreements("HEAD~1", ["mine"])[0].differences
    assert not agreements(git(project, "rev-parse", "--short", "HEAD~1").strip(), ["mine"])[0].differences


def test_a_folder_wins_over_a_revision_of_its_name(project):
    write(Path("HEAD") / HERE, "1.5")
    assert agreements("HEAD")[0].differences
    assert not agreements("git:HEAD", ["mine"])[0].differences


def test_of_a_checkout_what_it_made_counts_and_else_what_is_published_there(project):
    other = Path("../other")
    write(other / PUBLISHED / "mine", "1.5")
    assert not agreements("../other")[0].differences
    shutil.rmtree(other / HERE)
    for place in ("../other", "../other/results", "../other/results/published"):
        assert agreements(place)[0].differences


def test_by_default_that_is_compared_which_this_machine_made(project):
    assert [each.experiment for each in agreements()] == ["mine"]
    assert [each.experiment for each in agreements("HEAD")] == ["mine", "older"]
    assert [each.experiment for each in agreements("HEAD", ["older"])] == ["older"]
    assert agreement_with_published("mine").exit_code == AGREEMENT
    shutil.rmtree(THERE)
    assert agreement_with_published("mine") is None


@pytest.mark.parametrize(
    "arguments",
    [
        ["nowhere"],
        ["git:nowhere"],
        ["git:"],
        [""],
        ["--all"],
        ["git:--all"],
        ["."],
        ["results"],
        ["results/mine"],
        ["--experiment", "older"],  # this machine has made nothing of it
        ["--experiment", "newer"],
        ["--experiment", "../mine"],
        ["../other", "--experiment", "older"],
        ["../other/results/mine", "--experiment", "older"],
        ["results/published", "--experiment", "older"],  # is itself
        ["../empty"],
        ["../other", "../other"],
        ["--bogus"],
    ],
)
def test_misuse_has_an_exit_code_that_is_no_result(project, arguments):
    Path("../empty").mkdir()
    code, said, error = compare(*arguments)
    assert (code, said) == (MISUSE, "")
    assert "Traceback" not in error
    assert len(error.strip().splitlines()) == 1 or "Usage" in error


def test_a_folder_that_holds_another_experiment_is_refused(project):
    write(Path("../other/results/older"), experiment="mine")
    with pytest.raises(PrecfmError, match=r"older: .* holds the verdicts of mine"):
        agreements("../other", ["older"])
    write(Path("../moved"), "1.5")  # under whatever name, its verdicts say what it is
    assert agreements("../moved")[0].experiment == "mine"
    with pytest.raises(PrecfmError, match="older"):
        agreements("../moved", ["older"])


def test_nothing_made_and_nothing_published_is_misuse(project):
    shutil.rmtree(RESULTS)
    assert compare()[0] == MISUSE


def test_without_git_there_is_no_revision(project, monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(PrecfmError, match="no such revision"):
        agreements("HEAD")


def test_it_fits_on_a_screen_and_json_has_all_of_it(project):
    shutil.copytree(ROOT / PUBLISHED / "quick", RESULTS / "quick")
    shutil.copytree(ROOT / PUBLISHED / "quick", PUBLISHED / "quick")
    for table in sorted((RESULTS / "quick/tables").glob("*.csv")):
        table.write_text(table.read_text().replace("whitening", "bleaching"))
    code, said, _ = compare("--experiment", "quick")
    lines = said.splitlines()
    assert (code, len(lines) <= 20) == (BEYOND, True)
    assert max(map(len, lines[:-1])) <= WIDTH
    assert {line.split()[0] for line in lines} >= {"claims", "metrics", "paired", "theory"}
    (found,) = json.loads(compare("--experiment", "quick", "--json")[1])
    alone = [sentence for each in found["comparisons"] for sentence in each["only"]]
    assert (found["exit_code"], found["line"]) == (BEYOND, lines[-1])
    assert len(alone) > 100
    write(HERE, "1.0", "0.8,1.2", 2)
    (found,) = json.loads(compare("--experiment", "mine", "--json")[1])
    sizes = [cell["size"] for each in found["comparisons"] for cell in each["differences"]]
    assert sizes == [None, None, 0.5]  # an interval that only one run has is infinitely different


def announced(capsys):
    """What `make reproduce` says at its end."""
    script("reproduce").announce("mine")
    return capsys.readouterr().out.splitlines()


def test_make_reproduce_ends_with_that_line(project, capsys):
    agree = "mine: agrees with the published run: 1 of 1 verdicts, 2 of 2 numbers within 1e-5"
    assert announced(capsys)[-1] == agree
    write(HERE, "1.5")
    last = announced(capsys)[-1]
    assert last.startswith("mine: differs from the published run: ")
    assert last.endswith("; `precfm compare` shows where")
    write(THERE, experiment="another")  # no result, and no failure of what was made
    assert "another" in announced(capsys)[-1]
    shutil.rmtree(THERE)
    assert "results/mine/tables/" in announced(capsys)[-1]
    assert not any("published" in line for line in announced(capsys))


@pytest.mark.parametrize("command", ["list(agreements()[0].lines())", "run_path(script)['announce']('mine')"])
def test_neither_torch_nor_pandas_is_needed(project, command):
    code = (
        "import sys; from runpy import run_path; from precfm.audit.agreement import agreements; "
        f"script = {str(ROOT / 'workflow_scripts/reproduce.py')!r}; {command}; "
        "print(sorted({'torch', 'pandas', 'scipy'} & set(sys.modules)))"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.splitlines()[-1] == "[]"
