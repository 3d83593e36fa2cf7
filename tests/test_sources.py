"""Sources: manifests, and fetching from bad and good origins."""

import gzip
import hashlib
import io
import os
import re
import subprocess
import sys
import tarfile
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from precfm.core.errors import PrecfmError
from precfm.datasets import origins
from precfm.datasets.manifest import source_manifest
from precfm.datasets.sources import fetch

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
        "import sys; from pathlib import Path; from precfm.datasets.manifest import source_manifest; "
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
    with pytest.raises(PrecfmError, match=r"'minst'.*fashion_mnist, .*mnist, mnist5k"):
        source_manifest("minst", SOURCES)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("a.bin", "../a.bin", "name"),
        ("a.bin", "/a.bin", "name"),
        ("a.bin", "C:/a.bin", "name"),
        ("a.bin", "d\\\\a.bin", "name"),
        ("  5120  ", "  5121  ", "'toy': checksum"),
        ("  5120  ", " 5120 ", "'toy': files"),
        ("  files: |", "  files: [1]\n  other: |", "'toy': files"),
        ("  origins:\n", "  origins:\n    - ftp: there\n", "'toy': origins.0"),
        ("toy:", "toy: [", "sources.yaml"),
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
    with pytest.raises(PrecfmError, match=r"nowhere\.yaml"):
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


def test_mirror_may_hold_compressed_files_of_other_sources_under_the_same_name(tmp_path: Path) -> None:
    """MNIST and Fashion-MNIST have files of the same names and sizes."""
    packed = gzip.compress(CONTENT["a.bin"])
    contents = [packed[: len(packed) // 2], gzip.compress(bytes(len(CONTENT["a.bin"]))), b"no gzip", packed]
    for i, content in enumerate(contents):
        (tmp_path / "mirror" / str(i)).mkdir(parents=True)
        (tmp_path / "mirror" / str(i) / "a.bin.gz").write_bytes(content)
    sources_file = write_sources(tmp_path, [], {"a.bin": CONTENT["a.bin"]})
    fetch("toy", tmp_path / "raw", sources_file=sources_file, mirror=tmp_path / "mirror")
    assert only_good_files(tmp_path / "raw")
    (tmp_path / "mirror" / "3" / "a.bin.gz").unlink()
    with pytest.raises(PrecfmError, match="mirror"):
        fetch("toy", tmp_path / "raw2", sources_file=sources_file, mirror=tmp_path / "mirror")


def test_compressed_files_in_the_own_folder_come_before_any_other_place(
    tmp_path: Path, server: tuple[str, dict[str, bytes | int], list[str]]
) -> None:
    url, answers, asked = server
    answers["/b.bin"] = CONTENT["b.bin"]
    folder, mirror = tmp_path / "raw", tmp_path / "mirror"
    folder.mkdir()
    mirror.mkdir()
    (mirror / "a.bin").write_bytes(CONTENT["a.bin"])
    (folder / "a.bin").write_bytes(CONTENT["a.bin"][:-1])
    (folder / "a.bin.gz").write_bytes(gzip.compress(CONTENT["a.bin"]))
    (folder / "b.bin.gz").write_bytes(gzip.compress(CONTENT["b.bin"])[:-12])
    sources_file = write_sources(tmp_path, [f"url: {url}/{{file}}"])
    results = fetch("toy", folder, sources_file=sources_file, mirror=mirror)
    assert [result.origin for result in results] == [f"folder {folder / 'a.bin.gz'}", f"url {url}/b.bin"]
    assert results[0].refused == ()
    assert str(folder / "b.bin.gz") in results[1].refused[0]
    assert asked == ["/b.bin"]
    assert {name: (folder / name).read_bytes() for name in CONTENT} == CONTENT
    assert [r.origin for r in fetch("toy", folder, sources_file=sources_file)] == ["kept", "kept"]


def test_a_folder_may_hold_compressed_files(tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared" / "a.bin.gz").write_bytes(gzip.compress(CONTENT["a.bin"]))
    (tmp_path / "shared" / "b.bin").write_bytes(CONTENT["b.bin"])
    sources_file = write_sources(tmp_path, [f"folder: {tmp_path / 'nowhere'}", "folder: shared"])
    results = fetch("toy", tmp_path / "raw", sources_file=sources_file)
    assert [result.origin for result in results] == [f"folder {tmp_path / 'shared'}"] * 2
    assert only_good_files(tmp_path / "raw")


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
        "'toy'", "b.bin", "no-mirror", "503", "127.0.0.1:1/b.bin", "no_such_package", "nowhere", "file:///etc/hostname",
        "PRECFM_MIRROR", str(tmp_path / "raw"),
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
    with pytest.raises(PrecfmError, match=r"a.bin, b.bin .*timed out"):
        fetch("toy", tmp_path, sources_file=write_sources(tmp_path, ["url: http://example.org/{file}"]))
    assert calls == [origins.URL_SECONDS]


def test_a_gzip_bomb_is_cut_at_the_size_of_the_manifest(
    tmp_path: Path, server: tuple[str, dict[str, bytes | int], list[str]]
) -> None:
    url, answers, _ = server
    answers["/a.bin.gz"] = gzip.compress(bytes(50_000_000))
    sources_file = write_sources(tmp_path, [f"url: {url}/{{file}}.gz"], {"a.bin": CONTENT["a.bin"]})
    with pytest.raises(PrecfmError, match="5120"):
        fetch("toy", tmp_path / "raw", sources_file=sources_file)
    assert list((tmp_path / "raw").iterdir()) == []


def test_an_unwritable_target_is_named_and_no_other_origin_asked(
    tmp_path: Path, server: tuple[str, dict[str, bytes | int], list[str]]
) -> None:
    url, answers, asked = server
    answers["/a.bin"] = CONTENT["a.bin"]
    (tmp_path / "raw").write_text("a file where the folder should be")
    sources_file = write_sources(tmp_path, [f"url: {url}/{{file}}", f"url: {url}/2/{{file}}"])
    with pytest.raises(PrecfmError, match=r"raw/a\.bin"):
        fetch("toy", tmp_path / "raw", sources_file=sources_file)
    assert len(asked) <= 1


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
    with pytest.raises(PrecfmError, match=r"a.bin, b.bin .*4 of 5120"):
        fetch("toy", tmp_path / "raw", sources_file=write_sources(tmp_path, ["npm: toy@1.0.0"]))
    assert not list(tmp_path.rglob("escaped"))
    assert list((tmp_path / "raw").iterdir()) == []


def test_a_failing_or_missing_npm_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    sources_file = write_sources(tmp_path, ["npm: toy@1.0.0"])
    with pytest.raises(PrecfmError, match=r"npm toy@1\.0\.0"):
        fetch("toy", tmp_path / "raw", sources_file=sources_file)
    npm = tmp_path / "npm"
    npm.write_text("#!/bin/sh\necho 'npm error code E404' >&2\nexit 1\n")
    npm.chmod(0o755)
    with pytest.raises(PrecfmError, match="E404"):
        fetch("toy", tmp_path / "raw", sources_file=sources_file)


def test_an_endless_package_is_given_up(
    tmp_path: Path, fake_npm: Callable[[list[tuple[str, bytes]]], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_npm([("package/big", bytes(2000)), ("package/a.bin", CONTENT["a.bin"])])
    monkeypatch.setattr(origins, "LARGEST_PACKAGE", 1000)
    with pytest.raises(PrecfmError, match="1000"):
        fetch("toy", tmp_path / "raw", sources_file=write_sources(tmp_path, ["npm: toy@1.0.0"]))
