"""The page of an experiment, and the page over all that are published, from plain data: templates filled in."""

import io
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from numpy.typing import NDArray

from precfm.core.errors import PrecfmError
from precfm.core.registry import load
from precfm.report.claims import ClaimsSpec
from precfm.report.effects import frames_of
from precfm.report.frames import STATISTICS, About, Frames
from precfm.report.page import order
from precfm.report.page.claim_rows import ClaimRow, row_of
from precfm.report.page.lineage import Lineage, lines_behind
from precfm.report.page.pictures import HELD_OUT, data_uri, figure_uri, strip_uris
from precfm.report.page.text import Document, captioned, document, inline, prose, sections
from precfm.report.products import command
from precfm.report.reads import declared
from precfm.report.verdicts import Verdict
from precfm.report.vocabulary import in_order, method_label

HERE = Path(__file__).parent
LARGEST = 8_000_000  # bytes
SAMPLES = 20  # images of a method
LONG = 40  # printed rows: the blocks of a longer table are folded, all but the first
IN_A_ROW = 10


@dataclass(frozen=True)
class Experiment:
    """All that the page of an experiment is made of.

    Attributes:
        name: the experiment's.
        frames: by name.
        grids: sample images by method, as of `precfm.report.figures.sample_grids`.
        tables: by name, its files by suffix: `.md`, and `.csv` unless it is left out.
        figures: by name, its files by suffix: `.md`, and `.png` unless it is left out.
        claims: the verdicts, as Markdown.
        verdicts: the same as data.
        spec: the claims file.
        about: by role of the parents of `frames`, what each of them stands for.
        parents: by role, their ids `kind/key`.
    """

    name: str
    frames: Frames
    grids: Mapping[str, NDArray[np.uint8]]
    tables: Mapping[str, Mapping[str, bytes]]
    figures: Mapping[str, Mapping[str, bytes]]
    claims: str
    verdicts: Sequence[Verdict]
    spec: ClaimsSpec
    about: Mapping[str, Sequence[About]] = field(default_factory=dict)
    parents: Mapping[str, Sequence[str]] = field(default_factory=dict)


def experiment_page(experiment: Experiment) -> str:
    """One self-contained HTML file: claims, then tables, figures and charts in reading order.

    Raises:
        PrecfmError: it would be larger than `LARGEST`.
    """
    from precfm.report.page.charts import charts
    from precfm.report.page.vega import javascript

    lineage = Lineage(experiment.about, experiment.parents)
    items = {f"table {name}": _table(name, files, lineage) for name, files in experiment.tables.items()}
    items |= {
        f"figure {name}": _figure(name, files, experiment) for name, files in experiment.figures.items()
    }
    sides = experiment.tables.get("sides", {}).get(".csv")
    drawn = charts(experiment.frames, None if sides is None else pd.read_csv(io.BytesIO(sides)))
    drawn = [chart for chart in drawn if chart.item not in items or not items[chart.item]["document"].reason]
    for chart in drawn:
        items.setdefault(chart.item, {"document": Document(*captioned(chart.caption))})["chart"] = chart
    for item, content in items.items():
        content |= {"title": order.title(item), "id": order.anchor(item), "kind": item.partition(" ")[0]}
    rows = [row_of(verdict) for verdict in experiment.verdicts]
    parts = sections(experiment.claims)
    return _filled(
        "experiment.html",
        name=experiment.name,
        command=command(experiment.name),
        rows=rows,
        evidence=_evidence(experiment, items),
        details={head.partition(":")[0]: prose(body) for head, body in parts.items() if head},
        rules=prose(_rules(parts[""])),
        sections=[(each, [items[item] for item in here]) for each, here in order.in_reading_order(items)],
        specs={order.anchor(chart.item): chart.spec for chart in drawn},
        lineage=lineage.to_json(),
        vega=Markup(javascript()) if drawn else "",
    )


def merged_page(
    claims: str,
    rows: Sequence[ClaimRow],
    experiments: Mapping[str, str],
    pages: Collection[str],
    figures: Sequence[Mapping[str, Any]],
) -> str:
    """The page over all published experiments.

    Args:
        claims: the merged verdicts, as Markdown.
        rows: one for each claim.
        experiments: by name, in words, which revision made it.
        pages: the experiments that have a page of their own.
        figures: the headline figures: experiment, name, and the files `.md` and `.png`.
    """
    parts = sections(claims)
    shown = [
        {
            **{name: each[name] for name in ("experiment", "name")},
            "document": document(each[".md"].decode()),
            "uri": data_uri(each[".png"], "png"),
            "title": order.title(f"figure {each['name']}"),
        }
        for each in figures
    ]
    return _filled(
        "merged.html",
        rows=rows,
        experiments=experiments,
        pages=pages,
        details={head.partition(":")[0]: prose(body) for head, body in parts.items() if head},
        rules=prose(_rules(parts[""])),
        figures=shown,
    )


def _table(name: str, files: Mapping[str, bytes], lineage: Lineage) -> dict[str, Any]:
    read = document(files[".md"].decode())
    lines = lineage.add(name, files[".csv"].decode()) if ".csv" in files else []
    behind = [lines_behind(grid, lines) for grid in read.grids]
    long = sum(len(grid.rows) for grid in read.grids) > LONG
    return {"name": name, "document": read, "behind": behind, "long": long}


def _figure(name: str, files: Mapping[str, bytes], experiment: Experiment) -> dict[str, Any]:
    content: dict[str, Any] = {"name": name, "document": document(files[".md"].decode())}
    if name == "sample_grids" and experiment.grids:
        names = [HELD_OUT] * (HELD_OUT in experiment.grids) + in_order(set(experiment.grids) - {HELD_OUT})
        strips = strip_uris({each: experiment.grids[each] for each in names}, SAMPLES, IN_A_ROW)
        labels = {each: "held-out images" if each == HELD_OUT else method_label(each) for each in names}
        return {**content, "strips": {labels[each]: uri for each, uri in strips.items()}}
    return {**content, "uri": figure_uri(files[".png"])} if ".png" in files else content


def _evidence(experiment: Experiment, items: Mapping[str, Mapping[str, Any]]) -> dict[str, list[str]]:
    """By claim, the tables and figures that are made of nothing but what the claim's statistics read."""
    found = {}
    theory = experiment.frames.get(STATISTICS)
    for claim in experiment.spec.claims:
        read = {frame for statistic in claim.statistics for frame in frames_of(statistic)}
        if theory is not None and "frame" in theory:
            read |= {*theory.loc[theory["claim"] == claim.id, "frame"].dropna()}
        present = [item for item, each in items.items() if item[0] != "c" and not each["document"].reason]
        found[claim.id] = [item for item in present if _reads_only(item, read)]
    return found


def _reads_only(item: str, frames: set[str]) -> bool:
    group, _, name = item.partition(" ")
    try:
        function = load(f"{group}s", name)
    except PrecfmError:  # drawn by code that is no longer here
        return False
    needed = vars(function)["needs"] or declared(function)
    return frames.issuperset(needed)


def _rules(text: str) -> str:
    """How verdicts are made, without the table of claims, which the page shows in its own way."""
    return "\n".join(line for line in text.splitlines() if not line.startswith("|"))


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"inline": inline, "json": _json}
    environment.globals |= {
        "style": Markup((HERE / "page.css").read_text(encoding="utf-8")),
        "script": Markup((HERE / "page.js").read_text(encoding="utf-8")),
        "title_of": order.title,
        "anchor_of": order.anchor,
    }
    return environment


def _json(value: Any) -> Markup:
    """Data for a script element: nothing in it can end the element."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return Markup(text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e"))


def _filled(template: str, **content: Any) -> str:
    page = _environment().get_template(template).render(**content) + "\n"
    if len(page.encode()) > LARGEST:
        raise PrecfmError(
            f"report.html: would have {len(page.encode()):,} bytes; at most {LARGEST:,} are allowed"
        )
    return page
