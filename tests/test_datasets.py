"""Data sets: strict parsing, image folders, one's own sources."""

import gzip
import hashlib
import os
import shutil
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from precfm.core.errors import PrecfmError
from precfm.datasets.fashion_mnist import FashionMNIST
from precfm.datasets.imagefolder import ImageFolder
from precfm.datasets.images import Images
from precfm.datasets.manifest import add_source, source_manifest
from precfm.datasets.mnist import MNIST, read_idx
from precfm.datasets.mnist5k import MNIST5k
from precfm.datasets.sources import fetch
from precfm.datasets.splits import make_splits

REPOSITORY = Path(__file__).parents[1]
SOURCES = REPOSITORY / "data" / "sources.yaml"
FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")

# ---- idx


def idx(array: np.ndarray, kind: int = 8) -> bytes:
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, kind, array.ndim, *array.shape) + array.tobytes()


@given(shape=st.lists(st.integers(1, 5), min_size=1, max_size=4), seed=st.integers(0, 99))
def test_idx_round_trip(tmp_path_factory: pytest.TempPathFactory, shape: list[int], seed: int) -> None:
    array = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    path = tmp_path_factory.mktemp("idx") / "file"
    path.write_bytes(idx(array))
    np.testing.assert_array_equal(read_idx(path, tuple(shape)), array)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0\0\x08\x02\0\0\0\2",
        b"PK\x03\x04abc",
        idx(np.zeros((2, 3), np.uint8), kind=9),
        idx(np.zeros((3, 2), np.uint8)),
        idx(np.zeros(6, np.uint8)),
        idx(np.zeros((2, 3), np.uint8))[:-1],
        idx(np.zeros((2, 3), np.uint8)) + b"x",
    ],
)
def test_broken_idx_files_are_refused_by_name(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "broken-idx"
    path.write_bytes(content)
    with pytest.raises(PrecfmError, match=r"broken-idx: .*\(2, 3\)"):
        read_idx(path, (2, 3))


def test_missing_or_unreadable_idx_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(PrecfmError, match="gone"):
        read_idx(tmp_path / "gone", (1,))
    (tmp_path / "folder").mkdir()
    with pytest.raises(PrecfmError, match="folder"):
        read_idx(tmp_path / "folder", (1,))


# ---- the data sets


def test_mnist5k_equals_its_table(tmp_path: Path) -> None:
    fetch("mnist5k", tmp_path, sources_file=SOURCES)
    data = MNIST5k().load(tmp_path)
    assert data.images.shape == (5000, 1, 28, 28)
    rows = (tmp_path / "mnist_5k.csv").read_text().splitlines()
    for row in (0, 499, 500, 2345, 4999):
        *pixels, digit = [int(value) for value in rows[row].split(",")]
        assert data.images[row].flatten().tolist() == pixels
        assert data.class_names[int(data.labels[row])] == str(digit)
    assert torch.bincount(data.labels).tolist() == [500] * 10
    assert data.official_split is None
    padded = MNIST5k(resolution=32).load(tmp_path)
    assert torch.equal(padded.images[:, :, 2:30, 2:30], data.images)
    assert int(padded.images.sum()) == int(data.images.sum())


@pytest.mark.parametrize("text", ["1,2,3\n", "1,256\n", "a,b\n", None])
def test_broken_mnist5k_is_refused(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "mnist_5k.csv").write_text(text)
    with pytest.raises(PrecfmError, match=r"mnist_5k.csv"):
        MNIST5k().load(tmp_path)


@pytest.fixture(scope="module")
def mnist_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    mirror = os.environ.get("PRECFM_MIRROR")
    if not mirror:
        pytest.skip("full MNIST needs PRECFM_MIRROR, a folder that holds its idx files")
    folder = tmp_path_factory.mktemp("mnist")
    fetch("mnist", folder, sources_file=SOURCES, mirror=Path(mirror))
    return folder


def test_mnist_is_mnist(mnist_folder: Path) -> None:
    """Counts per class as published, and the splits keep to the official division."""
    data = MNIST(resolution=32).load(mnist_folder)
    assert data.images.shape == (70_000, 1, 32, 32)
    assert data.official_split is not None
    test = data.official_split == 1
    assert torch.bincount(data.labels[test]).tolist() == [
        980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009,
    ]  # fmt: skip
    assert torch.bincount(data.labels[~test]).tolist() == [
        5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949,
    ]  # fmt: skip
    splits = make_splits(
        data.labels, train=None, validation=5000, heldout=10_000, seed=0, official_split=data.official_split
    )
    assert splits["heldout"].sort().values.tolist() == list(range(60_000, 70_000))
    assert len(splits["train"]) == 55_000
    assert splits["train"].max() < 60_000 > splits["validation"].max()


def test_mnist_agrees_with_torchvision(mnist_folder: Path, tmp_path: Path) -> None:
    published_mnist = pytest.importorskip("torchvision.datasets").MNIST
    (tmp_path / "MNIST").mkdir()
    (tmp_path / "MNIST" / "raw").symlink_to(mnist_folder)
    ours = MNIST().load(mnist_folder)
    for train, part in ((True, slice(0, 60_000)), (False, slice(60_000, None))):
        published = published_mnist(tmp_path, train=train)
        assert torch.equal(ours.images[part, 0], published.data)
        assert torch.equal(ours.labels[part], published.targets)


def test_fashion_mnist_reads_its_official_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FashionMNIST, "counts", (6, 2))
    for part, n in (("train", 6), ("t10k", 2)):
        for kind, shape in (("images-idx3", (n, 28, 28)), ("labels-idx1", (n,))):
            array = np.full(shape, 9 if part == "train" else 3, np.uint8)
            (tmp_path / f"{part}-{kind}-ubyte").write_bytes(idx(array))
    data = FashionMNIST().load(tmp_path)
    assert data.images.shape == (8, 1, 28, 28)
    assert data.class_names[int(data.labels[0])] == "Ankle boot"
    assert data.official_split is not None
    assert torch.equal(data.official_split == 1, data.labels == 3)


needs_fashion_mnist = pytest.mark.skipif(
    not FASHION_MNIST.is_dir(), reason="Fashion-MNIST needs the Debian package dataset-fashion-mnist"
)


@needs_fashion_mnist
@pytest.mark.parametrize("mirror", [None, FASHION_MNIST])
def test_fashion_mnist_is_fashion_mnist(tmp_path: Path, mirror: Path | None) -> None:
    """A distribution's package, as an origin and as a mirror; its files are compressed."""
    fetched = fetch("fashion_mnist", tmp_path, sources_file=SOURCES, mirror=mirror)
    place = f"PRECFM_MIRROR={mirror}" if mirror else f"folder {FASHION_MNIST}"
    assert [file.origin for file in fetched] == [place] * 4
    data = FashionMNIST().load(tmp_path)
    assert data.images.shape == (70_000, 1, 28, 28)
    assert data.official_split is not None
    for part, per_class in ((0, 6000), (1, 1000)):
        assert torch.bincount(data.labels[data.official_split == part]).tolist() == [per_class] * 10


@needs_fashion_mnist
@pytest.mark.parametrize(
    ("name", "seconds", "published"),
    [
        (
            "t10k-images-idx3-ubyte",
            1504176627,
            "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
        ),
        (
            "t10k-labels-idx1-ubyte",
            1504176627,
            "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
        ),
        (
            "train-images-idx3-ubyte",
            1504176606,
            "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
        ),
        (
            "train-labels-idx1-ubyte",
            1504176606,
            "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
        ),
    ],
)
def test_fashion_mnist_is_what_its_authors_published(name: str, seconds: int, published: str) -> None:
    """Debian takes name and time out of the headers; with both put back, the files are the published ones."""
    nameless = (FASHION_MNIST / f"{name}.gz").read_bytes()
    header = struct.pack(
        "<4BI2B", 0x1F, 0x8B, 8, 8, seconds, 0, 3
    )  # gzip, deflate, has a name, time, 0, Unix
    packed = header + name.encode() + b"\0" + nameless[10:]
    if hashlib.sha256(packed).hexdigest() != published:
        pytest.skip("this package's files are compressed in another way than the published ones")
    files = {file.name: file.sha256 for file in source_manifest("fashion_mnist", SOURCES).files}
    assert hashlib.sha256(gzip.decompress(packed)).hexdigest() == files[name]


def test_images_that_do_not_fit_are_refused() -> None:
    images, labels = torch.zeros(3, 1, 4, 4, dtype=torch.uint8), torch.tensor([0, 1, 1])
    Images(images, labels, ("a", "b"))
    for arguments, message in (
        ((images.float(), labels, ("a", "b")), "images"),
        ((images, labels[:2], ("a", "b")), "labels"),
        ((images, labels.int(), ("a", "b")), "labels"),
        ((images, labels, ("a",)), "labels"),
        ((images, labels - 1, ("a", "b")), "labels"),
        ((images, labels, ("a", "b"), labels[:1]), "official_split"),
    ):
        with pytest.raises(PrecfmError, match=message):
            Images(*arguments)  # type: ignore[arg-type]


# ---- image folders


def save(
    path: Path, colour: tuple[int, ...] | int, size: tuple[int, int] = (10, 10), mode: str = "RGB"
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour).save(path)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    save(folder / "red" / "b.png", (255, 0, 0), size=(40, 20))
    save(folder / "red" / "a.JPG", (250, 5, 0), size=(20, 40))
    save(folder / "train" / "blue" / "c.bmp", (0, 0, 255))
    (folder / "red" / "LICENSE.txt").write_text("not an image")
    (folder / "red" / "._b.png").write_bytes(b"junk of a file manager")
    return folder


def zipped(folder: Path, target: Path) -> Path:
    target.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(target, "w") as archive:
        for path in sorted(folder.rglob("*")):
            archive.write(path, path.relative_to(folder))
    return target


def test_image_folder_reads_classes_sizes_and_colours(photos: Path) -> None:
    data = ImageFolder(resolution=8).load(photos)
    assert data.images.shape == (3, 3, 8, 8)
    assert data.class_names == ("blue", "red")
    assert data.labels.tolist() == [1, 1, 0], "in the order of names: red/a.JPG, red/b.png, train/blue/c.bmp"
    assert torch.equal(data.images[1, :, 4, 4], torch.tensor([255, 0, 0], dtype=torch.uint8))
    assert ImageFolder(resolution=8, channels=1).load(photos).images.shape == (3, 1, 8, 8)


def test_zip_and_folder_give_the_same_images(photos: Path, tmp_path: Path) -> None:
    zipped(photos, tmp_path / "packed" / "photos.zip")
    folder, archive = (
        ImageFolder(resolution=8).load(photos),
        ImageFolder(resolution=8).load(tmp_path / "packed"),
    )
    assert torch.equal(folder.images, archive.images)
    assert torch.equal(folder.labels, archive.labels)
    assert folder.class_names == archive.class_names


def test_the_crop_is_central(tmp_path: Path) -> None:
    stripes = np.zeros((10, 30, 3), np.uint8)
    stripes[:, 10:20] = 200
    (tmp_path / "x").mkdir()
    Image.fromarray(stripes).save(tmp_path / "x" / "wide.png")
    Image.fromarray(stripes.transpose(1, 0, 2)).save(tmp_path / "x" / "tall.png")
    assert (ImageFolder(resolution=10).load(tmp_path).images == 200).all()


def test_odd_pixel_formats_are_understood(tmp_path: Path) -> None:
    save(tmp_path / "x" / "1.png", (10, 20, 30, 0), mode="RGBA")  # transparent: white shows through
    save(tmp_path / "x" / "2.png", 128, mode="L")
    Image.fromarray(np.full((10, 10), 0x80FF, np.uint16)).save(tmp_path / "x" / "3.png")
    upright = Image.fromarray(np.repeat(np.array([[10], [250]], np.uint8), 5, axis=0).repeat(10, axis=1))
    exif = Image.Exif()
    exif[0x0112] = 3  # the camera was held upside down
    upright.save(tmp_path / "x" / "4.png", exif=exif)
    images = ImageFolder(resolution=10, channels=1).load(tmp_path).images[:, 0]
    assert [int(image[0, 0]) for image in images] == [255, 128, 128, 250]


@pytest.mark.parametrize("in_zip", [False, True])
@pytest.mark.parametrize("damage", ["truncated", "empty", "text", "float"])
def test_corrupt_images_are_refused_by_name(photos: Path, tmp_path: Path, damage: str, in_zip: bool) -> None:
    bad = photos / "red" / ("bad.tiff" if damage == "float" else "bad.png")
    rng = np.random.default_rng(0)
    if damage == "float":
        Image.fromarray(rng.random((9, 9), np.float32)).save(bad)
    else:
        Image.fromarray(rng.integers(0, 256, (30, 30, 3), np.uint8)).save(bad)
        content = bad.read_bytes()
        bad.write_bytes({"truncated": content[:1000], "empty": b"", "text": b"hello"}[damage])
    folder = zipped(photos, tmp_path / "packed" / "p.zip").parent if in_zip else photos
    with pytest.raises(PrecfmError, match=r"'red/bad\.\w+'") as error:
        ImageFolder().load(folder)
    assert "\n" not in str(error.value)


def test_corrupt_zip_members_are_refused_by_name(photos: Path, tmp_path: Path) -> None:
    path = zipped(photos, tmp_path / "packed" / "p.zip")
    with zipfile.ZipFile(path) as archive:
        offset = archive.getinfo("red/b.png").header_offset
    content = bytearray(path.read_bytes())
    content[offset + 60] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(PrecfmError, match=r"'red/b\.png'"):
        ImageFolder().load(path.parent)


def test_folders_without_sense_are_refused(tmp_path: Path, photos: Path) -> None:
    with pytest.raises(PrecfmError, match="nowhere"):
        ImageFolder().load(tmp_path / "nowhere")
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(PrecfmError, match="empty"):
        ImageFolder().load(empty)
    save(photos / "loose.png", (1, 2, 3))
    with pytest.raises(PrecfmError, match=r"'loose\.png'"):
        ImageFolder().load(photos)
    (empty / "1.zip").write_bytes(b"PK\x03\x04 broken")
    with pytest.raises(PrecfmError, match=r"1\.zip"):
        ImageFolder().load(empty)
    (empty / "2.zip").write_bytes(b"")
    with pytest.raises(PrecfmError, match=r"1\.zip, 2\.zip"):
        ImageFolder().load(empty)


def test_images_without_folders_are_one_class(tmp_path: Path) -> None:
    save(tmp_path / "1.png", (1, 2, 3))
    save(tmp_path / "2.png", (1, 2, 3))
    data = ImageFolder(resolution=4).load(tmp_path)
    assert (data.class_names, data.labels.tolist()) == (("images",), [0, 0])


# ---- your own sources


def copied_sources(folder: Path) -> Path:
    return Path(shutil.copy(SOURCES, folder / "sources.yaml"))


@pytest.mark.parametrize("as_zip", [False, True])
def test_added_images_can_be_fetched_and_loaded(photos: Path, tmp_path: Path, as_zip: bool) -> None:
    project = tmp_path / "project"
    (project / "data").mkdir(parents=True)
    sources_file = copied_sources(project / "data")
    before = sources_file.read_text()
    place = zipped(photos, project / "my photos.zip") if as_zip else photos
    manifest = add_source("my_photos", place, sources_file)
    assert sources_file.read_text().startswith(before), "other entries and comments keep their bytes"
    assert source_manifest("my_photos", sources_file) == manifest
    assert len(manifest.files) == (1 if as_zip else 3)
    assert manifest.origins[0].place == ("../my photos.zip" if as_zip else str(photos)), (
        "relative inside the project"
    )
    fetch("my_photos", project / "raw", sources_file=sources_file)
    expected, loaded = ImageFolder(resolution=8).load(photos), ImageFolder(resolution=8).load(project / "raw")
    assert torch.equal(expected.images, loaded.images)
    assert expected.class_names == loaded.class_names


def test_adding_again_replaces_that_entry_alone(photos: Path, tmp_path: Path) -> None:
    sources_file = copied_sources(tmp_path)
    first = add_source("mine", photos, sources_file)
    assert (tmp_path / "mine.files").read_text() == "".join(f"{file}\n" for file in first.files)
    assert "files_in: mine.files" in sources_file.read_text()
    add_source("other", photos, sources_file)
    text = sources_file.read_text()
    assert add_source("mine", photos, sources_file) == first
    assert sources_file.read_text() == text, "nothing changed, so nothing is written differently"
    save(photos / "red" / "new.png", (9, 9, 9))
    second = add_source("mine", photos, sources_file)
    assert second.checksum != first.checksum
    assert source_manifest("mine", sources_file) == second
    assert source_manifest("other", sources_file).checksum == first.checksum
    assert [line for line in sources_file.read_text().splitlines() if not line.startswith(" ")] == [
        line for line in text.splitlines() if not line.startswith(" ")
    ]


def test_changed_or_stray_images_are_refused(photos: Path, tmp_path: Path) -> None:
    sources_file = copied_sources(tmp_path)
    add_source("mine", photos, sources_file)
    fetch("mine", tmp_path / "raw", sources_file=sources_file)
    save(tmp_path / "raw" / "red" / "stray.png", (9, 9, 9))
    with pytest.raises(PrecfmError, match=r"'red/stray\.png'"):
        fetch("mine", tmp_path / "raw", sources_file=sources_file)
    save(photos / "red" / "b.png", (0, 255, 0), size=(40, 20))
    with pytest.raises(PrecfmError, match=r"red/b\.png"):
        fetch("mine", tmp_path / "raw2", sources_file=sources_file)


def test_names_and_places_that_cannot_be_added(photos: Path, tmp_path: Path) -> None:
    sources_file = copied_sources(tmp_path)
    before = sources_file.read_bytes()
    (tmp_path / "empty").mkdir()
    cases = [
        ("mnist", photos, "name: 'mnist'"),
        ("My Photos", photos, "name: got 'My Photos'"),
        ("x:\n  y", photos, "name: got"),
        ("mine", tmp_path / "nowhere", "nowhere"),
        ("mine", tmp_path / "empty", "empty"),
        ("mine", zipped(tmp_path / "empty", tmp_path / "empty.zip"), r"empty\.zip"),
    ]
    for name, place, message in cases:
        with pytest.raises(PrecfmError, match=message):
            add_source(name, place, sources_file)
    damaged = zipped(photos, tmp_path / "damaged.zip")
    damaged.write_bytes(
        damaged.read_bytes().replace(b"PK\x01\x02", b"\0\0\0\0")
    )  # of the directory, not of its end
    with pytest.raises(PrecfmError, match=r"^path: '.*damaged\.zip' is no readable zip file \("):
        add_source("mine", damaged, sources_file)
    whole = (photos / "red" / "b.png").read_bytes()
    (photos / "red" / "b.png").write_bytes(whole[: len(whole) // 2])
    for place in (photos, zipped(photos, tmp_path / "cut.zip")):
        with pytest.raises(PrecfmError, match=r"path: image '.*red/b\.png' cannot be decoded"):
            add_source("mine", place, sources_file)
    (photos / "red" / "b.png").write_bytes(whole)
    save(photos / "loose.png", (1, 1, 1))
    with pytest.raises(PrecfmError, match=r"loose\.png' lies in no class's folder"):
        add_source("mine", photos, sources_file)
    (photos / "loose.png").unlink()
    save(photos / "red" / "line\nbreak.png", (1, 1, 1))
    with pytest.raises(PrecfmError, match="line"):
        add_source("mine", photos, sources_file)
    assert sources_file.read_bytes() == before


def test_a_list_that_is_lost_or_changed_is_refused_and_can_be_made_again(
    photos: Path, tmp_path: Path
) -> None:
    sources_file = copied_sources(tmp_path)
    first = add_source("mine", photos, sources_file)
    entry = sources_file.read_text()
    file = tmp_path / "mine.files"
    lines = file.read_text()
    for change, message in (
        (lines.replace("a", "b", 1), "checksum: got"),
        ("", "checksum: got"),
        (None, "mine.files cannot"),
    ):
        file.write_text(change) if change is not None else file.unlink()
        with pytest.raises(PrecfmError, match=message):
            source_manifest("mine", sources_file)
    assert add_source("mine", photos, sources_file) == first
    assert (file.read_text(), sources_file.read_text()) == (lines, entry)
    for wrong in ("../mine.files", "other.files"):
        sources_file.write_text(entry.replace("files_in: mine.files", f"files_in: {wrong}"))
        with pytest.raises(PrecfmError, match="files_in: got"):
            source_manifest("mine", sources_file)
    sources_file.write_text(entry.replace("  files_in: mine.files\n", ""))
    with pytest.raises(PrecfmError, match="either it or files_in"):
        source_manifest("mine", sources_file)


def test_unusual_file_names_survive(tmp_path: Path) -> None:
    names = [
        "x/two  spaces .png",
        "x/日本語.png",
        "x/narrow\u202fspace.png",
        "x/#hash: colon.png",
        'x/it\'s "q".png',
    ]
    for name in names:
        save(tmp_path / "odd" / name, (1, 2, 3))
    sources_file = copied_sources(tmp_path)
    manifest = add_source("odd", tmp_path / "odd", sources_file)
    assert sorted(file.name for file in manifest.files) == sorted(names)
    assert source_manifest("odd", sources_file) == manifest
    fetch("odd", tmp_path / "raw", sources_file=sources_file)
