"""Names in configurations and files: what they may stand for, and what another package adds."""

import json
import sys

import pytest
from torch import nn

from precfm.core.errors import PrecfmError
from precfm.core.registry import REGISTRY, build, import_string, load, load_class, name_of
from precfm.core.serialization import load_network
from precfm.flows.models.base import VelocityNetwork
from precfm.flows.models.mlp import MLPVelocity

ADDED = """
from torch import nn

class Doubling(nn.Module):
    def __init__(self, times: int = 2):
        super().__init__()
        self.times = times

def function():
    raise AssertionError("was called")

not_a_class = 3
"""


@pytest.fixture
def package(tmp_path, monkeypatch):
    """An installed package that registers a model; its name."""
    (tmp_path / "added_models.py").write_text(ADDED)
    info = tmp_path / "added_models-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: added-models\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[precfm.models]\ndoubling = added_models:Doubling\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield "added_models"
    sys.modules.pop("added_models", None)


@pytest.mark.parametrize("group", REGISTRY)
def test_every_registered_name_can_be_imported_and_found_again(group):
    for name in REGISTRY[group]:
        assert name_of(group, load(group, name)) == name


def test_an_unknown_name_says_what_exists(package):
    with pytest.raises(PrecfmError, match=r"^models: got 'mpl'.* doubling, mlp,") as error:
        load("models", "mpl")
    assert "whitening" not in str(error.value)


@pytest.mark.parametrize("name", ["doubling", "added_models:Doubling"])
def test_a_class_of_another_package_by_entry_point_or_import_string(package, name):
    assert import_string("models", name) == "added_models:Doubling"
    made = build("models", {"name": name}, times=3)
    assert made.times == 3
    assert load("models", name_of("models", type(made))) is type(made)


@pytest.mark.parametrize("name", ["nowhere:Class", "added_models:Missing", "torch.nowhere:Linear"])
def test_what_cannot_be_imported_is_refused(package, name):
    with pytest.raises(PrecfmError, match=f"^models: got '{name}'"):
        load("models", name)


@pytest.mark.parametrize(
    "name", ["", "a:b:c", "added_models:Doubling()", "added_models: Doubling", "../x:y", "a b:c"]
)
def test_no_other_text_is_an_import_string(package, name):
    with pytest.raises(PrecfmError, match=r"^models: got "):
        import_string("models", name)


@pytest.mark.parametrize("name", ["doubling", "added_models:Doubling"])
def test_a_name_out_of_a_file_imports_nothing_new(package, name):
    with pytest.raises(PrecfmError, match="import added_models"):
        load("models", name, imported=True)
    assert package not in sys.modules
    found = load("models", name)
    assert load("models", name, imported=True) is found
    assert load("models", "mlp", imported=True) is MLPVelocity


@pytest.mark.parametrize("name", ["function", "not_a_class", "Doubling"])
def test_a_class_must_be_of_the_kind_that_is_asked_for(package, name):
    with pytest.raises(PrecfmError, match="VelocityNetwork"):
        load_class("models", f"added_models:{name}", VelocityNetwork)
    assert load_class("models", "mlp", VelocityNetwork) is MLPVelocity
    assert issubclass(load_class("models", "doubling", nn.Module), nn.Module)


def test_a_saved_network_calls_no_function(tmp_path):
    """`os.system` belongs to a module that is always imported; a file must not call it."""
    trace = tmp_path / "called"
    description = {"group": "models", "name": "os:system", "options": {"command": f"touch {trace}"}}
    (tmp_path / "model.json").write_text(json.dumps(description))
    with pytest.raises(PrecfmError, match="os:system"):
        load_network(tmp_path)
    assert not trace.exists()
    (tmp_path / "model.json").write_text(json.dumps({**description, "name": "antigravity:Anything"}))
    with pytest.raises(PrecfmError, match="import antigravity"):
        load_network(tmp_path)
