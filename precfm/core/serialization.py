"""Registered networks on disk: weights as safetensors beside a description that says how to build them again."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from precfm.core.errors import PrecfmError
from precfm.core.registry import build, load_class
from precfm.core.seeds import seeded_module


def new_network(
    group: str, spec: Mapping[str, Any], seed: int, **filled_in: Any
) -> tuple[nn.Module, dict[str, Any]]:
    """Build a registered network with seeded initial weights.

    Args:
        group: of the registry, such as `models`.
        spec: `name` and options, as a configuration gives them.
        seed: seed of the initial weights.
        filled_in: arguments known from the data, such as `image_size`; those that the class does not take are an error.

    Returns:
        The network on the CPU, and its description for `save_network`.
    """
    options = {**filled_in, **{name: value for name, value in spec.items() if name != "name"}}
    description = {"group": group, "name": spec["name"], "options": options}
    return seeded_module(lambda: build(group, spec, **filled_in), seed), description


def save_network(network: nn.Module, description: Mapping[str, Any], folder: Path) -> None:
    """Write `model.safetensors` and `model.json`."""
    weights = {name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()}
    save_file(weights, folder / "model.safetensors")
    text = json.dumps(description, indent=1, sort_keys=True) + "\n"
    (folder / "model.json").write_text(text, encoding="utf-8")


def load_network(folder: Path, device: str = "cpu") -> nn.Module:
    """Read a network back, frozen and in evaluation mode.

    Args:
        folder: where `save_network` wrote.
        device: where the network shall be.

    Raises:
        PrecfmError: a file is missing or damaged, or the network's class is of a package that is not imported yet.
    """
    try:
        description = json.loads((folder / "model.json").read_text(encoding="utf-8"))
        network_class = load_class(description["group"], description["name"], nn.Module, imported=True)
        network: nn.Module = network_class(**description["options"])
        network.load_state_dict(load_file(folder / "model.safetensors"))
    except PrecfmError:
        raise
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise PrecfmError(f"{folder}: holds no network that this version can load ({reason})") from None
    return network.to(device).eval().requires_grad_(False)
