"""Auto: fits several preconditioners, judges each on validation data without training a flow, keeps the best."""

import json
import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from precfm.core.errors import PrecfmError
from precfm.core.options import Components, Fraction, NotNegative, checked
from precfm.core.seeds import generator_for
from precfm.core.tensors import require_tensor
from precfm.flows.paths import LinearPath
from precfm.geometry.spectra import covariance, eigen_spectrum, path_condition_numbers, require_positive
from precfm.preconditioners.base import ROUND_TRIP_POINTS, FitData, Preconditioner
from precfm.preconditioners.composition import component
from precfm.preconditioners.round_trip import round_trip_error, tail_round_trip_error

FOLDS = 5  # of the cross-validated eigenvalues
ROWS_PER_FEATURE = 2  # fewer held-out rows say nothing about the eigenvalues of a class
TIMES = (torch.arange(10_000, dtype=torch.float64) + 0.5) / 10_000  # fine: kappa(Sigma_t) peaks near t = 1


@dataclass(frozen=True)
class Judgement:
    """What held-out data says of a fitted preconditioner.

    Attributes:
        condition_number: of the mapped data.
        worst_class: label of the class whose mapped data is conditioned worst along the path; None without labels
            or where no class has enough rows.
        worst_class_condition_number: of its mapped data.
        classes_judged: number of classes with enough rows.
        negative_log_likelihood: mean over rows in nats, with `N(0, I)` as the density of the mapped data; None
            where the map has no determinant.
        round_trip_error: the larger of data and tails, in smallest standard deviations of the data; None where it
            is not finite.
        predicted_steps: `ln(1 / accuracy)` times the mean of `kappa(Sigma_t)` over t, of the worst class or else of
            all the data.
    """

    condition_number: float
    worst_class: int | None
    worst_class_condition_number: float | None
    classes_judged: int
    negative_log_likelihood: float | None
    round_trip_error: float | None
    predicted_steps: float


def judge(
    preconditioner: Preconditioner,
    x: Tensor,
    labels: Tensor | None = None,
    *,
    accuracy: float = 0.1,
    seed: int = 0,
) -> Judgement:
    """Judge a fitted preconditioner on data that its fit has not seen; no flow is trained.

    Gradient descent at fixed t with the rate `1 / (2 lambda_max)` contracts the error along eigendirection i of
    `Sigma_t` by `1 - lambda_i / lambda_max` per step (claim C2), so the slowest direction needs about
    `ln(1 / accuracy) kappa(Sigma_t)` steps. The prediction is the mean over t of the linear path, of the worst class
    where there are labels. It looks at second moments only. One scalar first gives the mapped data a mean
    variance of one.

    Args:
        preconditioner: fitted.
        x: held-out data, shape (rows, *dim).
        labels: class indices, shape (rows,), or None.
        accuracy: part of the initial error that may remain, in (0, 1).
        seed: of the folds, and of the noise that stands for the tails.

    Returns:
        The judgement.

    Raises:
        PrecfmError: there are fewer than two rows per feature, the mapped data is rank-deficient, or the
            preconditioner refuses the data.

    Example:
        >>> from precfm.preconditioners.scalar import Scalar
        >>> x = torch.randn(2000, 2, generator=torch.Generator().manual_seed(0)) * torch.tensor([10.0, 1.0])
        >>> judgement = judge(Scalar().fit(x[:1000]), x[1000:])
        >>> 90 < judgement.condition_number < 110
        True
    """
    if not 0 < accuracy < 1:
        raise PrecfmError(f"accuracy: got {accuracy!r}, but a number between 0 and 1 is needed")
    _require_rows(len(x), math.prod(x.shape[1:]))
    with torch.no_grad():
        z = preconditioner.forward(x.double(), labels).flatten(1)
        eigenvalues: dict[int | None, Tensor] = {None: cross_validated_eigenvalues(z, seed)}
        scale = eigenvalues[None].mean()
        if labels is not None:
            for label, count in zip(*torch.unique(labels, return_counts=True), strict=True):
                if int(count) >= ROWS_PER_FEATURE * z.shape[1]:
                    eigenvalues[int(label)] = cross_validated_eigenvalues(z[labels == label], seed)
        numbers = {scope: _condition_number(values) for scope, values in eigenvalues.items()}
        along = {scope: _mean_over_path(values / scale) for scope, values in eigenvalues.items()}
        classes = [scope for scope in along if scope is not None]
        worst = max(classes, key=along.__getitem__) if classes else None
        return Judgement(
            condition_number=numbers[None],
            worst_class=worst,
            worst_class_condition_number=None if worst is None else numbers[worst],
            classes_judged=len(classes),
            negative_log_likelihood=_negative_log_likelihood(preconditioner, x.double(), z, labels),
            round_trip_error=_round_trip(preconditioner, x, labels, seed),
            predicted_steps=math.log(1 / accuracy) * along[worst],
        )


def cross_validated_eigenvalues(z: Tensor, seed: int = 0) -> Tensor:
    """Eigenvalues of a covariance without the spread that sample eigenvalues have when rows are few.

    The i-th is the variance of left-out rows along the i-th eigenvector of the other rows' covariance, averaged over
    folds.

    Args:
        z: data, shape (rows, features).
        seed: of the folds.

    Returns:
        Shape (features,), float64, in the order of the eigenvectors, thus nearly ascending.

    References:
        | Optimal Data Splitting for Holdout Cross-Validation in Large Covariance Matrix Estimation
        | (Lamrani, Bongiorno & Potters, 2025), https://arxiv.org/abs/2503.15186
    """
    order = torch.randperm(len(z), generator=generator_for(seed, "folds")).to(z.device)
    squares = z.new_zeros(z.shape[1], dtype=torch.float64)
    for fold in range(FOLDS):
        left_out = torch.zeros(len(z), dtype=torch.bool, device=z.device)
        left_out[order[fold::FOLDS]] = True
        others = z[~left_out].double()
        directions = eigen_spectrum(covariance(others)).eigenvectors
        squares += ((z[left_out].double() - others.mean(dim=0)) @ directions).square().sum(dim=0)
    return squares / len(z)


class Auto(Preconditioner):
    """Chooses a preconditioner by what validation data says of each candidate, and becomes it.

    Every candidate is fitted on the training rows and judged by `judge` on the validation rows: the given ones, or a
    share held out from each class. Learned candidates use the same rows to stop early. A candidate whose fit is
    refused, that needs labels where none are given, or whose round trip exceeds its tolerance, is out. Of the others
    the one with the fewest predicted steps is kept; among those within `margin` of it, the one with the fewest
    parameters. The notes and `record` say what was found and why. With given validation data the map equals that of
    the chosen candidate fitted alone with the same seed.

    `record` holds `chosen` (position of the candidate), `reason`, `rows`, `validation_rows`, and `candidates`: for
    each its `candidate`, `num_parameters`, `flops_per_fit`, the fields of `Judgement`, and `out`, the reason why it
    could not be chosen or None. `flops_per_fit` counts the fits of all candidates.

    Arguments:
        candidates: each with the registered `name` of a preconditioner and its options, as in `Composition`.
        accuracy: part of the initial error that may remain after the predicted steps, in (0, 1); scales all
            predictions alike.
        margin: relative difference in predicted steps below which parameters decide.
        validation_share: part of each class that is held out if `fit` gets no validation data.

    Example:
        >>> x = torch.randn(600, 2, generator=torch.Generator().manual_seed(0)) * torch.tensor([10.0, 1.0])
        >>> auto = Auto(({"name": "scalar"}, {"name": "whitening"})).fit(x)
        >>> auto.record["reason"]
        'whitening has the fewest predicted steps'
    """

    uses_seed = True

    chosen: Preconditioner

    @checked
    def __init__(
        self,
        candidates: Components = (
            {"name": "scalar"},
            {"name": "whitening", "exponent": 0.25},
            {"name": "whitening"},
            {"name": "class_whitening"},
            {"name": "normalizing_flow"},
            {"name": "low_capacity_flow"},
        ),
        accuracy: Fraction = 0.1,
        margin: NotNegative = 0.1,
        validation_share: Fraction = 0.2,
    ) -> None:
        super().__init__()
        for position, candidate in enumerate(candidates):
            component("candidates", position, candidate)  # refused now, not after the first fits
        self.candidates = tuple(dict(candidate) for candidate in candidates)
        self.accuracy, self.margin, self.validation_share = accuracy, margin, validation_share
        self._dtype = torch.float64

    def fit(
        self,
        x: Tensor,
        labels: Tensor | None = None,
        *,
        validation: tuple[Tensor, Tensor | None] | None = None,
        seed: int = 0,
        scratch: str | Path | None = None,
    ) -> Self:
        """As `Preconditioner.fit`; labels may be missing, which leaves out the candidates that need them.

        Raises:
            PrecfmError: as `Preconditioner.fit`, there are too few validation rows, or no candidate is left.
        """
        self.fitted = False
        self.needs_labels = (
            labels is not None
        )  # to judge every class; afterwards, whether the chosen map does
        require_tensor(x, f"{self._name}: x")
        self._dtype = x.dtype
        return super().fit(x, labels, validation=validation, seed=seed, scratch=scratch)

    @property
    def num_parameters(self) -> int:
        """Those of the chosen map."""
        return self.chosen.num_parameters

    def _allocate(self) -> None:
        if self.record:  # from a file; in a fit nothing is chosen yet
            position = self.record["chosen"]
            chosen = component("candidates", position, self.candidates[position]).to(self.anchor)
            chosen.prepare(self.event_shape, self.classes)
            self._become(chosen)

    def _become(self, chosen: Preconditioner) -> None:
        self.chosen = chosen
        self.needs_labels, self.has_log_det = chosen.needs_labels, chosen.has_log_det
        self.round_trip_tolerance, self.classes = chosen.round_trip_tolerance, chosen.classes

    def _fit(self, data: FitData) -> int:
        data = self._with_validation(data)
        assert data.x_validation is not None
        _require_rows(len(data.x_validation), self.features)
        fits = [self._try(position, data) for position in range(len(self.candidates))]
        table = [row for _, row in fits]
        chosen, reason = choose(table, self.margin)
        self.notes.append(f"candidate {chosen} was chosen: {reason}")
        self.notes.extend(_sentence(position, row) for position, row in enumerate(table))
        self.notes.extend(f"{_name(table[chosen])}: {note}" for note in fits[chosen][0].notes)
        rows = {"rows": len(data.x), "validation_rows": len(data.x_validation)}
        found = {"chosen": chosen, "reason": reason, **rows, "candidates": table}
        self.record = json.loads(json.dumps(found, allow_nan=False))  # as a file would give it back
        self._become(fits[chosen][0])
        return sum(int(row["flops_per_fit"]) for row in table)

    def _try(self, position: int, data: FitData) -> tuple[Preconditioner, dict[str, Any]]:
        """One candidate, fitted if possible, and its row of the table."""
        spec = self.candidates[position]
        candidate = component("candidates", position, spec)
        assert data.x_validation is not None
        validation = (
            data.x_validation.reshape(-1, *self.event_shape).to(self._dtype),
            self._labels(data.classes_validation),
        )
        judgement, out = None, None
        try:
            candidate.fit(
                data.x.reshape(-1, *self.event_shape).to(self._dtype),
                self._labels(data.classes),
                validation=validation,
                seed=data.seed,
                scratch=None if data.scratch is None else data.scratch / f"candidate-{position}",
            )
            judgement = judge(candidate, *validation, accuracy=self.accuracy, seed=data.seed)
            error, most = judgement.round_trip_error, candidate.round_trip_tolerance
            if error is None or error > most:
                shown = "not finite" if error is None else f"{error:.2g} smallest standard deviations"
                out = (
                    f"the round-trip error on validation data is {shown}, but at most {most:.2g} is accepted"
                )
        except PrecfmError as error:
            out = str(error)
        fields = dict.fromkeys(Judgement.__dataclass_fields__) if judgement is None else asdict(judgement)
        counts = {
            "num_parameters": candidate.num_parameters if candidate.fitted else None,
            "flops_per_fit": candidate.flops_per_fit,
        }
        return candidate, {"candidate": spec, **counts, **fields, "out": out}

    def _labels(self, classes: Tensor | None) -> Tensor | None:
        """Labels of class positions: candidates know only labels."""
        return None if classes is None else torch.tensor(self.classes, device=classes.device)[classes]

    def _with_validation(self, data: FitData) -> FitData:
        """The data with validation rows: the given ones, or a share of each class, so that none is lost to the fit."""
        if data.x_validation is not None:
            return data
        classes = torch.zeros(len(data.x), dtype=torch.int64) if data.classes is None else data.classes.cpu()
        order = torch.randperm(len(data.x), generator=generator_for(data.seed, "validation rows"))
        members = [order[classes[order] == position] for position in torch.unique(classes).tolist()]
        counts = [int(self.validation_share * len(rows)) for rows in members]
        held_out = torch.zeros(len(data.x), dtype=torch.bool)
        for rows, count in zip(members, counts, strict=True):
            held_out[rows[:count]] = True
        held_out = held_out.to(data.x.device)
        return replace(
            data,
            x=data.x[~held_out],
            classes=None if data.classes is None else data.classes[~held_out],
            x_validation=data.x[held_out],
            classes_validation=None if data.classes is None else data.classes[held_out],
        )

    def _forward(self, x: Tensor, classes: Tensor | None) -> Tensor:
        return self.chosen._forward(x, classes)

    def _inverse(self, z: Tensor, classes: Tensor | None) -> Tensor:
        return self.chosen._inverse(z, classes)

    def _log_abs_det(self, x: Tensor, classes: Tensor | None) -> Tensor:
        return self.chosen._log_abs_det(x, classes)


def choose(table: list[dict[str, Any]], margin: float) -> tuple[int, str]:
    """The candidate with the fewest predicted steps; within `margin` of it, the one with the fewest parameters.

    Args:
        table: one row per candidate, as in the record of `Auto`.
        margin: relative difference below which parameters decide.

    Returns:
        Its position, and the reason.

    Raises:
        PrecfmError: every candidate is out; the sentence says why for each.
    """
    left = [position for position, row in enumerate(table) if row["out"] is None]
    if not left:
        reasons = "; ".join(f"{_name(row)} ({row['out']})" for row in table)
        raise PrecfmError(f"candidates: none can be used, but one is needed: {reasons}")
    steps = {position: float(table[position]["predicted_steps"]) for position in left}
    fastest = min(left, key=steps.__getitem__)
    near = [position for position in left if steps[position] <= (1 + margin) * steps[fastest]]
    chosen = min(near, key=lambda position: (table[position]["num_parameters"], steps[position]))
    if chosen == fastest:
        return chosen, f"{_name(table[chosen])} has the fewest predicted steps"
    fewer, more = (table[position]["num_parameters"] for position in (chosen, fastest))
    return chosen, (
        f"{_name(table[chosen])} needs {steps[chosen]:.3g} predicted steps, within {margin:.0%} of the "
        f"{steps[fastest]:.3g} of {_name(table[fastest])}, with {fewer} parameters instead of {more}"
    )


def _require_rows(rows: int, features: int) -> None:
    if rows < ROWS_PER_FEATURE * features:
        raise PrecfmError(
            f"auto: there are {rows} validation rows of {features} features, but at least "
            f"{ROWS_PER_FEATURE * features} are needed to judge a spectrum; give more validation data"
        )


def _condition_number(eigenvalues: Tensor) -> float:
    ascending = eigenvalues.sort().values
    require_positive(ascending)
    return float(ascending[-1] / ascending[0])


def _mean_over_path(eigenvalues: Tensor) -> float:
    """Mean over t of `kappa(Sigma_t)` on the linear path, for data with these eigenvalues."""
    return float(path_condition_numbers(torch.diag(eigenvalues), LinearPath(), TIMES.to(eigenvalues)).mean())


def _negative_log_likelihood(
    preconditioner: Preconditioner, x: Tensor, z: Tensor, labels: Tensor | None
) -> float | None:
    if not preconditioner.has_log_det:
        return None
    gaussian = 0.5 * (z.square() + math.log(2 * math.pi)).sum(dim=1)
    return float((gaussian - preconditioner.log_abs_det_jacobian(x, labels)).mean())


def _round_trip(preconditioner: Preconditioner, x: Tensor, labels: Tensor | None, seed: int) -> float | None:
    """The larger error of data and tails, in the dtype of `x`; None where it is not finite."""
    every = -(-len(x) // ROUND_TRIP_POINTS)
    points, classes = x[::every], None if labels is None else labels[::every]
    errors = (
        round_trip_error(preconditioner, points, classes),
        tail_round_trip_error(preconditioner, points, classes, seed=seed),
    )
    return max(errors) if all(math.isfinite(error) for error in errors) else None


def _name(row: dict[str, Any]) -> str:
    """A candidate in words: its name, and its options where it has some."""
    spec = row["candidate"]
    options = ", ".join(f"{key} {value}" for key, value in spec.items() if key != "name")
    return f"{spec['name']} with {options}" if options else str(spec["name"])


def _sentence(position: int, row: dict[str, Any]) -> str:
    """A row of the table in words."""
    if row["out"] is not None:
        return f"candidate {position} ({_name(row)}) is out: {row['out']}"
    said = [f"{row['predicted_steps']:.4g} predicted steps", f"kappa {row['condition_number']:.3g}"]
    if row["worst_class"] is not None:
        said.append(f"{row['worst_class_condition_number']:.3g} in the worst class ({row['worst_class']})")
    if row["negative_log_likelihood"] is not None:
        said.append(f"validation NLL {row['negative_log_likelihood']:.4g} nats")
    said.append(f"round-trip error {row['round_trip_error']:.1e}")
    return f"candidate {position} ({_name(row)}): {', '.join(said)}; {row['num_parameters']} parameters"
