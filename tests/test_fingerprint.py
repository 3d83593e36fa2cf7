"""Fingerprints change with what code does, and with nothing else: not with its looks, not with the Python version."""

import os
import shutil
import subprocess
import sys
import textwrap
from importlib.metadata import version
from pathlib import Path

import pytest

from precfm.core.errors import PrecfmError
from precfm.pipeline import fingerprints
from precfm.pipeline.build import build
from precfm.pipeline.fingerprints import fingerprint, imports, libraries, modules, syntax_hash, versions
from tests.workflow import ROOT

SCRIPT = ROOT / "workflow_scripts" / "preconditioners.py"
SOURCE = textwrap.dedent(
    '''
    """A module."""
    import math

    class Room:
        """A class."""
        size: int = 3

        def area(self, *, scale: float = 1e-3, name: str = u"x") -> str:
            """Says something."""
            match self.size:
                case 3 | 4:
                    return f"{name!r:>{self.size}} {scale=} " "and " f"{math.pi:.3f}"
                case _:
                    return b"bytes".decode() + (lambda x: x)(name)

    async def later(*rest, **named):
        """Empty but for this."""
        return [x async for x in rest if not (y := named.get(x)) or y is ...]
    '''
)
# Computed under Python 3.11, 3.12 and 3.13 alike.
PINNED = "aca1d540f0e4c3ab38acba212f662118214a9898a19a662142df52180f3203ab"


@pytest.fixture
def sample(tmp_path):
    file = tmp_path / "sample.py"
    file.write_text(SOURCE)
    return file


def rewritten(tmp_path, old, new):
    assert old in SOURCE
    file = tmp_path / "rewritten.py"
    file.write_text(SOURCE.replace(old, new))
    return syntax_hash(file)


def test_the_hash_of_a_fixture_is_the_same_on_every_python(sample):
    assert syntax_hash(sample) == PINNED


CODE = """
import sys
from pathlib import Path
from precfm.pipeline.syntax import syntax_hash
print(sys.version_info[:2], syntax_hash(Path(sys.argv[1])))
"""


def interpreters(version):
    """Every Python of that version that can be found and runs (a launcher without its Python does not)."""
    found = [shutil.which(f"python{version}"), *Path.home().glob(f".pyenv/versions/{version}.*/bin/python3")]
    return [
        str(path)
        for path in found
        if path and not subprocess.run([path, "--version"], capture_output=True).returncode
    ]


@pytest.mark.parametrize("version", ["3.11", "3.12", "3.13"])
def test_other_interpreters_agree(sample, version):
    found = interpreters(version)
    if not found:
        pytest.skip(f"Python {version} is not on this machine")
    environment = {**os.environ, "PYTHONPATH": str(fingerprints.PACKAGE.parent)}
    said = subprocess.run(
        [found[0], "-c", CODE, sample], capture_output=True, text=True, check=True, env=environment
    )
    major, minor = version.split(".")
    assert said.stdout.strip() == f"({major}, {minor}) {PINNED}"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"""A class."""', '"""Another docstring."""'),
        ('    """A class."""\n', ""),
        ("import math", "import math  # why"),
        ('u"x"', "'x'"),
        ("scale: float = 1e-3,", "scale: float = 0.001,"),
        ("size: int = 3", "size:   int  =  3"),
    ],
)
def test_looks_do_not_matter(tmp_path, sample, old, new):
    assert rewritten(tmp_path, old, new) == syntax_hash(sample)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("size: int = 3", "size: int = 4"),
        ("size: int = 3", "size: float = 3"),
        ("3 | 4", "4 | 3"),
        ("1e-3", "1e-4"),
        ('"and "', '"or "'),
        ("math.pi", "math.e"),
        ("is ...", "is not ..."),
        ("async for", "for"),
    ],
)
def test_what_is_done_matters(tmp_path, sample, old, new):
    assert rewritten(tmp_path, old, new) != syntax_hash(sample)


def test_imports_are_followed_into_functions_and_packages(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "from precfm.preconditioners import whitening\ndef f():\n    from precfm.core.seeds import generator_for\n"
    )
    assert imports(script) == ("precfm.core.seeds", "precfm.preconditioners.whitening")


@pytest.mark.parametrize(
    "line",
    [
        "from precfm.preconditioners import Whitening",
        "from precfm import PreconditionedFlow",
        "from precfm import preconditioners",
        "import precfm",
        "import precfm.flows as flows",
        "from precfm.nowhere import nothing",
    ],
)
def test_a_name_from_a_package_s_front_door_is_refused_with_file_and_line(tmp_path, line):
    """It re-exports lazily, so the code behind it would be hidden from the key."""
    script = tmp_path / "script.py"
    script.write_text(f"import math\n\ndef late():\n    {line}\n")
    with pytest.raises(PrecfmError, match=r"script\.py:4: imports"):
        fingerprint(script)


@pytest.mark.parametrize("folder", [fingerprints.PACKAGE, fingerprints.SCRIPTS], ids=["precfm", "scripts"])
def test_no_module_and_no_script_imports_from_a_front_door(folder):
    for file in sorted(folder.rglob("*.py")):
        imports(file)


def test_a_relative_import_is_refused(tmp_path, monkeypatch):
    package = tmp_path / "precfm"
    package.mkdir()
    (package / "inside.py").write_text("from .core import seeds\n")
    monkeypatch.setattr(fingerprints, "PACKAGE", package)
    with pytest.raises(PrecfmError, match=r"inside\.py:1"):
        imports(package / "inside.py")


def test_a_file_that_is_written_again_is_read_again(sample):
    before = syntax_hash(sample)
    sample.write_text(SOURCE.replace("size: int = 3", "size: int = 4"))
    assert syntax_hash(sample) != before


@pytest.fixture
def other_package(tmp_path, monkeypatch):
    """A package beside precfm, installed as the distribution `other-maps`, with an entry point `doubled`."""
    place = tmp_path / "site"
    about = place / "other_maps-1.2.dist-info"
    for folder in (place / "other_maps", about):
        folder.mkdir(parents=True)
    (place / "other_maps/__init__.py").write_text("")
    (place / "other_maps/helpers.py").write_text("FACTOR = 2.0\n")
    (place / "other_maps/doubled.py").write_text(
        textwrap.dedent(
            """
            from other_maps.helpers import FACTOR
            from precfm.preconditioners.scalar import Scalar

            class Doubled(Scalar):
                offset = FACTOR
            """
        )
    )
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: other-maps\nVersion: 1.2\n")
    (about / "entry_points.txt").write_text(
        "[precfm.preconditioners]\ndoubled = other_maps.doubled:Doubled\n"
    )
    (about / "top_level.txt").write_text("other_maps\n")
    (about / "RECORD").write_text("")
    monkeypatch.syspath_prepend(place)
    fresh()
    yield place
    forget_modules()


def forget_modules():
    for name in [name for name in sys.modules if name.split(".")[0] == "other_maps"]:
        del sys.modules[name]


def fresh():
    """As in a new process: what was read of other packages is forgotten."""
    for function in (fingerprints.package_code, fingerprints._imports_of_package):
        function.cache_clear()


@pytest.mark.parametrize("name", ["other_maps.doubled:Doubled", "doubled"])
def test_the_package_of_a_foreign_class_is_part_of_the_key(planned, other_package, monkeypatch, name):
    change = {"methods": {"foreign": {"preconditioner": {"name": name}}}}
    before = planned(change)

    def changed():
        fresh()
        after = planned(change)
        return {node.kind for key, node in after.nodes.items() if key not in before.nodes}

    assert not changed()
    (fitted,) = (node for node in before.of("preconditioners") if "foreign" in node.label)
    assert fitted.targets == ("other_maps.doubled:Doubled",)
    assert {node.packages for node in before.nodes.values() if "foreign" in node.label} == {
        ("other_maps.doubled",)
    }
    assert {node.packages for node in before.nodes.values() if "-whitening" in node.label} == {()}
    assert "precfm.preconditioners.scalar" in modules(SCRIPT, fitted.targets)

    (other_package / "other_maps/helpers.py").write_text("FACTOR = 3.0\n")
    assert {"preconditioners", "flows"} <= changed()
    (other_package / "other_maps/helpers.py").write_text("FACTOR = 2.0\n")
    assert not changed()
    metadata = other_package / "other_maps-1.2.dist-info/METADATA"
    metadata.write_text(metadata.read_text().replace("1.2", "1.3"))
    assert {"preconditioners", "flows"} <= changed()


def test_a_foreign_package_may_import_from_front_doors_and_has_all_behind_them_in_its_key(other_package):
    (other_package / "other_maps/helpers.py").write_text("from precfm.geometry import anything\n")
    found = set(modules(SCRIPT, ("other_maps.doubled:Doubled",)))
    everything = {
        f"precfm.geometry.{path.stem}" for path in (fingerprints.PACKAGE / "geometry").glob("[!_]*.py")
    }
    assert everything <= found


def test_a_job_imports_the_foreign_classes_of_all_that_it_reads(planned, other_package):
    """A saved map is found by its class's name, and a file alone cannot choose what code runs."""
    plan = planned({"methods": {"foreign": {"preconditioner": {"name": "doubled"}}}, "seeds": [0]})
    (diagnostics,) = (node for node in plan.of("diagnostics") if "foreign" in node.label)
    forget_modules()
    seen = []

    def make(job):
        job.write_json("seen.json", 1)
        seen.append("other_maps.doubled" in sys.modules)

    assert build(diagnostics, make) is True
    assert seen == [True]


def test_a_plan_with_foreign_code_is_not_kept(planned, other_package, project):
    planned({"methods": {"foreign": {"preconditioner": {"name": "doubled"}}}})
    assert not list(project.glob("results/.work/plans/mine.*"))


def test_a_package_that_is_not_installed_is_named():
    with pytest.raises(PrecfmError, match=r"absent\.maps"):
        fingerprint(SCRIPT, ("absent.maps:Map",))


def test_another_name_out_of_the_same_module_is_another_fingerprint():
    script = ROOT / "workflow_scripts" / "flows.py"
    first, second = (
        fingerprint(script, (f"precfm.flows.objectives:{name}",))
        for name in ("FlowMatching", "DenoisingScore")
    )
    assert first != second


def test_libraries_are_those_of_the_classes_too(tmp_path):
    script = tmp_path / "script.py"
    script.write_text("import os\nimport torch\nimport numpy.linalg\nfrom tqdm import tqdm\n")
    assert libraries(script) == ("numpy",)
    found = libraries(script, ("precfm.encoders.pretrained:Pretrained",))
    assert {"diffusers", "huggingface_hub", "numpy"} <= set(found)
    assert versions(["sklearn", "no_such_package"]) == {"scikit-learn": version("scikit-learn")}
