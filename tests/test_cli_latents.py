"""`precfm diagnose | fit | transform | inverse | sample` on files, and `python -m precfm`."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import Result
from torch import Tensor
from typer.testing import CliRunner

from precfm import PreconditionedFlow, TrainingOptions, __version__
from precfm.cli import app
from precfm.core.errors import PrecfmError
from precfm.diagnosis.maps import TRIED
from precfm.latents.reading import open_latents
from precfm.preconditioners.saving import load
from precfm.preconditioners.whitening import Whitening
from tests.workflow import ROOT


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(each) for each in arguments])


def said(*arguments: object) -> str:
    done = run(*arguments)
    assert done.exit_code == 0, done.output
    return str(done.stdout)


@pytest.fixture
def x(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tensor:
    """Latents in z.npy, labels in y.npy, in the working folder."""
    monkeypatch.chdir(tmp_path)
    x = torch.randn(400, 4, generator=torch.Generator().manual_seed(0)) * torch.logspace(-1, 1, 4)
    np.save("z.npy", x.numpy())
    np.save("y.npy", np.arange(400) % 2)
    return x


def rows(path: str) -> Tensor:
    return torch.cat([batch for batch, _ in open_latents(path).batches()])


def test_diagnose_answers_people_and_programs(x: Tensor) -> None:
    assert "Recommendation (by second moments; no flow was trained): use per_channel" in said(
        "diagnose", "z.npy", "--plot", "z.png"
    )
    assert Path("z.png").stat().st_size > 1000
    found = json.loads(said("diagnose", "z.npy", "--json", "--labels", "y.npy", "--seed", 1))
    assert (found["rows"], found["classes"], found["seed"]) == (400, 2, 1)
    assert found["recommendation"]["verdict"] == "use per_channel"


def test_fit_transform_inverse_come_back(x: Tensor) -> None:
    words = said(
        "fit", "z.npy", "--map", "whitening", "--option", "exponent=0.25", "--output", "w.safetensors"
    )
    assert words == "w.safetensors: whitening of 400 rows, 14 numbers\n"
    expected = Whitening(exponent=0.25).fit(x).forward(x)
    said("transform", "w.safetensors", "z.npy", "there.npy")
    assert torch.allclose(rows("there.npy"), expected, atol=1e-5)
    said("inverse", "w.safetensors", "there.npy", "back")
    assert torch.allclose(rows("back"), x, atol=1e-4)
    assert [path.name for path in Path("back").iterdir()] == ["00000.safetensors"]


def test_names_of_the_table_are_names_of_maps(x: Tensor) -> None:
    """What `diagnose` prints to be pasted runs."""
    command = "precfm fit LATENTS --map per_channel --output map.safetensors"
    assert command in said("diagnose", "z.npy")
    for name, each in TRIED.items():
        if not each.needs_labels and not each.needs_channels:
            said("fit", "z.npy", "--map", name, "--output", f"{name}.safetensors")
    assert load("tempered_whitening.safetensors").options["exponent"] == 0.25


def test_channels_may_be_last(x: Tensor) -> None:
    maps = torch.randn(40, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    np.save("last.npy", maps.movedim(1, -1).numpy())
    fit = ("fit", "last.npy", "--map", "per_channel", "--output", "p.safetensors")
    assert said(*fit).startswith("Look first: rows of 8 x 8 x 3 look like channels last")
    assert "Look first" not in said(*fit, "--force", "--channels-last")
    assert load("p.safetensors").event_shape == (3, 8, 8)
    said("transform", "p.safetensors", "last.npy", "z1.npy", "--channels-last")
    said("inverse", "p.safetensors", "z1.npy", "back.npy")
    assert torch.allclose(rows("back.npy"), maps, atol=1e-5)


def test_labels_go_along(x: Tensor) -> None:
    said("fit", "z.npy", "--labels", "y.npy", "--map", "class_whitening", "--output", "w.safetensors")
    said("transform", "w.safetensors", "z.npy", "there", "--labels", "y.npy")
    said("inverse", "w.safetensors", "there", "back.npy")  # the shards hold their labels
    assert torch.allclose(rows("back.npy"), x, atol=1e-4)


def test_sample_gives_what_the_flow_gives(x: Tensor) -> None:
    training = TrainingOptions(steps=2, batch_size=8)
    flow = PreconditionedFlow(training=training).fit(x, torch.arange(400) % 2)
    flow.save("flow")
    said("sample", "flow", 7, "samples.npy", "--steps", 3, "--seed", 5)
    assert torch.equal(rows("samples.npy"), flow.sample(7, seed=5, steps=3))
    asked = torch.tensor([1, 0, 1])
    np.save("asked.npy", asked.numpy())
    said("sample", "flow", 3, "samples", "--labels", "asked.npy")
    found = open_latents("samples")
    assert found.labels is not None
    assert torch.equal(found.labels, asked)
    assert torch.equal(rows("samples"), flow.sample(3, asked))


def test_nothing_is_replaced_without_force(x: Tensor) -> None:
    said("fit", "z.npy", "--output", "w.safetensors")
    before = Path("w.safetensors").read_bytes()
    again: list[tuple[object, ...]] = [
        ("fit", "z.npy", "--map", "scalar", "--output", "w.safetensors"),
        ("transform", "w.safetensors", "z.npy", "z.npy"),
        ("inverse", "w.safetensors", "z.npy", "z.npy"),
    ]
    for arguments in again:
        assert "exists already" in str(run(*arguments).exception)
    assert Path("w.safetensors").read_bytes() == before
    said("transform", "w.safetensors", "z.npy", "z.npy", "--force")
    assert torch.allclose(rows("z.npy"), load("w.safetensors").forward(x))
    said(*again[0], "--force")
    assert Path("w.safetensors").read_bytes() != before
    assert {path.name for path in Path().iterdir()} == {"z.npy", "y.npy", "w.safetensors"}


def test_what_is_wrong_is_one_sentence(x: Tensor) -> None:
    said("fit", "z.npy", "--output", "w.safetensors")
    np.save("wide.npy", np.zeros((3, 5), dtype=np.float32))
    np.save("flat.npy", (x * torch.tensor([1.0, 0, 1, 1])).numpy())
    PreconditionedFlow(training=TrainingOptions(steps=1, batch_size=8)).fit(x).save("flow")
    out = ("--output", "new.safetensors")
    wrong: list[tuple[tuple[object, ...], str]] = [
        (("diagnose", "nowhere.npy"), "nowhere.npy: there is no such file"),
        (("diagnose", "z.npy", "--labels", "z.npy"), "z.npy: has shape (400, 4) and holds float32; labels"),
        (("fit", "z.npy", "--output", "w.pt"), "w.pt: ends in '.pt'; '.safetensors' is needed"),
        (("fit", "z.npy", "--map", "bleaching", *out), "--map: got 'bleaching'"),
        (("fit", "z.npy", "--map", "decoder_metric", *out), "--map: got 'decoder_metric', which needs"),
        (("fit", "z.npy", "--option", "exponent", *out), "--option: got 'exponent'; NAME=VALUE"),
        (("fit", "z.npy", "--option", "exponent=[", *out), "--option: got 'exponent=[', whose value"),
        (("fit", "z.npy", "--option", "exponent=7", *out), "--map: 'whitening': exponent: got 7"),
        (
            ("fit", "z.npy", "--option", "power=0.5", *out),
            "--map: 'whitening': power: got 0.5; no such option; did you mean exponent",
        ),
        (
            ("fit", "z.npy", "--map", "class_whitening", *out),
            "z.npy: has no labels, on which class_whitening",
        ),
        (("transform", "nowhere.safetensors", "z.npy", "o.npy"), "nowhere.safetensors: no such file"),
        (
            ("transform", "w.safetensors", "wide.npy", "o.npy"),
            "wide.npy: has rows of shape (5,); w.safetensors needs",
        ),
        (("transform", "z.npy", "z.npy", "o.npy"), "z.npy: holds no map but a tensor (400, 4)"),
        (("diagnose", "w.safetensors"), "w.safetensors: holds a fitted map"),
        (("diagnose", "flow"), "flow: holds a trained flow"),
        (("diagnose", "flat.npy"), "flat.npy: is constant in feature 1"),
        (("diagnose", "z.npy", "--train", "0.0001"), "--train: got 0.0001; at least"),
        (("diagnose", "z.npy", "--dense-features", 0), "--dense-features: got 0"),
        (("fit", "z.npy", "--channels-last", *out), "z.npy: has shape (400, 4); with channels_last"),
        (("transform", "flow", "z.npy", "o.npy"), "flow: holds a trained flow"),
        (("sample", "w.safetensors", 3, "o.npy"), "w.safetensors: is a file"),
        (("fit", "z.npy", "--option", "name=scalar", *out), "--option: got 'name=scalar'; --map"),
        (("fit", "z.npy", "--output", "z.npy/w.safetensors"), "z.npy/w.safetensors: z.npy is a file"),
        (("diagnose", "z.npy", "--device", "cuda"), "--device: got cuda, but is of images"),
        (("diagnose", "z.npy", "--tensor", "z"), "z.npy: holds one tensor without a name"),
        (("inverse", "w.safetensors", "z.npy", "o.csv"), "o.csv: ends in '.csv'; '.npy'"),
        (("sample", "nowhere", 3, "o.npy"), "nowhere"),
        (("sample", "flow", 3, "o.npy", "--labels", "y.npy"), "y.npy: holds 400 labels; 3 are needed"),
    ]
    before = set(Path().iterdir())
    for arguments, sentence in wrong:
        done = run(*arguments)
        assert isinstance(done.exception, PrecfmError), (arguments, done.output)
        assert str(done.exception).startswith(sentence), done.exception
        assert "\n" not in str(done.exception)
        assert set(Path().iterdir()) == before, arguments


@pytest.mark.parametrize("module", ["precfm", "precfm.cli"])
def test_modules_run_as_the_command(module: str) -> None:
    def process(*arguments: str) -> Any:
        command = [sys.executable, "-m", module, *arguments]
        return subprocess.run(command, capture_output=True, text=True, cwd=ROOT)

    assert process("--version").stdout == f"precfm {__version__}\n"
    failed = process("diagnose", "nowhere.npy")
    assert (failed.returncode, failed.stdout) == (1, "")
    assert failed.stderr == "precfm: nowhere.npy: there is no such file or folder\n"
