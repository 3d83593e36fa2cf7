"""Pinned models: named by checksum, trained on nothing that evaluates, the same wherever they are used."""

import hashlib
import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from precfm.audit.models import check_models
from precfm.audit.report import Report
from precfm.core.errors import PrecfmError
from precfm.core.serialization import load_network, new_network, save_network
from precfm.datasets.image_hashes import image_hashes
from precfm.datasets.manifest import add_source
from precfm.datasets.mnist5k import MNIST5k
from precfm.datasets.sources import fetch_raw
from precfm.datasets.splits import make_splits
from precfm.encoders.base import load
from precfm.pipeline.artifact import Artifact
from precfm.pipeline.build import build
from precfm.pipeline.job import script_of
from precfm.pipeline.node import MODELS
from precfm.pipeline.pinned import PinnedModel, as_text, pinned_model, read_record
from precfm.pipeline.pinning import pin, rename_in_configurations, trained_models
from precfm.pipeline.plan import load_plan
from tests.workflow import ROOT

SIZES = {"train": 600, "validation": 200, "heldout": 300}
CLASSIFIER = {"name": "digit_classifier", "width": 2, "feature_dim": 4}
ENCODER = {"name": "conv_vae", "latent_dim": 3, "width": 2, "hidden": 4}
FILLED_IN = {
    "extractors": {"channels": 1, "image_size": 28, "num_classes": 10},
    "encoders": {"channels": 1, "image_size": 28},
}


@pytest.fixture
def splits(project):
    """The digits of the splits that the tests' data set has."""
    images = MNIST5k().load(fetch_raw("mnist5k")[0])
    return {name: images.images[index] for name, index in make_splits(images.labels, **SIZES, seed=0).items()}


@pytest.fixture
def place(project, splits):
    """Puts a small model into data/models/ and gives how a configuration names it."""
    (project / MODELS).unlink()
    (project / MODELS).mkdir()

    def put(name, group="extractors", *, seed=0, seen="train", **filled_in):
        spec = CLASSIFIER if group == "extractors" else ENCODER
        network, description = new_network(group, spec, seed, **{**FILLED_IN[group], **filled_in})
        save_network(network, description, project)
        weights = (project / "model.safetensors").read_bytes()
        (project / MODELS / f"{name}.safetensors").write_bytes(weights)
        np.save(project / MODELS / f"{seen}.npy", np.sort(image_hashes(splits[seen][:100])))
        images = (project / MODELS / f"{seen}.npy").read_bytes()
        record = PinnedModel(
            network=description,
            sha256=hashlib.sha256(weights).hexdigest(),
            training={"steps": 1},
            seed=seed,
            data={"source": "mnist5k"},
            images={"file": f"{seen}.npy", "sha256": hashlib.sha256(images).hexdigest(), "count": 100},
            made_by={},
        )
        (project / MODELS / f"{name}.json").write_text(as_text(record))
        return f"{name}@{record.sha256[:12]}"

    return put


def experiment(report, select, encoder=None):
    """`smoke` with pinned classifiers, and a pinned encoder."""
    encoders = {"L16": None, "tiny": {"pinned": encoder}} if encoder else {}
    name = "tiny" if encoder else "L16"
    return {
        "datasets": {"mnist5k": {"classifiers": {"report": report, "select": select}}},
        "encoders": encoders,
        "settings": {"plain": {"encoders": [name]}, "tuned": {"encoders": [name]}},
        "classifiers": None,
    }


def test_the_key_holds_the_checksum_and_the_weights_are_copied(planned, place):
    report, select = [place("a"), place("b", seed=1)], place("c", seed=2)
    encoder = place("vae", "encoders")
    plan = planned(experiment(report, select, encoder))
    assert {node.label for node in plan.of("classifiers")} == {"a", "b", "c"}
    (recipe,) = plan.of("recipes")
    assert [plan.node(each).label for each in recipe.parents["classifier"]] == ["c"]
    assert all(
        [plan.node(each).label for each in node.parents["classifiers"]] == ["a", "b"]
        for node in plan.of("evaluations")
    )
    for node in plan.with_missing_parents(each.id for each in plan.of("encoders")):
        build(node, script_of(node))
    (made,) = plan.of("encoders")
    assert made.params["pinned"]["sha256"].startswith(encoder.partition("@")[2])
    network = load_network(Artifact.open(made.folder).verified())
    expected, _ = new_network("encoders", ENCODER, 0, **FILLED_IN["encoders"])
    for name, value in expected.state_dict().items():
        assert torch.equal(network.state_dict()[name], value)


@pytest.mark.parametrize(
    ("spoil", "field"),
    [
        (lambda name: name.partition("@")[0], "NAME@CHECKSUM"),
        (lambda name: "other@" + name.partition("@")[2], "got 'other'; data/models/ holds a"),
        (lambda name: name[:-12] + "0" * 12, "records the checksum"),
        (lambda name: "../" + name, "NAME@CHECKSUM"),
    ],
)
def test_a_model_that_is_not_there_is_refused_at_planning(planned, place, spoil, field):
    good = place("a")
    with pytest.raises(PrecfmError, match=r"datasets\.mnist5k\.classifiers\.report\.0") as caught:
        planned(experiment([spoil(good)], place("c", seed=2)))
    assert field in str(caught.value)


@pytest.mark.parametrize(
    ("changed", "field"),
    [
        ({"network": {"group": "extractors", "name": "digit_classifier", "options": {}}}, "options.channels"),
        ({"seed": "none"}, "seed: "),
        ({"images": {"file": "../train.npy", "sha256": "0" * 64, "count": 1}}, "images.file: "),
    ],
)
def test_a_record_that_is_none_is_refused_at_planning(planned, project, place, changed, field):
    report, select = [place("a")], place("c", seed=2)
    file = project / MODELS / "a.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changed}))
    with pytest.raises(PrecfmError, match=r"data/models/a\.json: damaged") as caught:
        planned(experiment(report, select))
    assert field in str(caught.value)


@pytest.mark.parametrize(
    "hashes",
    [
        np.zeros(0, np.uint64),
        np.zeros(100, np.float64),
        np.array(["a"] * 100),
        np.arange(100, dtype=np.uint64)[::-1],
        np.zeros((100, 1), np.uint64),
        np.array([None] * 100),
    ],
)
def test_a_file_that_holds_no_hashes_vouches_for_nothing(planned, project, place, hashes):
    """Its checksum is right, so only what it holds can tell."""
    report, select = [place("a")], place("c", seed=2)
    images = project / MODELS / "train.npy"
    np.save(images, hashes, allow_pickle=True)
    for name in "ac":
        file = project / MODELS / f"{name}.json"
        record = json.loads(file.read_text())
        record["images"]["sha256"] = hashlib.sha256(images.read_bytes()).hexdigest()
        file.write_text(json.dumps(record))
    with pytest.raises(PrecfmError, match=r"data/models/train\.npy: is no sorted list of 100 hashes"):
        planned(experiment(report, select))


def test_a_classifier_is_no_encoder(planned, place):
    report = [place("a")]
    with pytest.raises(PrecfmError, match=r"encoders\.tiny\.pinned: got 'a'"):
        planned(experiment(report, place("c", seed=2), report[0]))


def test_the_classifier_that_selects_does_not_report(planned, place):
    report = [place("a"), place("b", seed=1)]
    with pytest.raises(PrecfmError, match=r"datasets\.mnist5k\.classifiers: select"):
        planned(experiment(report, report[1]))
    copy = place("copy", seed=1)  # another name, the same weights
    with pytest.raises(PrecfmError, match=r"datasets\.mnist5k\.classifiers: select"):
        planned(experiment(report, copy))


@pytest.mark.parametrize("change", [{"selection_seed": 101}, {"seeds": [100, 1000]}])
def test_the_classifier_that_is_trained_for_selection_does_not_report(planned, change):
    """As for pinned ones; 1000 is the seed of selection where none is given."""
    seed = change.get("selection_seed", 1000)
    with pytest.raises(PrecfmError, match=rf"mine\.yaml: classifiers: selection_seed: got {seed}"):
        planned({"classifiers": change})
    plan = planned({"classifiers": {"selection_seed": 102}})
    reporting = {parent for each in plan.of("evaluations") for parent in each.parents["classifiers"]}
    (selecting,) = {parent for each in plan.of("recipes") for parent in each.parents["classifier"]}
    assert len(reporting) == 2
    assert selecting not in reporting


def test_the_list_of_training_images_is_in_the_key(planned, place):
    """Whoever corrects it has the job look again."""
    report = [place("a")]
    before = planned(experiment(report, place("c", seed=2)))
    place("a", seen="validation")
    with pytest.raises(PrecfmError, match="validation: 100 of 200"):
        planned(experiment(report, place("c", seed=2)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("precfm.pipeline.images._evaluating", lambda text: {})
        after = planned(experiment(report, place("c", seed=2)))
    keys = [{node.label: node.key for node in plan.of("classifiers")} for plan in (before, after)]
    assert keys[0]["a"] != keys[1]["a"]
    assert keys[0]["c"] == keys[1]["c"]


def test_the_audit_names_what_is_wrong_with_pinned_models(project, place):
    place("a")
    place("vae", "encoders")
    report = Report([])
    check_models(report)
    assert not report.findings
    (project / MODELS / "stray.npy").write_bytes(b"")
    (project / MODELS / "a.safetensors").write_bytes(b"")
    check_models(report)
    assert [(finding.check, str(finding.file)) for finding in report.errors] == [
        ("model", "data/models/a.json"), ("model", "data/models/stray.npy")
    ]  # fmt: skip
    assert "a.safetensors" in report.errors[0].problem


@pytest.mark.parametrize("file", ["a.safetensors", "a.json", "train.npy"])
def test_a_damaged_model_is_refused_at_planning(planned, project, place, file):
    report, select = [place("a")], place("c", seed=2)
    content = bytearray((project / MODELS / file).read_bytes())
    content[len(content) // 2] ^= 255
    (project / MODELS / file).write_bytes(content)
    with pytest.raises(PrecfmError, match=rf"data/models/{file}"):
        planned(experiment(report, select))


def test_a_model_for_other_images_is_refused_at_planning(planned, place):
    report, select = [place("a", image_size=32)], place("c", seed=2)
    with pytest.raises(PrecfmError, match=r"datasets\.mnist5k\.classifiers: 'a' takes images of 32 x 32"):
        planned(experiment(report, select))


@pytest.mark.parametrize("split", ["validation", "heldout"])
@pytest.mark.parametrize("role", ["report", "select"])
def test_a_model_that_has_seen_what_evaluates_is_refused_at_planning(planned, place, split, role):
    seen = {"report": "train", "select": "train", role: split}
    report, select = [place("a", seen=seen["report"])], place("c", seed=2, seen=seen["select"])
    with pytest.raises(PrecfmError, match=rf"{split}: 100 of {SIZES[split]} images"):
        planned(experiment(report, select))


def test_the_job_refuses_what_planning_could_not_see(planned, project, place, monkeypatch):
    """Where the images were not on the machine yet."""
    monkeypatch.setattr("precfm.pipeline.images._evaluating", lambda text: {})
    plan = planned(experiment([place("a", seen="heldout")], place("c", seed=2)))
    (data,) = plan.of("data")
    build(data, script_of(data))
    node = next(each for each in plan.of("classifiers") if each.label == "a")
    with pytest.raises(PrecfmError, match=r"heldout: 100 of 300 images .* 'a'"):
        build(node, script_of(node))
    assert not node.exists


def test_padded_copies_have_the_hash_of_the_original():
    image = torch.randint(1, 255, (5, 3, 6, 4), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    padded = torch.nn.functional.pad(image, [2, 1, 0, 3])
    assert np.array_equal(image_hashes(image), image_hashes(padded))
    assert len(np.unique(image_hashes(image))) == 5
    assert np.array_equal(image_hashes(torch.zeros(2, 1, 4, 4, dtype=torch.uint8)).shape, (2,))


def test_images_of_other_sources_are_left_out_of_the_train_split(planned, project, splits):
    """As png files of another size: they are recognised by what they show."""
    (project / "own/zero").mkdir(parents=True)
    for index, image in enumerate(splits["train"][:7]):
        padded = torch.nn.functional.pad(image[0], [2, 2, 2, 2])
        Image.fromarray(padded.numpy()).save(project / f"own/zero/{index}.png")
    add_source("own", project / "own", project / "data/sources.yaml")
    source = {"name": "imagefolder", "source": "own", "resolution": 32, "channels": 1}
    before, plan = planned(), planned({"datasets": {"mnist5k": {"without": [source]}}})
    (data,), (old,) = plan.of("data"), before.of("data")
    assert data.key != old.key
    build(data, script_of(data))
    counts = Artifact.open(data.folder).json("about.json")["class_counts"]
    assert {split: sum(count) for split, count in counts.items()} == {**SIZES, "train": SIZES["train"] - 7}


def test_what_was_trained_is_pinned_and_serves_another_split(planned, project):
    (project / MODELS).unlink()
    training = {"steps": 2, "batch_size": 8}
    models = {
        "description": "models",
        "datasets": {"mnist5k": {"source": {"name": "mnist5k"}, **SIZES}},
        "encoders": {"vae": {"model": ENCODER, "training": training}},
        "classifiers": {"model": CLASSIFIER, "training": training, "seeds": [0], "selection_seed": 1},
    }
    (project / "config/mine-models.yaml").write_text(json.dumps(models))
    plan = load_plan("mine-models")
    nodes = trained_models(plan)
    assert {node.label for node in nodes} == {
        "mnist5k-vae", "mnist5k-classifier-s0", "mnist5k-classifier-s1"
    }  # fmt: skip
    for node in plan.with_missing_parents(each.id for each in nodes):
        build(node, script_of(node))
    references = pin(nodes, {"commit": "0" * 40, "clean": True})
    assert [reference.partition("@")[0] for reference in references] == [node.label for node in nodes]
    record = read_record("mnist5k-vae")
    assert (record.training["steps"], record.images.count, record.data["source"]) == (2, 600, "mnist5k")
    assert pinned_model(references[0], "encoders").sha256 == record.sha256

    encoder, report, select = references
    config = Path("config/old.yaml")
    config.write_text(f"pinned: {encoder[:-12]}{'0' * 12}  # not my-{encoder}\n")
    assert rename_in_configurations(references) == [config]
    assert config.read_text() == f"pinned: {encoder}  # not my-{encoder}\n"
    config.unlink()
    (project / "config/others.yaml").write_text(json.dumps(models))
    with pytest.raises(PrecfmError, match="was pinned by the experiment 'mine-models'"):
        trained_models(load_plan("others"))
    with pytest.raises(PrecfmError, match="mine-models-tiny: "):
        trained_models(load_plan("mine-models-tiny"))
    assert planned(experiment([report], select, encoder)).of("flows")
    other = experiment([report], select, encoder)
    other["datasets"]["mnist5k"]["seed"] = 1
    with pytest.raises(PrecfmError, match="images are among those that the pinned model"):
        planned(other)


def test_an_experiment_that_trains_nothing_has_nothing_to_pin(planned):
    with pytest.raises(PrecfmError, match="theory: trains no encoder"):
        trained_models(load_plan("theory"))


def test_the_pinned_autoencoder_of_photographs_can_be_planned_and_loaded(planned, project, monkeypatch):
    """On `flowers` without its photographs, so that the plan cannot look at them."""
    pytest.importorskip("diffusers")
    monkeypatch.delenv("PRECFM_MIRROR", raising=False)
    page = (ROOT / "docs/how-to/images.md").read_text(encoding="utf-8")
    (reference,) = re.findall(r"pinned: (flowers-kl8@\w+)", page)
    plan = planned({"encoders": {"dct": None, "kl8": {"pinned": reference}}}, base="flowers")
    assert [node.label for node in plan.of("encoders")] == ["flowers-kl8"]
    shutil.copyfile(MODELS / "flowers-kl8.safetensors", project / "model.safetensors")
    network = read_record("flowers-kl8").network.model_dump()
    (project / "model.json").write_text(json.dumps(network))
    images = load(project).decode(torch.zeros(2, 8, 8, 8))
    assert images.shape == (2, 3, 64, 64)
    assert 0.1 < float(images.mean()) < 0.9


def test_a_photograph_that_occurs_twice_keeps_the_pinned_autoencoder_from_flowers(planned):
    pytest.importorskip("diffusers")
    if not (Path(os.environ.get("PRECFM_MIRROR", "nowhere")) / "flowers256.zip").is_file():
        pytest.skip("needs flowers256.zip in PRECFM_MIRROR")
    reference = f"flowers-kl8@{read_record('flowers-kl8').sha256[:12]}"
    with pytest.raises(PrecfmError, match=r"^encoders\.kl8\.pinned: flowers, heldout: 1 of 400"):
        planned({"encoders": {"dct": None, "kl8": {"pinned": reference}}}, base="flowers")
