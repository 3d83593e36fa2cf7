"""Velocity networks without weights: whether one takes the latents; and for counting operations."""

import json
from functools import lru_cache
from typing import Any

import torch

from precfm.core.errors import PrecfmError
from precfm.core.registry import build
from precfm.pipeline.components import Component, plain

CLASSES = 10  # of data whose classes only the files tell; no network is refused for their number
TAKES_ANY_SHAPE = (
    "mlp"  # the network that every vector fits; the meta device alone would take seconds to load
)


def refuse_misfit(field: str, model: Component, space: str, shape: tuple[int, ...] | None) -> None:
    """Refuse a network that cannot be made for the latents, where their shape is known.

    Args:
        field: of the network in the configuration.
        model: its class with its options.
        space: the latents' label.
        shape: of a latent; None where the plan does not know it.

    Raises:
        PrecfmError: names the field, the network, the latents, and what would be right.
    """
    if shape is None or model.name == TAKES_ANY_SHAPE:
        return
    if reason := _misfit(json.dumps(plain(model)), shape):
        sizes = " x ".join(map(str, shape))
        raise PrecfmError(
            f"{field}: got '{model.name}', which cannot be made for the latents {space} ({sizes}): {reason}"
        )


@lru_cache(maxsize=1024)
def _misfit(model: str, shape: tuple[int, ...]) -> str:
    """Why a network cannot be made for latents of a shape; empty if it can, or if only its job can tell."""
    try:
        without_weights(json.loads(model), shape)
    except PrecfmError as error:
        if str(error).startswith("shape"):
            return (
                "latents with another number of axes, such as channels x height x width, or 'mlp', are needed"
            )
        return str(error)
    except Exception:  # of a class that cannot be made on the meta device, of whatever package
        return ""
    return ""


def without_weights(model: dict[str, Any], shape: tuple[int, ...]) -> Any:
    """A network on torch's meta device, where nothing takes memory or time.

    Args:
        model: name and options.
        shape: of a latent.

    Raises:
        PrecfmError: the network cannot be made for this shape.
    """
    with torch.device("meta"):
        return build("models", model, shape=shape, num_classes=CLASSES)
