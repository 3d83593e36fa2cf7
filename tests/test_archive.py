"""Export and import: what goes out comes back equal, and nothing that was not verified is put in place."""

import gzip
import hashlib
import json
import shutil
import stat
import subprocess
import threading
import tomllib
import zipfile
from contextlib import chdir, suppress
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from precfm.audit.archive import export_experiment
from precfm.audit.importing import CHECKSUMS, METADATA, import_archive
from precfm.cli import app
from precfm.core.errors import PrecfmError
from precfm.pipeline.artifact import record_checksum
from precfm.pipeline.build import build
from precfm.pipeline.locks import alone
from precfm.pipeline.manifest import canonical, manifest_text
from precfm.pipeline.node import RECORD
from precfm.pipeline.plan import KINDS, load_plan
from precfm.pipeline.products import write_products
from tests.crates import issues
from tests.workflow import ROOT, bytes_below, git

EXPERIMENT = {
    "description": "Little enough to be shared in a test.",
    "theory": {"one": {"run": {"name": "steps_to_accuracy"}, "seeds": [0, 1]}},
}
HOME = Path("results/shared")
MANIFEST = f"{HOME}/manifest.json"


def fake(job):
    if job.node.kind not in ("verdicts", "pages"):
        job.write_json("content.json", {"id": job.node.id})
    if job.node.kind in ("table_files", "figure_files"):
        (job.folder / f"{job.node.label}.md").write_text(job.node.key)
    elif job.node.kind == "verdicts":
        job.write_json("claims.json", {})
        (job.folder / "claims.md").write_text("")
    elif job.node.kind == "pages":
        (job.folder / "report.html").write_text(job.node.key)
    else:
        (job.folder / "deep").mkdir()
        (job.folder / "deep/large.bin").write_bytes(bytes(range(256)) * 700)
        (job.folder / "deep/empty.csv").write_bytes(b"")


def fabricate(folder, script=fake):
    """The experiment `shared`, made of nothing in a moment, where its configuration is."""
    with chdir(folder):
        plan = load_plan("shared")
        for node in plan.nodes.values():
            build(node, script)
        write_products(plan)
    return plan


def checkout(folder):
    """A folder with the configuration alone."""
    for name in ("config/claims.yaml", "data/sources.yaml"):
        (folder / name).parent.mkdir(parents=True)
        shutil.copyfile(ROOT / name, folder / name)
    (folder / "data/own.files").write_text("")  # a list of files, as `precfm data add` writes them
    (folder / "config/shared.yaml").write_text(yaml.safe_dump({"extends": "base"}))
    (folder / "config/base.yaml").write_text(yaml.safe_dump(EXPERIMENT))
    return folder


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """A project in which `shared` was made, and exported to out.zip; tests must not change it."""
    folder = checkout(tmp_path_factory.mktemp("the lab"))
    git(folder, "init", "--quiet")
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", "first")
    plan = fabricate(folder)
    with chdir(folder):
        export_experiment(plan, to=Path("out.zip"))
    return folder


@pytest.fixture
def archive(lab):
    return lab / "out.zip"


@pytest.fixture
def colleague(lab, tmp_path, monkeypatch):
    """Another checkout of the same configuration, with nothing made; the working folder."""
    folder = checkout(tmp_path / "new comer")
    shutil.copytree(lab / "results/.work/plans", folder / "results/.work/plans")  # to be quick
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def copy(lab, tmp_path, monkeypatch):
    """A copy of the lab that may be changed; the working folder."""
    monkeypatch.chdir(shutil.copytree(lab, tmp_path / "copy"))
    Path("out.zip").unlink()
    return load_plan("shared")


def artifacts(folder):
    """The bytes of all artifacts; a job's own time stamps in folders left out."""
    return {
        name: checksum for name, checksum in bytes_below(folder / HOME).items() if name.split("/")[0] in KINDS
    }


def test_what_was_exported_comes_back_with_the_same_bytes_and_nothing_else_does(lab, archive, colleague):
    done = import_archive(archive)
    assert len(done.placed) == len(load_plan("shared").nodes)
    assert bytes_below(HOME) == artifacts(lab)
    assert import_archive(archive).kept == done.placed
    assert not list(Path("results/.work/parts").iterdir())


def test_an_archive_unpacks_to_what_any_reader_can_verify(lab, archive, tmp_path):
    with zipfile.ZipFile(archive) as opened:
        first, *others = opened.namelist()
        opened.extractall(tmp_path)
    assert first == CHECKSUMS
    said = subprocess.run(["sha256sum", "-c", CHECKSUMS], cwd=tmp_path, capture_output=True, text=True)
    assert (said.returncode, said.stdout.count(": OK\n")) == (0, len(others))
    assert {
        METADATA, "CITATION.cff", "LICENSE", "config/shared.yaml", "config/base.yaml", "config/claims.yaml",
        "data/sources.yaml", "data/own.files", MANIFEST, f"{HOME}/claims.json", f"{HOME}/tables/theory.md",
    } <= {*others}  # fmt: skip
    assert artifacts(tmp_path) == artifacts(lab)


@pytest.mark.parametrize("profile", ["ro-crate-1.1", "process-run-crate"])
def test_an_archive_is_a_valid_crate(archive, tmp_path, profile):
    with zipfile.ZipFile(archive) as opened:
        opened.extractall(tmp_path)
    assert issues(tmp_path, profile) == []
    metadata = json.loads((tmp_path / METADATA).read_text())
    (action,) = (each for each in metadata["@graph"] if each["@type"] == "CreateAction")
    assert action["name"] == "make reproduce EXPERIMENT=shared"
    action.pop("instrument")
    (tmp_path / METADATA).write_text(json.dumps(metadata))
    assert bool(issues(tmp_path, profile)) is (profile == "process-run-crate")


def test_the_citation_file_has_the_fields_of_its_format():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["cff-version"] == "1.2.0"
    assert citation["message"]
    assert [author["name"] for author in citation["authors"]] == ["The precfm authors"]
    assert citation["license"] == tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["license"]
    for work in (citation, *citation["references"]):
        assert {"type", "title", "authors"} <= work.keys()
    assert "2603.02337" in citation["references"][0]["url"]


def test_an_export_depends_on_nothing_but_its_contents(copy, archive):
    for file in Path().rglob("*"):
        if ".git" not in file.parts:
            file.touch()
    next(HOME.glob("theory/*/content.json")).chmod(0o600)
    file, count = export_experiment(copy)
    assert (file.name, count) == (f"shared-{copy.key}.zip", len(copy.nodes))
    assert file.read_bytes() == archive.read_bytes()


def test_a_kind_is_exported_without_the_rest(copy):
    shutil.rmtree(HOME / "frames")
    file, count = export_experiment(copy, ["theory"])
    shutil.rmtree(HOME)
    placed = import_archive(file).placed
    assert len(placed) == count == len(copy.of("theory"))
    with zipfile.ZipFile(file) as opened:
        assert {name.split("/")[2] for name in opened.namelist() if name.startswith("results/")} == {
            "theory", "manifest.json",
        }  # fmt: skip


@pytest.mark.parametrize(
    ("change", "kinds", "words"),
    [
        (lambda folder: (folder / "content.json").write_bytes(b"{}"), (), "content.json"),
        (lambda folder: (folder / "new.csv").write_bytes(b"1"), ("theory",), "new.csv"),
        (lambda folder: (folder / RECORD).unlink(), (), "missing"),
        (lambda folder: Path("out.zip").touch(), (), "--to"),
        (lambda folder: shutil.rmtree(".git"), (), "git"),
        (lambda folder: None, ("nonsense",), "--kind"),
        (lambda folder: None, ("flows",), "no artifacts"),
    ],
)
def test_what_is_not_whole_is_not_exported(copy, change, kinds, words):
    change(next(HOME.glob("theory/*")))
    before = set(Path().iterdir())
    with pytest.raises(PrecfmError, match=words):
        export_experiment(copy, kinds, Path("out.zip"))
    assert set(Path().iterdir()) == before


def test_another_configuration_is_refused_with_the_revision_that_made_it(lab, archive, colleague):
    change = {"theory": {"one": {"seeds": [0, 2]}}}
    Path("config/shared.yaml").write_text(yaml.safe_dump({"extends": "base", **change}))
    commit = git(lab, "rev-parse", "HEAD")[:12]
    refused(archive, "of its 7 artifacts", "theory/one-s1-", commit)
    Path("config/shared.yaml").unlink()
    refused(archive, "config/shared.yaml", commit)


def test_of_another_experiment_is_refused_if_one_was_asked_for(archive, colleague):
    with pytest.raises(PrecfmError, match="'shared'"):
        import_archive(archive, "quick")
    assert import_archive(archive, "shared").placed


def test_what_is_there_is_never_overwritten(archive, colleague):
    own, other, *_ = load_plan("shared").of("theory")
    build(own, lambda job: job.write_json("content.json", "my own"))
    before = bytes_below(own.folder)
    other.folder.mkdir(parents=True)
    (other.folder / "remains.csv").touch()
    done = import_archive(archive)
    assert done.different == [own.id]
    assert other.id in done.placed
    assert bytes_below(own.folder) == before
    said = CliRunner().invoke(app, ["import", str(archive)])
    assert (said.exit_code, f"{own.id}: is there with other bytes" in said.stdout) == (0, True)


def test_what_is_there_but_damaged_is_replaced(lab, archive, colleague):
    import_archive(archive)
    payload, record, *_ = load_plan("shared").of("theory")
    (payload.folder / "content.json").write_text("cut")
    (record.folder / RECORD).write_text("{")
    done = import_archive(archive)
    assert sorted(done.replaced) == sorted([payload.id, record.id])
    assert len(done.kept) == 5
    assert bytes_below(HOME) == artifacts(lab)
    assert sum("damaged" in line for line in done.lines()) == 2


@pytest.mark.parametrize("held", ["shared", "ledger"])
def test_an_import_waits_for_a_run(archive, colleague, held):
    with alone(held):
        waiting = threading.Thread(target=import_archive, args=(archive,))
        waiting.start()
        waiting.join(0.5)
        assert not HOME.exists()
    waiting.join()
    assert len(artifacts(Path())) > 0


def test_another_text_of_the_same_plan_is_noted(archive, colleague):
    assert import_archive(archive).unlike_here == []
    Path("config/base.yaml").write_text("# mine\n" + Path("config/base.yaml").read_text())
    done = import_archive(archive)
    assert done.unlike_here == ["config/base.yaml"]
    assert any("config/base.yaml" in line for line in done.lines())


def only_theory(members):
    """Leave out the artifacts of other kinds, and the products."""
    for name in [name for name in members if name.startswith(f"{HOME}/") and name != MANIFEST]:
        if name.split("/")[2] != "theory":
            del members[name]


def test_a_method_that_was_renamed_has_its_new_label(archive, colleague):
    base = {**EXPERIMENT, "theory": {"renamed": EXPERIMENT["theory"]["one"]}}
    Path("config/base.yaml").write_text(yaml.safe_dump(base))
    forge(archive, change=only_theory)
    done = import_archive(Path("forged.zip"))
    assert {name.rpartition("-")[0] for name in done.placed} == {"theory/renamed-s0", "theory/renamed-s1"}


def test_other_bytes_than_the_published_ones_are_noted(lab, archive, colleague):
    manifest = json.loads((lab / MANIFEST).read_text())
    published = Path("results/published/shared")
    published.mkdir(parents=True)
    for count in (0, 1):
        (published / "manifest.json").write_bytes(manifest_text(manifest))
        assert len(import_archive(archive).unlike_published) == count
        first = next(iter(manifest["artifacts"].values()))
        first["files"]["content.json"]["sha256"] = "0" * 64
    (published / "manifest.json").write_text("{")
    assert import_archive(archive).unlike_published == []


# ---- damage


def refused(file, *words):
    """The sentence with which an import ends; it has put nothing in place."""
    before = set(Path().rglob("*"))
    with pytest.raises(PrecfmError) as error:
        import_archive(file)
    said = str(error.value)
    assert said.startswith(f"{file}: ")
    assert "\n" not in said
    assert ".part-" not in said
    for word in words:
        assert word in said
    new = set(Path().rglob("*")) - before
    assert all(".work" in path.parts for path in new)
    assert not list(Path("results/.work/parts").glob("*"))


@pytest.mark.parametrize(
    "name",
    [
        CHECKSUMS,
        METADATA,
        "LICENSE",
        "config/base.yaml",
        MANIFEST,
        f"{HOME}/tables/theory.md",
        "large.bin",
        RECORD,
    ],
)
def test_a_flipped_byte_in_any_member_is_found(archive, colleague, name):
    content = bytearray(archive.read_bytes())
    with zipfile.ZipFile(archive) as opened:
        (member, *_) = (each for each in opened.infolist() if each.filename.endswith(name))
    start = member.header_offset + 30 + len(member.filename)
    content[start + member.file_size // 2] ^= 1
    Path("flipped.zip").write_bytes(content)
    refused(Path("flipped.zip"))


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_one_flipped_bit_anywhere_is_found_or_changes_nothing(lab, archive, colleague, data):
    content = bytearray(archive.read_bytes())
    directory = content.index(b"PK\1\2")
    place = data.draw(st.integers(0, 4000) | st.integers(directory, len(content) - 1))
    content[place] ^= 1 << data.draw(st.integers(0, 7))
    Path("flipped.zip").write_bytes(content)
    with suppress(PrecfmError):
        import_archive(Path("flipped.zip"))
    if HOME.exists():  # times and owners in headers mean nothing
        assert bytes_below(HOME) == artifacts(lab)
        shutil.rmtree(HOME)


@pytest.mark.parametrize(
    "change",
    [
        *(
            lambda content, part=part: content[: int(len(content) * part)]
            for part in (0, 0.001, 0.1, 0.5, 0.9, 0.999)
        ),
        lambda content: content[:-1],
        lambda content: content[2000:],
        lambda content: bytes(10240),
        lambda content: b"no archive" * 100,
        lambda content: b"PK\5\6" + b"\xff" * 18,
        gzip.compress,
    ],
)
def test_what_is_no_whole_archive_is_refused(archive, colleague, change):
    Path("out.zip").write_bytes(change(archive.read_bytes()))
    refused(Path("out.zip"))


# ---- attacks: whoever forges an archive forges its checksums, too


def forge(archive, change=None, headers=None, listing=None):
    """Write forged.zip: an archive changed on purpose, whose checksums are all right.

    Args:
        archive: a true one.
        change: of its members, a mapping from names to bytes.
        headers: of its list of headers, before the directory is written.
        listing: of the text that lists the checksums.
    """
    with zipfile.ZipFile(archive) as opened:
        members = {name: opened.read(name) for name in opened.namelist()[1:]}
    if change:
        change(members)
    text = "".join(f"{sha256(content)}  {name}\n" for name, content in members.items())
    with zipfile.ZipFile("forged.zip", "w") as forged:
        for name, content in {CHECKSUMS: listing(text) if listing else text, **members}.items():
            header = zipfile.ZipInfo(name)
            header.external_attr = (stat.S_IFREG | 0o644) << 16
            forged.writestr(header, content)
        if headers:
            headers(forged.filelist)


def sha256(content):
    return hashlib.sha256(content).hexdigest()


def victim(members):
    """The folder of an artifact, as a name in the archive."""
    return next(name for name in members if "/theory/" in name and name.endswith(RECORD)).removesuffix(
        f"/{RECORD}"
    )


def with_record(change, *, sealed=True, listed=True):
    """Change an artifact's record, and by default what vouches for it."""

    def forged(members):
        folder = victim(members)
        record = json.loads(members[f"{folder}/{RECORD}"])
        change(record)
        if sealed:
            record["checksum"] = record_checksum(record)
        members[f"{folder}/{RECORD}"] = canonical(record).encode()
        if listed:
            fields = {name: record.get(name) for name in ("params", "fingerprint", "files", "made_on")}
            with_manifest(
                lambda manifest: manifest["artifacts"]["/".join(folder.split("/")[2:])].update(fields)
            )(members)

    return forged


def with_manifest(change, *, sealed=True):
    """Change the manifest, and by default its checksum."""

    def forged(members):
        manifest = json.loads(members[MANIFEST])
        checksum = manifest.pop("checksum")
        change(manifest)
        members[MANIFEST] = (
            manifest_text(manifest) if sealed else canonical({**manifest, "checksum": checksum}).encode()
        )

    return forged


def other_configuration(members):
    members["config/more.yaml"] = members["config/base.yaml"] = b"forged: true"


@pytest.mark.parametrize(
    "forged", [None, with_record(lambda record: record.update(made_on={})), other_configuration]
)
def test_a_forgery_of_what_nothing_can_tell_is_no_attack(archive, colleague, forged):
    forge(archive, forged)
    assert len(import_archive(Path("forged.zip")).placed) == 7


def renamed(name):
    def change(members):
        members[name.format(artifact=victim(members), home=HOME)] = members.pop(
            f"{victim(members)}/content.json"
        )

    return change


@pytest.mark.parametrize(
    "change",
    [
        *map(renamed, (
            "../../../evil", "/tmp/precfm-evil", "{artifact}/../../../evil", "{artifact}/more.json",
            "{artifact}/.hidden", "{artifact}/content.json/deep", "{home}/theory/evil", "{home}/.work/evil",
            "results/published/shared/evil", "results/other/theory/evil", "results/evil", "config/evil.py",
            "config/../evil.yaml", "Makefile", ".git/config", "{artifact}/a\\b", "{artifact}/\u202e",
            "{artifact}/" + 300 * "long", CHECKSUMS, "",
        )),
        lambda members: members.update({f"{victim(members)}/evil.csv": b"evil"}),
        lambda members: members.update({f"{HOME}/theory/evil-0123456789ab/{RECORD}": b"{}"}),
        lambda members: members.pop(f"{victim(members)}/{RECORD}"),
        lambda members: members.update({f"{victim(members)}/content.json": b"EVIL"}),
        *(lambda members, name=name: members.update({f"{HOME}/{name}": b"EVIL"}) for name in (
            "tables/theory.md", "claims.md", "claims.json", "tables/evil.csv", "evil/thing", "evil.md", "records/evil",
        )),
        lambda members: members.pop(MANIFEST),
        lambda members: [members.pop(name) for name in [*members] if name.count("/") > 3],
        lambda members: members.clear(),
    ],
)  # fmt: skip
def test_members_that_lead_elsewhere_or_are_none_are_refused(archive, colleague, change):
    forge(archive, change)
    refused(Path("forged.zip"))
    assert not list(colleague.parent.glob("evil*"))
    assert not Path("/tmp/precfm-evil").exists()


def last(**fields):
    def change(headers):
        for name, value in fields.items():
            setattr(headers[-1], name, value)

    return change


@pytest.mark.parametrize(
    "headers",
    [
        *(last(external_attr=(kind | 0o777) << 16) for kind in (stat.S_IFLNK, stat.S_IFDIR, stat.S_IFCHR, 0)),
        last(compress_type=zipfile.ZIP_DEFLATED), last(compress_type=99), last(flag_bits=1), last(flag_bits=0x40),
        last(compress_size=3), last(file_size=10**15), last(compress_size=10**15, file_size=10**15),
        last(header_offset=0), last(header_offset=10**9), last(CRC=0), last(filename="../evil"),
        lambda headers: headers.append(headers[-1]), lambda headers: headers.pop(), lambda headers: headers.reverse(),
    ],
)  # fmt: skip
def test_headers_that_lie_are_refused(archive, colleague, headers):
    forge(archive, headers=headers)
    refused(Path("forged.zip"))


def test_members_that_share_their_bytes_are_refused(archive, colleague):
    """Each of them announces what the file holds, and all together many times as much."""
    with zipfile.ZipFile("forged.zip", "w") as inner:
        header = zipfile.ZipInfo(f"{HOME}/tables/0.csv")
        header.external_attr = (stat.S_IFREG | 0o644) << 16
        inner.writestr(header, bytes(50_000))
        size = inner.fp.tell()
        name = f"{HOME}/tables/1.csv"
    nested = Path("forged.zip").read_bytes()[:size]

    def overlap(headers):
        outer = headers[-1]
        header.header_offset = outer.header_offset + 30 + len(outer.filename)
        headers.append(header)

    forge(
        archive,
        change=lambda members: members.update({name: nested}),
        headers=overlap,
        listing=lambda text: f"{text}{sha256(bytes(50_000))}  {header.filename}\n",
    )
    refused(Path("forged.zip"), "overlap")


@pytest.mark.parametrize(
    "listing",
    [
        lambda text: text + text.splitlines()[-1] + "\n",
        lambda text: text + "# a remark\n",
        lambda text: text.replace("  ", " *"),
        lambda text: text.upper(),
        lambda text: text.rpartition("\n")[0].rpartition("\n")[0],
        lambda text: "",
        lambda text: b"\xff" + text.encode(),
    ],
)
def test_lists_of_checksums_that_lie_are_refused(archive, colleague, listing):
    forge(archive, listing=listing)
    refused(Path("forged.zip"))


def named(name):
    def change(record):
        record["files"][name] = record["files"].pop("content.json")

    return change


def stamped(**stamp):
    return lambda record: record["files"]["content.json"].update(stamp)


@pytest.mark.parametrize(
    "forged",
    [
        *(with_record(named(name), listed=False) for name in (
            "../evil", "a/../../evil", "/etc/evil", "artifact.json", ".hidden", "a/.b/c", "", ".", "a//b", "a\\b",
            "a\nb", "C\u202e.csv",
        )),
        *map(with_record, (
            stamped(bytes=10**12), stamped(bytes=3), stamped(sha256="0" * 64),
            lambda record: record.update(params={"n": 2}), lambda record: record.update(fingerprint="f" * 16),
        )),
        *(with_record(change, listed=False) for change in (
            stamped(bytes=-1), stamped(sha256="0" * 63), lambda record: record.update(kind="flows"),
            lambda record: record.update(key="000000000002"), lambda record: record.update(key=1),
            lambda record: record.update(parents={"data": ["data/0123456789ab"]}), lambda record: record.pop("params"),
            lambda record: record.update(files=[]), lambda record: record.update(files={}),
            lambda record: record.update(more=1), lambda record: record.update(made_on={}),
        )),
        *(with_record(lambda record, change=change: record.update(change), sealed=False) for change in (
            {"made_on": {}}, {"checksum": "0" * 64}, {"checksum": None},
        )),
    ],
)  # fmt: skip
def test_records_that_lie_are_refused(archive, colleague, forged):
    forge(archive, forged)
    refused(Path("forged.zip"))


@pytest.mark.parametrize(
    "forged",
    [
        *map(with_manifest, (
            lambda manifest: manifest.update(experiment="other"), lambda manifest: manifest.pop("revision"),
            lambda manifest: manifest.update(revision={"commit": "main", "clean": True}),
            lambda manifest: manifest.update(artifacts={}), lambda manifest: manifest.update(run="rm"),
            lambda manifest: [entry.update(files=None) for entry in manifest["artifacts"].values()],
            lambda manifest: [entry.update(params={}) for entry in manifest["artifacts"].values()],
        )),
        with_manifest(lambda manifest: manifest.update(key=""), sealed=False),
        lambda members: members.update({MANIFEST: b"{"}),
        lambda members: members.update({MANIFEST: b"[" * 100_000}),
    ],
)  # fmt: skip
def test_manifests_that_lie_are_refused(archive, colleague, forged):
    forge(archive, forged)
    refused(Path("forged.zip"))


def test_the_command_line_exports_and_imports(copy):
    invoke = CliRunner().invoke
    assert "7 artifacts" in invoke(app, ["export", "shared", "--to", "out.zip"]).stdout
    shutil.rmtree(HOME)
    assert "7 artifacts put in place, 0 were there" in invoke(app, ["import", "out.zip"]).stdout
