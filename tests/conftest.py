"""What several test modules share."""

import os
import shutil

import pytest
import yaml
from hypothesis import settings

from tests.workflow import ROOT, git, reproduce, run

# A busy machine is no failure: no test is decided by time.
settings.register_profile("precfm", deadline=None, derandomize=True)
settings.load_profile("precfm")


@pytest.fixture(scope="session", autouse=True)
def _without_waiting_for_the_disk():
    """No test takes the power away, so nothing has to be on the disk before a test goes on."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture
def project(tmp_path, monkeypatch):
    """An empty project: configurations, list of sources, pinned models, nothing made yet; the working folder."""
    for folder in ("config", "data"):
        (tmp_path / folder).mkdir()
    for file in ROOT.glob("config/*.yaml"):
        (tmp_path / "config" / file.name).write_text(file.read_text())
    (tmp_path / "data/sources.yaml").write_text((ROOT / "data/sources.yaml").read_text())
    (tmp_path / "data/models").symlink_to(ROOT / "data/models")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def planned(project):
    """Plan a variation of an experiment: `planned({"seeds": [0]}, base="smoke")`."""
    from precfm.pipeline.plan import load_plan

    def plan(change=None, base="smoke", name="mine"):
        (project / "config" / f"{name}.yaml").write_text(yaml.safe_dump({"extends": base, **(change or {})}))
        return load_plan(name)

    return plan


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """A clone of this project, its uncommitted changes included, in which `smoke` was reproduced once."""
    folder = tmp_path_factory.mktemp("made") / "precfm"
    listed = run(ROOT, "git", "ls-files", "--cached", "--others", "--exclude-standard").splitlines()
    for name in listed:
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, folder / name)
    for recorded in ("dvc.lock", "keys", "results"):
        target = folder / recorded
        shutil.rmtree(target) if target.is_dir() else target.unlink(missing_ok=True)
    (folder / "params.yaml").write_text("experiments: []\nsources: []\n")
    run(folder, "git", "init", "--quiet")
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", "start")
    said = reproduce(folder)
    assert "results/smoke/tables/" in said
    return folder
