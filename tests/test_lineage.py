"""The lineage of a number leads to all that it was made from and to nothing else; as a crate it validates."""

import json
import random
import runpy
import shutil
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import pandas as pd
import pytest
from typer.testing import CliRunner

from precfm.audit.lineage import FRAMES, experiments_of, lineage
from precfm.audit.lineage_text import WIDTH, tree, without_defaults
from precfm.cli import app
from precfm.core.errors import PrecfmError
from precfm.core.registry import REGISTRY
from precfm.pipeline.build import build
from precfm.pipeline.fingerprints import SCRIPTS, modules
from precfm.pipeline.publication import publish

METRICS = """dataset,method,step,metric,value
mnist5k-L16,whitening,60,frechet,1.5
mnist5k-L16,none,60,frechet,2.5
"""
PAIRED = """dataset,method,baseline,step,metric,value
mnist5k-L16,whitening,none,60,frechet,-1.0
"""


def make(job):
    label = job.node.label
    if job.node.kind == "table_files":
        (job.folder / f"{label}.csv").write_text(PAIRED if label == "paired" else METRICS)
    elif job.node.kind == "verdicts":
        (job.folder / "claims.json").write_text('{"claims": []}')
    else:
        job.write_json(f"{job.node.kind}-{label}.json", {"key": job.node.key})


@pytest.fixture
def plan(planned):
    plan = planned({"seeds": [3, 4]})
    for node in plan.nodes.values():
        build(node, make)
    publish(plan)
    return plan


def ancestors(plan, node_id):
    """By recursion, unlike the code under test."""
    found = {node_id}
    for ids in plan.nodes[node_id].parents.values():
        for parent in ids:
            found |= ancestors(plan, parent)
    return found


def about(plan, role, **wanted):
    """The artifacts of a role that stand for something, by the plan's own word."""
    (frames,) = plan.of("frames")
    pairs = zip(frames.parents[role], frames.params["about"][role], strict=True)
    return {
        node_id for node_id, told in pairs if all(told.get(name) in some for name, some in wanted.items())
    }


def table(plan, name):
    (node,) = [node for node in plan.of("table_files") if node.label == name]
    return node.id


def test_a_whole_table_comes_from_all_that_the_plan_says(plan):
    traced = lineage("results/mine/tables/metrics.csv")
    assert set(traced.steps) == ancestors(plan, table(plan, "metrics"))
    assert traced.root == table(plan, "metrics")
    assert traced.notes == ()


@pytest.mark.parametrize(
    ("target", "name", "methods"),
    [
        ("metrics.csv:1,value", "metrics", {"whitening"}),
        ("metrics.csv:2", "metrics", {"none"}),
        ("paired.csv:1,value", "paired", {"whitening", "none"}),
    ],
)
def test_a_row_comes_from_its_methods_and_seeds_alone(plan, target, name, methods):
    traced = lineage(f"results/mine/tables/{target}")
    meant = about(plan, "evaluations", dataset={"mnist5k-L16"}, method=methods)
    expected = set().union(*(ancestors(plan, node_id) for node_id in meant))
    assert set(traced.steps) == expected | {table(plan, name), plan.of("frames")[0].id}
    assert traced.seeds == (3, 4)
    assert len([step for step in traced.steps.values() if step.kind == "evaluations"]) == 2 * len(methods)


def test_the_steps_hold_code_parameters_seeds_and_sources(plan):
    traced = lineage("results/mine/tables/metrics.csv:1,value")
    assert traced.cell.value == "1.5"
    for node_id, step in traced.steps.items():
        node = plan.nodes[node_id]
        assert step.fingerprint == node.fingerprint
        assert json.loads(json.dumps(step.params)) == json.loads(json.dumps(node.params))
        assert list(step.modules) == modules(SCRIPTS / node.script, node.targets)
        assert step.files
        assert step.here
    (data,) = plan.of("data")
    assert traced.sources["mnist5k"]["checksum"] == data.params["checksum"]
    assert all(len(sha256) == 64 for sha256 in traced.sources["mnist5k"]["files"].values())


def test_the_manifest_alone_tells_the_same(plan):
    target = "results/mine/tables/metrics.csv:1,value"
    before = lineage(target).to_json()
    for kind in {node.kind for node in plan.nodes.values()}:
        shutil.rmtree(Path("results/mine") / kind)
    after = lineage(target).to_json()
    for step in (*before["steps"].values(), *after["steps"].values()):
        step.pop("here")
    assert json.dumps(after) == json.dumps(before)


def test_an_artifact_and_a_file_in_it_can_be_asked_for(plan):
    node = random.Random(0).choice(plan.of("samples"))
    file = next(path for path in node.folder.iterdir() if path.name != "artifact.json")
    assert set(lineage(file.as_posix()).steps) == ancestors(plan, node.id)


def test_what_was_published_earlier_is_said(plan, planned):
    planned({"seeds": [3, 4], "methods": {"whitening": {"preconditioner": {"exponent": 0.25}}}})
    assert "earlier code or with other parameters" in lineage("results/mine/tables/metrics.csv").notes[0]
    Path("results/mine/tables/metrics.csv").write_text(METRICS.replace("1.5", "1.4"))
    assert "is not what table_files/metrics" in lineage("results/mine/tables/metrics.csv:1,value").notes[-1]


@pytest.mark.parametrize("full", [False, True])
def test_the_tree_tells_every_artifact_once(plan, full):
    traced = lineage("results/mine/tables/metrics.csv:1,value")
    lines = list(tree(traced, full=full))
    assert "value = 1.5" in lines[0]
    assert "seeds 3, 4" in "\n".join(lines[:4])
    for node_id, step in traced.steps.items():
        titles = [line for line in lines if line.endswith((f"+- {node_id}", f": {node_id}"))]
        assert len([line for line in titles if "see above" not in line]) == 1
        assert any(step.fingerprint in line for line in lines)
    assert any("mnist5k d2f795d9" in line for line in lines)
    assert any(line.split()[-1] == traced.sha256 for line in lines)
    flat_parameters = " ".join("\n".join(lines).replace("|", " ").split())
    assert ("training.optimizer=adam" in flat_parameters) is full
    assert "training.checkpoints=[30, 60]" in flat_parameters


@pytest.mark.parametrize("target", ["metrics.csv:1,value", "paired.csv:1", "metrics.csv"])
def test_the_short_tree_fits_on_a_terminal_and_keeps_every_edge(plan, target):
    traced = lineage(f"results/mine/tables/{target}")
    lines = list(tree(traced))
    assert max(map(len, lines)) <= WIDTH
    assert len(lines) < len(list(tree(traced, full=True)))
    found, path = set(), []
    for line in "\n".join(lines).replace(",\n", ", ").splitlines():  # a list of references may be wrapped
        if "+- " not in line:
            continue
        indent, told = line.split("+- ", maxsplit=1)
        ids = [word.strip(",") for word in told.split() if word.strip(",") in traced.steps]
        path = path[: len(indent) // 3]
        found |= {(path[-1], node_id) for node_id in ids if path}
        path.append(ids[0])
    edges = {
        (step.id, parent) for step in traced.steps.values() for ids in step.parents.values() for parent in ids
    }
    assert found == edges


def test_long_values_and_many_seeds_are_wrapped_and_whole(plan):
    traced = lineage("results/mine/tables/metrics.csv:1,value")
    value, seeds = " ".join(f"word{number}" for number in range(60)), tuple(range(100, 160))
    about = {**traced.cell.about, "note": value}
    traced = replace(traced, cell=replace(traced.cell, value=value, about=about), seeds=seeds, notes=(value,))
    lines = list(tree(traced))
    assert max(map(len, lines)) <= WIDTH
    head = " ".join(" ".join(lines).split())
    assert f"row 1: value = {value} dataset mnist5k-L16" in head
    assert f"note {value} training seeds {', '.join(map(str, seeds))} sha256" in head
    assert f"note: {value} " in head
    assert f"row 1: value = {value}" in next(tree(traced, full=True))


def test_what_differs_from_a_default_is_kept():
    flow = {
        "model": {"name": "mlp", "width": 256, "depth": 4, "time_features": 32},
        "training": {"steps": 60, "optimizer": "adam", "checkpoints": [30, 60]},
    }
    theory = {"run": {"name": "trained_factors", "dim": 32, "width": 64}}
    params = {"flow": flow, "seed": 0, "sampling": {"n": 5, "steps": 50}, **theory}
    assert without_defaults(params) == {
        "flow": {"model": {"name": "mlp", "depth": 4}, "training": {"steps": 60, "checkpoints": [30, 60]}},
        "seed": 0,
        "sampling": {"n": 5},
        "run": {"name": "trained_factors", "width": 64},
    }
    gone = {"preconditioner": {"name": "of_old", "exponent": 0.5}}
    assert without_defaults(gone) == gone


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("results/mine/tables/nothing.csv", "no such file"),
        ("results/mine/tables/metrics.csv:3", "rows 1 to 2"),
        ("results/mine/tables/metrics.csv:0", "rows 1 to 2"),
        ("results/mine/tables/metrics.csv:1,nothing", "it has dataset, method"),
        ("results/mine/claims.json:1", "tables in CSV"),
        ("config/smoke.yaml", "outside results"),
        ("results/claims.json", "merges all experiments"),
        ("results/mine/records/wall_time.csv", "no artifact"),
    ],
)
def test_mistakes(plan, target, words):
    Path("results/claims.json").write_text("{}")
    Path("results/mine/records").mkdir(exist_ok=True)
    Path("results/mine/records/wall_time.csv").write_text("a\n1\n")
    with pytest.raises(PrecfmError, match=words):
        lineage(target)


def test_a_row_that_no_artifact_stands_for_is_said(plan):
    (target,) = Path("results/mine/tables").glob("metrics.csv")
    target.write_text(METRICS + "mnist5k-L16,nobody,60,frechet,1.0\n")
    traced = lineage(f"{target}:3,value")
    assert any("no artifact is of the data set, method and seed of row 3" in note for note in traced.notes)
    assert not any("no artifact" in note for note in lineage(f"{target}:1,value").notes)


class AnyArtifact:
    """Has whatever a script reads, with one row in each table."""

    key = "0" * 12
    record: ClassVar = {"files": {"table.csv": {}}}

    def frame(self, name):
        return pd.DataFrame({"step": [1], "loss": [0.0]})

    def json(self, name):
        return defaultdict(int)


def written(roles):
    """The names of the frames that the real script writes from one artifact of each role; not those of theory."""
    make = runpy.run_path(str(SCRIPTS / "frames.py"))["make"]
    make.__globals__["theory_statistics"] = lambda frames: pd.DataFrame({"value": [1.0]})
    make.__globals__["sample_grids"] = lambda evaluations: {}
    names = []
    about = {"run": "own", "seed": 0}

    class AnyJob:
        params: ClassVar = {"about": {role: [about] for role in roles}}

        def parents(self, role):
            return [AnyArtifact()]

        def write_frame(self, name, frame):
            names.append(name.removesuffix(".csv"))

        def write_json(self, name, value): ...
        def write_tensors(self, name, tensors): ...

    make(AnyJob())
    return {name for name in names if not name.startswith("own.")}


def test_the_frames_that_the_script_writes_are_known_with_their_roles(plan):
    """A new frame belongs into FRAMES, or its rows are traced to too much or to nothing."""
    from precfm.audit.lineage import _roles

    (frames,) = plan.of("frames")
    known = {role for roles in FRAMES.values() for role in roles}
    every = known | set(frames.params["about"])
    assert written(every) == set(FRAMES)
    for role in every:
        assert written([role]) <= {frame for frame, roles in FRAMES.items() if role in roles}
    assert all(_roles(name) for name in REGISTRY["tables"])


def test_a_claim_s_statistics_are_traced_to_the_experiments_whose_tables_they_read():
    assert experiments_of("C1") == {"linear_grid"}
    assert experiments_of("C2") == {"linear_grid", "steps_to_accuracy", "residual_linear"}
    assert experiments_of("C8") == set()
    read = {claim: experiments_of(claim) for claim in (f"C{number}" for number in range(1, 12))}
    assert set().union(*read.values()) <= set(REGISTRY["theory"])


def test_a_number_in_a_claim_s_source_is_no_table(tmp_path, monkeypatch):
    source = tmp_path / "claims.py"
    source.write_text(
        'def claim_c1(frames):\n    return frames["linear_grid.identity"] * 0.25 > help_it(1.5)\n'
    )
    monkeypatch.setattr("precfm.audit.lineage.module_file", lambda name: source)
    assert experiments_of("C1") == {"linear_grid"}


@pytest.mark.parametrize("cell", ["twelve,value", "1.5,value", "-1", "1,", ""])
def test_a_cell_that_is_none_is_told_apart_from_a_missing_file(plan, cell):
    with pytest.raises(PrecfmError, match=r"metrics\.csv: '.*' is no cell; ROW or ROW,COLUMN is needed"):
        lineage(f"results/mine/tables/metrics.csv:{cell}")


def test_why_on_the_command_line(plan):
    said = CliRunner().invoke(app, ["why", "results/mine/tables/metrics.csv:1,value", "--json"])
    assert said.exit_code == 0
    assert json.loads(said.stdout)["cell"]["value"] == "1.5"
    short = CliRunner().invoke(app, ["why", "results/mine/tables/metrics.csv"]).stdout
    full = CliRunner().invoke(app, ["why", "results/mine/tables/metrics.csv", "--full"]).stdout
    assert "+- frames/" in short
    assert "+- frames/" in full
    assert len(short) < len(full)


@pytest.fixture
def crate(plan, tmp_path):
    pytest.importorskip("rocrate")
    folder = tmp_path / "crate"
    target = "results/mine/tables/metrics.csv:1,value"
    assert CliRunner().invoke(app, ["why", target, "--crate", str(folder)]).exit_code == 0
    return folder


def test_the_crate_holds_every_step_with_its_code_and_parameters(crate):
    traced = lineage("results/mine/tables/metrics.csv:1,value")
    graph = {
        entity["@id"]: entity
        for entity in json.loads((crate / "ro-crate-metadata.json").read_text())["@graph"]
    }
    for node_id, step in traced.steps.items():
        record = json.loads((crate / f"artifacts/{node_id}.json").read_text())
        assert record["files"] == json.loads(json.dumps(step.files))
        action = graph[f"#action-{node_id.replace('/', '-')}"]
        assert graph[action["instrument"]["@id"]]["softwareVersion"] == step.fingerprint
        used = action.get("object", [])
        used = {entity["@id"] for entity in (used if isinstance(used, list) else [used])}
        assert {f"artifacts/{parent}.json" for ids in step.parents.values() for parent in ids} <= used
        if "seed" in step.params:
            assert graph[f"#{node_id}/seed"]["value"] == str(step.params["seed"])
    assert graph["product/metrics.csv"]["sha256"] == traced.sha256


def test_a_crate_never_overwrites(crate):
    said = CliRunner().invoke(app, ["why", "results/mine/tables/metrics.csv", "--crate", str(crate)])
    assert isinstance(said.exception, PrecfmError)
    assert "new folder" in str(said.exception)


@pytest.mark.parametrize("profile", ["process-run-crate", "workflow-run-crate"])
def test_the_crate_is_valid(crate, profile, monkeypatch):
    import requests
    import rocrate
    from rocrate_validator import services
    from rocrate_validator.models import Severity
    from rocrate_validator.utils.http import HttpRequester

    # Without network, the context is the one that rocrate ships, with the addresses that version 1.1 has.
    shipped = (Path(rocrate.__file__).parent / "data/ro-crate.jsonld").read_text()
    context = shipped.replace("https://bioschemas.org/terms/", "https://bioschemas.org/")

    def get(self, url, *arguments, **options):
        answer = requests.Response()
        answer.url, answer.status_code = url, 200 if url.endswith("/context") else 404
        answer._content = context.encode() if answer.status_code == 200 else b""
        answer.headers["Content-Type"] = "application/ld+json"
        return answer

    monkeypatch.setattr(HttpRequester, "get", get, raising=False)
    monkeypatch.setattr(HttpRequester, "head", get, raising=False)

    def issues():
        settings = services.ValidationSettings(
            rocrate_uri=str(crate), profile_identifier=profile, requirement_severity=Severity.REQUIRED
        )
        return [issue.message for issue in services.validate(settings).get_issues()]

    assert issues() == []
    file = crate / "ro-crate-metadata.json"
    metadata = json.loads(file.read_text())
    for entity in metadata["@graph"]:
        entity.pop("instrument", None)
    file.write_text(json.dumps(metadata))
    assert any("instrument" in message for message in issues())
