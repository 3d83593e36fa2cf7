"""How far the numbers of two honest runs may be apart by rounding: a tolerance for each statistic, with its reason.

Two machines round differently (vector instructions, threads, libraries). With the same pinned models and the same code,
that moves the metrics of a trained flow by about 4e-7 of their size; `RELATIVE` leaves a factor of 25. What rounding
moves by more, since it is small beside what it is a difference of, or is a count that can jump, is declared here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

RELATIVE = 1e-5


@dataclass(frozen=True)
class Tolerance:
    """How far two values of a statistic may be apart by rounding.

    Attributes:
        names: of columns, tables or statistics (metrics, quantities and claims' statistics among them); patterns, as
            of file names.
        reason: why they have a tolerance of their own.
        relative: of the larger of the two.
        absolute: whatever their size, where rounding does not shrink with the number.
        jump: a step that a single sample may cause, however small the rounding. Interval and p-value may then move as
            far as that step explains; where the value has not jumped, they are held to rounding.
        multiplicative: averaged on the log scale, so that the bounds of its interval move relatively.
    """

    names: tuple[str, ...]
    reason: str
    relative: float = RELATIVE
    absolute: float = 0.0
    jump: float = 0.0
    multiplicative: bool = False

    def rounding(self, a: float, b: float, size: float = 0.0) -> float:
        """How far apart rounding may bring two values, that are differences of numbers of this size."""
        return max(self.relative * max(abs(a), abs(b)), RELATIVE * size, self.absolute)


DEFAULT = Tolerance(("*",), "rounding of float32 arithmetic, as a training carries it on")

_LOGARITHM = (
    "a logarithm, or a mean, difference or slope of some: it moves by the relative error of what is inside"
)

COLUMNS = (
    Tolerance(
        ("n", "first", "last", "checkpoints", "smallest_effect", "margin"),
        "a count or a setting: nothing is rounded",
        relative=0.0,
    ),
    Tolerance(
        ("reached",),
        "seeds that reach a threshold: one more or less changes what the row says, so it is worth a look",
        relative=0.0,
    ),
    Tolerance(
        ("flops", "ratio"),
        "where a curve crosses a threshold: the rounding of the curve over its slope",
        relative=1e-3,
    ),
)
"""Columns whose numbers are their own, whatever the row is about."""

TABLES = (Tolerance(("plateaus",), _LOGARITHM + "; a slope over less than a decade", absolute=3 * RELATIVE),)
"""Tables whose values are something else than the metric that the row names."""

STATISTICS = (
    Tolerance(
        ("precision", "recall"),
        "a sample may fall on the other side of the ball around a neighbour: one of so many as the row says, or of "
        "a thousand",
        jump=1e-3,
    ),
    Tolerance(
        ("nearer_train",),
        "a sample may be nearer to another row: one of so many as the row says, or of a thousand",
        jump=1e-3,
    ),
    Tolerance(("nll",), "a sum over all dimensions of terms that nearly cancel", absolute=1e-3),
    Tolerance(
        ("clamped_share",),
        "a pixel may fall on the other side of the clamp: ten of a million",
        jump=1e-5,
    ),
    Tolerance(("kid", "KID"), "a difference of sums of order one that nearly cancel", absolute=2e-7),
    Tolerance(("mmd_rbf",), "a difference of sums of order one that nearly cancel", absolute=1e-8),
    Tolerance(
        ("eigenvalue_ratio_low", "band_ratio_high", "low_ratio"), "a ratio of variances", multiplicative=True
    ),
    Tolerance(
        (
            *(
                "eigenvalue_log_error",
                "eigenvalue_log_error_low",
                "band_log_error",
                "band_log_error_high",
                "log_error",
                "low_log_error",
                "worst_log_error",
            ),
            *("ln ratio of *", "slope of ln*", "mean |ln variance ratio|*"),
            *("*_slope", "controlled_*", "*scale_control_*"),
        ),
        _LOGARITHM,
        absolute=RELATIVE,
    ),
    Tolerance(
        ("condition_number", "residual_condition_number", "class_low", "class_high"),
        "the smallest eigenvalue moves by the square root of kappa times the relative error of the data",
        relative=1e-4,
        multiplicative=True,
    ),
    Tolerance(
        ("path_log_condition_number", "mean ln kappa(Sigma_t)*"),
        "the logarithm of a condition number, which amplifies the relative error of the data",
        absolute=1e-4,
    ),
    Tolerance(
        ("round_trip_error", "tail_round_trip_error"),
        "is the largest rounding error of a map: its order of magnitude is all it says",
        relative=0.8,
        absolute=1e-12,
    ),
    Tolerance(
        ("identity_relative_error",),
        "is a rounding error itself; the claim asks for less than 1e-8",
        absolute=1e-9,
    ),
    Tolerance(
        ("*descent_relative_error",),
        "is a rounding error itself; the claim asks for less than 1e-6",
        absolute=1e-7,
    ),
    Tolerance(
        ("*parameters", "*flops", "flops_*", "*_rows", "dimension"),
        "a count: nothing is rounded",
        relative=0.0,
    ),
)
"""By what a row is about: its metric, quantity, predictor or statistic."""


def tolerance_of(column: str, row: Mapping[str, Any], table: str = "") -> Tolerance:
    """The tolerance of one number: that of its column, else of its table, else of what its row is about.

    Args:
        column: its name.
        row: its row, by column.
        table: the name of the table, as `paired`.
    """
    about = next((str(row[key]) for key in ("metric", "quantity", "statistic") if row.get(key)), "")
    # `frechet, latent` is the Frechet distance in a space, and so is `KID (classifier-0)`.
    names = (about, about.partition(" (")[0], about.partition(", ")[0])
    found = _first(COLUMNS, (column,)) or _first(TABLES, (table,)) or _first(STATISTICS, names) or DEFAULT
    counts = [row.get(name) for name in ("n_real", "n_generated")]
    samples = min((count for count in counts if isinstance(count, float) and count >= 1), default=0.0)
    return replace(found, jump=(1 + RELATIVE) / samples) if found.jump and samples else found


def _first(declared: Sequence[Tolerance], names: Sequence[str]) -> Tolerance | None:
    return next(
        (
            tolerance
            for tolerance in declared
            if any(fnmatchcase(name, pattern) for name in names for pattern in tolerance.names)
        ),
        None,
    )
