"""Export and import: what goes out comes back equal, and nothing that was not verified is put in place."""

import gzip
import io
import json
import shutil
import tarfile
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from precfm.audit.archive import MANIFEST, export_artifacts, find_artifacts, import_artifacts
from precfm.cli import app
from precfm.core.errors import PrecfmError
from precfm.pipeline.artifact import Artifact, record_checksum
from precfm.pipeline.build import build
from precfm.pipeline.manifest import canonical, manifest_text
from precfm.pipeline.node import RECORD, Node
from tests.workflow import bytes_below

FIRST = "mine/frames/label1-000000000001"
OUT = Path("out.tar")


def make(kind, number, payload, experiment="mine"):
    """An artifact with the given files, made as any other."""
    node = Node(kind, f"label{number}", f"{number:012x}", {"n": number}, {}, "f" * 16, experiment)

    def write(job):
        for name, content in payload.items():
            (job.folder / name).parent.mkdir(parents=True, exist_ok=True)
            (job.folder / name).write_bytes(content)

    build(node, write)
    return node


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """Three artifacts of one experiment; the working folder."""
    monkeypatch.chdir(tmp_path)
    make("frames", 1, {"a.csv": b"x\n1\n", "deep/b.csv": b"y\n2\n"})
    make("frames", 2, {"a.csv": b"x\n3\n", "empty.csv": b""})
    make("verdicts", 3, {"large.json": bytes(range(256)) * 700})
    return tmp_path


def move_away():
    """What a colleague has: nothing."""
    shutil.move("results", "sent")


def exported(*names, to=OUT):
    return export_artifacts(find_artifacts(names or ["mine"]), to)


def test_what_was_exported_comes_back_with_the_same_bytes(mine):
    exported()
    move_away()
    done = import_artifacts(OUT)
    assert len(done.placed) == 3
    assert bytes_below(Path("results/mine")) == bytes_below(Path("sent/mine"))
    assert import_artifacts(OUT).kept == done.placed
    assert not list(Path("results/.work/parts").iterdir())


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sizes=st.lists(st.integers(0, 40_000), min_size=1, max_size=6))
def test_any_sizes_come_back(tmp_path, monkeypatch, sizes):
    for name in ("results", "sent"):
        shutil.rmtree(tmp_path / name, ignore_errors=True)
    monkeypatch.chdir(tmp_path)
    OUT.unlink(missing_ok=True)
    for number, size in enumerate(sizes):
        make("frames", number, {"a.bin": bytes([number]) * size, "b.bin": b"b" * (2 * size)})
    exported()
    move_away()
    import_artifacts(OUT)
    assert bytes_below(Path("results/mine")) == bytes_below(Path("sent/mine"))


@pytest.mark.parametrize("home", ["mine", "other", "published/mine"])
def test_what_is_other_than_a_manifest_of_this_project_says_is_refused(mine, home):
    """Under any experiment's name: the key alone would bring it to where it is wanted."""
    exported("frames/label1-000000000001")
    move_away()
    record = json.loads(Path("sent", FIRST, RECORD).read_text())
    entry = {field: record[field] for field in ("params", "parents", "fingerprint", "files", "made_on")}
    place = Path("results", home)
    place.mkdir(parents=True)

    def publish(files):
        artifacts = {"frames/renamed-000000000001": {**entry, "files": files}}
        content = {"experiment": place.name, "key": "", "artifacts": artifacts}
        (place / "manifest.json").write_bytes(manifest_text(content))

    publish({**record["files"], "a.csv": {"bytes": 4, "sha256": "0" * 64}})
    done = import_artifacts(OUT)
    assert (done.refused, done.placed) == ([FIRST], [])
    assert CliRunner().invoke(app, ["import", str(OUT)]).exit_code == 1
    assert not list(Path("results").rglob("frames/*"))
    publish(record["files"])
    assert import_artifacts(OUT).placed == [FIRST]
    (place / "manifest.json").write_text("{")
    with pytest.raises(PrecfmError, match=f"{home}/manifest.json: damaged"):
        import_artifacts(OUT)


def test_an_export_depends_on_nothing_but_the_artifacts(mine):
    exported(to=Path("first/out.tar"))
    for file in Path("results/mine").rglob("*"):
        file.touch()
    Path("results", FIRST, "a.csv").chmod(0o600)
    exported(to=Path("second/out.tar"))
    assert bytes_below(Path("first")) == bytes_below(Path("second"))


def test_names_choose_experiments_kinds_and_artifacts(mine):
    make("frames", 4, {"a.csv": b"4"}, experiment="other")
    own = make("frames", 6, {"a.csv": b"6"}, experiment="frames")
    assert len(find_artifacts(["mine"])) == 3
    assert len(find_artifacts(["mine/frames", "mine/frames"])) == 2
    assert find_artifacts(["frames/label4-000000000004"]) == [
        Path("results/other/frames/label4-000000000004")
    ]
    assert (
        find_artifacts(["frames"]) == find_artifacts(["frames/frames"]) == [Path("results/frames") / own.id]
    )
    for name in ("nobody", "frames/*", "frames/../frames/label1-000000000001", "mine/flows", "../mine", ""):
        with pytest.raises(PrecfmError, match="no complete artifact"):
            find_artifacts([name])


def test_what_is_there_is_never_overwritten(mine):
    exported()
    shutil.rmtree("results")
    own = make("frames", 1, {"a.csv": b"my own\n"})
    before = bytes_below(own.folder)
    done = import_artifacts(OUT)
    assert done.different == [FIRST]
    assert len(done.placed) == 2
    assert bytes_below(own.folder) == before


def test_remains_without_a_record_give_way(mine):
    exported()
    Path("results", FIRST, RECORD).unlink()
    assert import_artifacts(OUT).placed == [FIRST]
    Artifact.open(Path("results", FIRST)).verified()


@pytest.mark.parametrize("name", ["a.csv", "new.csv"])
def test_a_damaged_artifact_is_not_exported(mine, name):
    Path("results", FIRST, name).write_bytes(b"y\n3\n")
    with pytest.raises(PrecfmError, match=name):
        exported()
    assert not OUT.exists()


def test_an_export_needs_a_new_file(mine):
    exported()
    with pytest.raises(PrecfmError, match="--to"):
        exported()


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_one_flipped_bit_anywhere_is_found_or_changes_nothing(mine, data):
    if not OUT.exists():
        exported()
        move_away()
    right = OUT.read_bytes()
    place = data.draw(st.integers(0, len(right) - 1))
    flipped = bytes([right[place] ^ (1 << data.draw(st.integers(0, 7)))])
    OUT.write_bytes(right[:place] + flipped + right[place + 1 :])
    with suppress(PrecfmError):
        import_artifacts(OUT)
    if Path("results/mine").exists():  # padding, times and owners in headers mean nothing
        assert bytes_below(Path("results/mine")) == bytes_below(Path("sent/mine"))
    OUT.write_bytes(right)
    shutil.rmtree("results", ignore_errors=True)


# ---- attacks: whoever forges an archive forges its manifest, too


def forge(change_members=None, change_record=None, change_manifest=None, sealed=True):
    """An archive of one artifact, changed on purpose, whose checksums are all right."""
    exported("frames/label1-000000000001")
    move_away()
    with tarfile.open(OUT) as archive:
        members = {member.name: [member, archive.extractfile(member).read()] for member in archive}
    record = json.loads(members[f"{FIRST}/{RECORD}"][1])
    if change_record:
        change_record(record)
    if sealed:
        record["checksum"] = record_checksum(record)
    members[f"{FIRST}/{RECORD}"][1] = canonical(record).encode()
    if change_members:
        change_members(members)
    manifest = json.loads(members.pop(MANIFEST)[1])
    manifest["files"] = {}
    for member, content in members.values():
        if member.isreg():
            manifest["files"][member.name] = len(content)
        member.size = len(content) if member.isreg() else 0
    if change_manifest:
        change_manifest(manifest)
    text = json.dumps(manifest).encode()
    head = tarfile.TarInfo(MANIFEST)
    head.size = len(text)
    with tarfile.open(OUT, "w") as archive:
        for member, content in [(head, text), *sorted(members.values(), key=lambda each: each[0].name)]:
            archive.addfile(member, io.BytesIO(content))


def refused():
    before = set(Path().rglob("*"))
    with pytest.raises(PrecfmError, match=r"^out\.tar: ") as error:
        import_artifacts(OUT)
    assert "\n" not in str(error.value)
    assert ".part-" not in str(error.value)
    assert all(".work" in path.parts or path == Path("results") for path in set(Path().rglob("*")) - before)
    assert not list(Path("results/.work/parts").glob("*"))


def test_a_forgery_without_a_change_is_no_attack(mine):
    forge()
    assert import_artifacts(OUT).placed == [FIRST]


def renamed(name):
    def change(members):
        members[f"{FIRST}/a.csv"][0].name = name

    return change


def as_type(kind, target="../../../../../evil"):
    def change(members):
        member = members[f"{FIRST}/a.csv"][0]
        member.type, member.linkname = kind, target

    return change


def extra(name, kind=tarfile.REGTYPE):
    def change(members):
        info = tarfile.TarInfo(name)
        info.type, info.linkname = kind, "/etc/passwd"
        members[name] = [info, b"evil"]

    return change


@pytest.mark.parametrize(
    "change",
    [
        renamed("../../../evil"),
        renamed("/tmp/precfm-evil"),
        renamed(f"{FIRST}/../../../evil"),
        renamed(f"{FIRST}/deep/b.csv"),
        renamed(f"{FIRST}/.hidden"),
        renamed("published/frames/label1-000000000001/a.csv"),
        renamed(".work/frames/label1-000000000001/a.csv"),
        renamed("mine/nonsense/label1-000000000001/a.csv"),
        as_type(tarfile.SYMTYPE),
        as_type(tarfile.LNKTYPE, f"{FIRST}/{RECORD}"),
        as_type(tarfile.DIRTYPE),
        as_type(tarfile.FIFOTYPE),
        as_type(tarfile.CHRTYPE),
        extra(f"{FIRST}/evil.csv"),
        extra("../evil"),
        extra("evil", tarfile.SYMTYPE),
        lambda members: members.pop(f"{FIRST}/a.csv"),
        lambda members: members.pop(f"{FIRST}/{RECORD}"),
        lambda members: members[f"{FIRST}/a.csv"].__setitem__(1, b"EVIL"),
    ],
)
def test_members_that_lead_elsewhere_or_are_none_are_refused(mine, change):
    forge(change_members=change)
    refused()


def test_a_link_that_the_manifest_lists_is_refused(mine):
    def listed(manifest):
        manifest["files"][f"{FIRST}/a.csv"] = 0

    forge(change_members=as_type(tarfile.SYMTYPE), change_manifest=listed)
    refused()


def named(name):
    def change(record):
        record["files"][name] = record["files"].pop("a.csv")

    return change


@pytest.mark.parametrize(
    "change",
    [
        *map(named, ("../evil", "a/../../evil", "/etc/evil", "artifact.json", ".hidden", "a/.b/c", "", ".", "a//b",
                     "a\\b", "a\nb", "C\u202e.csv")),
        lambda record: record["files"].update({"a.csv/b": record["files"]["a.csv"]}),
        lambda record: record["files"]["a.csv"].update(bytes=10**12),
        lambda record: record["files"]["a.csv"].update(bytes=-1),
        lambda record: record["files"]["a.csv"].update(sha256="0" * 63),
        lambda record: record.update(kind="flows"),
        lambda record: record.update(key="000000000002"),
        lambda record: record.update(key="1"),
        lambda record: record.update(key=1),
        lambda record: record.pop("params"),
        lambda record: record.update(files=[]),
        lambda record: record.update(more=1),
    ],
)  # fmt: skip
def test_records_that_lie_are_refused(mine, change):
    forge(change_record=change)
    refused()


@pytest.mark.parametrize(
    "change", [{"params": {"n": 2}}, {"made_on": {}}, {"checksum": "0" * 64}, {"checksum": None}]
)
def test_a_record_that_is_not_what_its_own_checksum_says_is_refused(mine, change):
    forge(change_record=lambda record: record.update(change), sealed=False)
    refused()


def listed(**sizes):
    return lambda manifest: manifest["files"].update(
        {f"{FIRST}/{name}.csv": size for name, size in sizes.items()}
    )


@pytest.mark.parametrize(
    "change",
    [
        listed(a=10**18),
        listed(a=3),
        listed(a=-1),
        listed(a="4"),
        listed(more=1),
        lambda manifest: manifest.update(format=1),
        lambda manifest: manifest.update(files={}),
        lambda manifest: manifest["files"].update({"../evil": 1}),
        lambda manifest: manifest.update(run="rm"),
    ],
)
def test_manifests_that_lie_are_refused(mine, change):
    forge(change_manifest=change)
    refused()


def nested_headers(content):
    """Extended headers that describe one another without end: tarfile follows them by recursion."""
    info = tarfile.TarInfo("pax")
    info.type, info.size = tarfile.XHDTYPE, 11
    return (info.tobuf(tarfile.USTAR_FORMAT) + b"11 path=aa\n".ljust(512, b"\0")) * 3000 + content


@pytest.mark.parametrize(
    "change",
    [
        nested_headers,
        lambda content: content[:700],
        lambda content: content[:3000],
        lambda content: b"",
        lambda content: bytes(10240),
        lambda content: b"no tar file" * 100,
        lambda content: b"\xff" * 2048,
        gzip.compress,
    ],
)
def test_what_is_no_tar_file_is_refused(mine, change):
    forge()
    OUT.write_bytes(change(OUT.read_bytes()))
    refused()


def test_the_command_line_exports_and_imports(mine):
    invoke = CliRunner().invoke
    assert "3 artifacts" in invoke(app, ["export", "mine", "--to", "out.tar"]).stdout
    move_away()
    assert "3 artifacts put in place, 0 were there" in invoke(app, ["import", "out.tar"]).stdout
    make("frames", 5, {"a.csv": b"5"})
    invoke(app, ["export", "frames/label5-000000000005", "--to", "five.tar"])
    shutil.rmtree("results/mine/frames/label5-000000000005")
    make("frames", 5, {"a.csv": b"other"})
    assert "left as it is" in invoke(app, ["import", "five.tar"]).stdout
