"""What several test modules share."""

from pathlib import Path

import pytest
import yaml
from hypothesis import settings

# A busy machine is no failure: no test is decided by time.
settings.register_profile("precfm", deadline=None, derandomize=True)
settings.load_profile("precfm")

ROOT = Path(__file__).parent.parent


@pytest.fixture
def project(tmp_path, monkeypatch):
    """An empty project: the configurations and the list of sources, nothing made yet; the working folder."""
    for folder in ("config", "data"):
        (tmp_path / folder).mkdir()
    for file in ROOT.glob("config/*.yaml"):
        (tmp_path / "config" / file.name).write_text(file.read_text())
    (tmp_path / "data/sources.yaml").write_text((ROOT / "data/sources.yaml").read_text())
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def planned(project):
    """Plan a variation of an experiment: `planned({"seeds": [0]}, base="smoke")`."""
    from precfm.plan import load_plan

    def plan(change=None, base="smoke", name="mine"):
        (project / "config" / f"{name}.yaml").write_text(yaml.safe_dump({"extends": base, **(change or {})}))
        return load_plan(name)

    return plan
