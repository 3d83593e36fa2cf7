"""How ill-conditioned held-out rows are, as they are or behind a map, and what chance alone would show."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from scipy import fft, stats
from torch import Tensor

from precfm.core.errors import PrecfmError
from precfm.diagnosis.rows import Parts, batches
from precfm.flows.paths import LinearPath
from precfm.geometry.moments import Moments
from precfm.geometry.spectra import eigen_spectrum, path_condition_numbers
from precfm.preconditioners.fit_data import LabelledRows
from precfm.preconditioners.symmetric_power import deficiency
from precfm.theory.convergence import steps_to_total_fraction
from precfm.theory.imperfect_preconditioners import steps_bound
from precfm.theory.linear_regression import linear_problem

CLASS_ROWS_PER_FEATURE = 2  # held out; with fewer, even isotropic classes show a condition number above 34
MOST_CLASSES = 20  # the largest ones: each costs an eigen-decomposition per map
FRACTION = 0.01  # of its start, to which descent shall bring the excess risk
CONFIDENCE = 0.95  # that `at_least` is below the condition number, for Gaussian rows

TIMES = torch.linspace(0, 1, 41, dtype=torch.float64)


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


def measure_raw(parts: Parts) -> Conditioning:
    """The held-out rows as they are.

    Raises:
        PrecfmError: there are rows enough, but no variance in some direction.
    """
    found = measure_conditioning(parts, _flat)
    if parts.dense and math.isinf(found.kappa):
        raise PrecfmError(
            f"x: {deficiency(parts.held_out_covariance())}; drop such directions before a diagnosis"
        )
    return found


def measure_conditioning(parts: Parts, mapped: Callable[[LabelledRows], Tensor]) -> Conditioning:
    """How ill-conditioned the held-out rows are behind a map, which gives rows (batch, features)."""
    features = parts.features
    modes = _along_modes(parts, mapped)
    if parts.dense:
        first, second = (_moments(part, mapped) for part in (parts.first, parts.second))
        along = variances_along(second.covariance(), eigen_spectrum(first.covariance()).eigenvectors)
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


def variances_along(cov: Tensor, directions: Tensor) -> Tensor:
    """Variance along each column of `directions`."""
    return ((cov @ directions) * directions).sum(dim=0)


def _flat(part: LabelledRows) -> Tensor:
    return part[0].flatten(1)


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
    for batch in batches(part):
        moments.update(mapped(batch))
    return moments


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
