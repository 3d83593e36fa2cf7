"""The README is true: its commands run, its example of the library runs, its lists agree with the code."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from precfm.core.registry import REGISTRY
from precfm.pipeline.experiments import load_experiment, read_recorded
from precfm.pipeline.key_lists import KEYS, differences
from precfm.pipeline.plan import load_plan
from precfm.pipeline.publication import merged_claims
from tests.workflow import ENVIRONMENT, ROOT, jobs, snakemake_log

README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


@pytest.mark.slow
@pytest.mark.xdist_group("workflow")
def test_every_command_runs_and_a_new_method_reuses_what_exists(made, tmp_path):
    """With EXPERIMENT=smoke, and with `quick` read as `smoke` where a file extends it."""
    folder = tmp_path / "precfm"
    shutil.copytree(made, folder, symlinks=True)
    (folder / ".venv").symlink_to(Path(sys.executable).parent.parent)
    for name in ("requirements.lock", "pyproject.toml"):  # installed already: older than the stamp
        os.utime(folder / name, (0, 0))
    for block in blocks("bash"):
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


def test_the_examples_of_the_library_run():
    names: dict[str, object] = {}
    for block in blocks("python"):
        exec(compile(block, "README.md", "exec"), names)
    assert names["samples"].shape == (1000, 16)
    assert names["samples"].isfinite().all()


@pytest.mark.parametrize("block", blocks("yaml"))
def test_the_example_of_own_images_is_a_valid_configuration(block, tmp_path):
    for file in (ROOT / "config").glob("*.yaml"):
        (tmp_path / file.name).write_text(file.read_text())
    (tmp_path / "own.yaml").write_text("extends: quick\n" + block)
    named = {name for name, spec in yaml.safe_load(block)["datasets"].items() if spec}
    assert named == load_experiment("own", tmp_path).datasets.keys()


@pytest.mark.parametrize("group", ["tables", "figures"])
def test_every_table_and_figure_is_described(group):
    described = set(re.findall(r"^\| `(\w+)` \|", README, re.MULTILINE))
    assert set(REGISTRY[group]) <= described


def test_every_preconditioner_is_named():
    missing = [name for name in REGISTRY["preconditioners"] if f"`{name}`" not in README]
    assert missing == []


def test_every_folder_and_file_that_is_named_exists():
    names = [
        name
        for name in re.findall(r"`([\w./-]+/[\w./-]*)`", README)
        if not name.startswith(("results", "path", "data/raw"))
    ]
    assert names
    assert [name for name in names if not (ROOT / name).exists()] == []


def test_readme_and_merged_verdicts_say_how_many_published_keys_are_current(monkeypatch):
    monkeypatch.chdir(ROOT)
    stale = [file for file, text in merged_claims().items() if file.read_bytes() != text.encode()]
    assert stale == [], "run `precfm keys && precfm claims`, and commit what they write"


def test_the_listed_keys_are_those_of_the_present_plans(monkeypatch):
    monkeypatch.chdir(ROOT)
    recorded = read_recorded()["experiments"]
    stale = [differences(load_plan(name)) for name in recorded]
    assert not any(stale), "run `precfm keys && precfm claims`, and commit what they write"
    assert sorted(folder.name for folder in KEYS.iterdir()) == sorted(recorded)
