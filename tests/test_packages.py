"""What is installed: the same packages by environment.yml, pyproject.toml and lock; a wheel that serves the library."""

import shutil
import sys
import tomllib
import zipfile
from typing import Any

import numpy as np
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from tests.workflow import ROOT, run

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
LOCK = (ROOT / "requirements.lock").read_text()
CONDA = (ROOT / "environment.yml").read_text()
PYTHONS = ("3.11", "3.12", "3.13")
PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet")


def locked(lock: str, python: str) -> dict[str, str]:
    """The version that the lock gives each package under this Python."""
    lines = [line.rstrip("\\ ") for line in lock.splitlines() if line and line[0] not in " #"]
    named = [Requirement(line) for line in lines]
    here = {"python_version": python, "python_full_version": f"{python}.0"}
    return {
        canonicalize_name(each.name): str(each.specifier).removeprefix("==")
        for each in named
        if each.marker is None or each.marker.evaluate(here)
    }


def unlocked(project: dict[str, Any], lock: str, python: str) -> list[str]:
    """Requirements of pyproject.toml, all extras and the build's, that the lock does not meet."""
    extras = project["project"]["optional-dependencies"].values()
    groups = [project["build-system"]["requires"], project["project"]["dependencies"], *extras]
    versions = locked(lock, python)
    wanted = [Requirement(line) for group in groups for line in group]
    return [
        str(each) for each in wanted if versions.get(canonicalize_name(each.name), "0") not in each.specifier
    ]


def differences(project: dict[str, Any], lock: str, conda: str) -> set[str]:
    """Lines of environment.yml that are missing there or are not what project and lock say."""
    *packages, pip = yaml.safe_load(conda)["dependencies"]
    (python,) = (line.removeprefix("python=") for line in packages if line.startswith("python"))
    if python not in SpecifierSet(project["project"]["requires-python"]):
        return {f"python={python}"}
    versions = locked(lock, python)
    named = project["project"]["dependencies"] + project["project"]["optional-dependencies"]["workflow"]
    wanted = [Requirement(line) for line in named]
    for each in wanted:
        each.specifier = SpecifierSet(f"=={versions[canonicalize_name(each.name)]}")
    expected = ["-r requirements.lock", *map(str, wanted)]  # first, or pip asks for a hash per name
    return {*pip["pip"]} ^ {*expected} or {*pip["pip"][:1]} - {*expected[:1]}


@pytest.mark.parametrize("python", PYTHONS)
def test_the_lock_meets_every_requirement(python: str) -> None:
    assert unlocked(PROJECT, LOCK, python) == []


def test_conda_installs_what_pip_installs() -> None:
    assert differences(PROJECT, LOCK, CONDA) == set()


@pytest.mark.parametrize(
    ("old", "new", "missed"),
    [
        ("torch==2.", "torch==1.", {"torch>=2.11"}),
        ("seaborn==", "seabron==", {"seaborn>=0.13"}),
        ("setuptools==", "setup-tools==", {"setuptools>=77"}),
        ("hypothesis==", "hypothesis==0.", {"hypothesis>=6.100"}),
    ],
)
def test_a_lock_that_misses_a_requirement_is_found(old: str, new: str, missed: set[str]) -> None:
    assert set(unlocked(PROJECT, LOCK.replace(f"\n{old}", f"\n{new}"), "3.11")) == missed


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ("scipy==1", "scipy==2", "scipy=="),
        ("dvc[s3]==", "dvc==", "dvc[s3]=="),
        ("- torch-fidelity==", "# torch-fidelity==", "torch-fidelity=="),
        ("- torch-fidelity==", "- flax==0.9\n      - torch-fidelity==", "flax==0.9"),
        ("python=3.11", "python=3.14", "python=3.14"),
        ("- -r requirements.lock", "", "-r requirements.lock"),
    ],
)
def test_an_environment_that_differs_is_found(old: str, new: str, line: str) -> None:
    assert any(each.startswith(line) for each in differences(PROJECT, LOCK, CONDA.replace(old, new)))


def test_names_before_the_hashes_are_found() -> None:
    lock, last = "- -r requirements.lock\n", "- snakemake"
    assert differences(PROJECT, LOCK, CONDA.replace(lock, "").replace(last, f"{lock}      {last}"))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """A wheel of the library, built from a copy of what git holds, and what git holds of the library."""
    folder = tmp_path_factory.mktemp("wheel")
    listed = run(ROOT, "git", "ls-files", "-co", "--exclude-standard", "precfm").splitlines()
    files = [name for name in listed if (ROOT / name).is_file()]
    for name in [*files, "pyproject.toml", "README.md", "LICENSE"]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, folder / name)
    run(folder, *PIP, "wheel", "--no-build-isolation", "--no-deps", "--no-index", "--wheel-dir", "dist", ".")
    (built,) = (folder / "dist").glob("precfm-*.whl")
    return built, files


@pytest.mark.slow
def test_a_wheel_holds_every_file_of_the_library_and_nothing_else(wheel):
    built, files = wheel
    names = {name for name in zipfile.ZipFile(built).namelist() if ".dist-info/" not in name}
    assert names == set(files)


@pytest.mark.slow
def test_an_installed_wheel_serves_outside_a_checkout_and_says_what_it_lacks(wheel, tmp_path):
    built, _ = wheel
    site, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    elsewhere.mkdir()
    run(tmp_path, *PIP, "install", "--no-deps", "--no-index", "--target", str(site), str(built))
    np.save(elsewhere / "latents.npy", np.random.default_rng(0).normal(size=(400, 4)) * [1, 1, 1, 20])

    def precfm(*arguments, folder=elsewhere, code=0):
        return run(folder, site / "bin/precfm", *arguments, code=code, PYTHONPATH=str(site))

    version = PROJECT["project"]["version"]
    assert precfm("--version") == f"precfm {version}\n"
    assert "400 rows of 4 features" in precfm("diagnose", "latents.npy")
    for folder, lacking in (
        (elsewhere, "no folder config/"),
        (ROOT, "site/workflow_scripts: no such folder"),
    ):
        said = precfm("ls", "smoke", folder=folder, code=1)
        assert said.startswith("precfm: ")
        assert lacking in said
        assert said.count("\n") == 1
