"""The real workflow on real images: Snakemake judges, DVC records, and nothing runs twice.

One run of the experiment `smoke` in a fresh clone is shared by all tests here; each test leaves the clone as whole
as it found it.
"""

import hashlib
import itertools
import json
import os
import re
import shutil
import sys
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
import pytest
import yaml

from tests.workflow import BIN, ROOT, bytes_below, clone, git, jobs, reproduce, run

pytestmark = pytest.mark.xdist_group("workflow")


def test_everything_is_made_and_nothing_of_it_is_git_s(made):
    home = made / "results/smoke"
    for name in (
        "tables/metrics.csv",
        "tables/metrics.md",
        "tables/metrics.tex",
        "figures/spectra.pdf",
        "figures/spectra.png",
    ):
        assert (home / name).stat().st_size > 0, name
    manifest = json.loads((home / "manifest.json").read_text())
    listed = run(made, BIN / "precfm", "ls", "smoke").splitlines()
    assert {line.removeprefix("+ ") for line in listed} == set(manifest["artifacts"])
    assert json.loads((home / "claims.json").read_text())
    assert run(made, "git", "status", "--porcelain", "--", "results") == ""


def test_publishing_says_which_revision_made_it(made, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(made, copy, symlinks=True)
    said = run(copy, BIN / "precfm", "publish", "smoke")
    assert "results/published/smoke" in said
    home = copy / "results/published/smoke"
    listed = {line[3:] for line in git(copy, "status", "--porcelain", "-uall", "--", "results").splitlines()}
    assert {f"results/published/smoke/{name}" for name in ("manifest.json", "tables/metrics.csv")} <= listed
    assert all(name.startswith("results/published/") for name in listed)
    head = git(copy, "rev-parse", "HEAD").strip()
    assert json.loads((home / "manifest.json").read_text())["revision"] == {"commit": head, "clean": True}
    manifest = json.loads((home / "manifest.json").read_text())
    (frames,) = (entry for name, entry in manifest["artifacts"].items() if name.startswith("frames/"))
    for file in (home / "frames").glob("*.csv"):
        assert frames["files"][file.name]["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    merged = (copy / "results/published/claims.md").read_text()
    assert re.search(rf"smoke: revision {head[:12]}, (\d+) of \1 keys", merged)


def test_a_second_run_makes_nothing_and_changes_nothing_and_imports_no_torch(made):
    before = bytes_below(made / "results"), (made / "dvc.lock").read_bytes()
    without_torch = made.parent / "without_torch"
    (without_torch / "torch").mkdir(parents=True)
    (without_torch / "torch/__init__.py").write_text("raise ImportError('a run that has nothing to do')")
    path = f"{without_torch}{os.pathsep}{made}"
    said = reproduce(made, PYTHONPATH=path)
    assert jobs(said) == {}
    assert "0 missing" in run(made, BIN / "precfm", "status", "smoke", PYTHONPATH=path)
    assert (bytes_below(made / "results"), (made / "dvc.lock").read_bytes()) == before


def test_touched_files_make_nothing(made):
    for file in (made / "results/smoke").rglob("artifact.json"):
        file.touch()
    assert jobs(reproduce(made)) == {}


def test_a_deleted_artifact_is_made_again_with_the_same_bytes_once_it_is_asked_for(made):
    """The default target needs what the products need, and they are there."""
    (latents,) = (made / "results/smoke/latents").iterdir()
    before, ledger = bytes_below(latents), (made / "dvc.lock").read_bytes()
    shutil.rmtree(latents)
    said = reproduce(made)
    assert jobs(said) == {}
    assert f"latents/{latents.name}" in said
    assert (made / "dvc.lock").read_bytes() == ledger
    assert jobs(reproduce(made, "--target", "latents")) == {"encode": 1, "all_latents": 1}
    assert bytes_below(latents) == before


def rulegraph(folder, *config):
    """The arrows between rules that Snakemake draws."""
    command = [BIN / "snakemake", "--workflow-profile", "profiles/default", "--rulegraph", "--config"]
    drawn = run(folder, *command, "experiment=smoke", *config)
    names = dict(re.findall(r'(\d+)\[label = "(\w+)"', drawn))
    return {(names[one], names[other]) for one, other in re.findall(r"(\d+) -> (\d+)", drawn)}


def test_what_exists_of_a_batch_keeps_nobody_waiting_for_the_rest(made, tmp_path):
    """A map that cannot be fitted must not stop the flows behind the others of its job."""
    copy = tmp_path / "copy"
    shutil.copytree(made, copy, symlinks=True)
    flows = [path for path in (copy / "results/smoke/flows").iterdir() if "-s0-" in path.name]
    behind = {
        name: next(path for path in flows if f"-{name}-" in path.name) for name in ("none", "whitening")
    }
    for folder in (*behind.values(), next((copy / "results/smoke/preconditioners").glob("*-whitening-*"))):
        shutil.rmtree(folder)
    command = [BIN / "snakemake", "--workflow-profile", "profiles/default", "--config", "experiment=smoke"]
    drawn = run(copy, *command, "--dag", "--", "all_flows")
    to_be_made = "\n".join(line for line in drawn.splitlines() if "dashed" not in line)
    rules = dict(re.findall(r'(\d+)\[label = "(\w+)', to_be_made))
    names = dict(re.findall(r'(\d+)\[label = "\w+\\nkind: flows\\nname: ([^"]+)"', to_be_made))
    arrows = re.findall(r"(\d+) -> (\d+)", drawn)
    waiting = {names[other] for one, other in arrows if rules.get(one) == "fit_preconditioner"}
    assert set(names.values()) == {path.name for path in behind.values()}
    assert waiting == {behind["whitening"].name}


def test_the_whole_graph_can_be_drawn_where_everything_exists(made):
    assert rulegraph(made) == {("products", "all")}
    graph = rulegraph(made, "full_graph=true")
    steps = ["split_data", "encode", "fit_preconditioner", "train_flow", "sample_and_evaluate", "gather"]
    steps += ["make_tables", "products", "all"]
    assert set(itertools.pairwise(steps)) <= graph
    picture = (ROOT / "docs/rulegraph.svg").read_text()
    names = dict(re.findall(r"<title>(\d+)</title>.*?<text [^>]*>(\w+)</text>", picture, re.DOTALL))
    arrows = re.findall(r"<title>(\d+)&#45;&gt;(\d+)</title>", picture)
    assert {(names[one], names[other]) for one, other in arrows} == graph


@pytest.mark.slow
def test_two_runs_from_scratch_give_the_same_bytes(made, tmp_path):
    """The products and every artifact; the second run is made without Snakemake, by `precfm make`."""
    again = clone(made, tmp_path / "again")
    (again / "params.yaml").write_text("experiments: []\nsources: []\n")
    run(again, BIN / "precfm", "make", "smoke")
    for kind in [
        path.name for path in (made / "results/smoke").iterdir() if path.name != "records" and path.is_dir()
    ]:
        assert bytes_below(again / "results/smoke" / kind) == bytes_below(made / "results/smoke" / kind), kind


@pytest.mark.slow
@pytest.mark.parametrize(
    ("experiment", "comparisons", "methods"),
    [
        ("mnist-vae16", 3, {"none", "whitening"}),
        ("paper-mnist", 14, {"none", "whitening"}),
        ("flowers256", 3, {"scalar", "per_frequency", "low_capacity_flow", "gaussian_skip", "mixture_skip"}),
    ],
)
def test_the_long_experiments_work_from_end_to_end(tmp_path, experiment, comparisons, methods):
    """Every method of every setting in a few steps, by the code that makes the long runs."""
    if "PRECFM_MIRROR" not in os.environ:
        pytest.skip("MNIST and flowers256.zip are needed: set PRECFM_MIRROR to a folder that holds them")
    copy = clone(ROOT, tmp_path / "copy")
    config = copy / f"config/{experiment}.yaml"
    config.write_text(config.read_text().replace("cuda", "cpu"))
    run(copy, BIN / "precfm", "make", experiment, "--tiny")
    said = run(copy, BIN / "precfm", "ls", f"{experiment}-tiny", "--missing").splitlines()
    assert not [line for line in said if not line.startswith("precfm: stand-ins")]
    (metrics,) = (copy / f"results/{experiment}-tiny/table_files").glob("metrics-*/metrics.csv")
    table = pd.read_csv(metrics)
    assert methods | {"normalizing_flow-P", "normalizing_flow-F"} <= set(table["method"])
    assert table["dataset"].nunique() == comparisons


@pytest.mark.slow
def test_photographs_go_through_the_whole_workflow(tmp_path):
    """A block-DCT, a U-Net, maps and skips for feature maps, and judges of photographs, by the real command."""
    if "PRECFM_MIRROR" not in os.environ:
        pytest.skip("flowers256.zip is needed: set PRECFM_MIRROR to a folder that holds it")
    copy = clone(ROOT, tmp_path / "copy")
    run(copy, sys.executable, "workflow_scripts/reproduce.py", "flowers-smoke")
    records = pd.read_csv(copy / "results/flowers-smoke/tables/metrics.csv")
    assert {"imagenet", "pixels", "imagenet-decoded", "latent", "latent-whitened"} <= set(records["space"])
    assert {"kid", "frechet_pca64", "nll", "band_log_error_high", "eigenvalue_log_error_low"} <= set(
        records["metric"]
    )
    assert "frechet" not in set(records["metric"])  # of 100 rows there is none
    assert (copy / "results/flowers-smoke/figures/sample_grids.png").stat().st_size > 10_000


def test_clone_and_pull_run_nothing_but_products_and_one_parameter_runs_one_method(made, tmp_path):
    store, colleague = tmp_path / "store", tmp_path / "colleague"
    run(made, BIN / "dvc", "remote", "add", "--force", "--default", "local", str(store))
    run(made, BIN / "dvc", "push", "--quiet")
    git(made, "add", "--all")
    git(made, "commit", "--quiet", "--message", "recorded")
    clone(made, colleague)
    run(colleague, sys.executable, "workflow_scripts/pull.py", "smoke")
    assert set(jobs(reproduce(colleague))) <= {"products", "all"}

    config = colleague / "config/smoke.yaml"
    right = config.read_text()
    changed = yaml.safe_load(right)
    changed["methods"]["whitening"] = {"preconditioner": {"exponent": 0.25}}
    config.write_text(yaml.safe_dump(changed))
    ran = jobs(reproduce(colleague))
    seeds, alone = 2, 1
    assert ran["fit_preconditioner"] == ran["diagnose"] == 1
    assert (ran["train_flow"], ran["sample_and_evaluate"]) == (seeds, seeds + alone)
    assert not {"split_data", "train_classifier", "train_encoder", "encode", "extract_features"} & set(ran)
    kept, new = (set((home / "keys/smoke/flows.txt").read_text().split()) for home in (made, colleague))
    assert {name.rpartition("-")[0] for name in new - kept} == {
        f"mnist5k-L16-whitening-s{seed}" for seed in (0, 1)
    }

    config.write_text(right)
    assert set(jobs(reproduce(colleague))) <= {"products", "all"}
    assert stages_changed(colleague) == set()
    assert bytes_below(colleague / "results/smoke/flows") == bytes_below(made / "results/smoke/flows")


def test_pulling_keeps_what_only_this_machine_has(made, tmp_path):
    store, colleague = tmp_path / "store", tmp_path / "colleague"
    run(made, BIN / "dvc", "remote", "add", "--force", "--default", "local", str(store))
    run(made, BIN / "dvc", "push", "--quiet")
    git(made, "add", "--all")
    git(made, "commit", "--quiet", "--allow-empty", "--message", "recorded")
    clone(made, colleague)
    mine = colleague / "results/smoke/flows/mine-0123456789ab"
    shutil.copytree(next((made / "results/smoke/flows").iterdir()), mine)
    run(colleague, sys.executable, "workflow_scripts/pull.py", "smoke", "--kind", "flows")
    assert bytes_below(colleague / "results/smoke/flows") == bytes_below(made / "results/smoke/flows")
    assert (colleague / "results/.attic/flows/mine-0123456789ab/artifact.json").is_file()
    assert not (colleague / "results/smoke/latents").exists()


def stages_changed(folder):
    """What `dvc status` says has changed, but for the stage that looks at the code each time."""
    found = json.loads(run(folder, BIN / "dvc", "status", "--json"))
    assert "always changed" in found.pop("keys@smoke")
    return {name.partition("@")[0] for name in found}


def test_dvc_sees_a_change_of_code_exactly_where_a_key_has_changed(made):
    ledger = (made / "dvc.lock").read_bytes()

    def changed_by(file):
        with appended(made / file, "\nCHANGED = 1\n"):
            run(made, BIN / "precfm", "keys")
            return stages_changed(made)

    assert changed_by("precfm/cli/checking.py") == set()
    assert changed_by("precfm/report/verdicts.py") == {"pages", "verdicts"}
    flows = {"flows", "samples", "evaluations", "frames", "table_files", "figure_files", "verdicts", "pages"}
    around = {"recipes", "budgets", "kernels", "skips", "likelihoods"}
    assert changed_by("precfm/preconditioned_flow.py") == flows | around
    assert changed_by("workflow_scripts/flows.py") == flows | {"likelihoods"}
    run(made, BIN / "precfm", "keys")
    assert stages_changed(made) == set()
    assert (made / "dvc.lock").read_bytes() == ledger


@contextmanager
def appended(file, text):
    before = file.read_text()
    file.write_text(before + text)
    try:
        yield
    finally:
        file.write_text(before)


def test_dvc_repro_makes_what_a_changed_configuration_asks_for(made, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(made, copy, symlinks=True)
    config = copy / "config/smoke.yaml"
    changed = yaml.safe_load(config.read_text())
    changed["evaluation"] = {"neighbours": 4}
    config.write_text(yaml.safe_dump(changed))
    said = run(copy, BIN / "dvc", "repro", "evaluations@smoke")
    ran = set(re.findall(r"Running stage '(\w+)@smoke'", said))
    assert ran == {"keys", "evaluations"}
    new = set((copy / "keys/smoke/evaluations.txt").read_text().split())
    assert new == {path.name for path in (copy / "results/smoke/evaluations").iterdir()}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"sampling": {"n": "many"}}, ["config/smoke.yaml", "sampling.n", "'many'"]),
        (
            {"methods": {"x": {"preconditioner": {"name": "magic"}}}},
            ["config/smoke.yaml", "methods.x", "magic", "whitening"],
        ),
    ],
)
def test_a_wrong_configuration_stops_before_the_first_job(made, tmp_path, change, words):
    copy = clone(made, tmp_path / "copy")
    config = copy / "config/smoke.yaml"
    wrong = yaml.safe_load(config.read_text())
    for group, fields in change.items():
        wrong[group].update(fields)
    config.write_text(yaml.safe_dump(wrong))
    said = reproduce(copy, code=1)
    line = next(line for line in said.splitlines() if line.startswith("precfm: "))
    for word in words:
        assert word in line
    assert "Traceback" not in said


def test_a_corrupt_artifact_stops_the_first_job_that_meets_it_and_nothing_is_lost(made):
    (latents,) = (made / "results/smoke/latents").iterdir()
    file = latents / "train.safetensors"
    right = file.read_bytes()
    flows = made / "results/smoke/flows"
    victim = sorted(flows.iterdir())[0]
    kept = bytes_below(victim)
    shutil.rmtree(victim)
    file.write_bytes(right[:-1] + bytes([right[-1] ^ 1]))
    said = reproduce(made, "--target", "flows", code=1)
    assert f"results/smoke/latents/{latents.name}/train.safetensors: damaged" in said
    assert len(list(flows.iterdir())) >= 5
    file.write_bytes(right)
    record = latents / "artifact.json"
    content = record.read_bytes()
    record.write_bytes(content.replace(b'"kind"', b'"Kind"', 1))
    reproduce(made, "--target", "flows")
    assert record.read_bytes() == content
    assert bytes_below(victim) == kept


def test_jobs_start_where_the_interpreter_s_path_has_a_space(made, tmp_path):
    """Snakemake hands the path to a shell as it is."""
    home = tmp_path / "with space"
    copy = home / "precfm"
    shutil.copytree(made, copy, symlinks=True)
    (home / "venv").symlink_to(Path(sys.prefix))
    shutil.rmtree(copy / "results/smoke/theory")
    command = [home / "venv/bin/python", "-m", "snakemake", "--workflow-profile", "profiles/default"]
    said = run(copy, *command, "--config", "experiment=smoke", "--", "all_theory")
    assert jobs(said) == {"run_theory": 2, "all_theory": 1}
    assert bytes_below(copy / "results/smoke/theory") == bytes_below(made / "results/smoke/theory")


def test_the_lint_of_snakemake_is_clean(made):
    said = run(made, BIN / "snakemake", "--lint", "--config", "experiment=smoke", code=1)
    found = {line.strip() for line in said.splitlines() if line.startswith("    * ")}
    assert found == {"* Specify a conda environment or container for each rule.:"}


def test_the_report_of_snakemake_is_one_file(made, tmp_path):
    report = tmp_path / "report.html"
    command = [BIN / "snakemake", "--workflow-profile", "profiles/default", "--config", "experiment=smoke"]
    run(made, *command, "--report", report)
    text = report.read_text()
    assert "spectra" in text
    assert "metrics" in text
