"""Fitted preconditioners on disk: tensors as safetensors, and a description in JSON that says how to build the map."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from safetensors.torch import save as to_bytes
from torch import Tensor

from precfm.core.errors import PrecfmError
from precfm.core.registry import load_class, name_of
from precfm.preconditioners.base import EXTRA_STATE, NO_FLOAT64, Preconditioner
from precfm.preconditioners.inputs import plain_number
from precfm.preconditioners.nested import only_imported
from precfm.training.checkpoints import checksum

TENSORS_FILE = "preconditioner.safetensors"
JSON_FILE = "preconditioner.json"
HEADER = "preconditioner"  # key of the description in the header of a single file
CHECKSUM = "sha256"  # key of the description in a single file: of itself and the tensors
FORMAT = 1


def save(preconditioner: Preconditioner, path: str | Path) -> None:
    """Store a fitted preconditioner in a folder, or in one file.

    Args:
        preconditioner: the fitted preconditioner.
        path: a folder, made if it does not exist, which gets `preconditioner.safetensors` and `preconditioner.json`;
            or a file that ends in `.safetensors` and has the description and a checksum in its header.

    Raises:
        PrecfmError: not fitted, its class cannot be imported again, or a file lies where the folder should be.
    """
    if not isinstance(preconditioner, Preconditioner) or not preconditioner.fitted:
        raise PrecfmError(f"{type(preconditioner).__name__}: is not fitted; call fit before save")
    path = Path(path)
    description = describe(preconditioner)
    tensors = {
        key: value.detach().cpu().contiguous().clone()  # the same stage twice shares memory
        for key, value in preconditioner.state_dict().items()
        if not key.endswith(EXTRA_STATE)  # which the description holds
    }
    if path.suffix == ".safetensors":
        path.parent.mkdir(parents=True, exist_ok=True)
        description[CHECKSUM] = _checksum(description, tensors)
        # One key alone: the order of several differs from call to call.
        path.write_bytes(to_bytes(tensors, {HEADER: _text(description)}))
        return
    if path.is_file():
        raise PrecfmError(f"{path}: is a file; a folder, or a file that ends in .safetensors, is needed")
    path.mkdir(parents=True, exist_ok=True)
    (path / TENSORS_FILE).write_bytes(
        to_bytes(tensors)
    )  # `save_file` makes files that their owner alone can read
    (path / JSON_FILE).write_text(_text(description), encoding="utf-8")


def load(path: str | Path, device: str | torch.device = "cpu") -> Preconditioner:
    """Load a fitted preconditioner; its maps are bit-equal to those that were saved, nothing is fitted again.

    A class of another package is found only if its module has been imported: a file does not choose what code runs.

    Args:
        path: the folder or file that `save` wrote.
        device: where it goes; on a device without float64, such as `mps`, its maps are float32.

    Returns:
        The fitted preconditioner.

    Raises:
        PrecfmError: a file is missing, damaged or not of this format, or the class is unknown or not imported.
    """
    path = Path(path)
    single = path.suffix == ".safetensors"
    described, weights = (path, path) if single else (path / JSON_FILE, path / TENSORS_FILE)
    try:
        text = _header(path).get(HEADER, "null") if single else described.read_text(encoding="utf-8")
        description, tensors = json.loads(text), load_file(weights)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
        raise PrecfmError(
            f"{error.filename or path}: no such file; a saved preconditioner is needed"
        ) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise PrecfmError(f"{described}: is not JSON ({error}); save the preconditioner again") from None
    except SafetensorError as error:
        raise PrecfmError(f"{weights}: is damaged ({error}); save the preconditioner again") from None
    if (
        single
        and isinstance(description, dict)
        and description.pop(CHECKSUM, None) != _checksum(description, tensors)
    ):
        raise PrecfmError(f"{path}: is damaged (its checksum is another); save the preconditioner again")
    try:
        found = rebuild(description, tensors)
    except PrecfmError as error:
        raise PrecfmError(f"{described}: {error}") from None
    return (found.float() if torch.device(device).type in NO_FLOAT64 else found).to(device)


def describe(preconditioner: Preconditioner) -> dict[str, Any]:
    """What builds a fitted preconditioner again, together with its state dict: plain data for `rebuild`.

    Raises:
        PrecfmError: its class cannot be imported again.
    """
    name = name_of("preconditioners", type(preconditioner))
    if "<" in name:
        raise PrecfmError(f"{name}: is defined inside a function; a class of a module can be saved")
    description = {
        "format": FORMAT,
        "name": name,
        "options": preconditioner.options,
        "event_shape": list(preconditioner.event_shape),
        "classes": list(preconditioner.classes),
        "dtype": str(preconditioner.anchor.dtype).removeprefix("torch."),
        "num_parameters": preconditioner.num_parameters,
        "flops_per_fit": preconditioner.flops_per_fit,
        "notes": preconditioner.notes,
    }
    return description | ({"record": preconditioner.record} if preconditioner.record else {})


def rebuild(description: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Preconditioner:
    """The fitted preconditioner of a description and a state dict, on the CPU.

    Args:
        description: what `describe` returned.
        tensors: the state dict.

    Raises:
        PrecfmError: they are not of this format or do not fit together, or the class is unknown or not imported.
    """
    found = description.get("format") if isinstance(description, Mapping) else None
    if found != FORMAT:
        raise PrecfmError(f"format: got {found!r}; {FORMAT} is needed")
    try:
        with only_imported():
            cls: Any = load_class("preconditioners", description["name"], Preconditioner, imported=True)
            preconditioner: Preconditioner = cls(**description["options"])
            preconditioner.record = description.get("record", {})
            preconditioner.allocate(tuple(description["event_shape"]), tuple(description["classes"]))
        preconditioner.flops_per_fit = description["flops_per_fit"]
        preconditioner.notes = description["notes"]
        preconditioner.to(getattr(torch, description["dtype"]))
        preconditioner.load_state_dict(tensors)
    except (LookupError, TypeError, AttributeError, RuntimeError) as error:
        raise PrecfmError(f"is no saved preconditioner of this version ({error}); fit it again") from error
    for module in preconditioner.modules():
        if isinstance(module, Preconditioner):
            module.fitted = True
    return preconditioner.requires_grad_(False).eval()


def _header(path: Path) -> dict[str, str]:
    with safe_open(path, framework="pt") as file:
        return file.metadata() or {}


def _text(description: Mapping[str, Any]) -> str:
    return json.dumps(description, indent=2, sort_keys=True, allow_nan=False, default=plain_number) + "\n"


def _checksum(description: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    content = checksum({name: tensors[name] for name in sorted(tensors)})
    return hashlib.sha256(f"{_text(description)}{content}".encode()).hexdigest()
