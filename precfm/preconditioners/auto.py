"""Auto: fits several preconditioners, scores each on validation data without training a flow, keeps the best."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from precfm.core.errors import PrecfmError
from precfm.core.options import Fraction, NotNegative, checked
from precfm.core.seeds import generator_for
from precfm.preconditioners.base import Preconditioner
from precfm.preconditioners.fit_data import FitData, FitRows, LabelledRows
from precfm.preconditioners.inputs import Data, concatenated
from precfm.preconditioners.nested import NestedMaps, nested_map
from precfm.preconditioners.scoring import Score, require_rows, score


class Auto(Preconditioner):
    """Chooses a preconditioner by what validation data says of each candidate, and becomes it.

    Every candidate is fitted on the training rows and scored on the validation rows by
    `precfm.preconditioners.scoring.score`: the given ones, or a share held out from each class. Learned candidates
    use the same rows to stop early. A candidate whose fit is refused, that needs labels where none are given, or
    whose round trip exceeds its tolerance, is out. Of the others the one with the fewest predicted steps is kept;
    among those within `margin` of it, the one with the fewest parameters. The notes and `record` say what was found
    and why. With given validation data the map equals that of the chosen candidate fitted alone with the same seed.

    `record` holds `chosen` (position of the candidate), `reason`, `rows`, `validation_rows`, and `candidates`: for
    each its `candidate`, `num_parameters`, `flops_per_fit`, the fields of `Score`, and `out`, the reason why it
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
        candidates: NestedMaps = (
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
            nested_map("candidates", position, candidate)  # refused now, not after the first fits
        self.candidates = tuple(dict(candidate) for candidate in candidates)
        self.accuracy, self.margin, self.validation_share = accuracy, margin, validation_share
        self._dtype = torch.float64

    def fit(
        self,
        x: Data,
        labels: Tensor | None = None,
        *,
        validation: LabelledRows | None = None,
        metric: Tensor | None = None,
        seed: int = 0,
        scratch: str | Path | None = None,
    ) -> Self:
        """As `Preconditioner.fit`; labels may be missing, which leaves out the candidates that need them.

        Raises:
            PrecfmError: as `Preconditioner.fit`, there are too few validation rows, or no candidate is left.
        """
        self.fitted = False
        x, labels = concatenated(x, labels)
        self._dtype = x.dtype
        # To score every class; afterwards it says whether the chosen map needs them.
        self.needs_labels = labels is not None
        return super().fit(x, labels, validation=validation, metric=metric, seed=seed, scratch=scratch)

    @property
    def num_parameters(self) -> int:
        """Those of the chosen map."""
        return self.chosen.num_parameters

    def _allocate(self) -> None:
        if self.record:  # from a file; in a fit nothing is chosen yet
            position = self.record["chosen"]
            chosen = nested_map("candidates", position, self.candidates[position]).to(self.anchor)
            chosen.allocate(self.event_shape, self.classes)
            self._become(chosen)

    def _become(self, chosen: Preconditioner) -> None:
        self.chosen = chosen
        self.needs_labels, self.has_log_det = chosen.needs_labels, chosen.has_log_det
        self.round_trip_tolerance, self.classes = chosen.round_trip_tolerance, chosen.classes

    def _fit(self, data: FitData) -> int:
        rows = self._with_validation(data.rows())
        assert rows.x_validation is not None
        require_rows(len(rows.x_validation), self.features)
        training, validation = rows.as_given(self.event_shape, self.classes)
        assert validation is not None
        fits = [self._try(position, training, validation, data) for position in range(len(self.candidates))]
        table = [row for _, row in fits]
        chosen, reason = choose(table, self.margin)
        self.notes.append(f"candidate {chosen} was chosen: {reason}")
        self.notes.extend(_sentence(position, row) for position, row in enumerate(table))
        self.notes.extend(f"{_name(table[chosen])}: {note}" for note in fits[chosen][0].notes)
        counts = {"rows": len(rows.x), "validation_rows": len(rows.x_validation)}
        found = {"chosen": chosen, "reason": reason, **counts, "candidates": table}
        self.record = json.loads(json.dumps(found, allow_nan=False))  # as a file would give it back
        self._become(fits[chosen][0])
        return sum(int(row["flops_per_fit"]) for row in table)

    def _try(
        self, position: int, training: LabelledRows, validation: LabelledRows, data: FitData
    ) -> tuple[Preconditioner, dict[str, Any]]:
        """One candidate, fitted if possible, and its row of the table."""
        spec = self.candidates[position]
        candidate = nested_map("candidates", position, spec)
        (x, labels), (x_validation, labels_validation) = training, validation
        held_out = x_validation.to(self._dtype), labels_validation
        found, out = None, None
        try:
            candidate.fit(
                x.to(self._dtype),
                labels,
                validation=held_out,
                metric=data.metric,
                seed=data.seed,
                scratch=None if data.scratch is None else data.scratch / f"candidate-{position}",
            )
            found = score(candidate, *held_out, accuracy=self.accuracy, seed=data.seed)
            error, most = found.round_trip_error, candidate.round_trip_tolerance
            if error is None or error > most:
                shown = "not finite" if error is None else f"{error:.2g} smallest standard deviations"
                out = f"the round-trip error on validation data is {shown}; at most {most:.2g} is accepted"
        except PrecfmError as error:
            out = str(error)
        fields = dict.fromkeys(Score.__dataclass_fields__) if found is None else asdict(found)
        counts = {
            "num_parameters": candidate.num_parameters if candidate.fitted else None,
            "flops_per_fit": candidate.flops_per_fit,
        }
        return candidate, {"candidate": spec, **counts, **fields, "out": out}

    def _with_validation(self, rows: FitRows) -> FitRows:
        """The rows with a validation part: the given one, or a share of each class, so that none is lost to the fit."""
        if rows.x_validation is not None:
            return rows
        classes = torch.zeros(len(rows.x), dtype=torch.int64) if rows.classes is None else rows.classes.cpu()
        order = torch.randperm(len(rows.x), generator=generator_for(rows.seed, "validation rows"))
        held_out = torch.zeros(len(rows.x), dtype=torch.bool)
        for position in torch.unique(classes).tolist():
            members = order[classes[order] == position]
            held_out[members[: int(self.validation_share * len(members))]] = True
        held_out = held_out.to(rows.x.device)
        return rows.split(~held_out, held_out)

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
