"""What the controlled experiments say about the claims: which statistic is of which claim, and from which table.

`descent_statistics`, `mixture_statistics` and `network_statistics` compute them; `config/claims.yaml` names those that
decide.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from functools import partial

import pandas as pd

from precfm.core.statistics import Estimate
from precfm.theory import descent_statistics, mixture_statistics, network_statistics

COLUMNS = ("claim", "statistic", "value", "low", "high", "n", "room", "note", "frame")

Row = tuple[str, Estimate, str] | tuple[str, Estimate, str, float]

_SCORE = ("score_", "score_preconditioned_")
STATISTICS: Mapping[str, Mapping[str, Callable[[pd.DataFrame], Iterator[Row]]]] = {
    "C1": {"linear_grid.identity": descent_statistics.identity},
    "C2": {
        "linear_grid.agreement": descent_statistics.agreement,
        "steps_to_accuracy.steps": descent_statistics.slopes,
        "residual_linear.steps": descent_statistics.residual_bound,
    },
    "C3": {
        "linear_grid.agreement": partial(descent_statistics.agreement, kinds=["preconditioned_"]),
        "steps_to_accuracy.steps": partial(descent_statistics.slopes, kinds=["preconditioned_"]),
    },
    "C4": {
        "linear_grid.agreement": partial(descent_statistics.agreement, kinds=_SCORE),
        "steps_to_accuracy.steps": partial(descent_statistics.slopes, kinds=_SCORE),
    },
    "C5a": {
        "mixture_networks.components": mixture_statistics.slowest_of_networks,
        "mixture_ablations.components": mixture_statistics.slowest_of_ablations,
        "mixture_linear.components": mixture_statistics.slowest_of_experts,
    },
    "C5b": {
        "mixture_ablations.components": mixture_statistics.network_ablations,
        "mixture_linear.components": mixture_statistics.expert_ablations,
    },
    "C6": {"mixture_networks.methods": mixture_statistics.conditioning},
    "C7": {
        "trained_factors.summary": network_statistics.whitening_by_factor,
        "trained_budgets.summary": network_statistics.whitening_by_budget,
    },
    "C9": {"trained_budgets.summary": network_statistics.fixed_horizons},
    "C10": {"mixture_networks.components": mixture_statistics.matched_differences},
    "C11": {"residual_networks.grid": network_statistics.explained_shares},
}
"""By claim, the tables as `<experiment>.<table>`, and what each statistic is computed from: that table and no other.

A function yields the name of a statistic, its estimate, a note, and perhaps the room: by how much what is improved upon
stands above the floor, at most what could be gained."""

TABLE_ONLY = (
    "*_interval_coverage",  # the share of 95% intervals that hold the closed form: asked of the code, not the claim
    "score_*descent_relative_error",  # C2 and C3 decide by their own
    "residual_bound_ratio",  # a bound, kept by proof
    "linear_*",  # linear experts beside the networks that decide C5a and C5b
    "controlled_log_kappa*",  # C6 is of real data: on a mixture, a preconditioner meets it by construction
    "controlled_log_error_low_difference",  # all factors, levels and budgets; the last budget's decides
    "controlled_final_log_error_low",  # what each method leaves: a number beside C9, no comparison
    "controlled_late_change",
    "controlled_matched_difference_*_to_none",  # C10 is of compute-matched baselines
    "controlled_matched_difference_*_to_alone",  # what the flow adds to its map is asked by C7
    "controlled_matched_difference_labels_whitening_to_skip",  # nor is C10 of plain whitening
    "controlled_matched_difference_unlabelled_whitening_to_skip",
    "horizon_crossing_*",  # where, if anywhere, whitening stops to gain: a number beside C9
    "controlled_share_*",  # explained shares have no range that C11 asks for
)
"""Patterns of the statistics that stand in the theory table alone: `config/claims.yaml` names all others."""


def theory_statistics(frames: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """All statistics that the given tables support.

    Args:
        frames: tables by `<experiment>.<table>`, the seeds of an experiment one below the other; what is missing is
            left out.

    Returns:
        One row per statistic, with `COLUMNS`; `frame` is the table that it was computed from, and `room` is NaN where a
        statistic has no floor.
    """
    rows = [
        (
            claim,
            statistic,
            estimate.value,
            estimate.low,
            estimate.high,
            estimate.n,
            *(room or [math.nan]),
            note,
            frame,
        )
        for claim, sources in STATISTICS.items()
        for frame, compute in sources.items()
        if frame in frames
        for statistic, estimate, note, *room in compute(frames[frame])
    ]
    return pd.DataFrame(rows, columns=list(COLUMNS))
