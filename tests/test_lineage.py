"""The lineage of a number leads to all that it was made from and to nothing else; as a crate it validates."""

import json
import random
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from precfm.audit.lineage import lineage, sources_read
from precfm.audit.lineage_text import WIDTH, tree
from precfm.cli import app
from precfm.core.errors import PrecfmError
from precfm.core.registry import load
from precfm.pipeline.build import build
from precfm.pipeline.node import PUBLISHED
from precfm.pipeline.plan import load_plan
from precfm.pipeline.products import write_products
from precfm.pipeline.publication import publish
from precfm.report.frames import FRAMES, sources_of
from precfm.report.reads import declared
from tests.crates import issues
from tests.workflow import ROOT, git, run

METRICS = """dataset,method,step,metric,value
mnist5k-L16,whitening,60,frechet,1.5
mnist5k-L16,none,60,frechet,2.5
"""
PAIRED = """dataset,method,baseline,step,metric,value,p_holm
mnist5k-L16,whitening,none,60,frechet,-1.0,0.5
"""
THEORY = """claim,statistic,value,frame
C2,slope,1.0,steps_to_accuracy.steps
C1,error,1.0,linear_grid.identity
C2,slope,1.0,
"""
TABLES = {"paired": PAIRED, "theory": THEORY}
VERDICT = {
    "text": "",
    "experiment": "mine",
    "verdict": "supported",
    "reason": "",
    "methods": [],
    "statistics": [],
}
CLAIMS = {"claims": [{"claim": claim, **VERDICT} for claim in ("C2", "C6")]}


def make(job):
    label = job.node.label
    if job.node.kind == "table_files":
        (job.folder / f"{label}.csv").write_text(TABLES.get(label, METRICS))
    elif job.node.kind == "verdicts":
        job.write_json("claims.json", CLAIMS)
    elif job.node.kind == "frames":
        (job.folder / "records.csv").write_text("dataset,method,seed,value\nmnist5k-L16,whitening,4,1.0\n")
    else:
        job.write_json(f"{job.node.kind}-{label}.json", {"key": job.node.key})


@pytest.fixture(scope="module")
def made_once(tmp_path_factory):
    """A project in which everything was made, for tests that change nothing: its folder and its plan."""
    folder = tmp_path_factory.mktemp("lineage")
    theory = {name: {"run": {"name": name}, "seeds": [7]} for name in ("linear_grid", "steps_to_accuracy")}
    for part in ("config", "data"):
        shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("raw"))
    mine = {"extends": "smoke", "seeds": [3, 4], "theory": theory}
    (folder / "config/mine.yaml").write_text(yaml.safe_dump(mine))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        plan = load_plan("mine")
        for node in plan.nodes.values():
            build(node, make)
        write_products(plan)
    return folder, plan


@pytest.fixture
def plan(made_once, monkeypatch):
    monkeypatch.chdir(made_once[0])
    return made_once[1]


@pytest.fixture
def plan_to_change(made_once, project):
    for part in ("config", "results"):
        shutil.copytree(made_once[0] / part, project / part, dirs_exist_ok=True)
    return made_once[1]


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
        node_id for node_id, each in pairs if all(each.get(name) in some for name, some in wanted.items())
    }


def behind(plan, kind, label, meant):
    """What there is behind a report that is made of these artifacts."""
    (root,) = [node.id for node in plan.of(kind) if node.label == label]
    return {root, plan.of("frames")[0].id}.union(*(ancestors(plan, node_id) for node_id in meant))


@pytest.mark.parametrize(
    ("kind", "group", "label", "file"),
    [
        ("table_files", "tables", "metrics", "tables/metrics.csv"),
        ("table_files", "tables", "theory", "tables/theory.csv"),
        ("figure_files", "figures", "spectra", "figures/figure_files-spectra.json"),
    ],
)
def test_a_whole_report_comes_from_the_frames_that_it_declares(plan, kind, group, label, file):
    traced = lineage(f"results/mine/{file}")
    roles = {role for frame in declared(load(group, label)) for role in sources_of(frame).roles}
    meant = set().union(*(about(plan, role) for role in roles))
    assert meant
    assert set(traced.steps) == behind(plan, kind, label, meant)
    assert traced.notes == ()


@pytest.mark.parametrize(
    ("target", "label", "methods"),
    [
        ("metrics.csv:1,value", "metrics", {"whitening"}),
        ("metrics.csv:2", "metrics", {"none"}),
        ("paired.csv:1,value", "paired", {"whitening", "none"}),
    ],
)
def test_a_row_comes_from_its_methods_and_seeds_alone(plan, target, label, methods):
    traced = lineage(f"results/mine/tables/{target}")
    meant = about(plan, "evaluations", dataset={"mnist5k-L16"}, method=methods)
    assert len(meant) == 2 * len(methods)
    assert set(traced.steps) == behind(plan, "table_files", label, meant)
    assert traced.seeds == (3, 4)


@pytest.mark.parametrize("target", ["paired.csv:1,p_holm", "paired.csv:1"])
def test_holm_s_p_comes_from_every_test_of_its_table(plan, target):
    traced = lineage(f"results/mine/tables/{target}")
    assert set(traced.steps) == behind(
        plan, "table_files", "paired", about(plan, "evaluations") | about(plan, "likelihoods")
    )


@pytest.mark.parametrize(("row", "runs"), [(1, {"steps_to_accuracy"}), (2, {"linear_grid"})])
def test_a_row_of_the_theory_table_comes_from_the_experiment_whose_statistic_it_is(plan, row, runs):
    traced = lineage(f"results/mine/tables/theory.csv:{row}")
    meant = about(plan, "theory", run=runs)
    assert set(traced.steps) == behind(plan, "table_files", "theory", meant)
    assert traced.seeds == (7,)


def test_a_row_that_does_not_say_its_table_comes_from_all_experiments(plan):
    traced = lineage("results/mine/tables/theory.csv:3")
    assert about(plan, "theory") <= traced.steps.keys()


def test_a_claim_comes_from_the_frames_of_its_statistics(plan):
    of_theory, of_data = (lineage(f"results/mine/claims.json:{claim}") for claim in ("C2", "C6"))
    assert {step.kind for step in of_theory.steps.values()} == {"verdicts", "frames", "theory"}
    assert about(plan, "diagnostics") <= of_data.steps.keys()
    assert of_theory.cell.value == "supported"


def test_a_row_of_a_frame_comes_from_the_artifacts_that_it_names(plan):
    (frames,) = plan.of("frames")
    traced = lineage(f"{frames.folder}/records.csv:1")
    (meant,) = about(plan, "evaluations", method={"whitening"}, seed={4})
    assert set(traced.steps) == {frames.id} | ancestors(plan, meant)


def test_the_steps_hold_code_parameters_seeds_and_sources(plan):
    traced = lineage("results/mine/tables/metrics.csv:1,value")
    assert traced.cell.value == "1.5"
    for node_id, step in traced.steps.items():
        node = plan.nodes[node_id]
        assert (step.fingerprint, step.script) == (node.fingerprint, node.script)
        assert json.loads(json.dumps(step.params)) == json.loads(json.dumps(node.params))
        assert step.files
        assert step.here
    (data,) = plan.of("data")
    assert traced.sources["mnist5k"]["checksum"] == data.params["checksum"]
    assert all(len(sha256) == 64 for sha256 in traced.sources["mnist5k"]["files"].values())


def test_a_source_whose_images_are_left_out_is_a_source_too():
    params = {"source": "mnist", "checksum": "a", "without": {"mnist5k": "b"}}
    assert sources_read("data", params) == {"mnist": "a", "mnist5k": "b"}
    assert sources_read("flows", {"seed": 0}) == {}


def test_a_manifest_alone_says_the_same(plan_to_change, project):
    target = "results/mine/tables/metrics.csv:1,value"
    before = lineage(target).to_json()
    run(project, "git", "init", "-q")
    git(project, "add", "config")
    git(project, "commit", "-q", "-m", "first")
    publish(plan_to_change)
    for kind in {node.kind for node in plan_to_change.nodes.values()}:
        shutil.rmtree(Path("results/mine") / kind)
    local = lineage(target).to_json()
    shutil.rmtree("config")
    of_published = lineage(target.replace("results", str(PUBLISHED))).to_json()
    assert of_published["revision"]["commit"] == git(project, "rev-parse", "HEAD").strip()
    assert lineage(f"{PUBLISHED}/mine/frames/records.csv:1").seeds == (4,)
    for one in (before, local, of_published):
        for step in one["steps"].values():
            step.pop("here")
        for field in ("file", "revision", "notes"):
            one.pop(field)
    assert json.dumps(before) == json.dumps(local) == json.dumps(of_published)


def test_an_artifact_and_a_file_in_it_can_be_asked_for(plan):
    node = random.Random(0).choice(plan.of("samples"))
    file = next(path for path in node.folder.iterdir() if path.name != "artifact.json")
    assert set(lineage(file.as_posix()).steps) == ancestors(plan, node.id)


def test_what_other_code_made_is_noted(plan_to_change, planned):
    planned({"seeds": [3, 4], "methods": {"whitening": {"preconditioner": {"exponent": 0.25}}}})
    assert "EXPERIMENT=mine" in lineage("results/mine/tables/metrics.csv").notes[0]
    Path("results/mine/tables/metrics.csv").write_text(METRICS.replace("1.5", "1.4"))
    assert "table_files/metrics" in lineage("results/mine/tables/metrics.csv:1,value").notes[-1]


@pytest.mark.parametrize("full", [False, True])
def test_the_tree_describes_every_artifact_once(plan, full):
    traced = lineage("results/mine/tables/metrics.csv:1,value")
    lines = list(tree(traced, full=full))
    assert "value = 1.5" in lines[0]
    assert any("training seeds 3, 4" in line for line in lines)
    for node_id, step in traced.steps.items():
        described = [line for line in lines if line.endswith((f"+- {node_id}", f": {node_id}"))]
        assert len([line for line in described if "see above" not in line]) == 1
        assert any(step.fingerprint in line for line in lines)
        checksum = next(iter(step.files.values()))["sha256"]
        assert any(checksum in line for line in lines) is (full or node_id == traced.root)
    assert any("mnist5k d2f795d9" in line for line in lines)
    assert any(line.split()[-1] == traced.sha256 for line in lines)
    parameters = " ".join("\n".join(lines).replace("|", " ").split())
    assert "training.checkpoints=[30, 60]" in parameters


@pytest.mark.parametrize("target", ["metrics.csv:1,value", "paired.csv:1", "metrics.csv"])
def test_the_short_tree_fits_on_a_terminal_and_keeps_every_edge(plan, target):
    traced = lineage(f"results/mine/tables/{target}")
    lines = list(tree(traced))
    assert max(map(len, lines)) <= WIDTH
    found, path = set(), []
    for line in "\n".join(lines).replace(",\n", ", ").splitlines():  # a list of references may be wrapped
        if "+- " not in line:
            continue
        indent, said = line.split("+- ", maxsplit=1)
        ids = [word.strip(",") for word in said.split() if word.strip(",") in traced.steps]
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
    for whole in (
        f"row 1: value = {value} ",
        f"note {value} ",
        f"seeds {', '.join(map(str, seeds))} ",
        f"note: {value} ",
    ):
        assert whole in head
    assert f"row 1: value = {value}" in next(tree(traced, full=True))


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("results/mine/tables/nothing.csv", "nothing.csv"),
        ("results/mine/tables/metrics.csv:3", "rows 1 to 2"),
        ("results/mine/tables/metrics.csv:0", "rows 1 to 2"),
        ("results/mine/tables/metrics.csv:1,nothing", "nothing.*dataset, method"),
        *(
            (f"results/mine/tables/metrics.csv:{cell}", "metrics.csv")
            for cell in ("two,value", "1.5", "-1", "1,", "")
        ),
        ("results/mine/manifest.json:1", "manifest.json"),
        ("results/mine/claims.json:C3", "C3.*C2, C6"),
        ("config/smoke.yaml", "config/smoke.yaml"),
        ("results/published/claims.json", "published/claims.json"),
        ("results/mine/records/wall_time.csv", "wall_time.csv"),
    ],
)
def test_mistakes(plan_to_change, target, words):
    for file in ("published/claims.json", "mine/records/wall_time.csv"):
        Path("results", file).parent.mkdir(exist_ok=True)
        Path("results", file).write_text("{}")
    with pytest.raises(PrecfmError, match=words):
        lineage(target)


def test_a_row_that_no_artifact_stands_for_is_noted(plan_to_change):
    target = Path("results/mine/tables/metrics.csv")
    target.write_text(METRICS + "mnist5k-L16,nobody,60,frechet,1.0\n")
    assert any("no artifact" in note for note in lineage(f"{target}:3,value").notes)
    assert not any("no artifact" in note for note in lineage(f"{target}:1,value").notes)


def test_every_role_of_the_plan_is_behind_a_frame(plan):
    """Or its artifacts could never be traced to."""
    (frames,) = plan.of("frames")
    assert set(frames.params["about"]) <= {role for source in FRAMES.values() for role in source.roles}


def test_why_on_the_command_line(plan):
    invoke = CliRunner().invoke
    said = invoke(app, ["why", "results/mine/tables/metrics.csv:1,value", "--json"])
    assert said.exit_code == 0
    assert json.loads(said.stdout)["cell"]["value"] == "1.5"
    short = invoke(app, ["why", "results/mine/tables/metrics.csv"]).stdout
    full = invoke(app, ["why", "results/mine/tables/metrics.csv", "--full"]).stdout
    assert "+- frames/" in short
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
def test_the_crate_is_valid(crate, profile):
    assert issues(crate, profile) == []
    file = crate / "ro-crate-metadata.json"
    metadata = json.loads(file.read_text())
    for entity in metadata["@graph"]:
        entity.pop("instrument", None)
    file.write_text(json.dumps(metadata))
    assert any("instrument" in message for message in issues(crate, profile))
