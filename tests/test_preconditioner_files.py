"""Files of preconditioners: broken ones are refused, classes of other packages are found, and a file runs no code."""

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from precfm.core.errors import PrecfmError
from precfm.preconditioners.composition import Composition
from precfm.preconditioners.saving import JSON_FILE, TENSORS_FILE, describe, load, rebuild, save
from precfm.preconditioners.scalar import Scalar
from precfm.preconditioners.whitening import Whitening
from tests.preconditioner_cases import ill_conditioned

X = ill_conditioned(100, seed=0)[0]


class Mine(Scalar):
    """A class of another package."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save(Whitening().fit(X), tmp_path)
    return tmp_path


def edit(folder: Path, **changes: Any) -> None:
    description = json.loads((folder / JSON_FILE).read_text())
    (folder / JSON_FILE).write_text(json.dumps({**description, **changes}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "bleaching"}, "bleaching"),
        ({"name": "scalar"}, "no saved preconditioner"),
        ({"name": None}, "no saved preconditioner"),
        ({"format": 99}, "format: got 99"),
        ({"event_shape": [5]}, "no saved preconditioner"),
        ({"dtype": "sofloat"}, "no saved preconditioner"),
        ({"options": {"exponent": 7.0}}, "exponent: got 7.0"),
        ({"options": {"width": 7}}, "'width'"),
    ],
)
def test_wrong_descriptions_are_refused(folder: Path, changes: dict[str, Any], message: str) -> None:
    edit(folder, **changes)
    with pytest.raises(PrecfmError, match=f"{JSON_FILE}: .*{message}"):
        load(folder)


@pytest.mark.parametrize(("content", "message"), [(b"{", "JSON"), (b"[]", "format"), (b"\xff", "JSON")])
def test_what_is_no_description_is_refused(folder: Path, content: bytes, message: str) -> None:
    (folder / JSON_FILE).write_bytes(content)
    with pytest.raises(PrecfmError, match=f"{JSON_FILE}: .*{message}"):
        load(folder)


def test_missing_and_damaged_files_are_refused(folder: Path) -> None:
    for missing in (folder / "none", folder / "none.safetensors", folder / JSON_FILE):
        with pytest.raises(PrecfmError, match="no such file"):
            load(missing)
    with pytest.raises(PrecfmError, match="format"):
        load(folder / TENSORS_FILE)  # has no description in its header
    with pytest.raises(PrecfmError, match="a folder"):
        save(Whitening().fit(X), folder / JSON_FILE)
    (folder / TENSORS_FILE).write_bytes(b"no tensors")
    for damaged in (folder, folder / TENSORS_FILE):
        with pytest.raises(PrecfmError, match=f"{TENSORS_FILE}: .*damaged"):
            load(damaged)


def test_one_file_holds_what_the_folder_holds(folder: Path) -> None:
    save(load(folder), folder / "map.safetensors")
    single, pair = load_file(folder / "map.safetensors"), load_file(folder / TENSORS_FILE)
    assert single.keys() == pair.keys()
    assert all(torch.equal(single[name], pair[name]) for name in pair)


def test_a_description_and_a_state_dict_make_the_map_again() -> None:
    fitted = Whitening(exponent=0.25).fit(X)
    again = rebuild(describe(fitted), fitted.state_dict())
    assert torch.equal(again.inverse(X), fitted.inverse(X))


@pytest.mark.parametrize("where", ["folder", "map.safetensors"])
def test_a_class_of_another_package_is_saved_by_its_import_string(tmp_path: Path, where: str) -> None:
    mine = Mine().fit(X)
    save(mine, tmp_path / where)
    assert describe(mine)["name"] == f"{__name__}:Mine"
    again = load(tmp_path / where)
    assert type(again) is Mine
    assert torch.equal(again.forward(X), mine.forward(X))


def test_a_class_that_cannot_be_imported_again_is_not_saved(tmp_path: Path) -> None:
    class Inner(Scalar):
        pass

    with pytest.raises(PrecfmError, match="Inner"):
        save(Inner().fit(X), tmp_path)


@pytest.fixture
def trap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module that says so if it is imported."""
    (tmp_path / "trapped_module.py").write_text("import sys\nsys.modules['sprung'] = sys\nMap = dict\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "sprung", raising=False)
    return "trapped_module:Map"


def test_a_file_does_not_choose_what_is_imported(folder: Path, trap: str) -> None:
    edit(folder, name=trap)
    with pytest.raises(PrecfmError, match="import trapped_module"):
        load(folder)
    save(Composition(({"name": "none"},)).fit(X), folder)
    edit(folder, options={"stages": [{"name": trap}]})
    with pytest.raises(PrecfmError, match="import trapped_module"):
        load(folder)
    assert "sprung" not in sys.modules
    # A configuration is trusted: there the module is imported, and what it holds is refused.
    with pytest.raises(PrecfmError, match="no Preconditioner"):
        Composition(({"name": trap},))
    assert isinstance(sys.modules["sprung"], ModuleType)


@pytest.mark.parametrize("name", ["os:getcwd", "builtins:dict", "precfm.core.errors:PrecfmError", "os:path"])
def test_a_file_does_not_choose_what_is_called(folder: Path, name: str) -> None:
    edit(folder, name=name, options={})
    with pytest.raises(PrecfmError, match="no Preconditioner"):
        load(folder)
    save(Composition(({"name": "none"},)).fit(X), folder)
    edit(folder, options={"stages": [{"name": name}]})
    with pytest.raises(PrecfmError, match=r"stages.0: .*no Preconditioner"):
        load(folder)


def test_a_header_without_description_is_refused(tmp_path: Path) -> None:
    save_file({"mean": torch.zeros(3)}, tmp_path / "other.safetensors", metadata={"format": "pt"})
    with pytest.raises(PrecfmError, match="format"):
        load(tmp_path / "other.safetensors")
