"""What forms, checklists and the guide to a release tell people to run and to read exists."""

import re

import pytest
import typer
import yaml

from precfm.cli import app
from tests.workflow import ROOT

FORMS = sorted(file for file in (ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml") if file.stem != "config")
TEXTS = [*FORMS, ROOT / ".github/pull_request_template.md", ROOT / "docs/releasing.md"]
ELEMENTS = {"markdown", "input", "textarea", "dropdown", "checkboxes"}


@pytest.mark.parametrize("form", FORMS, ids=lambda file: file.stem)
def test_a_form_has_what_github_asks_for(form):
    content = yaml.safe_load(form.read_text())
    assert {"name", "description", "body"} <= content.keys()
    ids = [element["id"] for element in content["body"]]
    assert len(set(ids)) == len(ids)
    for element in content["body"]:
        assert element["type"] in ELEMENTS
        assert element["attributes"]["label"]
        options = element["attributes"].get("options", [])
        assert bool(options) == (element["type"] == "dropdown")
        assert all(isinstance(option, str) for option in options)


@pytest.mark.parametrize("text", TEXTS, ids=lambda file: file.stem)
def test_commands_and_files_that_are_named_exist(text):
    content = text.read_text()
    commands = typer.main.get_command(app).commands
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"\bprecfm ([a-z]+)\b", content)) <= commands.keys()
    assert set(re.findall(r"`make ([a-z-]+)", content)) <= targets
    files = re.findall(r"\b(?:docs|config|precfm|keys)/[\w./-]*\w", content)
    assert [name for name in files if not (ROOT / name).exists()] == []
