"""All metrics of one generated set against one reference set, each value with its protocol."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from precfm.core.errors import PrecfmError
from precfm.metrics import few_samples as few
from precfm.metrics import frechet, kernels, neighbours
from precfm.metrics.checks import Features, column_means, feature_pair
from precfm.metrics.resampling import Scheme, resampled_interval
from precfm.metrics.values import MetricValue, Protocol

METRICS = ("frechet", "kid", "mmd_rbf", "precision", "recall")
"""What is measured unless something else is asked for."""

ALL_METRICS = (*METRICS, "frechet_components", "frechet_extrapolated")

KidScale = Literal["reference", "none"]


@dataclass(frozen=True)
class _Options:
    k: int
    seed: int
    few_samples: frechet.FewSamples
    components: few.PrincipalComponents | None
    bandwidth: float
    kid_scale: KidScale
    memory_budget: int


@dataclass(frozen=True)
class _Measured:
    value: float
    error: float | None = None
    settings: tuple[tuple[str, Any], ...] = ()
    notes: tuple[str, ...] = ()


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
    components: few.PrincipalComponents | None = None,
    bandwidth: float | None = None,
    kid_scale: KidScale = "reference",
    replicates: int = 0,
    memory_budget: int = 2**28,
) -> list[MetricValue]:
    """Measure a generated set against a reference set.

    Args:
        generated: features of shape (n, dim).
        reference: features of shape (m, dim), from the same extractor.
        metrics: names out of `ALL_METRICS`; values come back in this order.
        k: neighbours that make the balls of precision and recall.
        seed: of whatever is drawn at random (resamples, the parts of an extrapolation).
        extractor: name of the extractor, for the protocol.
        extractor_hash: its hash, for the protocol.
        reference_name: which real set the reference is, for the protocol.
        few_samples: what the Frechet distance does when n or m <= dim, see `frechet.frechet_distance`.
        components: fitted on training features; needed by "frechet_components".
        bandwidth: of the RBF kernel; the median distance of the reference where None.
        kid_scale: "reference" centres and scales all features so that the reference has mean zero and mean
            variance one: the cubic kernel needs it wherever features are not of order one. "none" leaves them
            as they are, as the published KID does with Inception features.
        replicates: resamples for 95% intervals over samples; 0 makes none.
        memory_budget: bytes for temporary blocks.

    Returns:
        One value per metric.

    Raises:
        PrecfmError: unknown metric, or unusable features.
    """
    for name in metrics:
        if name not in ALL_METRICS:
            raise PrecfmError(f"metrics: '{name}' is unknown; known are {', '.join(ALL_METRICS)}")
    if "frechet_components" in metrics and components is None:
        raise PrecfmError("components: None; 'frechet_components' needs some, fitted on training features")
    x, y = feature_pair(generated, reference)
    # The bandwidth is chosen once, so that every resample is measured with the same kernel.
    needed = bandwidth is None and "mmd_rbf" in metrics
    width = kernels.median_distance(y) if needed else (bandwidth or 1.0)
    options = _Options(k, seed, few_samples, components, width, kid_scale, memory_budget)
    protocol = Protocol(len(y), len(x), extractor, extractor_hash, reference_name, seed)
    shares = None
    if "precision" in metrics or "recall" in metrics:
        shares = neighbours.precision_recall(x, y, k, memory_budget=memory_budget)
    values = []
    for name in metrics:
        measured = _share(name, shares, k) if shares and name in _SHARES else _MEASURES[name](x, y, options)
        value = MetricValue(
            name,
            measured.value,
            replace(protocol, settings=measured.settings),
            measured.error,
            notes=measured.notes,
        )
        values.append(_with_interval(value, x, y, options, replicates) if replicates else value)
    return values


def evaluate_per_class(
    generated: Features,
    generated_labels: Tensor,
    reference: Features,
    reference_labels: Tensor,
    **options: Any,
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
            of_class = evaluate_features(x[first == label], y[second == label], **options)
        except PrecfmError as error:
            raise PrecfmError(f"class {label}: {error}") from error
        values += [replace(value, metric=f"{value.metric}[{label}]") for value in of_class]
    return values


def _frechet(x: Tensor, y: Tensor, options: _Options) -> _Measured:
    value = frechet.frechet_distance(
        x, y, few_samples=options.few_samples, memory_budget=options.memory_budget
    )
    fewest, dim = min(len(x), len(y)), x.shape[1]
    note = f"{fewest} samples in {dim} dimensions: biased upwards, not comparable across sample sizes"
    return _Measured(value, settings=(("dim", dim),), notes=(note,) if fewest <= dim else ())


def _frechet_components(x: Tensor, y: Tensor, options: _Options) -> _Measured:
    components = options.components
    if components is None:
        raise PrecfmError("components: None; 'frechet_components' needs some, fitted on training features")
    count = components.directions.shape[1]
    settings = (
        ("components", count),
        ("explained", round(components.explained, 6)),
        ("n_training", components.n),
    )
    return _Measured(few.frechet_in_components(x, y, components), settings=settings)


def _frechet_extrapolated(x: Tensor, y: Tensor, options: _Options) -> _Measured:
    result = few.extrapolated_frechet(x, y, seed=options.seed)
    return _Measured(result.value, settings=(("dim", x.shape[1]), ("smallest", result.smallest)))


def _kid(x: Tensor, y: Tensor, options: _Options) -> _Measured:
    if options.kid_scale == "reference":
        centre = column_means(y)
        scale = float((y - centre).square().mean().sqrt()) or 1.0
        x, y = (x - centre) / scale, (y - centre) / scale
    result = kernels.kid(x, y, memory_budget=options.memory_budget)
    settings = (("degree", 3), ("pairs", "all"), ("scale", options.kid_scale))
    return _Measured(result.value, result.standard_error, settings)


def _mmd_rbf(x: Tensor, y: Tensor, options: _Options) -> _Measured:
    result = kernels.mmd_rbf(x, y, bandwidth=options.bandwidth, memory_budget=options.memory_budget)
    settings = (("bandwidth", options.bandwidth), ("pairs", "all"))
    return _Measured(result.value, result.standard_error, settings)


def _precision(x: Tensor, y: Tensor, options: _Options) -> _Measured:
    shares = neighbours.precision_recall(x, y, options.k, memory_budget=options.memory_budget)
    return _share("precision", shares, options.k)


def _recall(x: Tensor, y: Tensor, options: _Options) -> _Measured:
    shares = neighbours.precision_recall(x, y, options.k, memory_budget=options.memory_budget)
    return _share("recall", shares, options.k)


def _share(name: str, shares: neighbours.PrecisionRecall, k: int) -> _Measured:
    value, inside = (
        (shares.precision, shares.generated_inside)
        if name == "precision"
        else (shares.recall, shares.reference_inside)
    )
    # The error of a share among the samples asked; that of the balls comes in with resampling.
    return _Measured(value, (value * (1.0 - value) / len(inside)) ** 0.5, (("k", k),))


_SHARES = ("precision", "recall")
_MEASURES: dict[str, Callable[[Tensor, Tensor, _Options], _Measured]] = {
    "frechet": _frechet,
    "frechet_components": _frechet_components,
    "frechet_extrapolated": _frechet_extrapolated,
    "kid": _kid,
    "mmd_rbf": _mmd_rbf,
    "precision": _precision,
    "recall": _recall,
}


def _with_interval(
    value: MetricValue, x: Tensor, y: Tensor, options: _Options, replicates: int
) -> MetricValue:
    measure = _MEASURES[value.metric]
    if value.metric == "kid" and options.kid_scale == "reference":
        # The scale belongs to the protocol, as the bandwidth does: it stays that of the whole reference.
        centre = column_means(y)
        scale = float((y - centre).square().mean().sqrt()) or 1.0
        x, y = (x - centre) / scale, (y - centre) / scale
        options = replace(options, kid_scale="none")
    # Halves of a set that is barely larger than its dimension would be refused; bootstrap keeps the size.
    scheme: Scheme = "bootstrap" if value.metric.startswith("frechet") else "half"
    interval = resampled_interval(
        lambda a, b: measure(a, b, options).value,
        x,
        y,
        replicates=replicates,
        scheme=scheme,
        seed=options.seed,
    )
    settings = (*value.protocol.settings, ("replicates", replicates), ("scheme", scheme))
    return replace(
        value,
        protocol=replace(value.protocol, settings=settings),
        standard_error=interval.standard_error,
        low=interval.low,
        high=interval.high,
    )
