"""How methods, metrics and spaces are written for a reader, and in which order they appear everywhere."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from precfm.core.metric_names import COMPONENTS, FRECHET_IN_COMPONENTS

DATA = "data"  # the row before any preconditioner
FLOOR = "floor"
ALONE = "alone:"
LIKELIHOOD = "nll"
MATCHED = {"-P": "same parameters", "-F": "same training FLOPs"}

# In the order of every table and legend: from no preconditioning to the most expressive one.
_METHOD_LABELS = {
    DATA: "data, before",
    "none": "none",
    "scalar": "scalar",
    "per_channel": "per-channel",
    "channel_whitening": "channel whitening",
    "kronecker": "Kronecker",
    "low_rank": "low rank",
    "per_frequency": "per-frequency",
    "whitening": "whitening",
    "class_whitening": "class whitening",
    "normalizing_flow": "normalizing flow",
    "low_capacity_flow": "low-capacity flow",
    "gaussian_skip": "Gaussian skip",
    "mixture_skip": "mixture skip",
    "mixture_label": "mixture label",
}


@dataclass(frozen=True)
class MetricText:
    """How one metric is written.

    Attributes:
        label: its name in a table head or on an axis, with its symbol if it has one.
        better: which values are better.
        multiplicative: a ratio, averaged and given an interval on the log scale.
    """

    label: str
    better: Literal["lower", "higher", "one", "unknown"]
    multiplicative: bool = False

    @property
    def head(self) -> str:
        """The label with an arrow to the better values."""
        return self.label + {"lower": " ↓", "higher": " ↑", "one": " → 1", "unknown": ""}[self.better]


METRICS = {
    "frechet": MetricText("Fréchet distance", "lower"),
    FRECHET_IN_COMPONENTS: MetricText(f"Fréchet, {COMPONENTS} components", "lower"),
    "kid": MetricText("KID", "lower"),
    "mmd_rbf": MetricText("MMD (RBF)", "lower"),
    "precision": MetricText("precision", "higher"),
    "recall": MetricText("recall", "higher"),
    "eigenvalue_ratio_low": MetricText("low eigenvalue ratio", "one", multiplicative=True),
    "eigenvalue_log_error_low": MetricText("low |ln ratio|", "lower"),
    "eigenvalue_log_error": MetricText("mean |ln ratio|", "lower"),
    "band_ratio_high": MetricText("ratio, high frequencies", "one", multiplicative=True),
    "band_log_error_high": MetricText("high frequencies |ln ratio|", "lower"),
    "band_log_error": MetricText("frequencies, mean |ln ratio|", "lower"),
    LIKELIHOOD: MetricText("NLL (nats)", "lower"),
    "nearer_train": MetricText("nearer to train", "lower"),
}

_SPACES = {
    "classifier-0": "features of classifier 0",
    "classifier-1": "features of classifier 1",
    "classifier-0-decoded": "features of classifier 0, against decoded held-out images",
    "classifier-1-decoded": "features of classifier 1, against decoded held-out images",
    "imagenet": "features of the ImageNet network",
    "inception": "features of Inception",
    "pixels": "pixels",
    "imagenet-decoded": "features of the ImageNet network, against decoded held-out images",
    "inception-decoded": "features of Inception, against decoded held-out images",
    "pixels-decoded": "pixels, against decoded held-out images",
    "latent": "latent coordinates",
    "latent-whitened": "whitened latent coordinates",
}


_DECODED = "-decoded"


def metric_text(metric: str) -> MetricText:
    """How a metric is written; one that is not known here is written by its own name."""
    return METRICS.get(metric, MetricText(metric.replace("_", " "), "unknown"))


def space_label(space: str) -> str:
    """How a space in which a metric is measured is written."""
    return _SPACES.get(space, space)


def decoded(space: str) -> str:
    """The space in which held-out images, too, have gone through encoder and decoder."""
    return space + _DECODED


def undecoded(space: str) -> str:
    """The space of the same judge in which held-out images are as they are."""
    return space.removesuffix(_DECODED)


def is_judge(space: str) -> bool:
    """Whether a space is that of a judge of images, decoded or not, and none of latent coordinates."""
    return not space.startswith("latent")


def is_decoded(space: str) -> bool:
    """Whether held-out images, too, have gone through encoder and decoder."""
    return space.endswith(_DECODED)


def judge_label(space: str) -> str:
    """How a judge is called in a table's head.

    Example:
        >>> judge_label("classifier-0"), judge_label("imagenet-decoded")
        ('judge 0', 'imagenet, decoded')
    """
    name = space.removesuffix(_DECODED).replace("classifier-", "judge ")
    return f"{name}, decoded" if is_decoded(space) else name


def claim_order(claim: str) -> tuple[str, int, str]:
    """Sorts ids of claims by letter, number and part.

    Example:
        >>> sorted(["S1", "C10", "C8a-score", "C8b", "C8a"], key=claim_order)
        ['C8a', 'C8a-score', 'C8b', 'C10', 'S1']
    """
    digits = "".join(filter(str.isdigit, claim.partition("-")[0]))
    letter, _, part = claim.partition(digits)
    return letter, int(digits or 0), part


def split_matched(method: str) -> tuple[str, str]:
    """A method's name without, and the suffix of, a compute-matched baseline.

    Example:
        >>> split_matched("whitening-F"), split_matched("whitening")
        (('whitening', '-F'), ('whitening', ''))
    """
    for suffix in MATCHED:
        if method.endswith(suffix):
            return method.removesuffix(suffix), suffix
    return method, ""


def is_flow(method: str) -> bool:
    """Whether a row is a trained flow, not the floor and not a preconditioner alone."""
    return method != FLOOR and not method.startswith(ALONE)


def method_label(method: str) -> str:
    """How a method is written.

    Example:
        >>> method_label("class_whitening"), method_label("alone:whitening"), method_label("whitening-P")
        ('class whitening', 'whitening alone', 'wider flow, parameters as whitening')
    """
    if method == FLOOR:
        return "floor (train split)"
    if method.startswith(ALONE):
        return f"{method_label(method.removeprefix(ALONE))} alone"
    base, suffix = split_matched(method)
    label = _METHOD_LABELS.get(base, base.replace("_", " "))
    matched = {"": label, "-P": f"wider flow, parameters as {label}", "-F": f"longer flow, FLOPs as {label}"}
    return matched[suffix]


def in_order(methods: Iterable[str]) -> list[str]:
    """The methods without repetition, in the order of every table and legend.

    Known ones first, others by name; a matched baseline after its method; then those alone, the floor.

    Example:
        >>> in_order(["floor", "whitening-P", "ours", "alone:none", "whitening", "none"])
        ['none', 'whitening', 'whitening-P', 'ours', 'alone:none', 'floor']
    """

    def rank(method: str) -> tuple[bool, bool, int, str, str]:
        base, suffix = split_matched(method.removeprefix(ALONE))
        place = _place(base, _METHOD_LABELS)
        return method == FLOOR, method.startswith(ALONE), place, base, suffix

    return sorted(set(methods), key=rank)


def metrics_in_order(metrics: Iterable[str]) -> list[str]:
    """The metrics without repetition: known ones in the order above, others by name."""
    return sorted(set(metrics), key=lambda name: (_place(name, METRICS), name))


def spaces_in_order(spaces: Iterable[str]) -> list[str]:
    """The spaces without repetition: known ones in the order above, others by name."""
    return sorted(set(spaces), key=lambda name: (_place(name, _SPACES), name))


def _place(name: str, known: Mapping[str, object]) -> int:
    return list(known).index(name) if name in known else len(known)
