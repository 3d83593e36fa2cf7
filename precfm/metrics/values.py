"""A metric's value together with the protocol that it was measured under."""

import json
from dataclasses import asdict, dataclass
from typing import Any

import pandas as pd


@dataclass(frozen=True)
class Protocol:
    """What has to be equal before two values of a metric may share a column; all but the evaluation seed.

    Attributes:
        n_real: number of real samples.
        n_generated: number of generated samples.
        extractor: name of the feature extractor; "identity" for features used as they are.
        extractor_hash: hash of the extractor's weights and preprocessing; empty for the identity.
        reference: which real set, for example "held-out" or "train".
        evaluation_seed: seed of the labels and the noise of the generated set.
        settings: options of the metric, as (name, value) pairs in a fixed order.
    """

    n_real: int
    n_generated: int
    extractor: str = "identity"
    extractor_hash: str = ""
    reference: str = "held-out"
    evaluation_seed: int = 0
    settings: tuple[tuple[str, Any], ...] = ()


@dataclass(frozen=True)
class MetricValue:
    """One number, how it was measured, and what a reader must know before trusting it.

    Attributes:
        metric: name of the metric, for example "frechet".
        value: the number.
        protocol: how it was measured.
        standard_error: sampling error of the value in closed form; None if not known.
        note: what belongs under a table with this value, for example a known bias.
    """

    metric: str
    value: float
    protocol: Protocol
    standard_error: float | None = None
    note: str = ""

    def record(self) -> dict[str, Any]:
        """One row of an evaluation table."""
        protocol = {**asdict(self.protocol), "settings": json.dumps(dict(self.protocol.settings))}
        numbers = {"metric": self.metric, "value": self.value, "standard_error": self.standard_error}
        return {**numbers, **protocol, "note": self.note}


def records(values: list[MetricValue]) -> pd.DataFrame:
    """Evaluation records, one row per value."""
    return pd.DataFrame([value.record() for value in values])
