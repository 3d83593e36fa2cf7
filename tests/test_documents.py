"""The documentation: what it quotes stands in published tables and in the code, notebooks run, the site is whole."""

import ast
import doctest
import importlib
import json
import math
import os
import re
import runpy
import subprocess
import sys
from functools import cache
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch

from precfm.preconditioners.round_trip import round_trip_error
from tests.preconditioner_cases import FEATURES, ill_conditioned
from tests.workflow import ENVIRONMENT, ROOT

DOCS = ROOT / "docs"
NUMBER = re.compile(r"[−-]?\d[\d,]*(?:\.\d+)?(?:×10[⁻⁰¹²³⁴⁵⁶⁷⁸⁹]+)?")
FINDINGS = (DOCS / "findings.md").read_text(encoding="utf-8")
SECTIONS = re.split(r"^## ", FINDINGS, flags=re.MULTILINE)[1:]
SOURCE = re.compile(
    r"^From \[[^]]*\]\((?P<file>[^)]*)\)(?:, `(?P<setting>[^`]*)`)?:\n\n(?P<table>(?:\|.*\n)+)", re.MULTILINE
)


def cells(lines):
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


def published(file, setting):
    """A published Markdown table, or the block of one, by row and column."""
    text = (DOCS / file).read_text(encoding="utf-8")
    block = text.partition(f"**{setting}**\n")[2] if setting else text
    head, _, *rows = cells(re.search(r"(?:^\|.*\n)+", block, re.MULTILINE)[0].splitlines())
    return {row[0]: dict(zip(head, row, strict=True)) for row in rows}


@cache
def statistics_of(claim):
    merged = json.loads((ROOT / "results/published/claims.json").read_text())["claims"]
    (found,) = (each for each in merged if each["claim"] == claim)
    return [row for each in found["by_experiment"] for row in each["statistics"] if row["value"] is not None]


@cache
def effects_of(claim):
    """Each effect with the ends of its interval, one after the other, and the ratios that logarithms stand for."""
    ends = [row[end] for row in statistics_of(claim) for end in ("value", "low", "high")]
    values = [math.nan if end is None else end for end in ends]
    return values + [math.exp(min(value, 700)) for value in values]


@cache
def values_of(claim):
    """All numbers that `claims.json` has for a claim, those of notes among them."""
    notes = " ".join(row["note"] for row in statistics_of(claim))
    return effects_of(claim) + [float(number) for number in re.findall(r"\b\d+(?:\.\d+)?\b", notes)]


def stands_for(text, value):
    """Whether a number as written is that value, rounded to its digits; prose may leave a minus out."""
    if text[0] in "−-" and value >= 0:
        return False
    mantissa, _, power = text.lstrip("−-").replace(",", "").partition("×10")
    exponent = int(power.translate(str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789")) or 0)
    step = 10.0 ** (exponent - len(mantissa.partition(".")[2]))
    return abs(abs(value) - float(mantissa) * 10.0**exponent) <= step * 0.5001


def test_tables_of_the_findings_are_excerpts_of_published_ones():
    tables = list(SOURCE.finditer(FINDINGS))
    assert len(tables) == len(
        re.findall(r"^\| ---", FINDINGS, re.MULTILINE)
    )  # every table says where it is from
    for table in tables:
        source = published(table["file"], table["setting"])
        head, _, *rows = cells(table["table"].splitlines())
        for row in rows:
            assert row == [row[0], *(source[row[0]][column] for column in head[1:])], table["file"]


@pytest.mark.parametrize("section", SECTIONS, ids=[text.partition("\n")[0] for text in SECTIONS])
def test_every_number_of_the_findings_is_published(section):
    """In a table of its section, or as a number of a claim that its paragraph names."""
    shown = {number for table in SOURCE.finditer(section) for number in NUMBER.findall(table["table"])}
    for paragraph in re.split(r"\n\n|\n(?=- )", SOURCE.sub("", section.partition("\n")[2])):
        claims = set(re.findall(r"\b(?:C\d+[abc]?(?:-score|-photographs)?|S\d)\b", paragraph))
        prose = re.sub(
            r"\]\([^)]*\)|`[^`]*`|\$[^$]*\$|\b[CS]\d+[abc]?\b|\bv1\b|judge 0|\b64\b|95%", "", paragraph
        )
        known = [value for claim in claims for value in values_of(claim)]
        missing = [
            number
            for number in NUMBER.findall(prose)
            if number not in shown and not any(stands_for(number, value) for value in known)
        ]
        assert missing == [], paragraph


def test_every_effect_in_the_readme_is_one_of_its_claim_with_its_interval():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| \[(\w[\w-]*)\].*\| (.*) \|$", readme, re.MULTILINE)
    effects = [(claim, *each) for claim, cell in rows for each in re.findall(r"(\S+) \[(\S+), (\S+)\]", cell)]
    assert len(effects) > 15
    for claim, *written in effects:
        triples = zip(*[iter(effects_of(claim))] * 3, strict=True)
        assert any(all(map(stands_for, written, triple)) for triple in triples), (claim, written)


def test_a_number_that_is_rounded_otherwise_is_found():
    assert stands_for("−0.112", -0.11210)
    assert stands_for("5.74×10⁻¹¹", 5.7372e-11)
    assert not stands_for("0.113", -0.11210)
    assert not stands_for("−0.112", 0.11210)


def test_the_catalogue_is_current(monkeypatch):
    monkeypatch.chdir(ROOT)
    made = runpy.run_path(str(DOCS / "_site/catalogue.py"))["catalogue"]()
    assert made == (DOCS / "catalogue.md").read_text(encoding="utf-8"), "run `make catalogue`"


@cache
def sentences():
    """All texts of the code, with … for what differs from case to case."""
    found = (
        ["precfm: Python … found; 3.11, 3.12 or 3.13 is needed"]
        if "is needed (make PYTHON" in MAKEFILE
        else []
    )
    for file in [*(ROOT / "precfm").rglob("*.py"), *(ROOT / "workflow_scripts").glob("*.py")]:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = (part.value if isinstance(part, ast.Constant) else "…" for part in node.values)
                found.append("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return "\n".join(found).replace("`", "'")


MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
QUOTED = re.findall(
    r"^\| `(.+?)` \|", (DOCS / "troubleshooting.md").read_text(encoding="utf-8"), re.MULTILINE
)


@pytest.mark.parametrize("quoted", QUOTED)
def test_quoted_messages_are_those_of_the_code(quoted):
    """From its first to its last word; where it is put together of two, it is quoted in part."""
    text = quoted.strip("…:;, ")
    assert len(text) > 10
    assert text in sentences()


def test_the_preconditioner_of_the_contributors_guide_keeps_the_contract(tmp_path, monkeypatch):
    (code,) = re.findall(
        r"^```python\n(.*?)^```", (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE | re.DOTALL
    )
    (tmp_path / "robust_scale.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    module = importlib.import_module("robust_scale")
    assert doctest.testmod(module).attempted > 0
    assert doctest.testmod(module).failed == 0
    x = ill_conditioned(200, seed=0)[0].float()
    fitted = module.RobustScale().fit(x)
    assert round_trip_error(fitted, x, None) < fitted.round_trip_tolerance
    row = x[:1].double().reshape(1, FEATURES)
    jacobian = torch.autograd.functional.jacobian(lambda each: fitted.forward(each.reshape(x[:1].shape)), row)
    assert torch.allclose(
        jacobian.reshape(FEATURES, FEATURES).det().abs().log(), fitted.log_abs_det_jacobian(x[:1].double())[0]
    )


NOTEBOOKS = sorted((DOCS / "tutorials").glob("*.ipynb"))


@pytest.mark.slow
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=[file.stem for file in NOTEBOOKS])
def test_notebooks_run(notebook, monkeypatch):
    pytest.importorskip("nbclient", reason="the extra docs is not installed")
    pytest.importorskip("ipykernel", reason="the extra docs is not installed")
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])))
    done = runpy.run_path(str(DOCS / "_site/notebooks.py"))["run"](notebook)
    assert any(cell.outputs for cell in done.cells if cell.cell_type == "code")


class Requests(HTMLParser):
    """What a page asks a browser to load."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        for name in ("src", "srcset", "data", "poster"):
            self.found.append(given.get(name) or "")
        if tag == "link" and given.get("rel") not in ("canonical", "next", "prev"):
            self.found.append(given.get("href") or "")


@pytest.mark.slow
def test_the_site_is_built_without_warnings_and_asks_the_network_for_nothing(tmp_path):
    for package in ("mkdocs", "material", "mkdocstrings", "latex2mathml", "nbconvert"):
        pytest.importorskip(package, reason="the extra docs is not installed")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)],
        cwd=ROOT,
        env={**ENVIRONMENT, "NO_MKDOCS_2_WARNING": "true"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "WARNING" not in done.stderr
    pages = [file.read_text(encoding="utf-8") for file in tmp_path.rglob("*.html")]
    assert len(pages) > 30
    for page in pages:
        parser = Requests()
        parser.feed(page)
        assert [name for name in parser.found if re.match(r"(https?:)?//", name)] == []
        assert not re.search(r"""(?:@import|url\(|import\()\s*["']?(https?:)?//""", page)
    styles = [file.read_text(encoding="utf-8") for file in tmp_path.rglob("*.css")]
    assert not any(re.search(r"""(?:@import|url\()\s*["']?(?:https?:)?//""", style) for style in styles)
    assert sum("<math" in page for page in pages) >= 2
