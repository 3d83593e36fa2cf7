"""Your own latents: no images, no encoder, no judge; all that needs no image comes out."""

import dataclasses

import pytest
import torch
import yaml

from precfm.core.errors import PrecfmError
from precfm.datasets.manifest import SourceFile, files_checksum
from precfm.pipeline.artifact import Artifact
from precfm.pipeline.build import build
from precfm.pipeline.job import script_of
from precfm.pipeline.plan import load_plan

SHAPE = (4, 2, 2)
SIZES = {"train": 100, "validation": 30, "heldout": 70}
FILE = SourceFile("latents.npy", 1, "0" * 64)
SOURCE = {"checksum": files_checksum([FILE]), "files": str(FILE)}


class OwnLatents:
    """What a source of latents says to a plan."""

    kind = "latents"
    counts = ()

    def __init__(self, *, source: str = "own") -> None:
        self.source = source


@dataclasses.dataclass
class Rows:
    """Makes the splits of the artifact `data`."""

    seed: int = 0

    def __call__(self, job):
        generator = torch.Generator().manual_seed(self.seed)
        job.write_json("about.json", {"latent_shape": list(SHAPE)})
        scales = torch.logspace(-1, 0, 16).reshape(SHAPE)
        for split, rows in SIZES.items():
            labels = torch.arange(rows) % 2
            latents = torch.randn(rows, *SHAPE, generator=generator) * scales + labels[:, None, None, None]
            job.write_tensors(f"{split}.safetensors", {"latents": latents, "labels": labels})


@pytest.fixture
def own(project):
    """Plans an experiment on own latents, with changes."""
    with (project / "data/sources.yaml").open("a", encoding="utf-8") as file:
        file.write("\n" + yaml.safe_dump({"own": SOURCE}))

    def plan(**change):
        content = {
            "description": "own latents",
            "datasets": {"mine": {"source": {"name": "tests.test_own_latents:OwnLatents"}, **SIZES}},
            "flow": {
                "model": {"name": "mlp", "width": 16, "depth": 2},
                "path": {"name": "linear"},
                "training": {"steps": 12, "batch_size": 16, "learning_rate": 1e-3, "checkpoints": [6, 12]},
            },
            "methods": {
                "none": {"preconditioner": {"name": "none"}},
                "per_channel": {"preconditioner": {"name": "per_channel"}},
            },
            "seeds": [0, 1],
            "settings": {"plain": {"likelihood": True}},
            "sampling": {"n": 80, "steps": 4},
            "likelihood": {"points": 10},
            **change,
        }
        (project / "config/owned.yaml").write_text(yaml.safe_dump(content))
        return load_plan("owned")

    return plan


def test_every_table_that_needs_no_image_comes_out(own):
    plan = own()
    assert not plan.of("encoders") + plan.of("classifiers") + plan.of("decoder_metrics")
    drawn = {"sample_grids", "recovery"}
    for node in plan.nodes.values():
        if node.kind == "figure_files" and node.label not in drawn:
            continue  # takes time, and says the same
        if node.kind != "pages":
            build(node, Rows() if node.kind == "data" else script_of(node))
    tables = {node.label: Artifact.open(node.folder) for node in plan.of("table_files")}
    filled = {name for name, artifact in tables.items() if f"{name}.csv" in artifact.record["files"]}
    assert filled >= {
        "sides",
        "metrics",
        "paired",
        "latents",
        "conditioning",
        "recovery",
        "training",
        "methods",
    }
    sides = tables["sides"].frame("sides.csv")
    assert set(zip(sides["metric"], sides["space"], strict=True)) == {
        ("eigenvalue_log_error_low", "latent"),
        ("frechet", "latent-whitened"),
        ("nll", "latent"),
        ("nearer_train", "latent"),
    }
    latents = tables["latents"].frame("latents.csv").set_index("quantity")["value"]
    assert latents["train_rows"] == SIZES["train"]
    assert "squared_error" not in latents.dropna()
    figures = {node.label: node.folder for node in plan.of("figure_files") if node.exists}
    assert "no sample images" in (figures["sample_grids"] / "sample_grids.md").read_text()
    assert (figures["recovery"] / "recovery.pdf").is_file()
    reasons = {name: (tables[name].folder / f"{name}.md").read_text() for name in tables.keys() - filled}
    assert all("is left out: " in reason for reason in reasons.values())


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"settings": {"quick": {"recipe": "tuned"}}}, r"settings\.quick\.recipe"),
        (
            {"methods": {"decoder_metric": {"preconditioner": {"name": "decoder_metric"}}}},
            r"datasets\.mine: has latents and no decoder",
        ),
        (
            {
                "datasets": {
                    "mine": {
                        "source": {"name": "tests.test_own_latents:OwnLatents"},
                        **SIZES,
                        "judges": {"report": ["pixels"]},
                    }
                }
            },
            r"judges: given, but 'own' has latents",
        ),
    ],
)
def test_what_needs_images_is_refused_at_planning(own, change, field):
    with pytest.raises(PrecfmError, match=field):
        own(**change)


def test_latents_that_are_not_finite_are_named_by_row(own):
    def spoiled(job):
        Rows()(job)
        bad = torch.zeros(30, *SHAPE)
        bad[7, 0, 0, 0] = torch.nan
        job.write_tensors("validation.safetensors", {"latents": bad, "labels": torch.zeros(30).long()})

    plan = own()
    build(*plan.of("data"), spoiled)
    (latents,) = plan.of("latents")
    with pytest.raises(PrecfmError, match="validation latents: row 7"):
        build(latents, script_of(latents))
