"""Front doors: what they list is there, any other name is refused with the list, and nothing heavy is imported."""

import subprocess
import sys
from importlib import import_module

import pytest

from tests.workflow import ROOT

PACKAGES = sorted(
    ".".join(file.parent.relative_to(ROOT).parts) for file in (ROOT / "precfm").rglob("__init__.pyi")
)


@pytest.mark.parametrize("package", PACKAGES)
def test_everything_that_is_offered_is_there(package):
    module = import_module(package)
    assert dir(module) == module.__all__ != []
    for name in dir(module):
        assert getattr(module, name) is not None


@pytest.mark.parametrize("package", PACKAGES)
def test_a_wrong_name_says_what_there_is(package):
    module = import_module(package)
    with pytest.raises(AttributeError, match=rf"'wrong'.*{dir(module)[0]}"):
        module.wrong  # noqa: B018


def test_importing_precfm_imports_nothing_heavy():
    code = (
        "import sys, precfm; print(*(set(sys.modules) & {'torch', 'numpy', 'pandas', 'pydantic', 'scipy'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == ""
