"""Latents in files: every format gives the same rows, in batches; what is wrong is one sentence with the file."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from precfm.core.errors import PrecfmError
from precfm.latents.reading import Latents, open_latents
from precfm.latents.writing import replacing, write_latents
from precfm.preconditioners.scalar import Scalar


def latents(rows: int = 10, *dim: int) -> Tensor:
    return torch.randn(rows, *(dim or (3, 2, 2)), generator=torch.Generator().manual_seed(rows))


LABELS = torch.arange(10) % 3


def written(folder: Path, x: Tensor, labels: Tensor) -> dict[str, Path]:
    """The same latents in every format."""
    named = {"z": x, "labels": labels}
    np.save(folder / "a.npy", x.numpy())
    np.save(folder / "big.npy", x.numpy().astype(">f4"))
    np.savez(folder / "a.npz", **{name: each.numpy() for name, each in named.items()})
    save_file(named, folder / "a.safetensors")
    torch.save(named, folder / "a.pt")
    torch.save(x, folder / "bare.pt")
    shards = folder / "shards"
    shards.mkdir()
    for index, start in enumerate((0, 4)):
        part = slice(start, 4 if start == 0 else None)
        save_file({name: each[part].clone() for name, each in named.items()}, shards / f"{index}.safetensors")
    (shards / "README.md").write_text("not a shard")
    return {path.name: path for path in folder.iterdir()}


def read(found: Latents, rows: int) -> tuple[Tensor, list[Tensor | None]]:
    batches, labels = zip(*found.batches(rows), strict=True)
    assert max(map(len, batches)) <= rows
    return torch.cat(batches), list(labels)


def test_every_format_gives_the_same_rows(tmp_path: Path) -> None:
    x = latents()
    for name, path in written(tmp_path, x, LABELS).items():
        found = open_latents(path)
        rows, labels = read(found, 3)
        assert torch.equal(rows, x), name
        assert (found.shape, len(found), found.features) == ((10, 3, 2, 2), 10, 12)
        chosen = torch.tensor([0, 3, 4, 9])
        assert torch.equal(found.take(chosen), x[chosen]), name
        if name in ("a.npy", "big.npy", "bare.pt"):
            assert found.labels is None
        else:
            assert torch.equal(torch.cat([each for each in labels if each is not None]), LABELS), name


def test_labels_may_lie_elsewhere(tmp_path: Path) -> None:
    files = written(tmp_path, latents(), LABELS)
    np.save(tmp_path / "y.npy", LABELS.numpy().astype(np.uint8) + 1)
    for name in ("a.npy", "a.npz", "shards"):
        found = open_latents(files[name], labels=tmp_path / "y.npy").labels
        assert found is not None
        assert torch.equal(found, LABELS + 1)


def test_half_precision_keeps_its_type(tmp_path: Path) -> None:
    x = latents().bfloat16()
    save_file({"latents": x}, tmp_path / "half.safetensors")
    rows, _ = read(open_latents(tmp_path / "half.safetensors"), 4)
    assert torch.equal(rows, x)


def test_what_is_wrong_is_one_sentence_with_the_file(tmp_path: Path) -> None:
    x = latents(9, 4)
    save_file({"a": x, "b": x[:5].clone()}, tmp_path / "two.safetensors")
    save_file({}, tmp_path / "none.safetensors")
    np.save(tmp_path / "whole.npy", np.arange(12).reshape(6, 2))
    np.save(tmp_path / "flat.npy", np.zeros(6, dtype=np.float32))
    np.save(tmp_path / "good.npy", x.numpy())
    np.save(tmp_path / "short.npy", np.zeros(8, dtype=np.int64))
    np.save(tmp_path / "real.npy", np.zeros(9))
    bad = x.clone()
    bad[7, 2] = torch.inf
    np.save(tmp_path / "bad.npy", bad.numpy())
    (tmp_path / "cut.npy").write_bytes((tmp_path / "good.npy").read_bytes()[:150])
    (tmp_path / "cut.pt").write_bytes(b"PK no archive")
    torch.save([x], tmp_path / "list.pt")
    torch.save({"model": torch.nn.Linear(2, 2)}, tmp_path / "object.pt")
    network = torch.nn.Linear(2, 2).state_dict()
    torch.save(network, tmp_path / "weights.pt")
    torch.save({"state_dict": network, "epoch": 3}, tmp_path / "checkpoint.pt")
    Scalar().fit(x).save(tmp_path / "map.safetensors")
    Scalar().fit(x).save(tmp_path / "map")
    (tmp_path / "table.csv").write_text("1,2")
    for folder, other in (("mixed", latents(3, 5)), ("types", latents(3, 4).double())):
        (tmp_path / folder).mkdir()
        np.save(tmp_path / folder / "0.npy", x.numpy())
        np.save(tmp_path / folder / "1.npy", other.numpy())
    (tmp_path / "some").mkdir()
    save_file({"z": x, "labels": torch.arange(9)}, tmp_path / "some/0.safetensors")
    save_file({"z": x}, tmp_path / "some/1.safetensors")
    (tmp_path / "empty").mkdir()
    wrong: list[tuple[str, dict[str, Any], str]] = [
        ("nowhere.npy", {}, "nowhere.npy: there is no such file"),
        ("table.csv", {}, r"table.csv: ends in '.csv'; one of .npy, .npz, .safetensors, .pt"),
        ("two.safetensors", {}, r"two.safetensors: holds several tensors.*--tensor.*a \(9, 4\), b \(5, 4\)"),
        ("two.safetensors", {"tensor": "c"}, r"two.safetensors: has no tensor 'c'; .*a \(9"),
        ("none.safetensors", {}, "none.safetensors: holds no tensor"),
        ("whole.npy", {}, "whole.npy: holds int64; floating point"),
        ("flat.npy", {}, r"flat.npy: has shape \(6,\); rows"),
        ("cut.npy", {}, "cut.npy: cannot be read"),
        ("cut.pt", {}, "cut.pt: cannot be read"),
        ("list.pt", {}, "list.pt: holds a list; a tensor"),
        ("object.pt", {}, "object.pt: cannot be read"),
        ("weights.pt", {}, "weights.pt: holds 2 tensors such as 'weight', the weights of a network"),
        ("checkpoint.pt", {}, "checkpoint.pt: holds a dictionary of 'state_dict', 'epoch', the checkpoint"),
        ("map.safetensors", {}, "map.safetensors: holds a fitted map"),
        ("map", {}, "map: holds a fitted map"),
        ("good.npy", {"channels_last": True}, r"good.npy: has shape \(9, 4\); with channels_last"),
        ("mixed", {}, r"1.npy: has rows of shape \(5,\) .* 0.npy has \(4,\)"),
        ("types", {}, r"1.npy: has rows of shape \(4,\) in float64, but 0.npy has .* float32"),
        ("some", {}, "1.safetensors: z: has shape .* beside no labels"),
        ("empty", {}, "empty: holds no shards"),
        ("good.npy", {"labels": "short.npy"}, "short.npy: holds 8 labels; 9 are needed"),
        (
            "good.npy",
            {"labels": "real.npy"},
            r"real.npy: has shape \(9,\) and holds float64; labels are integers",
        ),
    ]
    for name, options, message in wrong:
        if "labels" in options:
            options = {"labels": tmp_path / options["labels"]}
        with pytest.raises(PrecfmError, match=message):
            open_latents(tmp_path / name, **options)
    with pytest.raises(PrecfmError, match=r"bad.npy: holds inf in row 7, feature 2"):
        read(open_latents(tmp_path / "bad.npy"), 5)


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    x = latents()
    parts = [(x[:6], LABELS[:6]), (x[6:], LABELS[6:])]
    for name in ("out.npy", "out"):
        out = write_latents(tmp_path / name, parts, 10)
        found = open_latents(out)
        assert torch.equal(read(found, 4)[0], x)
        assert (found.labels is None) == (name == "out.npy")
    assert load_file(tmp_path / "out/00001.safetensors").keys() == {"latents", "labels"}
    half = write_latents(tmp_path / "half.npy", [(x.bfloat16(), None)], 10)
    assert open_latents(half).dtype == "float32"
    with pytest.raises(PrecfmError, match=r"out.pt: ends in '.pt'; '.npy'"):
        write_latents(tmp_path / "out.pt", parts, 10)


@pytest.mark.parametrize("name", ["out.npy", "out"])
def test_what_is_there_stays_until_all_is_written(tmp_path: Path, name: str) -> None:
    x = latents()
    out = write_latents(tmp_path / name, [(x, None)], 10)
    with pytest.raises(PrecfmError, match=f"{name}: exists already"):
        write_latents(out, [(x, None)], 10)

    def breaks() -> Any:
        yield x[:5], None
        raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        write_latents(out, breaks(), 10, force=True)
    assert torch.equal(read(open_latents(out), 10)[0], x)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    with pytest.raises(FileNotFoundError), replacing(out, force=True):
        pass  # nothing is there to take the place of what was
    assert torch.equal(read(open_latents(out), 10)[0], x)
    write_latents(out, [(2 * x, None)], 10, force=True)
    assert torch.equal(read(open_latents(out), 10)[0], 2 * x)
    assert [path.name for path in tmp_path.iterdir()] == [name]
