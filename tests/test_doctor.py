"""The doctor finds what is wrong, says what to do, and is content with a sound machine."""

import io
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from precfm.audit import doctor, environment
from precfm.audit.doctor import GIB
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


def statuses(found):
    return [status for status, _, _ in found]


def only(found):
    ((status, what, remedy),) = found
    assert (status == "ok") == (remedy == ""), "what is wrong has a remedy"
    return status, what


def test_this_interpreter_and_its_packages_are_right():
    assert only(doctor.python())[0] == "ok"
    assert statuses(doctor.project()) == ["ok"]


def test_another_python_is_a_problem(monkeypatch):
    monkeypatch.setattr(doctor.sys, "version_info", (3, 10, 2))
    assert only(doctor.python())[0] == "problem"


def test_other_and_missing_packages_are_named(checkout):
    lock = "numpy==0.1 \\\n    --hash=sha256:0\nno-such-package==1.0 \\\ncolorama==9 ; sys_platform == 'win32' \\\n"
    (checkout / "requirements.lock").write_text(lock)
    missing, differ = doctor.packages()
    assert "numpy" in differ[1]
    assert "no-such-package" in missing[1]
    assert (differ[0], missing[0]) == ("warning", "warning")


def test_a_package_that_the_library_needs_is_a_problem_where_missing(monkeypatch):
    monkeypatch.setattr(environment, "installed", lambda name: None if name == "torch" else "0")
    assert [what for status, what, _ in doctor.packages() if status == "problem"] == ["not installed: torch"]


def test_without_a_lock_nothing_is_compared(checkout):
    (checkout / "requirements.lock").unlink()
    assert only(doctor.packages())[0] == "warning"


def test_missing_programs_are_named(monkeypatch):
    monkeypatch.setattr(doctor.shutil, "which", lambda name, path=None: None)
    monkeypatch.setattr(doctor, "installed", lambda name: None)
    assert statuses(doctor.programs()) == ["warning"] * 4
    monkeypatch.setattr(
        doctor.shutil, "which", lambda name, path=None: "/bin/sbatch" if name == "sbatch" else None
    )
    assert "slurm" in list(doctor.programs())[-1][1]


def test_a_folder_that_is_no_checkout_is_a_problem(checkout):
    (checkout / "dvc.yaml").unlink()
    assert "dvc.yaml" in only(doctor.project())[1]


def test_a_folder_that_refuses_a_file_is_a_problem(checkout, monkeypatch):
    (checkout / "results").mkdir()
    right = doctor.tempfile.TemporaryDirectory

    def refuse(**options):
        if options["dir"] == Path("results"):
            raise PermissionError(13, "Permission denied")
        return right(**options)

    monkeypatch.setattr(doctor.tempfile, "TemporaryDirectory", refuse)
    problems = [what for status, what, _ in doctor.folders() if status == "problem"]
    assert problems == ["results: Permission denied"]


def test_the_file_system_of_a_folder_is_known(checkout):
    assert doctor.filesystem_of(checkout)
    assert doctor.filesystem_of(checkout / "nowhere") == ""


@pytest.mark.parametrize(("kind", "count"), [("nfs", 3), ("fuseblk", 3), ("ext2/ext3", 0), ("", 0)])
def test_a_network_file_system_is_a_warning(monkeypatch, kind, count):
    monkeypatch.setattr(doctor, "filesystem_of", lambda path: kind)
    assert sum("network" in what for _, what, _ in doctor.folders()) == count


def test_locks_that_hold_nothing_are_a_problem(monkeypatch):
    assert "problem" not in statuses(doctor.folders())
    monkeypatch.setattr(doctor, "locks_hold", lambda folder: False)
    assert "problem" in statuses(doctor.folders())


@pytest.mark.parametrize(("free", "status"), [(GIB, "problem"), (10 * GIB, "warning"), (90 * GIB, "ok")])
def test_little_disk_is_named(monkeypatch, free, status):
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1, 1, free))
    assert set(statuses(doctor.folders())) == {status}


def test_a_gpu_that_torch_cannot_use_is_a_warning(monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(doctor.shutil, "which", lambda name: "/usr/bin/nvidia-smi")
    assert only(doctor.gpu())[0] == "warning"


@pytest.mark.parametrize(
    ("config", "status", "words"),
    [
        ("", "ok", "none"),
        (
            "[core]\n    remote = lab\n['remote \"lab\"']\n    url = s3://bucket/50%\n",
            "ok",
            "s3://bucket/50%",
        ),
        ("[core]\n    remote = lab\n", "warning", "lab"),
    ],
)
def test_the_remote_is_named(checkout, config, status, words):
    (checkout / ".dvc").mkdir()
    (checkout / ".dvc/config").write_text(config)
    found = only(doctor.remote())
    assert found[0] == status
    assert words in found[1]


def test_data_is_looked_for_here_in_the_mirror_and_in_packages(checkout, monkeypatch):
    from tests.test_sources import CONTENT, write_sources

    write_sources(checkout / "data", ["url: http://127.0.0.1:1/{file}"])
    assert statuses(doctor.data()) == statuses(doctor.data(network=True)) == ["warning"]

    mirror = checkout / "mirror"
    mirror.mkdir()
    monkeypatch.setenv("PRECFM_MIRROR", str(mirror))
    assert statuses(doctor.data()) == ["warning"]
    for name, content in CONTENT.items():
        (mirror / f"other-{name}").write_bytes(content)
    assert statuses(doctor.data()) == ["ok"]
    (mirror / "other-a.bin").write_bytes(bytes(len(CONTENT["a.bin"])))
    assert statuses(doctor.data()) == ["warning"]

    (checkout / "data/raw/toy").mkdir(parents=True)
    for name, content in CONTENT.items():
        (checkout / "data/raw/toy" / name).write_bytes(content)
    assert statuses(doctor.data()) == ["ok"]
    write_sources(checkout / "data", ["python: no_such_package/{file}"], {"c": b"1"})
    assert statuses(doctor.data()) == statuses(doctor.data(network=True)) == ["warning"]
    write_sources(checkout / "data", ["python: numpy/{file}"], {"c": b"1"})
    assert statuses(doctor.data()) == ["ok"]


def test_a_mirror_that_is_no_folder_is_a_problem(checkout, monkeypatch):
    monkeypatch.setenv("PRECFM_MIRROR", str(checkout / "nowhere"))
    assert next(doctor.data())[0] == "problem"


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
    found = list(doctor.data(network=True))
    assert {said.partition(":")[0] for status, said, _ in found if status == "warning"} <= {
        "flowers",
        "afhq",
        "celeba_hq",
    }
    assert "problem" not in statuses(found)


@pytest.mark.parametrize("url", ["http://a b/c", "http://[", "http://127.0.0.1:port/", "ftp://127.0.0.1/"])
def test_an_address_that_is_none_is_unreachable(url):
    assert doctor.unreachable(url)


def test_a_check_that_cannot_be_made_is_a_problem_and_the_others_go_on(checkout):
    (checkout / "requirements.lock").write_text("!!! not a requirement\nnumpy @@ 3\n")
    (checkout / "data/sources.yaml").write_text("[")
    diagnoses = list(doctor.examine())
    assert {each.check for each in diagnoses if each.status == "problem"} == {"packages", "data"}


def test_exit_code_and_json_say_whether_all_is_well(checkout, monkeypatch):
    invoke = CliRunner().invoke

    def folders():
        yield "warning", "little", "more"

    monkeypatch.setattr(doctor, "folders", folders)
    well = invoke(app, ["doctor", "--json"])
    assert well.exit_code == 0
    said = json.loads(well.stdout)
    assert said["ok"] is True
    assert {"check": "folders", "status": "warning", "found": "little", "remedy": "more"} in said["diagnoses"]
    (checkout / "Snakefile").unlink()
    ill = invoke(app, ["doctor"])
    assert ill.exit_code == 1
    assert re.search("PROBLEM +project: .*Snakefile", ill.stdout)


def test_nothing_is_left_behind(checkout):
    before = sorted(checkout.rglob("*"))
    list(doctor.examine())
    assert sorted(checkout.rglob("*")) == before


def test_reading_the_module_needs_no_torch():
    code = "import sys, precfm.audit.doctor; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
