"""Attacks, each tried: code in data files, archives that lead elsewhere, names for a shell, tampered bytes."""

import ast
import importlib.util
import json
import os
import pickle
import re
import shutil
import struct
import sys
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from typer.testing import CliRunner

from precfm.cli import app
from precfm.core.errors import PrecfmError
from precfm.datasets import imagefolder
from precfm.datasets.imagefolder import ImageFolder
from precfm.datasets.manifest import add_source, source_manifest
from precfm.datasets.origins import OriginError, _npm_pack
from precfm.datasets.sources import fetch
from precfm.metrics.extractors import inception
from precfm.metrics.extractors.weights import Weights, load_state
from precfm.pipeline.artifact import Artifact
from precfm.pipeline.build import build
from precfm.pipeline.experiments import load_experiment, read_yaml
from precfm.pipeline.manifest import manifest_text
from precfm.pipeline.node import RECORD, Node
from precfm.pipeline.plan import load_plan
from tests.test_sources import sha256, write_sources
from tests.workflow import BIN, ROOT, run, sealed

SHELL_WORDS = [
    "x; touch pwned", "$(touch pwned)", "`touch pwned`", "x && touch pwned", "x\ntouch pwned", "x' ; touch pwned '",
    'x" ; touch pwned "', "x > pwned", "a b", "--help", "../../pwned", "{wildcard}", "é", "",
]  # fmt: skip


class Evil:
    """What runs a command when it is unpickled."""

    def __init__(self, target):
        self.target = str(target)

    def __reduce__(self):
        return Path.touch, (Path(self.target),)


def test_the_attack_works_where_nothing_prevents_it(tmp_path):
    pickle.loads(pickle.dumps(Evil(tmp_path / "pwned")))
    assert (tmp_path / "pwned").exists()


# ---- no code from data, by the source

UNPICKLERS = {"pickle", "_pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
FORBIDDEN = {
    "eval", "exec", "compile", "__import__", "exec_module", "os.system", "os.popen", "subprocess.getoutput",
    "subprocess.getstatusoutput", "yaml.load", "yaml.load_all", "yaml.unsafe_load", "yaml.full_load", "read_pickle",
    "extractall", "unpack_archive", "mktemp",
}  # fmt: skip
ALLOWED = {
    ("precfm/pipeline/experiments.py", "yaml.load"): "with a subclass of SafeLoader, tried below",
    ("precfm/datasets/manifest.py", "yaml.load"): "with CSafeLoader or SafeLoader, tried below",
    ("precfm/pipeline/job.py", "exec_module"): "the scripts of workflow_scripts/, by the plan's own names",
}


def suspicious(source):
    """Names of what a source does that could run code from data, or a shell."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = (
                [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            )
            found |= {name for name in names if name.split(".")[0] in UNPICKLERS}
        if not isinstance(node, ast.Call):
            continue
        keywords = {keyword.arg: keyword.value for keyword in node.keywords}
        said = ast.unparse(node.func)
        last = said.split(".")[-1]
        if "shell" in keywords:
            found.add("shell=")
        if said in FORBIDDEN or (last in FORBIDDEN - {"eval", "exec", "compile"} and last != "load"):
            found.add(said if said in FORBIDDEN else last)
        if said == "torch.load" and not is_constant(keywords.get("weights_only"), True):
            found.add("torch.load")
        if said in ("np.load", "numpy.load") and not is_constant(keywords.get("allow_pickle"), False):
            found.add("np.load")
        if is_constant(keywords.get("allow_pickle"), True):
            found.add("allow_pickle")
    return found


def is_constant(value, expected):
    return isinstance(value, ast.Constant) and value.value is expected


@pytest.mark.parametrize(
    "source",
    [
        "import pickle", "from pickle import loads", "import torch, dill", "eval(x)", "exec(x)", "os.system(x)",
        "subprocess.run(x, shell=True)", "subprocess.run(x, shell=flag)", "torch.load(x)",
        "torch.load(x, weights_only=False)", "np.load(x)", "np.load(x, allow_pickle=True)", "yaml.load(x)",
        "yaml.unsafe_load(x)", "pd.read_pickle(x)", "archive.extractall(x)", "shutil.unpack_archive(x)",
        "loader.exec_module(x)", "__import__(x)",
    ],
)  # fmt: skip
def test_the_scan_finds_what_it_looks_for(source):
    assert suspicious(source)


def test_the_scan_leaves_the_harmless_alone():
    source = (
        "model.eval()\nre.compile(x)\ntorch.compile(x)\nnp.load(x, allow_pickle=False)\nyaml.safe_load(x)\n"
    )
    assert not suspicious(
        source + "torch.load(x, weights_only=True)\nsubprocess.run([x])\nsafetensors.torch.load(x)"
    )


def test_no_code_comes_from_data_and_no_shell_is_called():
    files = [
        file for name in ("precfm", "workflow_scripts", "benchmarks") for file in (ROOT / name).rglob("*.py")
    ]
    assert len(files) > 80
    found = {
        (file.relative_to(ROOT).as_posix(), what) for file in files for what in suspicious(file.read_text())
    }
    assert found == set(ALLOWED)


def test_no_rule_runs_a_shell_command():
    for file in [ROOT / "Snakefile", *(ROOT / "rules").glob("*.smk")]:
        assert not re.search(r"^\s+(shell|run|wrapper|cwl):", file.read_text(), re.MULTILINE), file


# ---- no code from data, tried


def pictures(folder, count=2):
    folder.mkdir()
    for index in range(count):
        Image.fromarray(np.full((8, 8, 3), index, np.uint8)).save(folder / f"{index}.png")
    return str(folder)


def refused(arguments, *words):
    said = CliRunner().invoke(app, arguments)
    assert isinstance(said.exception, PrecfmError), said.output
    for word in words:
        assert word in str(said.exception)


def test_pickled_weights_are_not_loaded(project, monkeypatch):
    """Neither under a wrong checksum nor, should one be wrong in our own code, under the right one."""
    evil = project / "inception.pth"
    torch.save({"weight": Evil(project / "pwned")}, evil)
    images = [pictures(project / name) for name in ("real", "generated")]
    refused(["metrics", *images, "--weights", str(evil)], "SHA-256")
    monkeypatch.setattr(inception, "WEIGHTS", Weights("inception.pth", sha256(evil.read_bytes())))
    said = CliRunner().invoke(app, ["metrics", *images, "--weights", str(evil)])
    assert said.exit_code
    with pytest.raises(pickle.UnpicklingError):
        load_state(evil)
    assert not (project / "pwned").exists()


@pytest.mark.parametrize("suffix", ["npy", "safetensors"])
def test_pickled_features_are_not_loaded(project, suffix):
    evil = project / f"evil.{suffix}"
    if suffix == "npy":
        np.save(evil, np.array([Evil(project / "pwned")], dtype=object), allow_pickle=True)
    else:
        torch.save([Evil(project / "pwned")], evil)
    refused(["metrics", str(evil), str(evil)], evil.name)
    assert not (project / "pwned").exists()


@pytest.mark.parametrize(
    "text",
    [
        "!!python/object/apply:os.system ['touch pwned']", "a: !!python/object/new:os.system ['touch pwned']",
        "!!python/name:os.system", "!!python/module:os",
    ],
)  # fmt: skip
def test_configurations_run_nothing(project, text):
    for file, read in {
        "config/evil.yaml": read_yaml,
        "data/evil.yaml": lambda path: source_manifest("toy", path),
    }.items():
        (project / file).write_text(text)
        with pytest.raises(PrecfmError, match=r"evil\.yaml"):
            read(project / file)
    assert not (project / "pwned").exists()


# ---- archives


def png(width=8, height=8):
    """A picture whose header promises a size; its contents are short."""

    def chunk(kind, content):
        return (
            struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        )

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    rows = zlib.compress(b"\0" * (width + 1) * min(height, 8))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def zipped(path, members):
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for member, content in members:
            archive.writestr(member, content, zipfile.ZIP_DEFLATED)
    return path


def link(name, target):
    info = zipfile.ZipInfo(name)
    info.external_attr = 0o120777 << 16
    return info, target


@pytest.mark.parametrize(
    ("name", "read"), [("../../evil/1.png", 1), ("/tmp/precfm-evil/1.png", 2), ("a/../../../evil/1.png", 1)]
)
def test_a_zip_file_is_read_without_being_unpacked(project, name, read):
    """A name with `..` counts as hidden and is left aside; an absolute one is just the name of a class."""
    archive = zipped(project / "photos" / "1.zip", [(name, png()), ("daisy/1.png", png())])
    add_source("photos", archive, project / "data/sources.yaml")
    before = set(project.rglob("*"))
    folder = project / "data/raw/photos"
    fetch("photos", folder, sources_file=project / "data/sources.yaml")
    assert len(ImageFolder(resolution=4).load(folder).images) == read
    assert set(project.rglob("*")) - before == {folder.parent, folder, folder / "1.zip"}
    assert not list(project.parent.glob("evil*"))
    assert not Path("/tmp/precfm-evil").exists()


def test_a_link_in_a_zip_file_is_no_way_out(project):
    (project / "secret.png").write_bytes(png())
    zipped(project / "photos" / "1.zip", [link("daisy/1.png", str(project / "secret.png"))])
    with pytest.raises(PrecfmError, match=r"daisy/1\.png"):
        ImageFolder(resolution=4).load(project / "photos")


def test_zip_bombs_are_refused_by_the_size_that_they_announce(project, monkeypatch):
    monkeypatch.setattr(imagefolder, "LARGEST_FILE", 10_000)
    zipped(project / "photos" / "1.zip", [("daisy/1.png", bytes(10_001))])
    with pytest.raises(PrecfmError, match="10000"):
        ImageFolder(resolution=4).load(project / "photos")


def test_zip_bombs_that_announce_less_are_cut(project):
    """The directory says 60 bytes, the stream holds 50 MB: no more than 60 bytes are read."""
    path = zipped(project / "photos" / "1.zip", [("daisy/1.png", bytes(50_000_000))])
    content = path.read_bytes()
    assert content.count(struct.pack("<I", 50_000_000)) == 2
    path.write_bytes(content.replace(struct.pack("<I", 50_000_000), struct.pack("<I", 60)))
    with (
        zipfile.ZipFile(path) as archive,
        imagefolder._open_member(archive, "daisy/1.png") as member,
        pytest.raises(zipfile.BadZipFile),
    ):
        member.read()
    with pytest.raises(PrecfmError, match=r"daisy/1\.png"):
        ImageFolder(resolution=4).load(project / "photos")


def test_a_picture_that_would_fill_the_memory_is_refused(project):
    (project / "photos").mkdir()
    (project / "photos/1.png").write_bytes(png(30_000, 30_000))
    with pytest.raises(PrecfmError, match=r"1\.png.*bomb"):
        ImageFolder(resolution=4).load(project / "photos")


# ---- names


@pytest.mark.parametrize("name", SHELL_WORDS)
def test_experiments_have_plain_names(project, name):
    if name and "/" not in name:
        shutil.copyfile(project / "config/smoke.yaml", project / "config" / f"{name}.yaml")
    with pytest.raises(PrecfmError, match="experiment"):
        load_experiment(name)
    (project / "config/child.yaml").write_text(yaml.safe_dump({"extends": name}))
    with pytest.raises(PrecfmError, match="experiment"):
        load_experiment("child")


@pytest.mark.parametrize("name", SHELL_WORDS)
@pytest.mark.parametrize("room", ["methods", "theory", "datasets", "encoders"])
def test_what_becomes_a_label_has_a_plain_name(planned, name, room):
    first = next(iter(load_plan("smoke").sources))
    given = {
        "methods": {"preconditioner": {"name": "whitening"}},
        "theory": {"run": {"name": "steps_to_accuracy"}, "seeds": [0]},
        "datasets": yaml.safe_load(json.dumps({"extends": first})),
        "encoders": {},
    }[room]
    if room in ("datasets", "encoders"):
        raw = yaml.safe_load((ROOT / "config/quick.yaml").read_text())
        given = next(iter(raw[room].values()))
    with pytest.raises(PrecfmError, match=f"{room}: got the name {re.escape(repr(name))}"):
        planned({room: {name: given}})


class Stub:
    """A folder with programs that write down their arguments instead of running."""

    def __init__(self, folder, *names):
        self.folder, self.log = folder, folder / "called.json"
        folder.mkdir(parents=True)
        for name in names:
            program = folder / name
            program.write_text(
                # As pip writes programs, since the interpreter's path may have a space.
                f"#!/bin/sh\n'''exec' \"{sys.executable}\" \"$0\" \"$@\"\n' '''\nimport json, sys\n"
                f"with open({str(self.log)!r}, 'a') as file:\n    file.write(json.dumps(sys.argv[1:]) + '\\n')\n"
            )
            program.chmod(0o755)

    @property
    def calls(self):
        return [json.loads(line) for line in self.log.read_text().splitlines()] if self.log.exists() else []


@pytest.mark.parametrize("name", [*SHELL_WORDS[:10], "$(shell touch pwned)"])
@pytest.mark.parametrize("way", ["argument", "environment"])
def test_make_hands_an_experiments_name_on_as_one_word(tmp_path, name, way):
    shutil.copyfile(ROOT / "Makefile", tmp_path / "Makefile")
    for file in ("requirements.lock", "pyproject.toml"):
        (tmp_path / file).touch()
    stub = Stub(tmp_path / ".venv/bin", "python")
    (tmp_path / ".venv/installed").touch()
    if way == "argument":
        run(tmp_path, "make", "reproduce", f"EXPERIMENT={name}", "CORES=1")
    else:
        run(tmp_path, "make", "reproduce", "CORES=1", EXPERIMENT=name)
    assert stub.calls == [["workflow_scripts/reproduce.py", name, "--cores", "1"]]
    assert not (tmp_path / "pwned").exists()


def test_the_ledger_hands_a_name_on_as_one_word(tmp_path):
    """DVC runs its commands through a shell."""
    name = "x; touch pwned $(touch pwned) `touch pwned` > pwned"
    shutil.copyfile(ROOT / "dvc.yaml", tmp_path / "dvc.yaml")
    (tmp_path / "params.yaml").write_text(yaml.safe_dump({"experiments": [name], "sources": [name]}))
    stub = Stub(tmp_path / "stub", "python", "precfm")
    (tmp_path / "keys" / name).mkdir(parents=True)
    (tmp_path / "keys" / name / "data.txt").touch()
    (tmp_path / "data").mkdir()
    (tmp_path / "data/sources.yaml").write_text(yaml.safe_dump({name: {"checksum": "0"}}))
    run(tmp_path, BIN / "dvc", "init", "--no-scm", "--quiet")
    path = f"{stub.folder}{os.pathsep}{os.environ['PATH']}"
    for stage in (f"data@{name}", f"raw@{name}"):
        said = run(tmp_path, BIN / "dvc", "repro", "--single-item", stage, code=255, PATH=path)
        assert "does not exist" in said, "the stub has made nothing"
    made, fetched = stub.calls
    assert made == ["workflow_scripts/reproduce.py", name, "--target", "data"]
    assert fetched == ["data", "fetch", name]
    assert not (tmp_path / "pwned").exists()


def test_every_command_of_the_ledger_quotes_what_it_inserts():
    for name, stage in yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"].items():
        assert "${" not in re.sub(r"'\$\{[a-z.]+\}'", "", stage["cmd"]), name


def test_a_sources_name_is_plain(tmp_path):
    path = write_sources(tmp_path, [])
    for name in ("../evil", "/tmp/evil", "-x", "a b", "x;touch pwned"):
        path.write_text(path.read_text() + path.read_text().replace("toy:", json.dumps(name) + ":", 1))
        with pytest.raises(PrecfmError, match="name"):
            fetch(name, tmp_path / "raw", sources_file=path)


def test_a_package_is_no_option_of_npm(tmp_path):
    with pytest.raises(OriginError, match="option"):
        _npm_pack("--registry=http://127.0.0.1:1", tmp_path)


# ---- bytes that are not those that were promised


@pytest.fixture
def artifact(project):
    node = Node("frames", "mine", "0123456789ab", {}, {}, "", "mine")
    build(node, lambda job: job.write_json("a.json", {"n": 1}))
    return node.folder


@pytest.mark.parametrize("name", ["../../../../config/smoke.yaml", "deep/../../x", "/etc/hostname"])
def test_a_record_cannot_reach_other_files(artifact, name):
    record = json.loads((artifact / RECORD).read_text())
    file = artifact / name
    content = file.read_bytes() if file.exists() else b""
    record["files"] = {name: {"sha256": sha256(content), "bytes": len(content)}}
    (artifact / RECORD).write_text(sealed(record))
    with pytest.raises(PrecfmError, match=re.escape(name)):
        Artifact.open(artifact).verified()


@pytest.mark.parametrize(
    "text", ["[]", "3", "{}", '{"files": []}', '{"files": {"a": 1}}', "\ufeff{}", '{"files": {"a": {}}}', ""]
)
def test_a_record_that_is_none_is_damage(artifact, text):
    (artifact / RECORD).write_text(text)
    with pytest.raises(PrecfmError, match=r"artifact\.json|/a"):
        Artifact.open(artifact).verified()


def test_before_a_pull_a_malformed_record_is_set_aside(artifact, project):
    """`make pull` meets whatever a colleague or a broken disk has left."""
    manifest = manifest_text({"experiment": "mine", "key": "", "artifacts": {}})
    (project / "results/mine/manifest.json").write_bytes(manifest)
    (artifact / RECORD).write_text('{"files": 3}')
    spec = importlib.util.spec_from_file_location("pull", ROOT / "workflow_scripts/pull.py")
    pull = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(pull)
    assert pull.set_aside("mine", ["frames"]) == []
    assert not artifact.exists()
