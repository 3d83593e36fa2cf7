"""`precfm diagnose IMAGES --autoencoder`: a folder of images through an autoencoder of diffusers."""

import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import Result
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from typer.testing import CliRunner

from precfm.cli import app
from precfm.core.errors import PrecfmError
from precfm.diagnosis import images as encoding
from precfm.diagnosis.diagnosis import diagnose
from precfm.diagnosis.images import encode_images
from precfm.encoders import diffusers_autoencoder
from precfm.encoders.diffusers_autoencoder import DiffusersAutoencoder

SIZE, IMAGES, LATENT = 16, 40, (4, 16, 16)


class AutoencoderKL(nn.Module):
    """In place of diffusers': latents are the image, 2 x 2 pixels to one; it counts what goes through at once."""

    def __init__(self, channels: int = 3, **config: Any) -> None:
        super().__init__()
        self.config = {"scaling_factor": 0.5, **config}
        self.config = type("Config", (dict,), {"in_channels": channels})(self.config)
        self.weight, self.most = nn.Parameter(torch.zeros(1)), 0

    def encode(self, pixels: Tensor) -> Any:
        self.most = max(self.most, len(pixels))
        return SimpleNamespace(latent_dist=SimpleNamespace(mode=lambda: nn.functional.avg_pool2d(pixels, 2)))

    def decode(self, latents: Tensor) -> Any:
        self.most = max(self.most, len(latents))
        return SimpleNamespace(sample=nn.functional.interpolate(latents, scale_factor=2))


def pictures(
    folder: Path, count: int = IMAGES, size: int = SIZE, classes: tuple[str, ...] = ("a", "b")
) -> Path:
    source = np.random.default_rng(0)
    for index in range(count):
        where = folder / classes[index % len(classes)] if classes else folder
        where.mkdir(parents=True, exist_ok=True)
        pixels = source.integers(0, 256, (size, size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(where / f"{index:03}.png")
    return folder


@pytest.fixture
def images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder `images` of 40 pictures in two classes, in the working folder."""
    monkeypatch.chdir(tmp_path)
    return pictures(Path("images"))


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny autoencoders of diffusers, random, as `save_pretrained` writes them: by name."""
    diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed (pip install diffusers)")
    folder = tmp_path_factory.mktemp("autoencoders")
    torch.manual_seed(0)
    models = {
        "kl": diffusers.AutoencoderKL(
            block_out_channels=(8,), latent_channels=4, norm_num_groups=4, shift_factor=0.1
        ),
        "tiny": diffusers.AutoencoderTiny(
            encoder_block_out_channels=(8, 8),
            decoder_block_out_channels=(8, 8),
            num_encoder_blocks=(1, 1),
            num_decoder_blocks=(1, 1),
        ),
        "dc": diffusers.AutoencoderDC(
            latent_channels=4,
            attention_head_dim=8,
            encoder_block_out_channels=(8, 8),
            decoder_block_out_channels=(8, 8),
            encoder_layers_per_block=(1, 1),
            decoder_layers_per_block=(1, 1),
            encoder_qkv_multiscales=((), ()),
            decoder_qkv_multiscales=((), ()),
        ),
        "unet": diffusers.UNet2DModel(
            block_out_channels=(8,),
            norm_num_groups=4,
            down_block_types=("DownBlock2D",),
            up_block_types=("UpBlock2D",),
        ),
    }
    for name, model in models.items():
        model.save_pretrained(folder / name)
    return folder


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(each) for each in arguments])


def test_latents_are_shifted_and_scaled_as_the_config_says() -> None:
    pixels = torch.arange(2 * 3 * 4 * 4, dtype=torch.uint8).reshape(2, 3, 4, 4)
    means = nn.functional.avg_pool2d(pixels / 127.5 - 1, 2)
    configs: list[tuple[dict[str, Any], Tensor]] = [
        ({}, means * 0.5),
        ({"shift_factor": 0.25}, (means - 0.25) * 0.5),
        (
            {"latents_mean": [0.0, 1.0, 2.0], "latents_std": [1.0, 2.0, 4.0]},
            (means - torch.tensor([0.0, 1, 2]).reshape(3, 1, 1))
            * 0.5
            / torch.tensor([1.0, 2, 4]).reshape(3, 1, 1),
        ),
    ]
    for config, expected in configs:
        autoencoder = DiffusersAutoencoder(AutoencoderKL(**config))
        latents = autoencoder.encode(pixels)
        assert torch.allclose(latents, expected, atol=1e-6), config
        back = nn.functional.interpolate(means, scale_factor=2) / 2 + 0.5
        assert torch.allclose(autoencoder.decode(latents), back, atol=1e-6), config


def test_a_few_images_are_in_the_network_at_a_time(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diffusers_autoencoder, "NUMBERS", 5 * 3 * SIZE**2)
    monkeypatch.setattr(encoding, "BATCH", 7)
    model = AutoencoderKL()
    encoded = encode_images(images, DiffusersAutoencoder(model))
    assert model.most == 5
    assert encoded.latents.shape == (IMAGES, 3, 8, 8)
    assert encoded.decode(encoded.latents).shape == (IMAGES, 3, SIZE, SIZE)
    assert model.most == 5
    monkeypatch.setattr(diffusers_autoencoder, "NUMBERS", 2**20)
    monkeypatch.setattr(encoding, "BATCH", 64)
    assert torch.equal(encoded.latents, encode_images(images, DiffusersAutoencoder(model)).latents)
    assert model.most == IMAGES


def test_classes_are_subfolders_or_in_a_file(images: Path) -> None:
    autoencoder = DiffusersAutoencoder(AutoencoderKL())
    by_folder = encode_images(images, autoencoder)
    assert by_folder.labels is not None
    assert by_folder.labels.tolist() == [0] * 20 + [1] * 20
    np.save("y.npy", np.arange(IMAGES))
    few = encode_images(images, autoencoder, labels="y.npy", rows=9, seed=1)
    assert few.labels is not None
    assert len(few.labels) == 9
    assert torch.equal(few.latents, by_folder.latents[few.labels]), "the label is the row"
    other = encode_images(images, autoencoder, labels="y.npy", rows=9, seed=2)
    assert other.labels is not None
    assert few.labels.tolist() != other.labels.tolist()
    assert encode_images(pictures(Path("flat"), classes=()), autoencoder).labels is None
    assert encode_images(pictures(Path("one"), classes=("a",)), autoencoder).labels is None


def test_size_makes_squares_of_images_that_differ(images: Path) -> None:
    autoencoder = DiffusersAutoencoder(AutoencoderKL())
    Image.new("RGB", (30, 20)).save(images / "b/wide.png")
    with pytest.raises(
        PrecfmError, match=r"^images: image 'b/wide.png' is 30 x 20, but 'a/000.png' is 16 x 16"
    ):
        encode_images(images, autoencoder)
    assert encode_images(images, autoencoder, size=8).latents.shape == (IMAGES + 1, 3, 4, 4)


def test_the_command_asks_the_decoder(images: Path, saved: Path) -> None:
    """64 features by --size: the decoder is asked where there are rows enough, else left out, which is said."""
    arguments = ("diagnose", images, "--autoencoder", saved / "kl", "--size", 4)
    said = run(*arguments)
    assert said.exit_code == 0, said.output
    assert "40 rows of 4 x 4 x 4 = 64 features (float32, 2 classes)" in said.stdout
    assert "decoder: not asked, since 64 directions need 130 rows; 40 are there" in said.stdout
    pictures(images, 300)
    found = json.loads(run(*arguments, "--json", "--rows", 200).stdout)
    assert (found["rows"], found["classes"]) == (200, 2)
    assert found["decoder"]["directions"] == 64
    assert found["decoder"]["refused"] is None
    assert 0 <= found["decoder"]["unused"] < 64
    assert "there are 64 directions" in run(*arguments, "--dense-features", 10).stdout


def test_the_command_gives_what_the_library_gives(images: Path, saved: Path) -> None:
    diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed (pip install diffusers)")
    model = diffusers.AutoencoderKL.from_pretrained(saved / "kl")
    with torch.no_grad():
        pixels = torch.stack(
            [
                torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1) / 127.5 - 1
                for file in sorted(images.rglob("*.png"))
            ]
        )
        x = (model.encode(pixels).latent_dist.mean - 0.1) * model.config.scaling_factor
    encoded = encode_images(images, saved / "kl")
    assert torch.allclose(encoded.latents, x, atol=1e-5)
    found = diagnose(encoded.latents, encoded.labels, decoder=encoded.decode)
    assert run("diagnose", images, "--autoencoder", saved / "kl").stdout == f"{found}\n"


@pytest.mark.parametrize("name", ["kl", "tiny", "dc"])
def test_the_autoencoders_of_diffusers_encode_and_decode(name: str, saved: Path) -> None:
    autoencoder = DiffusersAutoencoder.load(saved / name)
    images = torch.randint(0, 256, (3, 3, SIZE, SIZE), dtype=torch.uint8)
    latents = autoencoder.encode(images)
    assert latents.shape[:2] == (3, 4)
    assert latents.dtype == torch.float32
    decoded = autoencoder.decode(latents)
    assert decoded.shape == images.shape
    assert 0 <= float(decoded.min()) <= float(decoded.max()) <= 1


def test_directions_that_the_decoder_does_not_use_are_counted() -> None:
    """A decoder that ignores a channel: of the directions, a third."""

    class Blind(AutoencoderKL):
        def decode(self, latents: Tensor) -> Any:
            return super().decode(latents * torch.tensor([1.0, 1.0, 0.0]).reshape(3, 1, 1))

    source = torch.Generator().manual_seed(0)
    x = torch.randn(20_000, 3, 2, 2, generator=source) * torch.tensor([0.1, 0.2, 10.0]).reshape(3, 1, 1)
    found = diagnose(x, decoder=DiffusersAutoencoder(Blind()).decode).decoder
    assert found is not None
    assert (found.unused, found.directions) == (4, 12)


def test_without_diffusers_one_sentence_says_what_to_install(
    images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)
    error = run("diagnose", images, "--autoencoder", "vae").exception
    assert isinstance(error, PrecfmError)
    assert str(error).startswith("vae: ")
    assert "pip install diffusers" in str(error)


def test_wrong_images_are_one_sentence(images: Path) -> None:
    autoencoder = DiffusersAutoencoder(AutoencoderKL())
    np.save("z.npy", np.zeros((20, 4), dtype=np.float32))
    np.save("y.npy", np.zeros(20, dtype=np.int64))
    Path("shards").mkdir()
    shutil.copy("z.npy", "shards")
    cut = pictures(Path("cut"))
    content = (cut / "a/002.png").read_bytes()
    (cut / "a/002.png").write_bytes(content[: len(content) // 2])
    loose = pictures(Path("loose"))
    shutil.copy(loose / "a/000.png", loose)
    wrong: list[tuple[str, dict[str, Any], str]] = [
        ("z.npy", {}, "z.npy: is a file"),
        ("shards", {}, "shards: holds no images"),
        ("nowhere", {}, "nowhere: there is no such folder"),
        ("cut", {}, "cut: image 'a/002.png' is corrupt"),
        ("loose", {}, "loose: '000.png' lies in no class's folder"),
        ("images", {"labels": "y.npy"}, "y.npy: holds 20 labels; 40 are needed"),
        ("images", {"labels": "z.npy"}, "z.npy: has shape (20, 4)"),
        ("images", {"size": 0}, "size: got 0"),
        ("images", {"rows": 0}, "rows: got 0"),
        ("images", {"size": 1}, "images: are 1 x 1"),
    ]
    for folder, options, sentence in wrong:
        with pytest.raises(PrecfmError) as refused:
            encode_images(folder, autoencoder, **options)
        assert str(refused.value).startswith(sentence)
        assert "\n" not in str(refused.value)


def test_options_of_images_and_of_latents_exclude_each_other(images: Path) -> None:
    np.save("z.npy", np.zeros((20, 4), dtype=np.float32))
    for arguments, field in [
        (("z.npy", "--size", 8), "--size: got 8"),
        (("z.npy", "--rows", 8), "--rows: got 8"),
        (("images", "--autoencoder", "vae", "--tensor", "z"), "--tensor: is of files"),
        (("z.npy", "--autoencoder", "vae"), "z.npy: is a file"),
    ]:
        done = run("diagnose", *arguments)
        assert isinstance(done.exception, PrecfmError), done.output
        assert str(done.exception).startswith(field)


def test_wrong_models_are_refused_by_field() -> None:
    with pytest.raises(PrecfmError, match=r"^model: got a Linear"):
        DiffusersAutoencoder(nn.Linear(2, 2))
    with pytest.raises(PrecfmError, match=r"^model: takes images of 4 channels"):
        DiffusersAutoencoder(AutoencoderKL(channels=4))
    autoencoder = DiffusersAutoencoder(AutoencoderKL())
    for images in (torch.zeros(2, 3, 4, 4), torch.zeros(2, 1, 4, 4, dtype=torch.uint8), np.zeros(3)):
        with pytest.raises(PrecfmError, match=r"^images: "):
            autoencoder.encode(images)  # type: ignore[arg-type]


def test_wrong_folders_of_autoencoders_are_one_sentence(tmp_path: Path, saved: Path) -> None:
    def changed(name: str) -> Path:
        return Path(shutil.copytree(saved / "kl", tmp_path / name))

    (tmp_path / "empty").mkdir()
    weights = "diffusion_pytorch_model.safetensors"
    state = load_file(saved / "kl" / weights)
    torch.save(state, changed("pickled") / "diffusion_pytorch_model.bin")
    (tmp_path / "pickled" / weights).unlink()
    content = (changed("cut") / weights).read_bytes()
    (tmp_path / "cut" / weights).write_bytes(content[:5000])
    some = {name: each for name, each in state.items() if name != "decoder.conv_in.bias"}
    save_file(some, changed("lacks") / weights)
    (changed("broken") / "config.json").write_text("{")
    config = json.loads((changed("other") / "config.json").read_text())
    (tmp_path / "other/config.json").write_text(json.dumps({**config, "block_out_channels": [16]}))
    wrong: list[tuple[Path, str]] = [
        (tmp_path / "empty", "holds no config.json"),
        (tmp_path / "no/such/folder", "there is no such folder"),
        (tmp_path / "pickled", "holds no .safetensors"),
        (tmp_path / "cut", "cannot be read"),
        (tmp_path / "lacks", "lacks weights, decoder.conv_in.bias"),
        (tmp_path / "broken", "cannot be read"),
        (tmp_path / "other", "cannot be read"),
        (saved / "unet", "is a UNet2DModel"),
    ]
    for folder, words in wrong:
        with pytest.raises(PrecfmError) as refused:
            DiffusersAutoencoder.load(folder)
        assert str(refused.value).startswith(f"{folder}: {words}"), refused.value
        assert "\n" not in str(refused.value)
    with pytest.raises(PrecfmError, match=r"^device: got 'abacus'"):
        DiffusersAutoencoder.load(saved / "kl", "abacus")
