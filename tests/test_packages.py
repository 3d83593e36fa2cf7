"""environment.yml, pyproject.toml and requirements.lock name the same packages at the same versions."""

import tomllib
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from tests.workflow import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
LOCK = (ROOT / "requirements.lock").read_text()
CONDA = (ROOT / "environment.yml").read_text()
PYTHONS = ("3.11", "3.12", "3.13")


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
