"""A flow as plain data: what it is made of, by name and with every option, so that it can be built again."""

import hashlib
import json
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from precfm.core.components import spec_of
from precfm.core.errors import PrecfmError
from precfm.core.options import Count, Natural, Strict, without_neutral
from precfm.core.registry import load_class
from precfm.flows.models.base import FILLED_IN, VelocityNetwork, Wrapper
from precfm.flows.objectives import VelocityObjective
from precfm.flows.paths import ProbabilityPath
from precfm.flows.settings import FlowSettings

KINDS: dict[str, type[Any]] = {
    "models": VelocityNetwork,
    "wrappers": Wrapper,
    "paths": ProbabilityPath,
    "objectives": VelocityObjective,
}


FILE = "flow.json"


class FlowDescription(Strict):
    """How to build a flow again, without data and weights.

    Attributes:
        settings: how it is built and trained.
        shape: of one datum in the flow's space.
        num_classes: of the network; 0 if it is blind to labels.
        label_counts: of the training data, by class; empty without labels.
    """

    settings: FlowSettings
    shape: tuple[Count, ...]
    num_classes: Natural
    label_counts: tuple[Natural, ...]


def flow_spec(group: str, value: object, *, imported: bool = False) -> dict[str, Any]:
    """`precfm.core.components.spec_of` for a component of a flow, without options that came later and are not used."""
    spec = spec_of(group, value, KINDS[group], without=FILLED_IN, imported=imported)
    own: Any = KINDS[group]
    return without_neutral(
        type(value) if isinstance(value, own) else load_class(group, spec["name"], own), spec
    )


def require_imported(settings: FlowSettings, *, model: bool = True) -> None:
    """Refuse components that a file could not name: those of a module that was not imported, or of no module.

    Args:
        settings: of a flow.
        model: whether the network counts; it does not where it is given as an object.

    Raises:
        PrecfmError: such a component; the sentence names it.
    """
    for group, spec in _components(settings):
        if group == "models" and not model:
            continue
        try:
            flow_spec(group, spec, imported=True)
        except PrecfmError as error:
            hint = "; PreconditionedFlow.load(folder, model=...) takes the network itself" * (
                group == "models"
            )
            raise PrecfmError(f"{error}{hint}") from None


def write_description(folder: Path, description: Mapping[str, Any], files: Collection[str]) -> None:
    """Write a description beside the files that belong to it, last and with their checksums."""
    checksums = {name: _checksum(folder / name) for name in files}
    text = json.dumps({**description, "sha256": checksums}, indent=1, sort_keys=True)
    (folder / FILE).write_text(text + "\n", encoding="utf-8")


def read_description(folder: Path, files: Collection[str]) -> dict[str, Any]:
    """The description in a folder whose files are those that `write_description` saw.

    Raises:
        PrecfmError: a file is missing, damaged, or of another save.
    """
    if not (folder / FILE).is_file():
        raise PrecfmError(f"{folder / FILE}: no such file; a folder that a flow was saved to is needed")
    try:
        description: dict[str, Any] = json.loads((folder / FILE).read_text(encoding="utf-8"))
        checksums = description.pop("sha256")
        damaged = [name for name in files if _checksum(folder / name) != checksums[name]]
    except (OSError, ValueError, AttributeError, KeyError, TypeError) as error:
        raise PrecfmError(
            f"{folder}: holds no saved flow that can be read ({error!r}); save it again"
        ) from None
    if damaged:
        raise PrecfmError(
            f"{folder / damaged[0]}: is damaged, or not of the same save as {FILE}; save the flow again"
        )
    return description


def _checksum(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _components(settings: FlowSettings) -> Iterator[tuple[str, dict[str, Any]]]:
    yield "models", settings.model
    for wrapper in settings.wrappers:
        yield "wrappers", wrapper
    yield "paths", settings.path
    yield "objectives", settings.objective
