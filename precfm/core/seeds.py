"""Seeds: every random stream gets its own integer, derived from a seed and the stream's name."""

import hashlib
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import nn

Module = TypeVar("Module", bound=nn.Module)


def derived_seed(seed: int, *stream: int | str) -> int:
    """A 63-bit seed for one named stream, a pure function of its arguments.

    Hashing (unlike `seed + k`) keeps the streams of neighbouring seeds and steps apart. Torch's generator on
    the CPU uses only the low 32 bits, so that among many thousand streams two may coincide; nothing here
    relies on all of them being distinct.

    Args:
        seed: the seed of the whole run.
        stream: what the stream is for, for example `"step", 17`.

    Returns:
        An integer in [0, 2**63).

    Example:
        >>> derived_seed(0, "step", 1) == derived_seed(0, "step", 1)
        True
        >>> derived_seed(0, "step", 1) == derived_seed(0, "step", 2)
        False
    """
    digest = hashlib.blake2b(repr((seed, *stream)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def generator_for(seed: int, *stream: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """A fresh generator for one named stream; see `derived_seed`."""
    return torch.Generator(device).manual_seed(derived_seed(seed, *stream))


def seeded_module(factory: Callable[[], Module], seed: int) -> Module:
    """Build a module on the CPU whose random initial weights are a function of `seed` alone.

    Args:
        factory: builds the module, for example `lambda: MLPVelocity(16)`.
        seed: seed of the initial weights; torch's global generator is left as it was found.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derived_seed(seed, "initial weights"))
        return factory()
