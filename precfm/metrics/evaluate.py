"""All metrics of one generated set against one reference set, each value with its protocol."""

from collections.abc import Sequence
from typing import Any, Literal

from precfm.core.errors import PrecfmError
from precfm.metrics.checks import Features, feature_pair
from precfm.metrics.frechet import FewSamples, frechet_distance
from precfm.metrics.kernels import kid, median_distance, mmd_rbf, scaled_by_reference
from precfm.metrics.neighbours import precision_recall
from precfm.metrics.values import MetricValue, Protocol

METRICS = ("frechet", "kid", "mmd_rbf", "precision", "recall")

KidScale = Literal["reference", "none"]


def evaluate_features(
    generated: Features,
    reference: Features,
    *,
    metrics: Sequence[str] = METRICS,
    k: int = 3,
    seed: int = 0,
    extractor: str = "identity",
    extractor_hash: str = "",
    reference_name: str = "held-out",
    few_samples: FewSamples = "refuse",
    bandwidth: float | None = None,
    kid_scale: KidScale = "reference",
) -> list[MetricValue]:
    """Measure a generated set against a reference set.

    Args:
        generated: features of shape (n, dim).
        reference: features of shape (m, dim), from the same extractor.
        metrics: names out of `METRICS`; values come back in this order.
        k: neighbours that make the balls of precision and recall.
        seed: of the generated set's labels and noise, for the protocol.
        extractor: name of the extractor, for the protocol.
        extractor_hash: its hash, for the protocol.
        reference_name: which real set the reference is, for the protocol.
        few_samples: what the Frechet distance does when n or m <= dim, see `frechet_distance`.
        bandwidth: of the RBF kernel; the median distance of the reference where None.
        kid_scale: "reference" centres and scales all features so that the reference has mean zero and mean
            variance one: the cubic kernel needs it wherever features are not of order one. "none" leaves them
            as they are, as the published KID does with Inception features.

    Returns:
        One value per metric.

    Raises:
        PrecfmError: unknown metric, or unusable features.
    """
    for name in metrics:
        if name not in METRICS:
            raise PrecfmError(f"metrics: got '{name}'; known are {', '.join(METRICS)}")
    x, y = feature_pair(generated, reference)
    found: dict[str, tuple[float, float | None, dict[str, Any], str]] = {}
    if "frechet" in metrics:
        fewest, dim = min(len(x), len(y)), x.shape[1]
        note = f"{fewest} samples in {dim} dimensions: biased upwards, not comparable across sample sizes"
        value = frechet_distance(x, y, few_samples=few_samples)
        found["frechet"] = value, None, {"dim": dim}, note if fewest <= dim else ""
    if "kid" in metrics:
        cubic = kid(*(scaled_by_reference(x, y) if kid_scale == "reference" else (x, y)))
        options = {"degree": 3, "pairs": "all", "scale": kid_scale}
        found["kid"] = cubic.value, cubic.standard_error, options, ""
    if "mmd_rbf" in metrics:
        width = median_distance(y) if bandwidth is None else bandwidth
        rbf = mmd_rbf(x, y, bandwidth=width)
        found["mmd_rbf"] = rbf.value, rbf.standard_error, {"bandwidth": width, "pairs": "all"}, ""
    if {"precision", "recall"} & set(metrics):
        shares = precision_recall(x, y, k)
        for name, value, n in (("precision", shares.precision, len(x)), ("recall", shares.recall, len(y))):
            # The error of a share among the samples asked; that of the balls is not in it.
            found[name] = value, (value * (1.0 - value) / n) ** 0.5, {"k": k}, ""
    values = []
    for name in metrics:
        value, error, settings, note = found[name]
        protocol = Protocol(
            len(y), len(x), extractor, extractor_hash, reference_name, seed, tuple(settings.items())
        )
        values.append(MetricValue(name, value, protocol, error, note))
    return values
