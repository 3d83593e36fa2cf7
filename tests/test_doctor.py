"""The doctor finds what is wrong, says what to do, and is content with a sound machine."""

import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from precfm.audit import doctor
from precfm.audit import environment as surroundings
from precfm.audit.doctor import GIB, Finding
from precfm.cli import app
from tests.workflow import ROOT

pytestmark = pytest.mark.usefixtures("checkout")


@pytest.fixture
def checkout(project, monkeypatch):
    """An empty project with the files that the doctor looks for, and no settings from outside."""
    for name in ("requirements.lock", "Snakefile", "dvc.yaml"):
        shutil.copyfile(ROOT / name, project / name)
    (project / "workflow_scripts").mkdir()
    for name in ("PRECFM_MIRROR", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    return project


def statuses(findings):
    return [finding.status for finding in findings]


def only(findings):
    (finding,) = findings
    assert finding.status == "ok" or finding.remedy, "what is wrong has a remedy"
    return finding


def test_this_interpreter_and_its_packages_are_right():
    assert only(doctor.python()).status == "ok"
    assert statuses(doctor.project()) == ["ok"]


def test_another_python_is_a_problem(monkeypatch):
    monkeypatch.setattr(doctor.sys, "version_info", (3, 10, 2))
    assert only(doctor.python()).status == "problem"


def test_other_and_missing_packages_are_named(checkout):
    lock = "numpy==0.1 \\\n    --hash=sha256:0\nno-such-package==1.0 \\\ncolorama==9 ; sys_platform == 'win32' \\\n"
    (checkout / "requirements.lock").write_text(lock)
    differ, missing = doctor.versions()
    assert "numpy" in differ.found
    assert "instead of 0.1" in differ.found
    assert missing.found == "not installed: no-such-package"
    assert (differ.status, missing.status) == ("warning", "warning")


def test_a_package_that_the_library_needs_is_a_problem_where_missing(monkeypatch):
    monkeypatch.setattr(surroundings, "installed", lambda name: None if name == "torch" else "0")
    problem = [finding for finding in doctor.versions() if finding.status == "problem"]
    assert only(problem).found == "not installed: torch"


def test_without_a_lock_nothing_is_compared(checkout):
    (checkout / "requirements.lock").unlink()
    assert only(doctor.versions()).status == "warning"


def test_missing_programs_are_told_with_what_does_without_them(monkeypatch):
    monkeypatch.setattr(doctor.shutil, "which", lambda name, path=None: None)
    found = {finding.check: finding for finding in doctor.tools()}
    assert statuses(found.values()) == ["warning"] * 4
    assert "precfm make" in found["snakemake"].found


def test_a_folder_that_is_no_checkout_is_a_problem(checkout):
    (checkout / "dvc.yaml").unlink()
    assert "dvc.yaml" in only(doctor.project()).found


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_folder_without_permission_is_a_problem(checkout):
    (checkout / "results").mkdir(mode=0o500)
    first, *_ = doctor.writing()
    assert first.status == "problem"


def test_a_folder_that_refuses_a_file_is_a_problem(checkout, monkeypatch):
    (checkout / "results").mkdir()
    right = doctor.tempfile.NamedTemporaryFile

    def refuse(**options):
        if options["dir"] == Path("results"):
            raise PermissionError(13, "Permission denied")
        return right(**options)

    monkeypatch.setattr(doctor.tempfile, "NamedTemporaryFile", refuse)
    results, *others = doctor.writing()
    assert results.status == "problem"
    assert "results: Permission denied" in results.found
    assert set(statuses(others)) == {"ok"}


def test_the_deepest_mount_above_a_folder_is_its_file_system(monkeypatch):
    table = (
        "1 0 8:1 / / rw - ext4 /dev/sda1 rw\n"
        "2 1 0:5 / /mnt rw,relatime shared:1 - nfs4 server:/x rw\n"
        "3 2 0:6 / /mnt/my\\040disk rw - xfs /dev/sdb rw\n"
    )
    monkeypatch.setattr(Path, "read_text", lambda self, encoding: table)
    assert doctor.filesystem_of(Path("/home/me")) == "ext4"
    assert doctor.filesystem_of(Path("/mnt/project")) == "nfs4"
    assert doctor.filesystem_of(Path("/mnt/my disk/a")) == "xfs"
    assert doctor.filesystem_of(Path("/mnt2")) == "ext4"


@pytest.mark.parametrize(("kind", "status"), [("nfs4", "warning"), ("fuse.sshfs", "warning"), ("ext4", "ok")])
def test_a_network_file_system_is_told(monkeypatch, kind, status):
    monkeypatch.setattr(doctor, "filesystem_of", lambda path: kind)
    assert next(doctor.filesystem()).status == status


def test_locks_that_hold_nothing_are_a_problem(monkeypatch):
    assert statuses(doctor.filesystem()) == ["ok", "ok"]
    monkeypatch.setattr(doctor, "locks_hold", lambda folder: False)
    assert statuses(doctor.filesystem()) == ["ok", "problem"]


@pytest.mark.parametrize("link", [os.link, os.symlink])
def test_payloads_that_are_links_are_named(checkout, link):
    folder = checkout / "results/mine/flows/a-0123456789ab"
    folder.mkdir(parents=True)
    (checkout / "cached").write_text("x")
    (folder / "plain.json").write_text("x")
    assert len(list(doctor.filesystem())) == 2
    link(checkout / "cached", folder / "linked.json")
    *_, links = doctor.filesystem()
    assert "linked.json" in links.found
    assert "plain.json" not in links.found


@pytest.mark.parametrize(("free", "status"), [(GIB, "problem"), (10 * GIB, "warning"), (90 * GIB, "ok")])
def test_little_disk_is_told(monkeypatch, free, status):
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1, 1, free))
    assert set(statuses(doctor.disk())) == {status}


@pytest.mark.parametrize(
    ("free", "status"), [(GIB, "problem"), (3 * GIB, "warning"), (9 * GIB, "ok"), (None, "ok")]
)
def test_little_memory_is_told(monkeypatch, free, status):
    monkeypatch.setattr(doctor, "available_memory", lambda: free)
    assert only(doctor.memory()).status == status


def test_a_container_has_the_memory_that_is_left_to_it(monkeypatch):
    files = {
        "/proc/meminfo": "MemTotal: 9 kB\nMemAvailable:   8000 kB\n",
        "/sys/fs/cgroup/memory.max": "5000\n",
        "/sys/fs/cgroup/memory.current": "1000\n",
    }
    monkeypatch.setattr(Path, "read_text", lambda self, encoding: files[str(self)])
    assert doctor.available_memory() == 4000
    files["/sys/fs/cgroup/memory.max"] = "max\n"
    assert doctor.available_memory() == 8000 * 1024


def test_a_busy_machine_and_threads_set_outside_are_told(monkeypatch):
    monkeypatch.setattr(doctor.os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    monkeypatch.setattr(doctor.os, "getloadavg", lambda: (0.5, 0, 0))
    assert statuses(doctor.threads()) == ["ok"]
    monkeypatch.setattr(doctor.os, "getloadavg", lambda: (7.0, 0, 0))
    monkeypatch.setenv("OMP_NUM_THREADS", "8")
    assert statuses(doctor.threads()) == ["warning", "warning"]


def test_a_gpu_that_torch_cannot_use_is_told(monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(doctor.shutil, "which", lambda name: "/usr/bin/nvidia-smi")
    assert only(doctor.gpu()).status == "warning"


@pytest.mark.parametrize(
    ("config", "status", "words"),
    [
        ("", "ok", "none"),
        (
            "[core]\n    remote = lab\n['remote \"lab\"']\n    url = s3://bucket/50%\n",
            "ok",
            "s3://bucket/50%",
        ),
        ("[core]\n    remote = lab\n", "warning", "no URL"),
    ],
)
def test_the_remote_is_told(checkout, config, status, words):
    (checkout / ".dvc").mkdir()
    (checkout / ".dvc/config").write_text(config)
    finding = only(doctor.remote())
    assert finding.status == status
    assert words in finding.found


def test_data_is_looked_for_here_in_the_mirror_and_in_packages(checkout, monkeypatch):
    from tests.test_sources import CONTENT, write_sources

    def found(**options):
        return [
            (finding.check, finding.status) for finding in doctor.data(**options) if finding.check != "mirror"
        ]

    write_sources(checkout / "data", ["url: http://127.0.0.1:1/{file}"])
    assert found() == [("data toy", "warning")]
    assert found(network=True) == [("data toy", "warning")]

    mirror = checkout / "mirror"
    mirror.mkdir()
    monkeypatch.setenv("PRECFM_MIRROR", str(mirror))
    assert found() == [("data toy", "warning")]
    for name, content in CONTENT.items():
        (mirror / f"other-{name}").write_bytes(content)
    assert found() == [("data toy", "ok")]
    (mirror / "other-a.bin").write_bytes(bytes(len(CONTENT["a.bin"])))
    assert found() == [("data toy", "warning")]

    (checkout / "data/raw/toy").mkdir(parents=True)
    for name, content in CONTENT.items():
        (checkout / "data/raw/toy" / name).write_bytes(content)
    assert found() == [("data toy", "ok")]
    write_sources(checkout / "data", ["python: no_such_package/{file}"], {"c": b"1"})
    assert found() == [("data toy", "warning")]


def test_a_mirror_that_is_no_folder_is_a_problem(checkout, monkeypatch):
    monkeypatch.setenv("PRECFM_MIRROR", str(checkout / "nowhere"))
    assert next(doctor.data()).status == "problem"


def test_the_network_is_left_alone_unless_asked_for(checkout, monkeypatch):
    asked = []

    def refuse(request, timeout):
        asked.append(request.full_url)
        raise OSError("unplugged")

    monkeypatch.setattr(doctor.urllib.request, "urlopen", refuse)
    list(doctor.examine())
    assert not asked
    list(doctor.data(network=True))
    assert asked
    monkeypatch.setattr(doctor.urllib.request, "urlopen", lambda request, timeout: io.BytesIO())
    assert set(statuses(doctor.data(network=True))) == {"ok"}


@pytest.mark.parametrize("url", ["http://a b/c", "http://[", "http://127.0.0.1:port/", "ftp://127.0.0.1/"])
def test_an_address_that_is_none_is_told(url):
    assert doctor._unreachable(url)


def test_a_check_that_cannot_be_made_is_a_problem_and_the_others_go_on(checkout):
    (checkout / "requirements.lock").write_text("!!! not a requirement\nnumpy @@ 3\n")
    (checkout / "data/sources.yaml").write_text("[")
    findings = list(doctor.examine())
    assert {finding.check for finding in findings if finding.status == "problem"} == {"versions", "data"}


def test_exit_code_and_json_tell_whether_all_is_well(checkout, monkeypatch):
    run = CliRunner().invoke
    monkeypatch.setattr(doctor, "disk", lambda: [Finding("disk", "warning", "little", "more")])
    monkeypatch.setattr(doctor, "memory", list)
    well = run(app, ["doctor", "--json"])
    assert well.exit_code == 0
    said = json.loads(well.stdout)
    assert said["ok"] is True
    assert {"check": "disk", "status": "warning", "found": "little", "remedy": "more"} in said["findings"]
    (checkout / "Snakefile").unlink()
    ill = run(app, ["doctor"])
    assert ill.exit_code == 1
    assert "PROBLEM  project: no Snakefile" in ill.stdout
    assert "-> change to a clone" in ill.stdout


def test_nothing_is_left_behind(checkout):
    before = sorted(checkout.rglob("*"))
    list(doctor.examine())
    assert sorted(checkout.rglob("*")) == before


def test_reading_the_module_needs_no_torch():
    code = "import sys, precfm.audit.doctor; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
