"""All metrics of one generated set against one reference set, each value with its protocol."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from precfm.errors import PrecfmError
from precfm.metrics import frechet, kernels, neighbours
from precfm.metrics.checks import Features, feature_pair
from precfm.metrics.values import MetricValue, Protocol

METRICS = ("frechet", "kid", "mmd_rbf", "precision", "recall")


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
    few_samples: frechet.FewSamples = "refuse",
    bandwidth: float | None = None,
    memory_budget: int = 2**28,
) -> list[MetricValue]:
    """Measure a generated set against a reference set.

    Args:
        generated: features of shape (n, dim).
        reference: features of shape (m, dim), from the same extractor.
        metrics: names out of `METRICS`; values come back in this order.
        k: neighbours that make the balls of precision and recall.
        seed: recorded in the protocol; the metrics listed here use every sample and draw nothing.
        extractor: name of the extractor, for the protocol.
        extractor_hash: its hash, for the protocol.
        reference_name: which real set the reference is, for the protocol.
        few_samples: what the Frechet distance does when n or m <= dim, see `frechet.frechet_distance`.
        bandwidth: of the RBF kernel; the median distance of the reference where None.
        memory_budget: bytes for temporary blocks.

    Returns:
        One value per metric.

    Raises:
        PrecfmError: unknown metric, or unusable features.
    """
    for name in metrics:
        if name not in METRICS:
            raise PrecfmError(f"metrics: '{name}' is unknown; known are {', '.join(METRICS)}")
    x, y = feature_pair(generated, reference)
    protocol = Protocol(
        n_real=len(y),
        n_generated=len(x),
        extractor=extractor,
        extractor_hash=extractor_hash,
        reference=reference_name,
        evaluation_seed=seed,
    )
    shares = None
    if "precision" in metrics or "recall" in metrics:
        shares = neighbours.precision_recall(x, y, k, memory_budget=memory_budget)
    values = []
    for name in metrics:
        if name == "frechet":
            values.append(_frechet(x, y, few_samples, memory_budget, protocol))
        elif name == "kid":
            result = kernels.kid(x, y, memory_budget=memory_budget)
            cubic = (("kernel", "polynomial"), ("degree", 3), ("pairs", "all"))
            values.append(_value(name, result.value, protocol, cubic, result.standard_error))
        elif name == "mmd_rbf":
            width = kernels.median_distance(y) if bandwidth is None else bandwidth
            result = kernels.mmd_rbf(x, y, bandwidth=width, memory_budget=memory_budget)
            settings = (("kernel", "rbf"), ("bandwidth", width), ("pairs", "all"))
            values.append(_value(name, result.value, protocol, settings, result.standard_error))
        elif shares is not None:
            inside = shares.generated_inside if name == "precision" else shares.reference_inside
            share = shares.precision if name == "precision" else shares.recall
            error = (share * (1.0 - share) / len(inside)) ** 0.5
            values.append(_value(name, share, protocol, (("k", k),), error))
    return values


def evaluate_per_class(
    generated: Features,
    generated_labels: Tensor,
    reference: Features,
    reference_labels: Tensor,
    **options: object,
) -> list[MetricValue]:
    """The metrics of each class by itself; the value of class 3 of "frechet" is called "frechet[3]".

    Args:
        generated: shape (n, dim).
        generated_labels: shape (n,), int64.
        reference: shape (m, dim).
        reference_labels: shape (m,), int64.
        **options: those of `evaluate_features`.

    Returns:
        One value per class and metric, classes in increasing order.

    Raises:
        PrecfmError: labels do not match the features, or a class is missing or too small in one of the sets.
    """
    x, y = feature_pair(generated, reference)
    first, second = torch.as_tensor(generated_labels), torch.as_tensor(reference_labels)
    for name, labels, features in (("generated_labels", first, x), ("reference_labels", second, y)):
        if labels.shape != (len(features),):
            raise PrecfmError(
                f"{name}: shape {tuple(labels.shape)}; ({len(features)},) is needed, one per row"
            )
    values = []
    for label in torch.unique(torch.cat([first, second])).tolist():
        try:
            of_class = evaluate_features(x[first == label], y[second == label], **options)  # type: ignore[arg-type]
        except PrecfmError as error:
            raise PrecfmError(f"class {label}: {error}") from error
        values += [replace(value, metric=f"{value.metric}[{label}]") for value in of_class]
    return values


def _frechet(
    x: Tensor, y: Tensor, few_samples: frechet.FewSamples, memory_budget: int, protocol: Protocol
) -> MetricValue:
    value = frechet.frechet_distance(x, y, few_samples=few_samples, memory_budget=memory_budget)
    result = _value("frechet", value, protocol, (("dim", x.shape[1]),), None)
    if min(len(x), len(y)) <= x.shape[1]:
        fewest = min(len(x), len(y))
        note = f"{fewest} samples in {x.shape[1]} dimensions: biased upwards, not comparable across sizes"
        result = replace(result, notes=(note,))
    return result


def _value(
    name: str, value: float, protocol: Protocol, settings: tuple[tuple[str, object], ...], error: float | None
) -> MetricValue:
    return MetricValue(name, value, replace(protocol, settings=settings), standard_error=error)
