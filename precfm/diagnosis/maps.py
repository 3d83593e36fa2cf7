"""The maps that a diagnosis tries, and what each does to rows that it was not fitted to."""

import math
from dataclasses import dataclass, field
from typing import Any

from precfm.core.components import component, spec_of
from precfm.core.errors import PrecfmError
from precfm.diagnosis.conditioning import Conditioning, kappa_floor, measure_conditioning
from precfm.diagnosis.rows import Parts, batches
from precfm.flows.settings import Spec
from precfm.preconditioners.base import Preconditioner
from precfm.preconditioners.round_trip import POINTS


@dataclass(frozen=True)
class TriedMap:
    """A map that a diagnosis tries.

    Attributes:
        spec: its name in the registry, or a mapping of that and options.
        dense: whether it has a matrix of features x features, which needs more rows than features.
        needs_labels: whether it is for labelled data only.
        needs_channels: whether it is for latents (channels, height, width) only.
    """

    spec: str | Spec
    dense: bool = False
    needs_labels: bool = False
    needs_channels: bool = False


# From simple to complex: of maps that do alike the first is recommended. A new map is one line here.
TRIED: dict[str, TriedMap] = {
    "scalar": TriedMap("scalar"),
    "per_channel": TriedMap("per_channel"),
    "channel_whitening": TriedMap("channel_whitening", needs_channels=True),
    "per_frequency": TriedMap("per_frequency", needs_channels=True),
    "kronecker": TriedMap("kronecker", needs_channels=True),
    "tempered_whitening": TriedMap({"name": "whitening", "exponent": 0.25}, dense=True),
    "whitening": TriedMap("whitening", dense=True),
    "class_whitening": TriedMap("class_whitening", dense=True, needs_labels=True),
}


@dataclass(frozen=True)
class MapReport:
    """What a map does to held-out rows.

    Attributes:
        name: of the map in `TRIED`.
        spec: its registered name with all options.
        refused: why it could not be tried, or None; all below is then empty.
        conditioning: of the rows behind it.
        floor: `kappa` that chance alone would show behind a perfect map, or behind whitening if the map is dense.
        round_trip: largest error of `inverse(forward(x))` in float32, over the smallest standard deviation of the rows.
        num_parameters: free numbers of the map.
        notes: of its fit.
    """

    name: str
    spec: dict[str, Any]
    refused: str | None = None
    conditioning: Conditioning | None = None
    floor: float = math.inf
    round_trip: float = math.nan
    num_parameters: int = 0
    notes: tuple[str, ...] = field(default=())


def tried_maps(parts: Parts) -> dict[str, TriedMap]:
    """Those of `TRIED` that go with the data's shape and labels."""
    labelled, channels = parts.fit[1] is not None, len(parts.event_shape) == 3
    return {
        name: each
        for name, each in TRIED.items()
        if (labelled or not each.needs_labels) and (channels or not each.needs_channels)
    }


def measure_map(name: str, parts: Parts, raw: Conditioning, seed: int) -> MapReport:
    """Fit a map to one half of the rows, and look at the other half behind it."""
    tried = TRIED[name]
    spec = spec_of("preconditioners", tried.spec, Preconditioner)
    rows, features = len(parts.fit[0]), parts.features
    if tried.dense and rows <= features:
        return MapReport(
            name,
            spec,
            f"is fitted to half of the rows, {rows:,}, and needs more than the {features:,} features",
        )
    if tried.dense and features > parts.dense_features:
        return MapReport(
            name,
            spec,
            f"has {features:,} x {features:,} numbers; --dense-features {features} (dense_features=) tries it, in "
            "minutes",
        )
    preconditioner: Preconditioner = component("preconditioners", spec, Preconditioner)
    try:
        preconditioner.fit(batches(parts.fit), seed=seed)
        found = measure_conditioning(parts, lambda part: preconditioner.forward(*part).flatten(1))
        x, labels = parts.first[0][:POINTS], None if parts.first[1] is None else parts.first[1][:POINTS]
        error = preconditioner.inverse(preconditioner.forward(x, labels), labels) - x
    except PrecfmError as refusal:
        return MapReport(name, spec, str(refusal))
    return MapReport(
        name,
        spec,
        conditioning=found,
        floor=kappa_floor(features, rows if tried.dense else math.inf, parts.held_out),
        round_trip=float(error.abs().max()) / math.sqrt(raw.spectrum[0]),
        num_parameters=preconditioner.num_parameters,
        notes=tuple(preconditioner.notes),
    )
