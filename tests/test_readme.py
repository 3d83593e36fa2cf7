"""README and pages are true: their commands and examples run, what they name is there, and so are their numbers."""

import math
import os
import re
import runpy
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from typer.main import get_command

from precfm.cli.command_line import app
from precfm.core.registry import REGISTRY
from precfm.datasets.manifest import SourceFile, register
from precfm.datasets.sources import SOURCES
from precfm.pipeline.experiments import load_experiment, read_recorded
from precfm.pipeline.key_lists import KEYS, differences
from precfm.pipeline.plan import load_plan
from precfm.pipeline.publication import merged_claims
from tests.workflow import ENVIRONMENT, ROOT, jobs, snakemake_log

README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = {
    file.relative_to(ROOT).as_posix(): file.read_text(encoding="utf-8")
    for file in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
}


def blocks(language, page):
    return re.findall(rf"^```{language}\n(.*?)^```", PAGES[page], re.MULTILINE | re.DOTALL)


@pytest.mark.slow
@pytest.mark.xdist_group("workflow")
def test_every_command_runs_and_a_new_method_reuses_what_exists(made, tmp_path):
    """With EXPERIMENT=smoke, and with `quick` read as `smoke` where a file extends it."""
    folder = tmp_path / "precfm"
    shutil.copytree(made, folder, symlinks=True)
    (folder / ".venv").symlink_to(Path(sys.executable).parent.parent)
    for name in ("requirements.lock", "pyproject.toml"):  # installed already: older than the stamp
        os.utime(folder / name, (0, 0))
    for block in blocks("bash", "docs/how-to/run.md"):
        script = "set -e\n" + block.replace("extends: quick", "extends: smoke")
        done = subprocess.run(
            ["bash", "-c", script],
            cwd=folder,
            env={**ENVIRONMENT, "PYTHONPATH": str(folder), "EXPERIMENT": "smoke"},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    ran = jobs(snakemake_log(folder, "mine"))
    seeds, alone = 2, 1
    assert (ran["fit_preconditioner"], ran["train_flow"], ran["sample_and_evaluate"]) == (
        1,
        seeds,
        seeds + alone,
    )
    assert not {"split_data", "train_classifier", "train_encoder", "encode", "extract_features"} & set(ran)
    assert (folder / "results/mine/tables/metrics.md").is_file()


@pytest.mark.parametrize("page", ["README.md", "docs/how-to/library.md"])
def test_the_examples_of_the_library_run(page):
    names: dict[str, object] = {}
    for block in blocks("python", page):
        exec(compile(block, page, "exec"), names)
    assert names["samples"].shape == (1000, 16)
    assert names["samples"].isfinite().all()


def test_the_example_of_own_images_has_a_plan(project):
    pytest.importorskip("diffusers")
    block, *_ = blocks("yaml", "docs/how-to/images.md")
    listed = [SourceFile(f"{'ab'[index % 2]}/{index}.jpg", 1, f"{index:064x}") for index in range(2200)]
    register("photographs", listed, [project / "photographs"], "mine", SOURCES)
    (project / "config/own.yaml").write_text(block)
    plan = load_plan("own")
    assert [node.label for node in plan.of("data")] == ["photographs"]
    assert {node.label for node in plan.of("classifiers")} == {"imagenet", "pixels"}
    assert plan.of("flows")


def test_every_preconditioner_is_named():
    missing = [
        name for name in REGISTRY["preconditioners"] if f"`{name}`" not in PAGES["docs/how-to/library.md"]
    ]
    assert missing == []


@pytest.mark.parametrize("page", PAGES)
def test_every_file_and_command_that_is_named_exists(page):
    text = PAGES[page]
    files = [
        name
        for name in re.findall(
            r"`((?:precfm|config|docs|data|examples|profiles|rules|workflow_scripts)/[\w./-]*)`", text
        )
        if not re.search("data/raw|robust_scale|NAME|EXPERIMENT", name)  # made, an example, or a placeholder
    ]
    assert [name for name in files if not (ROOT / name).exists()] == []
    code = re.findall(r"```.*?```|`[^`]+`", text, re.DOTALL)
    commands = {
        name
        for each in code
        for name in re.findall(r"(?:`|^)precfm ([a-z]+(?:-[a-z]+)*)", each, re.MULTILINE)
    }
    assert commands <= get_command(app).commands.keys()
    targets = {
        name for each in code for name in re.findall(r"(?:`|^)make ([a-z][a-z-]+)", each, re.MULTILINE)
    }
    assert targets <= set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def test_every_number_of_the_readme_has_its_place():
    """Its tables are held to `claims.json` and the catalogue below; the others to what they are numbers of."""
    prose = re.sub(
        r"<!-- (?:claims|experiments).*?<!-- end -->|^```python.*?^```|\(http\S*\)|arXiv:\S+",
        "",
        README,
        flags=re.DOTALL | re.MULTILINE,
    )
    seconds = dict(
        re.findall(r"^\| (.*?) \| ([\d.]+) \|$", (ROOT / "benchmarks/README.md").read_text(), re.MULTILINE)
    )
    reproduce, test = (
        next(float(value) for what, value in seconds.items() if what.startswith(command))
        for command in ("`make reproduce`", "`make test`")
    )
    (quick,) = load_experiment("quick").datasets.values()
    pythons = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    oldest, beyond = re.findall(r"3\.\d+", pythons)
    expected = {
        oldest,
        f"3.{int(beyond.partition('.')[2]) - 1}",
        f"{quick.train + quick.validation + quick.heldout:,}",
        f"{math.ceil(reproduce / 60)}",
        f"{math.ceil(test / 60)}",
        "95",  # the interval of every effect
    }
    assert set(re.findall(r"(?<![\w.-])\d[\d,.]*(?<![,.])", prose)) == expected
    assert "the Fréchet distance behind every map is clearly larger" in prose
    (images,) = (row for row in README.splitlines() if row.startswith("| [C8a]"))
    lows = re.findall(r" \[([\d.]+), ", images)  # of the map that does least harm
    assert len(lows) == 2
    assert all(float(low) > 1.5 for low in lows)


def test_the_table_of_claims_and_the_merged_verdicts_are_current(monkeypatch):
    monkeypatch.chdir(ROOT)
    stale = [file for file, text in merged_claims().items() if file.read_bytes() != text.encode()]
    assert stale == [], "run `precfm keys && precfm claims`, and commit what they write"


def test_the_table_of_experiments_is_an_excerpt_of_the_catalogue():
    with_experiments = runpy.run_path(str(ROOT / "docs/_site/catalogue.py"))["with_experiments"]
    catalogue = PAGES["docs/catalogue.md"]
    assert with_experiments(README, catalogue) == README, "run `make catalogue`"
    assert {"quick", "theory", "paper"} <= set(re.findall(r"^\| \[`(.+?)`\]", README, re.MULTILINE))
    other = re.sub(r"(EXPERIMENT=quick` \|) \d+", r"\1 77", catalogue)
    assert "| 77 | – |" in with_experiments(README, other)


def test_the_listed_keys_are_those_of_the_present_plans(monkeypatch):
    monkeypatch.chdir(ROOT)
    recorded = read_recorded()["experiments"]
    stale = [differences(load_plan(name)) for name in recorded]
    assert not any(stale), "run `precfm keys && precfm claims`, and commit what they write"
    assert sorted(folder.name for folder in KEYS.iterdir()) == sorted(recorded)
