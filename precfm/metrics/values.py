"""A metric's value together with the protocol that it was measured under."""

import json
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

RECORD_COLUMNS = (
    "metric",
    "value",
    "standard_error",
    "low",
    "high",
    "n_real",
    "n_generated",
    "reference",
    "evaluation_seed",
    "extractor",
    "extractor_hash",
    "settings",
    "notes",
)


@dataclass(frozen=True)
class Protocol:
    """What has to be equal before two values of a metric may share a column.

    Args:
        n_real: number of real samples.
        n_generated: number of generated samples.
        extractor: name of the feature extractor; "identity" for features used as they are.
        extractor_hash: hash of the extractor's weights and preprocessing; empty for the identity.
        reference: which real set, for example "held-out" or "train".
        evaluation_seed: seed of every random choice inside the evaluation.
        settings: options of the metric, as (name, value) pairs in a fixed order.
    """

    n_real: int
    n_generated: int
    extractor: str = "identity"
    extractor_hash: str = ""
    reference: str = "held-out"
    evaluation_seed: int = 0
    settings: tuple[tuple[str, Any], ...] = ()

    def comparable(self, other: "Protocol") -> bool:
        """Whether values measured under the two protocols may share a column: all but the seed is equal."""
        return replace(self, evaluation_seed=0) == replace(other, evaluation_seed=0)


@dataclass(frozen=True)
class MetricValue:
    """One number, how it was measured, and what a reader must know before trusting it.

    Args:
        metric: name of the metric, for example "frechet"; "frechet[3]" is the value of class 3.
        value: the number.
        protocol: how it was measured.
        standard_error: sampling error of the value, in closed form or from resamples; None if not known.
        low: lower end of the 95% interval over samples; None if none was made.
        high: upper end of it.
        notes: statements that belong under a table with this value, for example a known bias.
    """

    metric: str
    value: float
    protocol: Protocol
    standard_error: float | None = None
    low: float | None = None
    high: float | None = None
    notes: tuple[str, ...] = ()

    def record(self) -> dict[str, Any]:
        """One row of an evaluation table, with `RECORD_COLUMNS` as keys."""
        protocol = self.protocol
        return {
            "metric": self.metric,
            "value": self.value,
            "standard_error": self.standard_error,
            "low": self.low,
            "high": self.high,
            "n_real": protocol.n_real,
            "n_generated": protocol.n_generated,
            "reference": protocol.reference,
            "evaluation_seed": protocol.evaluation_seed,
            "extractor": protocol.extractor,
            "extractor_hash": protocol.extractor_hash,
            "settings": json.dumps(dict(protocol.settings)),
            "notes": "; ".join(self.notes),
        }


def records(values: list[MetricValue]) -> pd.DataFrame:
    """Evaluation records, one row per value, columns `RECORD_COLUMNS`."""
    return pd.DataFrame([value.record() for value in values], columns=list(RECORD_COLUMNS))
