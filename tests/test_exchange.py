"""Export and import: what goes out comes back equal, and nothing that was not verified is put in place."""

import hashlib
import io
import json
import shutil
import tarfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from precfm.audit.archive import (
    MANIFEST,
    checked_record,
    export_artifacts,
    find_artifacts,
    import_artifacts,
    parse_size,
    unpacking,
)
from precfm.cli import app
from precfm.core.errors import PrecfmError
from precfm.pipeline.artifact import Artifact, record_checksum
from precfm.pipeline.build import build
from precfm.pipeline.manifest import canonical
from precfm.pipeline.node import RECORD, Node
from tests.workflow import bytes_below

BOUND = 2**16


def make(kind, number, payload, experiment="mine"):
    """An artifact with the given files, made as any other."""
    node = Node(kind, f"label{number}", f"{number:012x}", {"n": number}, {}, "f" * 12, experiment)

    def write(job):
        for name, content in payload.items():
            (job.folder / name).parent.mkdir(parents=True, exist_ok=True)
            (job.folder / name).write_bytes(content)

    build(node, write)
    return node


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """Two small artifacts and one that is larger than the bound; the working folder."""
    monkeypatch.chdir(tmp_path)
    make("frames", 1, {"a.csv": b"x\n1\n", "deep/b.csv": b"y\n2\n"})
    make("frames", 2, {"a.csv": b"x\n3\n", "empty.csv": b""})
    make("verdicts", 3, {"large.json": bytes(range(256)) * 700})
    return tmp_path


def move_away():
    """What a colleague has: nothing."""
    shutil.move("results", "sent")


def exported(names=("mine",), to="out", bound=BOUND):
    return export_artifacts(find_artifacts(names), Path(to), bound)


def test_what_was_exported_comes_back_with_the_same_bytes(mine):
    exported()
    move_away()
    done = import_artifacts([Path("out")])
    assert len(done.placed) == 3
    assert bytes_below(Path("results/mine")) == bytes_below(Path("sent/mine"))
    assert import_artifacts([Path("out")]).kept == done.placed
    assert not list(Path("results/.work/parts").iterdir())


@pytest.mark.parametrize("experiment", ["mine", "other"])
def test_what_is_other_than_a_manifest_here_says_is_refused(mine, experiment):
    """Under any experiment's name: the key alone would bring it to where it is wanted."""
    exported(["frames/label1-000000000001"])
    move_away()
    record = json.loads(Path("sent/mine/frames/label1-000000000001", RECORD).read_text())
    entry = {field: record[field] for field in ("params", "parents", "fingerprint", "files", "made_on")}
    home = Path("results") / experiment
    home.mkdir(parents=True)

    def publish(files):
        artifacts = {"frames/renamed-000000000001": {**entry, "files": files}}
        (home / "manifest.json").write_text(
            canonical({"experiment": experiment, "key": "", "artifacts": artifacts})
        )

    publish({**record["files"], "a.csv": {"bytes": 4, "sha256": "0" * 64}})
    done = import_artifacts([Path("out")])
    assert done.refused == ("mine/frames/label1-000000000001",)
    assert not done.placed
    assert CliRunner().invoke(app, ["import", "out"]).exit_code == 1
    assert not list(Path("results").glob("*/frames/*"))
    publish(record["files"])
    assert import_artifacts([Path("out")]).placed == ("mine/frames/label1-000000000001",)


def test_files_stay_within_the_bound_and_joined_pieces_are_a_tar_file(mine):
    manifest = exported()
    files = [file for volume in manifest.volumes for file in volume.files]
    assert [file.name for file in files] == [
        "precfm-0001.tar", "precfm-0002.tar.001", "precfm-0002.tar.002", "precfm-0002.tar.003",
    ]  # fmt: skip
    assert max(file.bytes for file in files) == BOUND
    joined = b"".join(Path("out", file.name).read_bytes() for file in files[1:])
    with tarfile.open(fileobj=io.BytesIO(joined)) as archive:
        (member,) = [member for member in archive if member.name.endswith("large.json")]
        assert archive.extractfile(member).read() == bytes(range(256)) * 700


def test_an_export_depends_on_nothing_but_the_artifacts(mine):
    exported(to="first")
    for file in Path("results/mine").rglob("*"):
        file.touch()
    Path("results/mine/frames/label1-000000000001/a.csv").chmod(0o600)
    exported(to="second")
    assert bytes_below(Path("first")) == bytes_below(Path("second"))


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sizes=st.lists(st.integers(0, 40_000), min_size=1, max_size=6), bound=st.integers(BOUND, 3 * BOUND))
def test_any_sizes_come_back_and_no_file_exceeds_the_bound(tmp_path, monkeypatch, sizes, bound):
    for name in ("results", "sent", "out"):
        shutil.rmtree(tmp_path / name, ignore_errors=True)
    monkeypatch.chdir(tmp_path)
    for number, size in enumerate(sizes):
        make("frames", number, {"a.bin": bytes([number]) * size, "b.bin": b"b" * (2 * size)})
    manifest = exported(bound=bound)
    assert all(
        Path("out", file.name).stat().st_size == file.bytes <= bound
        for volume in manifest.volumes
        for file in volume.files
    )
    move_away()
    import_artifacts([Path("out")])
    assert bytes_below(Path("results/mine")) == bytes_below(Path("sent/mine"))


def test_names_choose_experiments_kinds_and_artifacts(mine):
    make("frames", 4, {"a.csv": b"4"}, experiment="other")
    assert len(find_artifacts(["mine"])) == 3
    assert len(find_artifacts(["mine/frames", "mine/frames"])) == 2
    assert find_artifacts(["frames/label4-000000000004"]) == [
        Path("results/other/frames/label4-000000000004")
    ]
    for name in ("nobody", "frames/*", "frames/../frames/label1-000000000001", "mine/flows", "../mine", ""):
        with pytest.raises(PrecfmError, match="no complete artifact"):
            find_artifacts([name])


def test_an_experiment_may_be_called_as_a_kind(mine):
    own = make("theory", 6, {"a.csv": b"6"}, experiment="theory")
    make("flows", 7, {"a.csv": b"7"}, experiment="theory")
    make("theory", 8, {"a.csv": b"8"})
    assert len(find_artifacts(["theory"])) == 2
    assert find_artifacts(["theory/theory"]) == [Path("results") / "theory" / own.id]
    assert find_artifacts(["theory/label8-000000000008"]) == [Path("results/mine/theory/label8-000000000008")]


def test_one_file_brings_its_volume_and_needs_all_its_pieces(mine):
    exported()
    move_away()
    assert len(import_artifacts([Path("out/precfm-0001.tar")]).placed) == 2
    assert len(import_artifacts([Path("out/precfm-0002.tar.002")]).placed) == 1
    Path("out/precfm-0002.tar.003").unlink()
    with pytest.raises(PrecfmError, match=r"precfm-0002\.tar\.003: is missing"):
        import_artifacts([Path("out/precfm-0002.tar.001")])
    with pytest.raises(PrecfmError, match="does not know this file"):
        import_artifacts([Path("out/precfm-0009.tar")])


def test_files_of_one_volume_may_all_be_given(mine):
    exported()
    move_away()
    assert len(import_artifacts(sorted(Path("out").iterdir())).placed) == 3


def test_what_is_here_is_never_overwritten(mine):
    exported()
    shutil.rmtree("results")
    own = make("frames", 1, {"a.csv": b"my own\n"})
    before = bytes_below(own.folder)
    done = import_artifacts([Path("out")])
    assert done.different == (f"mine/{own.id}",)
    assert len(done.placed) == 2
    assert bytes_below(own.folder) == before


def test_remains_without_a_record_give_way(mine):
    exported()
    Path("results/mine/frames/label1-000000000001", RECORD).unlink()
    assert import_artifacts([Path("out")]).placed == ("mine/frames/label1-000000000001",)
    Artifact.open(Path("results/mine/frames/label1-000000000001")).verified()


def test_a_damaged_artifact_is_not_exported(mine):
    Path("results/mine/frames/label2-000000000002/a.csv").write_bytes(b"y\n3\n")
    with pytest.raises(PrecfmError, match=r"a\.csv: damaged"):
        exported()
    assert not Path("out").exists()


def test_an_export_needs_an_empty_folder(mine):
    Path("out").mkdir()
    exported()
    with pytest.raises(PrecfmError, match="holds something already"):
        exported()


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_one_flipped_bit_anywhere_is_found_and_nothing_is_put_in_place(mine, data):
    if not Path("out").exists():
        exported()
        move_away()
    file = data.draw(st.sampled_from(sorted(Path("out").iterdir())))
    right = file.read_bytes()
    place = data.draw(st.integers(0, len(right) - 1))
    flipped = bytes([right[place] ^ (1 << data.draw(st.integers(0, 7)))])
    file.write_bytes(right[:place] + flipped + right[place + 1 :])
    try:
        if file.name == MANIFEST:  # white space and unread names may change; the artifacts may not
            import_or_refuse()
        else:
            with pytest.raises(PrecfmError, match=f"{file.name}: damaged"):
                import_artifacts([Path("out")])
            assert not placed()
    finally:
        file.write_bytes(right)
        shutil.rmtree("results", ignore_errors=True)


def import_or_refuse():
    """A manifest that is still one may name another folder, but what lies there is as it was sent."""
    sent = {record.read_bytes() for record in Path("sent").rglob(RECORD)}
    try:
        import_artifacts([Path("out")])
    except PrecfmError:
        assert not placed()
    for record in Path("results").rglob(RECORD):
        assert record.read_bytes() in sent
        Artifact.open(record.parent).verified()


def placed():
    return [path for path in Path("results").glob("[!.]*") if path.is_dir()]


# ---- attacks: whoever forges an export forges its manifest, too


def forge(change_members=None, change_record=None, change_manifest=None, change_tar=None, sealed=True):
    """An export of one artifact, changed on purpose, whose checksums are all right."""
    exported(["frames/label1-000000000001"])
    move_away()
    tar = Path("out/precfm-0001.tar")
    with tarfile.open(tar) as archive:
        members = [(member, archive.extractfile(member).read()) for member in archive]
    record = json.loads(members[0][1])
    if change_record:
        change_record(record)
    if sealed:
        record["checksum"] = record_checksum(record)
    text = json.dumps(record).encode()
    members[0][0].size = len(text)
    members[0] = (members[0][0], text)
    if change_members:
        change_members(members)
    with tarfile.open(tar, "w") as archive:
        for member, content in members:
            archive.addfile(member, io.BytesIO(content))
    if change_tar:
        change_tar(tar)
    manifest = json.loads(Path("out", MANIFEST).read_text())
    (volume,) = manifest["volumes"]
    volume["artifacts"][0]["record"] = hashlib.sha256(text).hexdigest()
    volume["files"][0]["bytes"] = tar.stat().st_size
    volume["files"][0]["sha256"] = hashlib.sha256(tar.read_bytes()).hexdigest()
    if change_manifest:
        change_manifest(manifest)
    Path("out", MANIFEST).write_text(json.dumps(manifest))


def refused(match):
    before = {path for path in Path().rglob("*") if ".work" not in path.parts}
    with pytest.raises(PrecfmError, match=match) as error:
        import_artifacts([Path("out")])
    assert "\n" not in str(error.value)
    assert {path for path in Path().rglob("*") if ".work" not in path.parts} - before <= {Path("results")}
    assert not list(Path("results/.work/parts").glob("*"))


def test_a_forgery_without_a_change_is_no_attack(mine):
    forge()
    assert len(import_artifacts([Path("out")]).placed) == 1


def renamed(name):
    def change(members):
        members[1][0].name = name

    return change


def as_type(kind, target="../../../../../evil"):
    def change(members):
        members[1][0].type, members[1][0].linkname = kind, target

    return change


def extra(name, kind=tarfile.REGTYPE):
    def change(members):
        info = tarfile.TarInfo(name)
        info.type, info.linkname, info.size = kind, "/etc/passwd", 4 if kind == tarfile.REGTYPE else 0
        members.append((info, b"evil"[: info.size]))

    return change


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (renamed("../../../evil"), "stands where"),
        (renamed("/tmp/precfm-evil"), "stands where"),
        (renamed("frames/label1-000000000001/../../../evil"), "stands where"),
        (as_type(tarfile.SYMTYPE), "no plain file"),
        (as_type(tarfile.LNKTYPE, "frames/label1-000000000001/artifact.json"), "no plain file"),
        (as_type(tarfile.DIRTYPE), "stands where|no plain file"),
        (as_type(tarfile.FIFOTYPE), "no plain file"),
        (as_type(tarfile.CHRTYPE), "no plain file"),
        (extra("frames/label1-000000000001/evil.csv"), "belongs to no artifact"),
        (extra("../evil"), "belongs to no artifact"),
        (extra("evil", tarfile.SYMTYPE), "belongs to no artifact"),
        (lambda members: members.pop(), "its end"),
        (lambda members: members.append(members[1]), "belongs to no artifact"),
        (lambda members: members.insert(1, members[0]), "stands where"),
        (lambda members: members.reverse(), "stands where"),
        (lambda members: members.__setitem__(1, (members[1][0], b"EVIL")), "checksum of its record"),
    ],
)  # fmt: skip
def test_members_that_lead_elsewhere_or_are_none_are_refused(mine, change, match):
    forge(change_members=change)
    refused(match)


def files(name):
    def change(record):
        record["files"][name] = record["files"].pop("a.csv")

    return change


@pytest.mark.parametrize(
    ("change", "match"),
    [
        *((files(name), "file name|below a file") for name in (
            "../evil", "a/../../evil", "/etc/evil", "artifact.json", ".hidden", "a/.b/c", "", ".", "a//b", "a\\b",
            "a\nb", "C\u202e.csv",
        )),
        (lambda record: record["files"].update({"a.csv/b": record["files"]["a.csv"]}), "below a file"),
        (lambda record: record["files"]["a.csv"].update(bytes=10**12), "not what was announced"),
        (lambda record: record["files"]["a.csv"].update(bytes=-1), r"files\.a\.csv\.bytes"),
        (lambda record: record["files"]["a.csv"].update(sha256="0" * 63), r"files\.a\.csv\.sha256"),
        (lambda record: record.update(kind="flows"), "what its folder is called"),
        (lambda record: record.update(key="000000000002"), "what its folder is called"),
        (lambda record: record.update(key="1"), "key"),
        (lambda record: record.update(key=1), "key"),
        (lambda record: record.pop("params"), "params"),
        (lambda record: record.update(files=[]), "files"),
    ],
)  # fmt: skip
def test_records_that_lie_are_refused(mine, change, match):
    forge(change_record=change)
    refused(match)


@pytest.mark.parametrize(
    "change", [{"params": {"n": 2}}, {"made_on": {}}, {"checksum": "0" * 64}, {"checksum": None}]
)
def test_a_record_that_is_not_what_its_own_checksum_says_is_refused(mine, change):
    forge(change_record=lambda record: record.update(change), sealed=False)
    refused("its own checksum is wrong")


def test_a_record_without_its_checksum_is_refused(mine):
    forge(change_record=lambda record: record.pop("checksum"), sealed=False)
    with pytest.raises(PrecfmError, match="its own checksum is wrong"):
        import_artifacts([Path("out")])


def artifact(**fields):
    return lambda manifest: manifest["volumes"][0]["artifacts"][0].update(fields)


def file(**fields):
    return lambda manifest: manifest["volumes"][0]["files"][0].update(fields)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (artifact(experiment="../.."), "experiment"),
        (artifact(experiment=".work"), "experiment"),
        (artifact(experiment="/tmp"), "experiment"),
        (artifact(experiment="1st"), "experiment"),
        (artifact(experiment="a.b"), "experiment"),
        (artifact(id="frames/../../evil-000000000001"), "id"),
        (artifact(id="nonsense/label1-000000000001"), "stands where"),
        (artifact(id="frames/label1"), "id"),
        (artifact(record="0" * 64), "checksum of the manifest"),
        (file(name="../precfm-0001.tar"), "name"),
        (file(name="/etc/passwd"), "name"),
        (file(bytes=10**18), "damaged|are needed"),
        (lambda manifest: manifest.update(format=2), "format"),
        (lambda manifest: manifest.update(volumes=[]), "volumes"),
        (
            lambda manifest: manifest["volumes"][0]["artifacts"].append(
                manifest["volumes"][0]["artifacts"][0]
            ),
            "twice",
        ),
        (lambda manifest: manifest.update(run="rm"), "run"),
    ],
)
def test_manifests_that_lie_are_refused(mine, change, match):
    forge(change_manifest=change)
    refused(match)


def nested_headers(tar):
    """Extended headers that describe one another without end: tarfile follows them by recursion."""
    info = tarfile.TarInfo("pax")
    info.type, info.size = tarfile.XHDTYPE, 11
    block = info.tobuf(tarfile.USTAR_FORMAT) + b"11 path=aa\n".ljust(512, b"\0")
    tar.write_bytes(block * 3000 + tar.read_bytes())


@pytest.mark.parametrize(
    "change",
    [
        nested_headers,
        lambda tar: tar.write_bytes(tar.read_bytes()[:700]),
        lambda tar: tar.write_bytes(b""),
        lambda tar: tar.write_bytes(b"no tar file" * 100),
        lambda tar: tar.write_bytes(b"\xff" * 2048),
        lambda tar: tar.write_bytes(__import__("gzip").compress(tar.read_bytes())),
    ],
)
def test_what_is_no_tar_file_is_refused(mine, change):
    forge(change_tar=change)
    refused("precfm-0001")


def test_more_than_fits_is_refused_before_anything_is_written(mine, monkeypatch):
    exported()
    move_away()
    usage = shutil.disk_usage(".")._replace(free=1000)
    monkeypatch.setattr(unpacking.shutil, "disk_usage", lambda _: usage)
    refused("MB are needed")


def test_a_record_larger_than_any_is_refused(mine, monkeypatch):
    exported()
    move_away()
    monkeypatch.setattr(unpacking, "LARGEST_TEXT", 300)
    refused("than 300 bytes")
    manifest = Path("out", MANIFEST)
    monkeypatch.setattr(unpacking, "LARGEST_TEXT", manifest.stat().st_size)
    short = json.loads(manifest.read_text())
    manifest.write_text(json.dumps(short))
    monkeypatch.setattr(unpacking, "LARGEST_TEXT", manifest.stat().st_size)
    assert import_artifacts([Path("out")]).placed


def test_the_records_that_the_pipeline_writes_are_records(mine):
    for folder in find_artifacts(["mine"]):
        checked_record((folder / RECORD).read_bytes(), "/".join(folder.parts[-2:]))


@pytest.mark.parametrize(
    ("text", "size"), [("65536", 65536), ("64KiB", 65536), ("1 MB", 10**6), ("2gib", 2**31)]
)
def test_sizes_are_read(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "many", "-1GB", "1.5GB", "1 kB", "16 parsecs", "0x10000"])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(PrecfmError, match="size"):
        parse_size(text)


def test_the_command_line_exports_and_imports(mine):
    run = CliRunner().invoke
    said = run(app, ["export", "mine", "--to", "out", "--max-size", "64KiB"])
    assert "3 artifacts in 4 files" in said.stdout
    move_away()
    assert "3 artifacts put in place, 0 were here already" in run(app, ["import", "out"]).stdout
    make("frames", 5, {"a.csv": b"5"})
    run(app, ["export", "frames/label5-000000000005", "--to", "five"])
    shutil.rmtree("results/mine/frames/label5-000000000005")
    make("frames", 5, {"a.csv": b"other"})
    assert "left as it is" in run(app, ["import", "five"]).stdout
