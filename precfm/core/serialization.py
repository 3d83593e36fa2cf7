"""Registered networks on disk: weights as safetensors beside a description that says how to build them again."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import nn

from precfm.core.registry import build
from precfm.core.seeds import seeded_module


def new_network(
    room: str, spec: Mapping[str, Any], seed: int, **filled_in: Any
) -> tuple[nn.Module, dict[str, Any]]:
    """Build a registered network with seeded initial weights.

    Args:
        room: the registry's room, such as `models`.
        spec: `name` and options, as a configuration gives them.
        seed: seed of the initial weights.
        filled_in: arguments known from the data, such as `dim`; those that the class does not take are an error.

    Returns:
        The network on the CPU, and its description for `save_network`.
    """
    options = {**filled_in, **{name: value for name, value in spec.items() if name != "name"}}
    description = {"room": room, "name": spec["name"], "options": options}
    return seeded_module(lambda: build(room, spec, **filled_in), seed), description


def save_network(network: nn.Module, description: Mapping[str, Any], folder: Path) -> None:
    """Write `model.safetensors` and `model.json`."""
    weights = {name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()}
    save_file(weights, folder / "model.safetensors")
    (folder / "model.json").write_text(
        json.dumps(description, indent=1, sort_keys=True) + "\n", encoding="utf-8"
    )


def load_network(folder: Path, device: str = "cpu") -> nn.Module:
    """Read a network back, frozen and in evaluation mode.

    Args:
        folder: where `save_network` wrote.
        device: where the network shall be.
    """
    description = json.loads((folder / "model.json").read_text(encoding="utf-8"))
    network: nn.Module = build(description["room"], {"name": description["name"]}, **description["options"])
    network.load_state_dict(load_file(folder / "model.safetensors"))
    return network.to(device).eval().requires_grad_(False)
