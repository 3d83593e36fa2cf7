"""The page of an experiment: all of it is there, traced, escaped and legible; and the page over all of them."""

import csv
import html
import io
import json
import re
from dataclasses import replace

import pytest

from precfm.audit.report_inputs import inputs_of
from precfm.audit.target import Cell
from precfm.core.errors import PrecfmError
from precfm.pipeline.experiments import CLAIMS, read_yaml
from precfm.report.claims import parse_claims
from precfm.report.claims_document import merge_claims, sorted_verdicts, write_claims
from precfm.report.formatting import number_text
from precfm.report.frames import CURVE_POINTS
from precfm.report.page import assembly
from precfm.report.page.assembly import HERE, LARGEST, experiment_page, merged_page
from precfm.report.page.claim_rows import row_of, row_of_all
from precfm.report.page.lineage import Lineage, lines_behind
from precfm.report.page.text import document, prose
from precfm.report.vocabulary import method_label
from tests import report_frames
from tests.report_pages import FIGURES, METHODS, TABLES, about, made
from tests.workflow import ROOT

pytestmark = pytest.mark.xdist_group("page")


def words(page):
    """What a reader sees, without markup."""
    return html.unescape(
        re.sub(r"\s+", " ", re.sub(r"<(script|style).*?</\1>|<[^>]+>", " ", page, flags=re.DOTALL))
    )


def held(page, name):
    """The data that the page's script reads."""
    return json.loads(re.search(rf'<script type="application/json" id="{name}">(.*?)</script>', page)[1])


def test_every_claim_table_and_figure_is_there():
    each, page = made()
    seen = words(page)
    for claim in each.spec.claims:
        assert claim.id in seen
        assert claim.text in seen
    for name in TABLES:
        for line in each.tables[name][".md"].decode().splitlines():
            if line.startswith("| ") and not line.startswith("| ---"):
                for cell in line.replace("\\|", "¦").strip("| ").split(" | "):
                    assert cell.replace("¦", "|").replace(" ↓", "\u00a0↓").replace(
                        " ↑", "\u00a0↑"
                    ) in page.replace("&lt;", "<")
    assert page.count('src="data:image/webp') == len(FIGURES) - 2 + 1 + len(
        METHODS
    )  # samples have one for each method
    assert "This figure is left out: this experiment has no rows of steps to accuracy" in seen
    assert set(held(page, "charts")) == {
        "table-sides", "figure-spectra", "figure-path_conditioning", "figure-metrics_vs_steps",
        "figure-training_curves",
    }  # fmt: skip


def test_it_is_the_same_every_time_and_small_enough(monkeypatch):
    each, page = made()
    assert experiment_page(each) == page
    assert len(page.encode()) < LARGEST
    monkeypatch.setattr(assembly, "LARGEST", 1000)
    with pytest.raises(PrecfmError, match=r"^report\.html: .* 1,000"):
        experiment_page(each)


def test_names_are_text_and_nothing_is_fetched():
    name, method = '</script><script>alert("1")</script>', '<img src="http://x">'
    each, _ = made()
    frames = {frame: rows.replace({"method": {"whitening": method}}) for frame, rows in each.frames.items()}
    tables = {
        table: {suffix: text.replace(b"whitening", method.encode()) for suffix, text in files.items()}
        for table, files in each.tables.items()
        if table == "metrics"
    }
    page = experiment_page(replace(each, name=name, frames=frames, tables=tables))
    assert name not in page
    assert method not in page
    assert held(page, "about")["name"] == name
    assert method in words(page)
    shown = re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL)
    addresses = re.findall(r'<[a-z]+ [^>]*?\b(?:src|href)="([^"]*)"', shown)
    assert {address.split("/")[0].split(",")[0] for address in addresses if address[0] != "#"} == {
        "data:", "data:image", "..", "tables", "figures",
    }  # fmt: skip


def test_markdown_loads_nothing():
    assert "<img" not in prose('![x](http://x) <img src="http://x">')
    assert "<a" not in prose("[x](http://x) <http://x>")


def test_a_document_is_read_as_it_was_written():
    read = document(
        "One. Two `a|b`. Made by `make`.\n\n**Block: `x`**\n\n| a \\| b | n |\n| --- | ---: |\n| x_y_z | 1* |\n\n"
        "Note.\n\n- remark\n"
    )
    (grid,) = read.grids
    assert (read.lead, read.caption) == ("One.", "Two <code>a|b</code>.")
    assert (grid.title, grid.head, grid.texts, grid.note) == (
        "Block: `x`",
        ["a | b", "n"],
        [["x_y_z", "1*"]],
        "Note.",
    )
    assert "remark" in read.notes
    assert document("The table 'x' is left out: nothing there.\n").reason == "nothing there"


@pytest.mark.parametrize("name", TABLES)
def test_a_printed_row_leads_to_its_lines_and_every_line_has_a_row(name):
    each, _ = made()
    lines = [*csv.DictReader(io.StringIO(each.tables[name][".csv"].decode()))]
    behind = [
        found
        for grid in document(each.tables[name][".md"].decode()).grids
        for found in lines_behind(grid, lines)
    ]
    assert all(behind)
    assert {place for places in behind for place in places} == set(range(len(lines)))


def test_a_row_shows_the_numbers_of_its_own_method_and_space():
    each, page = made()
    lines = [*csv.DictReader(io.StringIO(each.tables["paired"][".csv"].decode()))]
    for found in re.findall(r'data-table="paired" data-lines="([\d ]+)"', page):
        (place,) = map(int, found.split())
        assert lines[place]["baseline"] == "none"
    one = next(place for place, line in enumerate(lines) if line["metric"] == "kid")
    what, number, _ = held(page, "numbers")["tables"]["paired"]["lines"][one]
    assert what.startswith(f"KID, features of classifier {lines[one]['space'][-1]}")
    assert float(number.replace("−", "-").split()[0]) == pytest.approx(float(lines[one]["value"]), rel=1e-5)


@pytest.mark.parametrize("name", ["sides", "paired", "conditioning", "methods"])
def test_the_artifacts_behind_a_line_are_those_that_the_audit_finds(name):
    each, _ = made()
    stand_for, ids = about(each.frames)
    traced = Lineage(stand_for, ids)
    lines = traced.add(name, each.tables[name][".csv"].decode())
    entries = {
        "table_files/t": {"params": {"name": name}, "parents": {"frames": ["frames/f"]}},
        "frames/f": {"params": {"about": stand_for}, "parents": ids},
    }
    for place in range(0, len(lines), 7):
        cell = Cell(f"row {place + 1}", "", "", lines[place])
        (found,) = inputs_of("table_files/t", f"{name}.csv", cell, entries).values()
        group = traced.groups[traced.tables[name]["lines"][place][2]]
        shown = {f"{kind}/{key}" for kind, _, key in (traced.artifacts[one] for one in group)}
        assert shown == {node for several in found.values() for node, _ in several}


def test_a_claim_shows_the_weakest_criterion_of_the_method_that_does_best():
    each, _ = made()
    rows = {row.id: row for row in map(row_of, each.verdicts)}
    (verdict,) = (one for one in each.verdicts if one.claim == "C8a")
    (effect,) = rows["C8a"].effects
    outcomes = {one.method: one for one in verdict.groups[0].methods}
    best = next(name for name in METHODS if effect.what.startswith(f"{method_label(name)} against"))
    assert len(outcomes[best].fails) == min(len(one.fails) for one in outcomes.values())
    deciding = [one for one in verdict.statistics if one.method == best and one.role == "decides"]
    worst = {one.outcome for one in deciding}
    assert effect.outcome == next(way for way in ("contradicts", "unresolved", "supports") if way in worst)
    weakest = max((one for one in deciding if one.outcome == effect.outcome), key=lambda one: one.p)
    assert effect.number.startswith(number_text(weakest.value))
    assert rows["C8a"].rulings == {"data": verdict.data}
    assert not rows["C2"].tested
    assert rows["C2"].effects == []


def test_the_page_over_all_links_to_pages_that_there_are():
    each, _ = made()
    spec = parse_claims(read_yaml(ROOT / CLAIMS))
    other = [verdict.model_copy(update={"experiment": "mnist-pca64"}) for verdict in each.verdicts]
    documents = [write_claims(verdicts)[0] for verdicts in (each.verdicts, other)]
    text = merge_claims(documents, spec, {"quick": "revision a", "mnist-pca64": "revision b"})[1]
    rows = [row_of_all(claim, ()) for claim in sorted_verdicts(documents, spec)[0]]
    figure = {"experiment": "quick", "name": "spectra", **each.figures["spectra"]}
    page = merged_page(text, rows, {"quick": "revision a", "mnist-pca64": "revision b"}, {"quick"}, [figure])
    assert {claim.id for claim in spec.claims} == set(
        re.findall(r'<th scope="row"><a href="#claim-(\S+?)"', page)
    )
    links = set(re.findall(r'href="([^"#]+)(?:#[^"]*)?"', page)) - {"data:,", ""}
    assert links == {"quick/report.html"}
    assert "mnist-pca64: revision b." in words(page)
    assert page.count('src="data:image/png') == 1


def test_training_curves_are_means_of_equal_spans():
    curves = report_frames.frames(seeds=2, methods=METHODS)["training"]
    run = curves[(curves["method"] == "none") & (curves["seed"] == 0)]
    assert run["step"].tolist() == list(range(3, 3 * CURVE_POINTS + 1, 3))
    assert run["loss"].iloc[1] == pytest.approx(sum(2 / step**0.1 for step in (4, 5, 6)) / 3, abs=1e-6)


def test_every_colour_of_text_stands_out_from_its_ground():
    """4.5 to 1, as WCAG AA asks of text, in both schemes."""
    blocks = re.findall(r":root \{(.*?)\}", (HERE / "page.css").read_text(), re.DOTALL)
    light, dark = (dict(re.findall(r"--([\w-]+): (#\w+)", block)) for block in blocks[:2])
    for colours in (light, {**light, **dark}):
        pairs = [(ink, ground) for ink in ("ink", "soft", "link") for ground in ("paper", "tint")]
        pairs += [(f"{ruling}-ink", ruling) for ruling in ("supported", "contradicted", "mixed", "open")]
        for ink, ground in pairs:
            assert contrast(colours[ink], colours[ground]) >= 4.5, (ink, ground)
        assert contrast(colours["focus"], colours["paper"]) >= 3


def contrast(first, second):
    def luminance(colour):
        parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
        red, green, blue = (
            part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts
        )
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    low, high = sorted((luminance(first), luminance(second)))
    return (high + 0.05) / (low + 0.05)


def test_an_experiment_of_theory_alone_needs_no_charts():
    each, _ = made()
    page = experiment_page(replace(each, frames={}, tables={}, figures={}, grids={}))
    assert held(page, "charts") == {}
    assert len(page) < 400_000
