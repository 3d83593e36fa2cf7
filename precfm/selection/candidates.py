"""What selection chooses from: a map and what goes around the network, from simple to complex."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from precfm.core.components import component, spec_of
from precfm.core.errors import PrecfmError
from precfm.flows.description import flow_spec
from precfm.flows.settings import FlowSettings, Spec
from precfm.preconditioned_flow import PreconditionedFlow
from precfm.preconditioners.base import Preconditioner
from precfm.selection.standings import DEFAULT

FEATURE_MAPS = ("channel_whitening", "per_frequency", "kronecker", "low_rank")  # from few numbers to many


@dataclass(frozen=True)
class Candidate:
    """A map and what goes around the network, as `PreconditionedFlow` takes them.

    Attributes:
        preconditioner: a registered name, or a name with options.
        wrappers: the innermost first.
    """

    preconditioner: str | Spec
    wrappers: tuple[str | Spec, ...] = ()


def default_candidates(*, labelled: bool = True, event_shape: tuple[int, ...] = ()) -> dict[str, Candidate]:
    """The candidates of `select`, from simple to complex.

    Args:
        labelled: whether the data have labels; without them learned maps are unconditional.
        event_shape: shape of one datum; of (channels, height, width), the maps of feature maps are candidates, too.
    """
    learned = {} if labelled else {"conditional": False}
    structured = FEATURE_MAPS if len(event_shape) == 3 else ()
    return {
        DEFAULT: Candidate(DEFAULT),
        **{name: Candidate(name) for name in structured},
        "tempered_whitening": Candidate({"name": "whitening", "exponent": 0.25}),
        "whitening": Candidate("whitening"),
        "gaussian_skip": Candidate("scalar", ("gaussian_skip",)),
        "class_whitening": Candidate("class_whitening"),
        "normalizing_flow": Candidate({"name": "normalizing_flow", **learned}),
        "low_capacity_flow": Candidate({"name": "low_capacity_flow", **learned}),
    }


@dataclass
class Entry:
    """A candidate in a contest."""

    name: str
    preconditioner: Preconditioner
    settings: FlowSettings
    wrapper_state: dict[str, Tensor] = field(default_factory=dict)
    flops: int = 0
    flops_per_step: int = 0
    flops_per_score: int = 0
    out: str | None = None

    def record(self) -> dict[str, Any]:
        """What a selection's record says of it."""
        spec = spec_of("preconditioners", self.preconditioner, Preconditioner)
        return {
            "preconditioner": spec,
            "wrappers": list(self.settings.wrappers),
            "flops": self.flops,
            "out": self.out,
        }


def entries_of(candidates: Mapping[str, Candidate], settings: FlowSettings) -> list[Entry]:
    """The candidates in their order, the default among them; wrong names and options are refused here."""
    if settings.wrappers:
        raise PrecfmError(
            f"settings.wrappers: got {settings.wrappers[0]['name']!r}; () is needed, since candidates bring their own"
        )
    PreconditionedFlow.from_settings(settings, component("preconditioners", DEFAULT, Preconditioner))
    default = default_candidates()[DEFAULT]
    if candidates.get(DEFAULT, default) != default:
        raise PrecfmError(
            f"candidates.{DEFAULT}: got {candidates[DEFAULT]}; this name is that of the default, {default}"
        )
    found = []
    for name, candidate in {DEFAULT: default, **candidates}.items():
        try:
            wrappers = tuple(flow_spec("wrappers", wrapper) for wrapper in candidate.wrappers)
            preconditioner = component("preconditioners", candidate.preconditioner, Preconditioner)
        except PrecfmError as error:
            raise PrecfmError(f"candidates.{name}: {error}") from None
        found.append(Entry(name, preconditioner, settings.model_copy(update={"wrappers": wrappers})))
    return found
