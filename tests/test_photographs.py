"""Photographs and your own latents: resizing, streams and shards, encoders of feature maps, what stands in for them."""

import json
import os
import shutil
import zipfile
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from precfm.audit.records import as_recorded
from precfm.core.errors import PrecfmError
from precfm.core.serialization import load_network
from precfm.datasets.imagefolder import ImageFolder
from precfm.datasets.latents import Latents, add_latents
from precfm.datasets.manifest import file_sha256, source_manifest
from precfm.datasets.sources import fetch
from precfm.encoders.base import save
from precfm.encoders.block_dct import BlockDCT
from precfm.pipeline import shards
from precfm.pipeline.artifact import Artifact
from precfm.pipeline.build import build
from precfm.pipeline.experiments import load_experiment
from precfm.pipeline.job import Job, script_of
from precfm.pipeline.manifest import differing
from precfm.pipeline.plan import load_plan
from tests.workflow import ROOT


def photograph(file: Path, size: tuple[int, int], mode: str = "RGB", seed: int = 0) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    shape = (size[1], size[0], 3)[: 2 if mode == "L" else 3]
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, np.uint8)).save(file)


# ---- images


def test_resize_and_crop_are_what_they_say(tmp_path):
    ramp = np.repeat(np.arange(0, 240, 2, dtype=np.uint8)[:, None], 40, axis=1)  # 120 high, 40 wide
    (tmp_path / "x").mkdir()
    Image.fromarray(ramp).save(tmp_path / "x" / "tall.png")

    def middle_row(**options):
        return float(
            ImageFolder(resolution=40, channels=1, **options).load(tmp_path).images[0, 0, 20].float().mean()
        )

    assert middle_row() == pytest.approx(121, abs=2)  # the middle of the image
    assert middle_row(crop="top") == pytest.approx(41, abs=2)  # of its upper third
    exact = (
        ImageFolder(resolution=40, channels=1, resize="exact").load(tmp_path).images[0, 0].float().mean(dim=1)
    )
    assert float(exact[-1] - exact[0]) > 220  # all of it is there


def test_mixed_and_small_images_are_noted_or_refused(tmp_path, capsys):
    photograph(tmp_path / "a" / "colour.png", (40, 40))
    photograph(tmp_path / "a" / "grey.png", (40, 40), "L")
    photograph(tmp_path / "a" / "small.png", (9, 50))
    assert ImageFolder(resolution=32).load(tmp_path).images.shape == (3, 3, 32, 32)
    said = capsys.readouterr().out
    assert "1 images are stored as L and read as RGB, 'a/grey.png'" in said
    assert "fewer than 32 pixels on a side and are enlarged, 'a/small.png'" in said
    with pytest.raises(PrecfmError, match=r"small: got 'refuse', but image 'a/small\.png'"):
        ImageFolder(resolution=32, small="refuse").load(tmp_path)


def test_a_data_base_of_lsun_is_read(tmp_path):
    lmdb = pytest.importorskip("lmdb", reason="LSUN needs the package lmdb")
    from precfm.datasets.lsun import LSUN

    with lmdb.open(str(tmp_path / "church")) as base, base.begin(write=True) as transaction:
        for index in range(3):
            photograph(tmp_path / "one.jpg", (50, 40), seed=index)
            transaction.put(f"key{index}".encode(), (tmp_path / "one.jpg").read_bytes())
    (tmp_path / "one.jpg").unlink()
    found = LSUN(resolution=16).load(tmp_path)
    assert (found.images.shape, found.class_names) == ((3, 3, 16, 16), ("images",))


def test_a_data_base_that_is_not_what_the_zip_file_holds_is_unpacked_again(tmp_path):
    from precfm.datasets.lsun import _database

    content = bytes(range(256))
    with zipfile.ZipFile(tmp_path / "church.zip", "w") as packed:
        packed.writestr("church_lmdb/data.mdb", content)
    unpacked = _database(tmp_path)
    other = tmp_path / "another" / "data.mdb"
    other.parent.mkdir()
    other.write_bytes(b"of another source")
    for damaged in (content[:-1], content[::-1]):
        unpacked.write_bytes(damaged)
        assert _database(tmp_path) == unpacked
        assert unpacked.read_bytes() == content
    before = unpacked.stat().st_ino
    assert _database(tmp_path).stat().st_ino == before  # not written again
    (tmp_path / "church.zip").write_bytes(
        (tmp_path / "church.zip").read_bytes().replace(content, content[::-1])
    )
    unpacked.unlink()
    with pytest.raises(PrecfmError, match=r"church\.zip: is no readable zip file"):
        _database(tmp_path)
    assert not unpacked.exists()


# ---- own latents


@pytest.fixture
def mine(project):
    """Latents of two classes, registered with labels in a file of their own."""
    rows = torch.randn(200, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    np.save("z.npy", rows.numpy())
    np.save("y.npy", np.arange(200) % 2)
    add_latents("mine", Path("z.npy"), Path("data/sources.yaml"), Path("y.npy"))
    return rows


def test_latents_can_be_added_fetched_and_loaded(mine):
    fetch("mine", Path("raw"), sources_file=Path("data/sources.yaml"))
    found = Latents(source="mine", shape=[4, 4, 4]).load(Path("raw"))
    assert torch.equal(found.latents, mine)
    assert found.labels.tolist() == [0, 1] * 100
    assert found.class_names == ("0", "1")
    with Latents(source="mine").open(Path("raw")) as stream:
        assert torch.equal(stream.read(torch.tensor([7, 3])), mine[[7, 3]])
    with pytest.raises(PrecfmError, match=r"shape: got \[4, 8\]"):
        Latents(source="mine", shape=[4, 8]).load(Path("raw"))
    with pytest.raises(PrecfmError, match="labels: 0 to 1"):
        Latents(source="mine", classes=1).load(Path("raw"))


def test_latents_that_are_not_finite_are_not_added(project):
    save_file({"latents": torch.full((5, 3), torch.nan)}, "z.safetensors")
    with pytest.raises(PrecfmError, match=r"z\.safetensors.*finite"):
        add_latents("mine", Path("z.safetensors"), Path("data/sources.yaml"))


def test_sets_without_published_checksums_are_listed_by_their_owner(project):
    sources = Path("data/sources.yaml")
    assert not source_manifest("afhq", sources).listed
    with pytest.raises(PrecfmError, match="precfm data add afhq"):
        fetch("afhq", Path("raw"), sources_file=sources)


# ---- shards


def make(plan, kinds):
    for node in plan.with_missing_parents(node.id for kind in kinds for node in plan.of(kind)):
        build(node, script_of(node))
    return [Artifact.open(node.folder) for kind in kinds for node in plan.of(kind)]


def experiment(**encoder):
    model = {"model": {"name": "block_dct", "block": 4, "keep": 3}}
    return {
        "description": "photographs",
        "datasets": {
            "own": {
                "source": {"name": "imagefolder", "source": "own", "resolution": 8},
                **{"train": 12, "validation": 4, "heldout": 4},
            }
        },
        "encoders": {"dct": {**model, **encoder}},
    }


@pytest.fixture
def own(project):
    """Twenty photographs in two classes, registered."""
    from precfm.datasets.manifest import add_source

    for index in range(20):
        photograph(project / "own" / "ab"[index % 2] / f"{index}.png", (12, 10), seed=index)
    add_source("own", Path("own"), Path("data/sources.yaml"))

    def planned(name, **encoder):
        (project / "config" / f"{name}.yaml").write_text(json.dumps(experiment(**encoder)))
        return load_plan(name)

    return planned


def test_large_splits_are_shards_with_the_same_rows(own, monkeypatch):
    whole_data, whole = make(own("whole"), ("data", "latents"))
    monkeypatch.setattr(shards, "SHARD_BYTES", 5 * 192)  # five images, or ten latents
    data, latents = make(own("sharded", seed=1), ("data", "latents"))  # another seed: another key
    assert data.key == whole_data.key
    assert [path.name for path in latents.shards("train.safetensors")] == [
        "train-00000-of-00002.safetensors",
        "train-00001-of-00002.safetensors",
    ]
    for name in ("latents", "labels"):
        expected = whole.tensors("train.safetensors")[name]
        assert torch.equal(latents.tensors("train.safetensors")[name], expected)
        rows = latents.rows("train.safetensors")
        assert torch.equal(rows.read(8, 12)[name], expected[8:])


def test_a_killed_encoding_keeps_its_shards(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "SHARD_BYTES", 8)
    for name in ("folder", "scratch"):
        (tmp_path / name).mkdir()
    job = Job(None, tmp_path / "folder", tmp_path / "scratch")
    asked = []

    def read(start, stop):
        asked.append(start)
        if len(asked) == 2:
            raise KeyboardInterrupt
        return {"x": torch.arange(start, stop, dtype=torch.float32)}

    with pytest.raises(KeyboardInterrupt):
        job.write_rows("x.safetensors", 6, 4, read)
    assert torch.equal(job.write_rows("x.safetensors", 6, 4, read).read(1, 6)["x"], torch.arange(1.0, 6.0))
    assert asked == [0, 2, 2, 4]


def test_every_train_image_is_followed_by_its_mirror_image(own):
    data, latents = make(own("flipped", flips=True), ("data", "latents"))
    images = data.tensors("train.safetensors")
    encoder = BlockDCT(channels=3, image_size=8, block=4, keep=3)
    made = latents.tensors("train.safetensors")
    assert torch.equal(made["latents"][0::2], encoder.encode(images["images"]))
    assert torch.equal(made["latents"][1::2], encoder.encode(images["images"].flip(-1)))
    assert torch.equal(made["labels"], images["labels"].repeat_interleave(2))
    assert len(latents.tensors("heldout.safetensors")["labels"]) == 4


# ---- encoders


def test_the_trained_autoencoder_learns_and_comes_back(tmp_path):
    pytest.importorskip("diffusers")
    from precfm.encoders.kl_autoencoder import KLAutoencoder
    from precfm.training.options import TrainingOptions

    torch.manual_seed(0)
    encoder = KLAutoencoder(3, 16, latent_channels=2, factor=4, width=8)
    images = torch.randint(0, 256, (8, 3, 1, 1)).expand(8, 3, 16, 16).to(torch.uint8).contiguous()
    history = encoder.fit(
        images, training=TrainingOptions(steps=60, batch_size=8, learning_rate=1e-2, ema_decay=None)
    )
    assert history.loss.iloc[-5:].mean() < 0.8 * history.loss.iloc[:5].mean()
    latents = encoder.encode(images)
    assert latents.shape == (8, 2, 4, 4)
    assert not torch.equal(encoder.encode(images, sample_seed=0), latents)
    save(encoder, tmp_path)
    assert torch.equal(load_network(tmp_path).encode(images), latents)
    for options, field in (({"image_size": 18}, "factor"), ({"width": 7}, "width")):
        with pytest.raises(PrecfmError, match=f"^{field}: got"):
            KLAutoencoder(**options)


def pretrained(kind: str, folder: Path) -> dict[str, str]:
    """A small autoencoder of a class of diffusers, saved; the options that name it."""
    diffusers = pytest.importorskip("diffusers")
    options = {
        "AutoencoderKL": {
            "block_out_channels": (8, 8), "norm_num_groups": 4, "latent_channels": 2, "scaling_factor": 0.5,
            "down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2,
        },
        "AutoencoderTiny": {
            "encoder_block_out_channels": (8, 8), "decoder_block_out_channels": (8, 8), "latent_channels": 2,
            "num_encoder_blocks": (1, 1), "num_decoder_blocks": (1, 1),
        },
        "AutoencoderDC": {
            "encoder_block_out_channels": (8, 8), "decoder_block_out_channels": (8, 8), "latent_channels": 2,
            "encoder_block_types": "ResBlock", "decoder_block_types": "ResBlock", "attention_head_dim": 8,
            "encoder_layers_per_block": (1, 1), "decoder_layers_per_block": (1, 1),
            "encoder_qkv_multiscales": ((), ()), "decoder_qkv_multiscales": ((), ()),
        },
    }[kind]  # fmt: skip
    torch.manual_seed(0)
    getattr(diffusers, kind)(**options).save_pretrained(folder)
    return {
        "source": str(folder),
        "sha256": file_sha256(folder / "diffusion_pytorch_model.safetensors"),
        "config_sha256": file_sha256(folder / "config.json"),
    }


@pytest.mark.parametrize("kind", ["AutoencoderKL", "AutoencoderTiny", "AutoencoderDC"])
def test_pretrained_weights_are_named_by_checksum(tmp_path, kind):
    diffusers = pytest.importorskip("diffusers")
    from precfm.encoders.pretrained import Pretrained

    named = pretrained(kind, tmp_path / "model")
    model = getattr(diffusers, kind).from_pretrained(tmp_path / "model").eval()
    config = tmp_path / "model" / "config.json"
    encoder = Pretrained(3, 16, **named)
    images = torch.randint(0, 256, (5, 3, 16, 16), dtype=torch.uint8)
    latents = encoder.encode(images)
    assert latents.shape[1:] == encoder.latent_shape == (2, 8, 8)
    assert encoder.decode(latents).shape == images.shape
    (tmp_path / "saved").mkdir()
    save(encoder, tmp_path / "saved")
    assert torch.equal(load_network(tmp_path / "saved").encode(images), latents)
    if kind == "AutoencoderKL":
        with torch.no_grad():
            drawn = model.encode(images / 127.5 - 1).latent_dist
        sampled = encoder.encode(images, sample_seed=3)
        noise = (sampled / 0.5 - drawn.mean) / drawn.std
        assert 0.7 < float(noise.std()) < 1.3
    else:
        with pytest.raises(PrecfmError, match="posterior"):
            encoder.encode(images, sample_seed=3)
    with pytest.raises(PrecfmError, match=r"^sha256: got 0000"):
        Pretrained(3, 16, **{**named, "sha256": "0" * 64})
    with pytest.raises(PrecfmError, match="multiple of 2; got 15"):
        Pretrained(3, 15, **named)
    with pytest.raises(PrecfmError, match=r"^config_sha256: got 0000"):
        Pretrained(3, 16, **{**named, "config_sha256": "0" * 64})
    right = config.read_bytes()
    for wrong in ('{"_class_name": "UNet2DModel"}', "[1]", "{"):
        config.write_text(wrong)
        with pytest.raises(PrecfmError, match=r"^source: .*config\.json"):
            Pretrained(3, 16, **named)
    config.write_bytes(right)


def test_where_pretrained_weights_lie_is_in_no_key_and_no_record(own, project):
    named = pretrained("AutoencoderKL", project / "here")
    here = own("here", model={"name": "pretrained", **named})
    shutil.move("here", "there")
    there = own("there", model={"name": "pretrained", **named, "source": "there"})
    (one,), (other,) = here.of("encoders"), there.of("encoders")
    assert one.params != other.params
    assert (one.key, one.recorded_params) == (other.key, other.recorded_params)
    assert "here" not in json.dumps(one.recorded_params)
    made, latents = make(there, ("encoders", "latents"))
    assert made.params == one.recorded_params
    assert latents.rows("train.safetensors").read(0, 1)["latents"].shape == (1, 2, 4, 4)
    assert not differing(made.record, as_recorded(one))
    for artifact in (made, latents):  # who encodes says with what
        assert artifact.record["made_on"]["diffusers"] == version("diffusers")
    with pytest.raises(PrecfmError, match=r"source: got 'gone'.* until its folder there is removed"):
        own("gone", model={"name": "pretrained", **named, "source": "gone"})


@pytest.mark.parametrize("kind", ["AutoencoderTiny", "AutoencoderDC"])
def test_samples_of_an_autoencoder_without_posterior_are_refused_by_the_plan(own, project, kind):
    named = pretrained(kind, project / "model")
    assert own("mean", model={"name": "pretrained", **named}).of("latents")
    with pytest.raises(PrecfmError, match=r"^encoders\.dct: encode: got 'sample'; 'mean' is needed"):
        own("sample", model={"name": "pretrained", **named}, encode="sample")


def test_a_hub_that_cannot_be_reached_is_one_sentence(tmp_path, monkeypatch):
    hub = pytest.importorskip("huggingface_hub")
    from precfm.encoders.pretrained import Pretrained

    def unreachable(*args, local_files_only=False, **kwargs):
        kind = hub.errors.LocalEntryNotFoundError if local_files_only else ConnectionError
        raise kind("no route\nto host")

    monkeypatch.setattr(hub, "hf_hub_download", unreachable)
    assert Pretrained.must_be_fetched(source="owner/name")
    with pytest.raises(PrecfmError, match=r"^source: 'owner/name' cannot be had .*no route to host"):
        Pretrained(3, 16, source="owner/name", sha256="0" * 64, config_sha256="0" * 64)


# ---- what stands in


def test_what_is_not_here_is_replaced_in_tiny_experiments_alone(project, monkeypatch, capsys):
    monkeypatch.delenv("PRECFM_MIRROR", raising=False)
    config = project / "config" / "away.yaml"
    config.write_text(
        json.dumps(
            {
                **experiment(),
                "datasets": {
                    "church": {
                        "source": {"name": "lsun", "resolution": 16},
                        **{"train": 1000, "validation": 50, "heldout": 50},
                        "judges": {"report": ["inception"]},
                    }
                },
            }
        )
    )
    data, latents = make(load_plan("away-tiny"), ("data", "latents"))
    said = capsys.readouterr().err
    assert "lsun_church" in said
    assert "inception" in said
    assert load_experiment("away-tiny").datasets["church"].classifiers.report == ("pixels",)
    assert data.json("about.json")["image_shape"] == [3, 16, 16]
    assert latents.tensors("heldout.safetensors")["latents"].shape == (50, 9, 4, 4)
    assert load_plan("away").of("data")[0].params["source"] == "lsun_church"
    config.write_text(config.read_text().replace('"lsun"', '"stand_in"'))
    with pytest.raises(PrecfmError, match=r"datasets\.church\.source: got 'stand_in'"):
        load_plan("away")


@pytest.mark.parametrize("place", ["owner/name", "hub/models--owner--name/snapshots/" + "1" * 40])
def test_a_tiny_plan_notices_that_weights_came_or_went(own, project, monkeypatch, place):
    hub = pytest.importorskip("huggingface_hub")
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(project / "hub"))
    options = pretrained("AutoencoderKL", Path("made"))
    reference = project / "hub" / "models--owner--name" / "refs" / "main"
    reference.parent.mkdir(parents=True)
    reference.write_text("1" * 40)
    own("away", model={"name": "pretrained", **options, "source": "owner/name"})

    def encoder():
        (planned,) = load_plan("away-tiny").of("encoders")
        assert load_plan("away-tiny").of("encoders") == [planned]  # the plan that was kept
        return planned.params["model"]["name"]

    assert encoder() == "kl_autoencoder"
    shutil.copytree("made", place)
    assert encoder() == "pretrained"
    shutil.rmtree(place)
    assert encoder() == "kl_autoencoder"


@pytest.mark.skipif("PRECFM_MIRROR" not in os.environ, reason="flowers256.zip needs PRECFM_MIRROR")
def test_flowers_are_flowers(tmp_path):
    fetch(
        "flowers",
        tmp_path,
        sources_file=ROOT / "data/sources.yaml",
        mirror=Path(os.environ["PRECFM_MIRROR"]),
    )
    with ImageFolder(source="flowers").open(tmp_path) as stream:
        assert stream.class_names == ("daisy", "dandelion", "roses", "sunflowers", "tulips")
        assert len(stream) == 2234
        assert stream.read(torch.tensor([2233, 0])).float().std() > 20
