"""Sharing through a folder, an S3 server on the loopback, and archives: everything arrives, nothing of yours is lost.

The artifacts are fabricated, in a clone of this project with a real ledger, in a folder whose name has a space; one
slow test shares real ones.
"""

import hashlib
import json
import shutil
import sys

import pytest
import yaml

from precfm.pipeline.files import remove
from precfm.pipeline.plan import KINDS
from tests.test_archive import EXPERIMENT, artifacts, fabricate, fake
from tests.test_security import SHELL_WORDS, Stub
from tests.workflow import BIN, ROOT, bytes_below, clone, git, jobs, reproduce, run, sealed

pytestmark = pytest.mark.xdist_group("sharing")

BUCKET = "precfm"
KEYS = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}
NOTHING = {"products", "all"}  # rules that copy what is made


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """A clone of this project in which the experiment `shared` was recorded; no remote is set."""
    folder = tmp_path_factory.mktemp("the lab") / "precfm"
    listed = run(ROOT, "git", "ls-files", "--cached", "--others", "--exclude-standard").splitlines()
    for name in listed:
        left_out = name.startswith(("results/", "tests/", "docs/", "keys/", "dvc.lock"))
        if (ROOT / name).is_file() and not left_out:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, folder / name)
    (folder / "config/shared.yaml").write_text(yaml.safe_dump(EXPERIMENT))
    (folder / "params.yaml").write_text("experiments: [shared]\nsources: []\n")
    fabricate(folder)
    run(folder, BIN / "precfm", "keys")
    git(folder, "init", "--quiet")
    stages = [f"{stage}@shared" for stage in ("keys", *KINDS, "products")]
    for kind in KINDS:
        (folder / "results/shared" / kind).mkdir(exist_ok=True)
    run(folder, BIN / "dvc", "commit", "--quiet", "--force", *stages)
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", "recorded")
    return folder


@pytest.fixture(scope="module")
def store(lab, tmp_path_factory):
    """A folder that everything of the lab was pushed to."""
    folder = tmp_path_factory.mktemp("a store")
    push(lab, str(folder))
    return folder


@pytest.fixture
def colleague(lab, tmp_path):
    """A clone of the lab, with what git has."""
    return clone(lab, tmp_path / "new comer")


@pytest.fixture(scope="module")
def server():
    """The address of an S3 server on the loopback with an empty bucket."""
    moto = pytest.importorskip("moto.server")
    boto3 = pytest.importorskip("boto3")
    running = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    address = f"http://{host}:{port}"
    with pytest.MonkeyPatch.context() as patch:
        for name, value in KEYS.items():
            patch.setenv(name, value)
        boto3.client("s3", endpoint_url=address).create_bucket(Bucket=BUCKET)
    yield address
    running.stop()


def push(folder, url, *stages, **settings):
    """Push these stages to a remote that this checkout alone knows; without stages, everything."""
    run(folder, BIN / "dvc", "remote", "add", "--force", "--local", "--default", "lab", url)
    for name, value in settings.items():
        run(folder, BIN / "dvc", "remote", "modify", "--local", "lab", name, value)
    run(folder, BIN / "dvc", "push", "--quiet", *stages, **KEYS)


def pull(folder, *arguments, code=0, **environment):
    return run(
        folder,
        sys.executable,
        "workflow_scripts/pull.py",
        "shared",
        *arguments,
        code=code,
        **KEYS,
        **environment,
    )


def missing(folder):
    return run(folder, BIN / "precfm", "ls", "shared", "--missing").splitlines()


@pytest.mark.parametrize("way", ["folder", "archive"])
def test_a_clone_gets_everything_and_has_nothing_to_make(lab, store, colleague, tmp_path, way):
    assert missing(colleague)
    source = store
    if way == "archive":
        source = tmp_path / "shared.zip"
        run(lab, BIN / "precfm", "export", "shared", "--to", source)
    before = bytes_below(colleague / ".dvc")
    pull(colleague, f"--from={source}")
    assert missing(colleague) == []
    assert artifacts(colleague) == artifacts(lab)
    assert git(colleague, "status", "--porcelain") == ""
    assert {name for name in bytes_below(colleague / ".dvc") if not name.startswith(("cache", "tmp"))} == {
        *before
    }
    dry = ["--workflow-profile", "profiles/default", "--config", "experiment=shared", "--dry-run"]
    assert set(jobs(run(colleague, BIN / "snakemake", *dry))) <= NOTHING


def test_a_kind_goes_to_an_s3_server_and_arrives(lab, server, colleague):
    url = f"s3://{BUCKET}/shared"
    push(lab, url, "theory@shared", "products@shared", endpointurl=server)
    pull(colleague, "--kind", "theory", f"--from={url}", AWS_ENDPOINT_URL=server)
    theory = bytes_below(lab / "results/shared/theory")
    assert theory
    assert bytes_below(colleague / "results/shared/theory") == theory


def test_one_artifact_or_one_kind_is_pulled_alone_from_the_default_remote(lab, store, colleague):
    run(colleague, BIN / "dvc", "remote", "add", "--default", "lab", str(store))
    first, second = sorted((lab / "results/shared/theory").iterdir())
    run(colleague, BIN / "dvc", "pull", "--quiet", str(first.relative_to(lab)))
    assert artifacts(colleague).keys() == {f"theory/{first.name}/{file}" for file in bytes_below(first)}
    pull(colleague, "--kind", "theory")
    assert {name.split("/")[1] for name in artifacts(colleague)} == {first.name, second.name}


def test_a_pull_neither_overwrites_nor_deletes_what_is_yours(lab, store, colleague):
    """An artifact of one's own, and one under a colleague's key with other bytes: both go to the attic, whole."""
    theirs = sorted((lab / "results/shared/theory").iterdir())[0]
    own, same_key = (colleague / "results/shared/theory" / name for name in ("own-0123456789ab", theirs.name))
    for folder in (own, same_key):
        shutil.copytree(theirs, folder)
        (folder / "content.json").write_text(json.dumps({"made": "here"}))
        record = json.loads((folder / "artifact.json").read_text())
        content = (folder / "content.json").read_bytes()
        record["files"]["content.json"] = {
            "sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content),
        }  # fmt: skip
        (folder / "artifact.json").write_text(sealed(record))
    before = bytes_below(own), bytes_below(same_key)
    pull(colleague, "--kind", "theory", f"--from={store}")
    attic = colleague / "results/.attic/theory"
    assert (bytes_below(attic / own.name), bytes_below(attic / same_key.name)) == before
    assert bytes_below(colleague / "results/shared/theory") == bytes_below(lab / "results/shared/theory")


def test_what_was_tampered_with_in_the_remote_is_refused_by_name(lab, store, colleague, tmp_path):
    """Also where the record was changed to fit: the manifest, for which the ledger in git vouches, knows better."""
    tampered = shutil.copytree(store, tmp_path / "store")
    evil = b'{"id": "evil"}\n'
    first, second = sorted((lab / "results/shared/theory").iterdir())
    record = (second / "artifact.json").read_text()
    right = hashlib.sha256((second / "content.json").read_bytes()).hexdigest()
    forged = sealed(json.loads(record.replace(right, hashlib.sha256(evil).hexdigest()))).encode()
    changes = {first / "content.json": evil, second / "content.json": evil, second / "artifact.json": forged}
    for file, content in changes.items():
        checksum = hashlib.md5(file.read_bytes()).hexdigest()
        (kept,) = (path for path in tampered.rglob(checksum[2:]) if path.parent.name == checksum[:2])
        kept.chmod(0o644)
        kept.write_bytes(content)
    said = pull(colleague, "--kind", "theory", f"--from={tampered}", code=1)
    assert f"precfm: results/shared/theory/{first.name} and 1 more: not what" in said
    assert not list((colleague / "results/shared/theory").iterdir())
    (refused,) = (colleague / "results/.attic/refused/theory").iterdir()
    assert refused.name == second.name


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--from=/no/where"], "--from: '/no/where'"),
        (["--from=LICENSE"], "LICENSE: no whole archive"),
        (["--from=LICENSE", "--kind=theory"], "--kind"),
        (["--kind=nonsense"], "--kind: 'nonsense'"),
    ],
)
def test_a_source_that_is_none_is_one_sentence(colleague, arguments, words):
    said = pull(colleague, *arguments, code=1)
    assert said.startswith("precfm: ")
    assert said.count("\n") == 1
    assert words in said


def cut_ledger(folder):
    """As after an editor or a merge went wrong: still YAML, without the last outputs of the products."""
    content = yaml.safe_load((folder / "dvc.lock").read_text())
    content["stages"]["products@shared"]["outs"].pop()
    (folder / "dvc.lock").write_text(yaml.safe_dump(content))


@pytest.mark.parametrize(
    ("change", "arguments"),
    [(cut_ledger, []), (lambda folder: None, []), (lambda folder: None, ["--from=config"])],
)
def test_a_pull_that_fails_leaves_everything_as_it_was(lab, colleague, change, arguments):
    shutil.copytree(lab / "results/shared", colleague / "results/shared")
    before = bytes_below(colleague / "results/shared")
    change(colleague)
    said = pull(colleague, *arguments, code=1).splitlines()
    assert [line for line in said if line.startswith("precfm: ")] == said[-1:]
    assert bytes_below(colleague / "results/shared") == before
    shutil.rmtree(colleague / "results/shared")
    pull(colleague, *arguments, code=1)
    assert not (colleague / "results/shared").exists()


def test_a_remote_that_holds_a_part_takes_nothing_away(lab, colleague, tmp_path):
    shutil.copytree(lab / "results/shared", colleague / "results/shared")
    before = bytes_below(colleague / "results/shared")
    push(lab, str(tmp_path / "part"), "products@shared")
    pull(colleague, f"--from={tmp_path / 'part'}", code=1)
    assert bytes_below(colleague / "results/shared") == before


def test_other_bytes_than_recorded_are_an_error_only_where_they_are_damaged(lab, colleague):
    """As after `precfm make` on another machine, or an import of what it made."""

    def other(job):
        fake(job)
        if job.node.kind not in ("verdicts", "pages"):
            job.write_json("content.json", {"machine": "another"})

    audit = (BIN / "precfm", "audit", "shared")
    fabricate(colleague, other)
    assert "other bytes than dvc.lock holds: " in run(colleague, *audit)
    for product in [path for path in (colleague / "results/shared").iterdir() if path.name not in KINDS]:
        remove(product)
    assert "other bytes than dvc.lock holds: " in run(colleague, *audit)
    next(colleague.glob("results/shared/theory/*/content.json")).write_text("{}")
    said = run(colleague, *audit, code=1)
    assert "error: results/shared/theory: is not what dvc.lock holds" in said
    assert "error: results/shared/frames: " not in said


@pytest.mark.parametrize("url", ["/tmp", "nonsense://x"])
def test_a_source_that_holds_nothing_ends_with_a_sentence(colleague, tmp_path, url):
    said = pull(colleague, f"--from={tmp_path if url == '/tmp' else url}", code=1)
    assert said.splitlines()[-1].startswith("precfm: ")
    assert "Traceback" not in said


@pytest.mark.parametrize("source", [*SHELL_WORDS, "$(shell touch pwned)"])
def test_make_hands_a_source_on_as_one_word(tmp_path, source):
    shutil.copyfile(ROOT / "Makefile", tmp_path / "Makefile")
    for file in ("requirements.lock", "pyproject.toml"):
        (tmp_path / file).touch()
    stub = Stub(tmp_path / ".venv/bin", "python")
    (tmp_path / ".venv/installed").touch()
    run(tmp_path, "make", "pull", f"FROM={source}")
    assert stub.calls == [["workflow_scripts/pull.py", "quick", *([f"--from={source}"] if source else [])]]
    assert not (tmp_path / "pwned").exists()


@pytest.mark.slow
@pytest.mark.xdist_group("workflow")
def test_real_artifacts_from_an_s3_server_run_nothing_but_publishing(made, server, tmp_path):
    """With a remote that everybody who clones has, as docs/sharing.md sets it."""
    run(made, BIN / "dvc", "remote", "add", "--force", "--default", "lab", f"s3://{BUCKET}/made")
    run(made, BIN / "dvc", "remote", "modify", "lab", "endpointurl", server)
    run(made, BIN / "dvc", "push", "--quiet", **KEYS)
    git(made, "add", "--all")
    git(made, "commit", "--quiet", "--message", "shared")
    colleague = clone(made, tmp_path / "colleague")
    run(colleague, sys.executable, "workflow_scripts/pull.py", "smoke", **KEYS)
    assert set(jobs(reproduce(colleague))) <= NOTHING
    for kind in KINDS:
        assert bytes_below(colleague / "results/smoke" / kind) == bytes_below(made / "results/smoke" / kind)
