"""What is measured of latents: condition numbers of rows that no map was fitted to, raw and behind each map."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from scipy import fft, stats
from torch import Tensor

from precfm.core.components import component, spec_of
from precfm.core.errors import PrecfmError
from precfm.core.seeds import generator_for
from precfm.core.tensors import require_tensor
from precfm.flows.paths import LinearPath
from precfm.flows.settings import Spec
from precfm.geometry.decoder import decoder_sensitivity
from precfm.geometry.moments import Moments
from precfm.geometry.spectra import eigen_spectrum, path_condition_numbers
from precfm.latent_files import Latents
from precfm.preconditioners.base import Preconditioner
from precfm.preconditioners.fit_data import LabelledRows
from precfm.preconditioners.inputs import checked_labels, summary
from precfm.preconditioners.round_trip import POINTS
from precfm.preconditioners.symmetric_power import deficiency
from precfm.theory.convergence import steps_to_total_fraction
from precfm.theory.imperfect_preconditioners import steps_bound
from precfm.theory.linear_regression import linear_problem

MOST_ROWS = 60_000  # a covariance of 512 features from so many takes a second on one core; more would change no verdict
MOST_NUMBERS = 2**26  # in the rows that are read: a quarter of a gigabyte of float32
FEWEST_ROWS = 8  # two in each part that needs a covariance
DENSE_FEATURES = 1024  # a dense eigen-decomposition of so many features takes seconds, of 4,096 a minute
HELD_OUT_ROWS = 512  # in each half of the held-out rows, where only the span of these rows is looked at
CLASS_ROWS_PER_FEATURE = (
    2  # of held-out rows; with fewer, even isotropic classes show a condition number above 34
)
MOST_CLASSES = 20  # the largest ones: each costs an eigen-decomposition per map
DECODED = 64  # latents at which the decoder is asked
UNUSED = 0.01  # of the mean change of the image per standard deviation: what moves it by less, no metric on images sees
FRACTION = 0.01  # of its start, to which descent shall bring the excess risk
CONFIDENCE = 0.95  # that `at_least` is below the condition number, for Gaussian rows
BATCH = 4096

Decoder = Callable[[Tensor], Tensor]
"""Maps latents (batch, *dim) to images (batch, *image), each row on its own."""

TIMES = torch.linspace(0, 1, 41, dtype=torch.float64)


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
    "tempered_whitening": TriedMap({"name": "whitening", "exponent": 0.25}, dense=True),
    "whitening": TriedMap("whitening", dense=True),
    "class_whitening": TriedMap("class_whitening", dense=True, needs_labels=True),
}


@dataclass(frozen=True)
class Parts:
    """The rows of a diagnosis, float32 or float64: half of each class to fit maps, two quarters that are held out.

    Attributes:
        fit: maps are fitted to these.
        first: held out; gives directions.
        second: held out; gives the variances along them.
        total: rows that there are.
        event_shape: of one datum.
        dtype: as it came.
        dense_features: up to which eigen-decompositions are dense.
    """

    fit: LabelledRows
    first: LabelledRows
    second: LabelledRows
    total: int
    event_shape: tuple[int, ...]
    dtype: str
    dense_features: int

    @property
    def features(self) -> int:
        """Numbers in one row."""
        return math.prod(self.event_shape)

    @property
    def held_out(self) -> int:
        """Rows that no map was fitted to."""
        return len(self.first[0]) + len(self.second[0])

    @property
    def dense(self) -> bool:
        """Whether the held-out rows have a covariance of full rank, of a size that is decomposed."""
        return self.features <= self.dense_features and self.held_out > self.features

    def all_rows(self) -> LabelledRows:
        """All three parts."""
        parts = (self.fit, self.first, self.second)
        known = [labels for _, labels in parts if labels is not None]
        return torch.cat([rows for rows, _ in parts]), torch.cat(known) if known else None


@dataclass(frozen=True)
class Conditioning:
    """How ill-conditioned held-out rows are.

    Attributes:
        kappa: condition number of their covariance; infinite where they are too few, or too many features, for one.
            Too large rather than too small: see `floor`.
        at_least: variance of the second half of them along the first half's largest direction over that along its
            smallest, divided by what chance may add (95%). Directions are eigenvectors, or those of a fixed basis: of
            feature maps the cosine transform. No row counts twice, so that it is below the condition number of the
            data whatever the number of rows.
        floor: `kappa` that isotropic data would show with so many rows.
        mean_log_kappa: mean of ln kappa(Sigma_t) over the linear path, the overall scale divided out; from `at_least`'s
            variances where there is no `kappa`.
        steps_slowest: of gradient descent on a linear velocity until the slowest direction's excess risk is 1% of its
            start, at the worst time.
        steps_total: the same for the total excess risk, from a zero field.
        class_kappas: condition number in each class of enough held-out rows.
        spectrum: variances along eigendirections, ascending; where there is no `kappa`, along the directions of
            `at_least`.
    """

    kappa: float
    at_least: float
    floor: float
    mean_log_kappa: float
    steps_slowest: float
    steps_total: float
    class_kappas: dict[int, float]
    spectrum: tuple[float, ...]


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


@dataclass(frozen=True)
class DecoderUse:
    """What a decoder makes of the directions.

    Attributes:
        unused: eigendirections along which one standard deviation changes the image by less than 1% of the mean change.
        directions: how many there are.
        kappa_used: the held-out rows' largest over smallest variance along the other ones.
    """

    unused: int
    directions: int
    kappa_used: float


def draw(
    x: Tensor | np.ndarray | Latents, labels: Tensor | np.ndarray | None, seed: int, dense_features: int
) -> Parts:
    """Read a sample of the rows, and split it.

    Raises:
        PrecfmError: the rows are too few, no floating point numbers, not finite or constant in a feature, or the labels
            are not one integer per row.
    """
    if isinstance(x, Latents):
        labels = x.labels if labels is None else labels
    elif isinstance(x, np.ndarray):
        if x.dtype.kind != "f":
            raise PrecfmError(f"x: holds {x.dtype}; floating point numbers are needed")
    else:
        require_tensor(x, "x", floating=True)
    total, event_shape = len(x), tuple(x.shape[1:])
    if not event_shape or 0 in event_shape:
        raise PrecfmError(f"x: has shape {tuple(x.shape)}; rows (n, *dim) are needed")
    if total < FEWEST_ROWS:
        raise PrecfmError(f"x: has {total} rows; at least {FEWEST_ROWS} are needed for a diagnosis")
    known = None
    if labels is not None:
        known = checked_labels(torch.as_tensor(labels), total, torch.device("cpu"))
    features = math.prod(event_shape)
    most = max(FEWEST_ROWS, min(MOST_ROWS, MOST_NUMBERS // features))
    generator = generator_for(seed, "diagnosis")
    rows = torch.randperm(total, generator=generator)[:most].sort().values
    taken = _taken(x, rows)
    flat = taken.flatten(1)
    constant = (flat == flat[0]).all(dim=0).nonzero().flatten().tolist()
    if constant:
        raise PrecfmError(f"x: is constant in feature {summary(constant)}; drop it before a diagnosis")
    classes = torch.zeros(len(rows), dtype=torch.int64) if known is None else known[rows]
    order = torch.randperm(len(rows), generator=generator)
    order = order[classes[order].argsort(stable=True)]  # class by class, so that each is in every part

    def part(chosen: Tensor) -> LabelledRows:
        return taken[chosen], None if known is None else classes[chosen]

    fit, first, second = order[::2], order[1::4], order[3::4]
    fitted = torch.unique(classes[fit])
    first, second = (each[torch.isin(classes[each], fitted)] for each in (first, second))
    if features > dense_features:
        first, second = (
            each[torch.randperm(len(each), generator=generator)[:HELD_OUT_ROWS]] for each in (first, second)
        )
    if min(len(first), len(second)) < 2:
        raise PrecfmError(
            f"labels: hold {len(torch.unique(classes))} classes in {len(rows)} rows, so that too few are left to look "
            "at; classes of several rows, or no labels, are needed"
        )
    return Parts(part(fit), part(first), part(second), total, event_shape, _dtype(x), dense_features)


def tried_maps(parts: Parts) -> dict[str, TriedMap]:
    """Those of `TRIED` that go with the data's shape and labels."""
    labelled, channels = parts.fit[1] is not None, len(parts.event_shape) == 3
    return {
        name: each
        for name, each in TRIED.items()
        if (labelled or not each.needs_labels) and (channels or not each.needs_channels)
    }


def measure_raw(parts: Parts) -> Conditioning:
    """The held-out rows as they are.

    Raises:
        PrecfmError: there are rows enough, but no variance in some direction.
    """
    found = _conditioning(parts, _flat)
    if parts.dense and math.isinf(found.kappa):
        moments = Moments()
        for part in (parts.first, parts.second):
            moments.update(part[0])
        raise PrecfmError(f"x: {deficiency(moments.covariance())}; drop such directions before a diagnosis")
    return found


def measure_map(name: str, parts: Parts, raw: Conditioning, seed: int) -> MapReport:
    """Fit a map to one half of the rows, and look at the other half behind it."""
    tried = TRIED[name]
    spec = spec_of("preconditioners", tried.spec, Preconditioner)
    rows, features = len(parts.fit[0]), parts.features
    if tried.dense and rows <= features:
        return MapReport(name, spec, f"needs more rows to fit than the {features} features; {rows} are there")
    if tried.dense and features > parts.dense_features:
        return MapReport(
            name,
            spec,
            f"has {features} x {features} numbers; dense_features of {features} tries it, in minutes",
        )
    preconditioner: Preconditioner = component("preconditioners", spec, Preconditioner)
    try:
        preconditioner.fit(_batches(parts.fit), seed=seed)
        found = _conditioning(parts, lambda part: preconditioner.forward(*part).flatten(1))
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


def measure_decoder(decoder: Decoder, parts: Parts) -> DecoderUse:
    """Ask a decoder for each eigendirection of the rows that maps are fitted to.

    Raises:
        PrecfmError: the rows are fewer than features, or the features more than `dense_features`.
    """
    if not parts.dense or len(parts.fit[0]) <= parts.features:
        raise PrecfmError(
            f"decoder: its use of {parts.features} directions needs at least {2 * parts.features + 2} rows and at most "
            f"{parts.dense_features} features (dense_features)"
        )
    values, vectors = eigen_spectrum(Moments().update(parts.fit[0]).covariance())
    sensitivity = decoder_sensitivity(decoder, parts.fit[0][:DECODED], vectors, values)
    held_out = Moments()
    for part in (parts.first, parts.second):
        held_out.update(part[0])
    along = _along(held_out.covariance(), vectors)
    used = sensitivity >= UNUSED * sensitivity.mean()
    return DecoderUse(int((~used).sum()), len(used), float(along[used].max() / along[used].min()))


def kappa_floor(features: int, fit_rows: float, held_out_rows: int) -> float:
    """Condition number of held-out rows behind a whitening, whatever the (Gaussian) data: that of chance alone.

    With y = features / fit_rows and w = features / held_out_rows the spectrum of the covariance ends at
    ((1 -+ h) / (1 - y))^2, h^2 = y + w - y w, in the limit of many features.

    Args:
        features: of one row.
        fit_rows: that the whitening was fitted to; infinite for the exact one.
        held_out_rows: that are looked at.

    Returns:
        ((1 + h) / (1 - h))^2; infinite if either has no more rows than features.

    References:
        The limiting eigenvalue distribution of a multivariate F matrix (Silverstein, 1985), SIAM J. Math. Anal. 16

    Example:
        >>> round(kappa_floor(64, 10_000, 10_000), 2)
        1.57
        >>> kappa_floor(64, 100, 64)
        inf
    """
    y, w = features / fit_rows, features / held_out_rows
    if max(y, w) >= 1:
        return math.inf
    h = math.sqrt(y + w - y * w)
    return ((1 + h) / (1 - h)) ** 2


def rows_needed(features: int, kappa: float) -> int:
    """Rows, half of which fit a whitening, so that the others show at most `kappa` > 1 by `kappa_floor`."""
    h = (math.sqrt(kappa) - 1) / (math.sqrt(kappa) + 1)
    return 2 * math.ceil(features / (1 - math.sqrt(1 - h**2)))


def _taken(x: Tensor | np.ndarray | Latents, rows: Tensor) -> Tensor:
    """Chosen rows on the CPU, at least float32, finite."""
    if isinstance(x, Latents):
        taken = x.take(rows)
    elif isinstance(x, np.ndarray):
        taken = torch.from_numpy(np.array(x[rows.numpy()], dtype=x.dtype.newbyteorder("=")))
    else:
        taken = x.detach()[rows.to(x.device)].cpu()
    if taken.dtype != torch.float64:
        taken = taken.float()
    bad = (~taken.flatten(1).isfinite()).nonzero()
    if len(bad):
        row, feature = bad[0].tolist()
        value = float(taken.flatten(1)[row, feature])
        raise PrecfmError(
            f"x: holds {value} in row {int(rows[row])}, feature {feature}; every number must be finite"
        )
    return taken


def _dtype(x: Tensor | np.ndarray | Latents) -> str:
    return str(x.dtype).removeprefix("torch.")


def _flat(part: LabelledRows) -> Tensor:
    return part[0].flatten(1)


def _conditioning(parts: Parts, mapped: Callable[[LabelledRows], Tensor]) -> Conditioning:
    """How ill-conditioned the held-out rows are behind a map, which gives rows (batch, features)."""
    features = parts.features
    modes = _along_modes(parts, mapped)
    if parts.dense:
        first, second = (_moments(part, mapped) for part in (parts.first, parts.second))
        along = _along(second.covariance(), eigen_spectrum(first.covariance()).eigenvectors)
        unseen = max(0, features - (first.count - 1))  # directions that the first half does not span
        along[:unseen] = along[:unseen].mean()
        spectrum = torch.linalg.eigvalsh(first.merge(second).covariance())
        ends = spectrum[[0, -1]]
    else:
        along = _along_span(mapped(parts.first).double(), mapped(parts.second).double())
        seen = max(along, modes, key=_ratio)
        # Of many variances that few rows give, the extremes are so by chance: the ends are those of the first half.
        spectrum, ends = seen.sort().values, seen[[0, -1]].sort().values
    smallest = features * torch.finfo(torch.float64).eps * float(spectrum[-1])  # what rounding leaves of none
    kappa = float(ends[1] / ends[0]) if parts.dense and float(ends[0]) > smallest else math.inf
    # Two bases were asked, so that each may err half as often.
    chance = float(stats.f.ppf(1 - (1 - CONFIDENCE) / 2, *[len(parts.second[0]) - 1] * 2))
    ends = ends.clamp(min=smallest) / spectrum.mean()
    return Conditioning(
        kappa=kappa,
        at_least=min(kappa, max(1.0, max(_ratio(along), _ratio(modes)) / chance)),
        floor=kappa_floor(features, math.inf, parts.held_out),
        mean_log_kappa=float(path_condition_numbers(torch.diag(ends), LinearPath(), TIMES).log().mean()),
        steps_slowest=float(steps_bound(float(ends[1] / ends[0]), FRACTION)),
        steps_total=_steps_total(spectrum.clamp(min=smallest) / spectrum.mean()),
        class_kappas=_class_kappas(parts, mapped),
        spectrum=tuple(spectrum.tolist()),
    )


def _ratio(variances: Tensor) -> float:
    """The last over the first; both were chosen by other rows."""
    return float(variances[-1] / variances[0].clamp(min=torch.finfo(torch.float64).tiny))


def _along_modes(parts: Parts, mapped: Callable[[LabelledRows], Tensor]) -> Tensor:
    """Variances of the second half in a basis that no rows chose, ascending by those of the first half.

    Of maps (channels, height, width) the basis is that of the cosine transform of each channel, in which images are
    nearly uncorrelated; of anything else the features themselves.
    """

    def in_basis(part: LabelledRows) -> Tensor:
        rows = mapped(part).double()
        if len(parts.event_shape) != 3:
            return rows
        images = rows.reshape(-1, *parts.event_shape).numpy()
        return torch.from_numpy(fft.dctn(images, axes=(-2, -1), norm="ortho"))

    first, second = (
        _moments(part, in_basis, diagonal=True).covariance() for part in (parts.first, parts.second)
    )
    return second[first.argsort()]


def _steps_total(variances: Tensor) -> float:
    problem = linear_problem(variances, TIMES, LinearPath())
    rate = 0.5 / problem.variance.amax(-1)
    steps = steps_to_total_fraction(problem.variance, problem.optimum.square(), rate, FRACTION)
    return float(steps.max())


def _class_kappas(parts: Parts, mapped: Callable[[LabelledRows], Tensor]) -> dict[int, float]:
    """Condition numbers of the largest classes, where they have rows enough."""
    if parts.first[1] is None or parts.second[1] is None or not parts.dense:
        return {}
    labels, counts = torch.unique(torch.cat([parts.first[1], parts.second[1]]), return_counts=True)
    enough = counts >= CLASS_ROWS_PER_FEATURE * parts.features
    largest = labels[enough][counts[enough].argsort(descending=True, stable=True)[:MOST_CLASSES]]
    found = {}
    for label in sorted(largest.tolist()):
        moments = Moments()
        for rows, classes in (parts.first, parts.second):
            assert classes is not None
            moments.merge(_moments((rows[classes == label], classes[classes == label]), mapped))
        values = torch.linalg.eigvalsh(moments.covariance())
        found[label] = float(values[-1] / values[0].clamp(min=torch.finfo(torch.float64).tiny))
    return found


def _moments(
    part: LabelledRows, mapped: Callable[[LabelledRows], Tensor], *, diagonal: bool = False
) -> Moments:
    moments = Moments(diagonal=diagonal)
    for batch in _batches(part):
        moments.update(mapped(batch))
    return moments


def _batches(part: LabelledRows) -> Iterator[LabelledRows]:
    rows, labels = part
    for start in range(0, len(rows), BATCH):
        yield rows[start : start + BATCH], None if labels is None else labels[start : start + BATCH]


def _along(cov: Tensor, directions: Tensor) -> Tensor:
    """Variance along each column of `directions`."""
    return ((cov @ directions) * directions).sum(dim=0)


def _along_span(first: Tensor, second: Tensor) -> Tensor:
    """Variances of `second` along the eigendirections of `first`, in the order of those of `first`, ascending.

    What the rows of `first` do not span has one variance, its mean.
    """
    rank = min(len(first) - 1, first.shape[1])
    axes = torch.linalg.svd(first - first.mean(0), full_matrices=False).Vh[:rank]
    centred = second - second.mean(0)
    spanned = (centred @ axes.T).square().sum(0) / (len(second) - 1)
    rest = centred.square().sum() / (len(second) - 1) - spanned.sum()
    unseen = first.shape[1] - rank
    return torch.cat([(rest / max(unseen, 1)).clamp(min=0).expand(unseen), spanned.flip(0)])
