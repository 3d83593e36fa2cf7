"""Sharing through a folder, an S3 server on the loopback, and tar files: everything arrives, nothing of yours is lost.

The artifacts are fabricated, in a clone of this project with its real ledger; one slow test shares real ones.
"""

import hashlib
import json
import shutil
import sys

import pytest
import yaml

from precfm.pipeline.plan import KINDS
from tests.workflow import BIN, ROOT, bytes_below, clone, git, jobs, reproduce, run, sealed

pytestmark = pytest.mark.xdist_group("sharing")

BUCKET = "precfm"
KEYS = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}
EXPERIMENT = {
    "description": "Little enough to be shared in a test.",
    "theory": {"one": {"run": {"name": "steps_to_accuracy"}, "seeds": [0, 1]}},
}
FABRICATE = """
from precfm.pipeline.attic import tidy
from precfm.pipeline.build import build
from precfm.pipeline.plan import load_plan
from precfm.pipeline.products import write_products

def fake(job):
    job.write_json("content.json", {"id": job.node.id})
    if job.node.kind in ("table_files", "figure_files"):
        (job.folder / f"{job.node.label}.md").write_text(job.node.key)
    if job.node.kind == "verdicts":
        job.write_json("claims.json", {})
        (job.folder / "claims.md").write_text("")

plan = load_plan("shared")
tidy(plan)
for node in plan.nodes.values():
    build(node, fake)
write_products(plan)
"""


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """A clone of this project in which the experiment `shared` was recorded."""
    folder = tmp_path_factory.mktemp("lab") / "precfm"
    listed = run(ROOT, "git", "ls-files", "--cached", "--others", "--exclude-standard").splitlines()
    for name in listed:
        if (ROOT / name).is_file() and not name.startswith(("results/", "tests/", "docs/", "dvc.lock")):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, folder / name)
    (folder / "config/shared.yaml").write_text(yaml.safe_dump(EXPERIMENT))
    (folder / "params.yaml").write_text("experiments: [shared]\nsources: []\n")
    run(folder, sys.executable, "-c", FABRICATE)
    run(folder, "git", "init", "--quiet")
    stages = [f"{kind}@shared" for kind in (*KINDS, "products")]
    run(folder, BIN / "dvc", "commit", "--quiet", "--force", *stages)
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", "recorded")
    return folder


@pytest.fixture(scope="module")
def in_folder(lab, tmp_path_factory):
    """The lab, after everything was pushed to a folder; the folder."""
    store = tmp_path_factory.mktemp("store")
    share(lab, str(store))
    return store


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


def share(folder, url, *stages, **settings):
    """Set the default remote, as docs/sharing.md says, and push these stages; without stages, everything."""
    run(folder, BIN / "dvc", "remote", "add", "--force", "--default", "lab", url)
    for name, value in settings.items():
        run(folder, BIN / "dvc", "remote", "modify", "lab", name, value)
    run(folder, BIN / "dvc", "push", "--quiet", *stages, **KEYS)
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--allow-empty", "--message", "shared")


def pull(folder, *arguments, code=0):
    return run(folder, sys.executable, "workflow_scripts/pull.py", *arguments, code=code, **KEYS)


def missing(folder):
    return run(folder, BIN / "precfm", "ls", "shared", "--missing").splitlines()


def artifacts_of(folder):
    return {
        name: checksum
        for name, checksum in bytes_below(folder / "results/shared").items()
        if name.split("/")[0] in KINDS
    }


def test_a_clone_pulls_everything_from_a_folder_and_has_nothing_to_make(lab, in_folder, tmp_path):
    colleague = clone(lab, tmp_path / "colleague")
    assert missing(colleague)
    pull(colleague, "shared")
    assert missing(colleague) == []
    assert artifacts_of(colleague) == artifacts_of(lab)
    dry = ["--workflow-profile", "profiles/default", "--config", "experiment=shared", "--dry-run"]
    assert set(jobs(run(colleague, BIN / "snakemake", *dry))) <= {"products", "everything"}


def test_a_kind_goes_to_an_s3_server_and_arrives(lab, server, tmp_path):
    share(lab, f"s3://{BUCKET}/shared", "theory@shared", "products@shared", endpointurl=server)
    colleague = clone(lab, tmp_path / "colleague")
    pull(colleague, "shared", "--kind", "theory")
    theory = bytes_below(lab / "results/shared/theory")
    assert theory
    assert bytes_below(colleague / "results/shared/theory") == theory


def test_one_artifact_or_one_kind_is_pulled_alone(lab, in_folder, tmp_path):
    colleague = clone(lab, tmp_path / "colleague")
    run(colleague, BIN / "dvc", "remote", "add", "--force", "--default", "lab", str(in_folder))
    first, second = sorted((lab / "results/shared/theory").iterdir())
    run(colleague, BIN / "dvc", "pull", "--quiet", str(first.relative_to(lab)))
    assert artifacts_of(colleague).keys() == {f"theory/{first.name}/{file}" for file in bytes_below(first)}
    pull(colleague, "shared", "--kind", "theory")
    assert {name.split("/")[1] for name in artifacts_of(colleague)} == {first.name, second.name}


def test_a_pull_neither_overwrites_nor_deletes_what_is_yours(lab, in_folder, tmp_path):
    """An artifact of one's own, and one under a colleague's key with other bytes: both go to the attic, whole."""
    colleague = clone(lab, tmp_path / "colleague")
    run(colleague, BIN / "dvc", "remote", "add", "--force", "--default", "lab", str(in_folder))
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
    pull(colleague, "shared", "--kind", "theory")
    attic = colleague / "results/.attic/theory"
    assert (bytes_below(attic / own.name), bytes_below(attic / same_key.name)) == before
    assert bytes_below(colleague / "results/shared/theory") == bytes_below(lab / "results/shared/theory")


@pytest.mark.parametrize("forge_record", [False, True])
def test_what_was_tampered_with_in_the_remote_is_refused_by_name(lab, in_folder, tmp_path, forge_record):
    """Also where the record was changed to fit: the manifest, for which the ledger in git vouches, knows better."""
    victim = sorted((lab / "results/shared/frames").iterdir())[0]
    evil = b'{"id": "evil"}\n'
    record = (victim / "artifact.json").read_text()
    right = hashlib.sha256((victim / "content.json").read_bytes()).hexdigest()
    forged = sealed(json.loads(record.replace(right, hashlib.sha256(evil).hexdigest()))).encode()
    changes = {"content.json": evil} | ({"artifact.json": forged} if forge_record else {})
    store = tmp_path / "store"
    shutil.copytree(in_folder, store)
    for name, content in changes.items():
        checksum = hashlib.md5((victim / name).read_bytes()).hexdigest()
        (kept,) = (path for path in store.rglob(checksum[2:]) if path.parent.name == checksum[:2])
        kept.chmod(0o644)
        kept.write_bytes(content)
    colleague = clone(lab, tmp_path / "colleague")
    run(colleague, BIN / "dvc", "remote", "add", "--force", "--default", "lab", str(store))
    said = pull(colleague, "shared", "--kind", "frames", code=1)
    assert f"precfm: results/shared/frames/{victim.name}: not what shared's manifest lists" in said
    assert not (colleague / "results/shared/frames" / victim.name).exists()
    assert any(victim.name in line for line in missing(colleague))


def test_an_export_brings_a_clone_as_far_as_a_pull(lab, tmp_path):
    colleague = clone(lab, tmp_path / "colleague")
    run(lab, BIN / "precfm", "export", "shared", "--to", tmp_path / "shared.tar")
    run(colleague, BIN / "precfm", "import", tmp_path / "shared.tar")
    assert missing(colleague) == []
    assert artifacts_of(colleague) == artifacts_of(lab)


@pytest.mark.slow
@pytest.mark.xdist_group("workflow")
def test_real_artifacts_from_an_s3_server_run_nothing_but_publishing(made, server, tmp_path):
    share(made, f"s3://{BUCKET}/made", endpointurl=server)
    colleague = clone(made, tmp_path / "colleague")
    pull(colleague, "smoke")
    assert set(jobs(reproduce(colleague))) <= {"products", "everything"}
    for kind in KINDS:
        assert bytes_below(colleague / "results/smoke" / kind) == bytes_below(made / "results/smoke" / kind)
