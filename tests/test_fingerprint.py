"""Fingerprints change with what code does, and with nothing else: not with its looks, not with the Python version."""

import os
import shutil
import subprocess
import textwrap
from pathlib import Path

import pytest

from precfm.pipeline import fingerprints as room
from precfm.pipeline.fingerprints import fingerprint, imports, module_file, syntax_hash

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
from precfm.pipeline.fingerprints import syntax_hash
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
    environment = {**os.environ, "PYTHONPATH": str(room.PACKAGE.parent)}
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
    assert {"precfm.preconditioners.whitening", "precfm.core.seeds"} <= set(imports(script))


def test_another_name_out_of_the_same_module_is_another_fingerprint():
    script = Path(__file__).parent.parent / "workflow_scripts" / "figure.py"
    first, second = (
        fingerprint(script, (f"precfm.report.figures.theory:{name}",))
        for name in ("residual_bound", "residual_grid")
    )
    assert first != second


def test_a_change_of_one_preconditioner_leaves_the_others_alone(tmp_path, monkeypatch):
    package = tmp_path / "precfm"
    shutil.copytree(room.PACKAGE, package, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(room, "PACKAGE", package)
    script = Path(__file__).parent.parent / "workflow_scripts" / "preconditioner.py"
    names = ("scalar", "whitening")

    def prints():
        for cached in (fingerprint, imports, module_file, syntax_hash):
            cached.cache_clear()
        return {name: fingerprint(script, (f"precfm.preconditioners.{name}:Any",)) for name in names}

    before = prints()
    file = package / "preconditioners" / "scalar.py"
    file.write_text(file.read_text() + "\nEXTRA = 1\n")
    after = prints()
    assert after["scalar"] != before["scalar"]
    assert after["whitening"] == before["whitening"]
    for harmless in (
        "registry.py",
        "plan.py",
        "cli.py",
        "config.py",
        "artifacts.py",
        "__init__.py",
        "progress.py",
    ):
        (package / harmless).write_text((package / harmless).read_text() + "\nEXTRA = 1\n")
    assert prints() == after
