"""Latents in shards: a flow is trained from files that are mapped into memory, to the same bytes."""

import shutil

import pytest
from safetensors.torch import save_file

from precfm.core.errors import PrecfmError
from precfm.pipeline import shards
from precfm.pipeline.artifact import Artifact
from precfm.pipeline.build import build
from precfm.pipeline.job import script_of
from precfm.pipeline.node import Node
from precfm.preconditioned_flow import PreconditionedFlow
from precfm.preconditioners.saving import save
from precfm.preconditioners.whitening import Whitening
from precfm.training.options import TrainingOptions
from precfm.training.shards import ShardedRows
from tests.test_training import clusters

TRAINING = {"steps": 12, "batch_size": 16, "checkpoints": (6, 12), "save_every": 5}
LATENTS = Node("latents", "data", "a" * 12, {}, {}, "", "mine")
MAP = Node("preconditioners", "map", "b" * 12, {}, {}, "", "mine")
SKIP = Node("skips", "skip", "c" * 12, {}, {}, "", "mine")
ROWS, ROW_BYTES = len(clusters()[0]), clusters()[0][0].numel() * 4


@pytest.fixture(autouse=True)
def fitted_map(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    build(MAP, lambda job: save(Whitening().fit(clusters()[0]), job.folder))


def files(flow):
    """The files of the artifact, once it is made anew."""
    shutil.rmtree(flow.folder, ignore_errors=True)
    assert build(flow, script_of(flow))
    return {file.name: file.read_bytes() for file in flow.folder.iterdir()}


def latents(monkeypatch, rows_in_shard):
    """Latents as artifact, in shards of so many rows."""
    x1, labels = clusters()
    shutil.rmtree(LATENTS.folder, ignore_errors=True)
    monkeypatch.setattr(shards, "SHARD_BYTES", rows_in_shard * ROW_BYTES)
    build(
        LATENTS,
        lambda job: job.write_rows(
            "train.safetensors", ROWS, ROW_BYTES,
            lambda start, stop: {"latents": x1[start:stop].clone(), "labels": labels[start:stop].clone()},
        ),
    )  # fmt: skip
    return len(Artifact.open(LATENTS.folder).shards("train.safetensors"))


@pytest.mark.parametrize(
    ("wrapper", "objective", "from_shards"),
    [
        (None, {"name": "flow_matching"}, True),
        ("gaussian_skip", {"name": "flow_matching", "time": "logit_normal"}, True),
        ({"name": "mixture_label", "components": 2}, {"name": "flow_matching"}, True),
        (None, {"name": "denoising_score", "time": "kappa_directed"}, False),
        (None, {"name": "flow_matching", "metric": "inverse_variance"}, False),
    ],
)
def test_trained_from_shards_to_the_same_bytes(monkeypatch, wrapper, objective, from_shards):
    wrappers = [] if wrapper is None else [{"name": wrapper} if isinstance(wrapper, str) else wrapper]
    settings = {"model": {"name": "mlp", "width": 16, "depth": 2}, "path": {"name": "linear"}}
    settings |= {"wrappers": wrappers, "objective": objective, "training": TRAINING}
    parents = {"latents": (LATENTS.id,), "preconditioner": (MAP.id,)}
    if wrappers:
        x1, labels = clusters()
        like = PreconditionedFlow(Whitening().fit(x1), wrappers=wrappers).prepare(x1, labels)
        build(SKIP, lambda job: job.write_tensors("wrappers.safetensors", like.wrapper_state()))
        parents["skip"] = (SKIP.id,)
    flow = Node("flows", "white", "d" * 12, {"flow": settings, "seed": 3}, parents, "", "mine")
    opened = []
    init = ShardedRows.__init__

    def counted(rows, paths, **how):
        opened.append(len(paths))
        init(rows, paths, **how)

    monkeypatch.setattr(ShardedRows, "__init__", counted)
    assert latents(monkeypatch, ROWS) == 1
    whole = files(flow)
    assert opened == []
    assert (count := latents(monkeypatch, 37)) > 2
    assert files(flow) == whole
    assert opened == ([count] if from_shards else [])


def test_what_is_fitted_to_all_rows_refuses_some_of_them(tmp_path):
    x1, labels = clusters()
    how = {"training": TrainingOptions(steps=2, batch_size=4)}
    counts = labels.bincount().tolist()
    flow = PreconditionedFlow(Whitening().fit(x1), wrappers="gaussian_skip", **how)
    with pytest.raises(PrecfmError, match=r"^label_counts: given"):
        flow.prepare(x1[:50], labels[:50], label_counts=counts)
    plain = PreconditionedFlow(Whitening().fit(x1), **how).prepare(x1[:50], labels[:50], label_counts=counts)
    assert plain.description()["label_counts"] == counts
    z1, classes = plain.mapped_rows(x1, labels)
    save_file({"latents": z1, "labels": classes}, tmp_path / "rows.safetensors")
    assert plain.train(rows=ShardedRows([tmp_path / "rows.safetensors"])).steps_run == 2
