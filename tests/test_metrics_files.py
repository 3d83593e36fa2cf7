"""Folders and files of features as they come from users: right values, and errors that name the culprit."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from precfm.core.errors import PrecfmError
from precfm.datasets import image_names as data_sets
from precfm.datasets.image_names import image_names, names_below
from precfm.metrics.evaluate import evaluate_features
from precfm.metrics.files import IMAGE_SUFFIXES, compare, image_batches, read_features


def pictures(folder: Path, n: int, seed: int, *, size: int = 4, mode: str = "L") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    for index in range(n):
        shape = (size, size) if mode == "L" else (size, size, 3)
        Image.fromarray(random.integers(0, 256, shape, dtype=np.uint8)).save(folder / f"{index:03d}.png")
    return folder


def features(n: int, dim: int, seed: int) -> torch.Tensor:
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed))


def test_files_of_features(tmp_path: Path) -> None:
    real, generated = features(60, 5, 1), features(50, 5, 2)
    np.save(tmp_path / "real.npy", real.numpy())
    save_file({"features": generated}, tmp_path / "generated.safetensors")
    values = compare(tmp_path / "real.npy", tmp_path / "generated.safetensors", seed=3)
    expected = evaluate_features(generated, real, seed=3)
    assert [value.value for value in values] == [value.value for value in expected]
    assert values[0].protocol.reference == "real.npy"
    assert (values[0].protocol.n_real, values[0].protocol.n_generated) == (60, 50)
    np.save(tmp_path / "whole.npy", np.arange(20).reshape(10, 2).astype(">i4"))
    assert read_features(tmp_path / "whole.npy").dtype == torch.float64


def test_folders_of_images(tmp_path: Path) -> None:
    real, generated = pictures(tmp_path / "real", 40, 1), pictures(tmp_path / "generated", 30, 2)
    (tmp_path / "real" / ".hidden").write_text("not looked at")
    values = compare(real, generated, extractor="identity", metrics=("frechet", "recall"))
    stacks = [torch.cat(list(image_batches(folder, 7))).flatten(1) / 255 for folder in (generated, real)]
    expected = evaluate_features(*stacks, metrics=("frechet", "recall"))
    assert [value.value for value in values] == pytest.approx([value.value for value in expected])
    assert values[0].protocol.extractor == "identity"


def test_the_same_files_are_images_as_in_a_data_set(tmp_path: Path) -> None:
    folder = pictures(tmp_path / "images", 2, 1, mode="RGB")
    Image.fromarray(np.zeros((4, 4, 3), dtype=np.uint8)).save(folder / "still.gif")
    (folder / "README.txt").write_text("not looked at")
    (folder / "__MACOSX").mkdir()
    (folder / "__MACOSX" / "000.png").write_bytes(b"not looked at")
    (batch,) = image_batches(folder)
    assert len(batch) == len(image_names(names_below(folder))) == 3
    assert set(IMAGE_SUFFIXES) == data_sets.IMAGE_SUFFIXES


def test_colour_images_are_read_as_they_are(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    batch = next(image_batches(tmp_path))
    assert batch.shape == (1, 3, 5, 6)
    assert np.array_equal(batch[0].permute(1, 2, 0).numpy(), pixels)


def test_folders_may_hold_their_features(tmp_path: Path) -> None:
    for index, name in enumerate(("one", "two")):
        (tmp_path / name).mkdir()
        save_file({"latent": features(30, 3, index)}, tmp_path / name / "features.safetensors")
    (value,) = compare(tmp_path / "one", tmp_path / "two", metrics=("kid",))
    (expected,) = evaluate_features(features(30, 3, 1), features(30, 3, 0), metrics=("kid",))
    assert value.value == expected.value


def test_what_is_wrong_is_named(tmp_path: Path) -> None:
    real = pictures(tmp_path / "real", 5, 1)
    file = tmp_path / "features.npy"
    np.save(file, features(9, 3, 1).numpy())

    def refused(path: Path, message: str, **options: object) -> None:
        with pytest.raises(PrecfmError, match=message):
            compare(real, path, extractor=str(options.pop("extractor", "identity")), **options)  # type: ignore[arg-type]

    mixed = pictures(tmp_path / "mixed", 3, 2)
    pictures(mixed / "z", 1, 2, size=6)
    refused(mixed, r"z/000.png: 6 x 6 grey, but 000.png is 4 x 4 grey")
    refused(pictures(tmp_path / "colour", 5, 1, mode="RGB"), "48 features per row")
    broken = pictures(tmp_path / "broken", 2, 2)
    (broken / "001.png").write_bytes(b"no image")
    refused(broken, r"001.png")
    (broken / "001.png").write_bytes((broken / "000.png").read_bytes()[:60])
    refused(broken, r"001.png")
    refused(real, r"^weights: got .*features.npy, but 'identity' has no weights", weights=file)
    refused(
        real, r"^weights: got .*features.npy, but 'pixels' has no weights", weights=file, extractor="pixels"
    )
    deep = tmp_path / "deep"
    deep.mkdir()
    refused(deep, "deep: holds no images")
    Image.fromarray(np.zeros((4, 4), dtype=np.uint16)).save(deep / "a.png")
    refused(deep, "a.png: has mode I;16")
    refused(tmp_path / "nowhere", "nowhere")
    refused(file, "features.npy and .*real")
    refused(real, "fixed_extractors: got 'vgg'", extractor="vgg")


def test_files_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    good = tmp_path / "good.npy"
    np.save(good, features(9, 3, 1).numpy())

    def refused(path: Path, message: str, tensor: str | None = None) -> None:
        with pytest.raises(PrecfmError, match=message):
            compare(good, path, tensor=tensor)

    bad = features(9, 3, 2)
    bad[4, 1] = torch.nan
    np.save(tmp_path / "nan.npy", bad.numpy())
    refused(tmp_path / "nan.npy", "nan.npy: row 4, column 1 is nan")
    np.save(tmp_path / "wide.npy", features(9, 4, 2).numpy())
    refused(tmp_path / "wide.npy", "wide.npy: 4 features per row")
    np.save(tmp_path / "text.npy", np.array(["a", "b"]))
    refused(tmp_path / "text.npy", "text.npy: holds <U1")
    (tmp_path / "broken.safetensors").write_bytes(b"1234567890")
    refused(tmp_path / "broken.safetensors", "broken.safetensors: cannot be read")
    save_file({"a": features(9, 3, 1), "b": features(9, 3, 2)}, tmp_path / "two.safetensors")
    refused(tmp_path / "two.safetensors", "two.safetensors: .*--tensor")
    refused(tmp_path / "two.safetensors", "two.safetensors: .*'c'.*--tensor", tensor="c")
    (tmp_path / "table.csv").write_text("1,2")
    refused(tmp_path / "table.csv", "table.csv")
    np.save(tmp_path / "one.npy", features(1, 3, 2).numpy())
    refused(tmp_path / "one.npy", "one.npy: 1 rows")
