"""Which statistics a controlled experiment will yield, by its options: what a plan has to know before the first job."""

from collections.abc import Iterable
from itertools import product
from typing import Any

from precfm.pipeline.components import Component


def statistics_of(run: Component) -> list[str]:
    """Patterns of the statistics that a controlled experiment yields with these options.

    Of those that claims ask for. `precfm.theory.claim_statistics` names them, but from a job's tables, which no plan
    has; so the names stand here once more, and a test compares both.
    """
    given: Any = run.options
    match run.name:
        case "linear_grid":
            errors = [f"{kind}descent_relative_error" for kind in _kinds(given.targets)]
            return ["identity_relative_error", *errors]
        case "steps_to_accuracy":
            totals = [f"descent_total_steps_slope_{path}" for path in given.paths]
            slopes = ["descent_steps_slope", "stochastic_steps_slope", *totals]
            return [kind + slope for kind in _kinds(given.targets) for slope in slopes]
        case "mixture_networks":
            compared = [
                f"controlled_matched_difference_{regime}_{method}_to_{other}"
                for regime, method in product(given.regimes, given.preconditioners)
                if regime == "labels" or method != "class_whitening"  # which needs them
                for other in ("none", "alone", "skip", *(("P", "F") if method in given.matched else ()))
            ]
            return ["slowest_component_*", *compared]
        case "mixture_ablations" if "none" in given.methods:
            scale = given.control_condition_number is not None
            varied = {
                "weights_varied_*": given.worst_weights,
                "conditioning_varied_*": given.worst_condition_numbers,
                "scale_control_*": scale,
                "slowest_component_*": given.worst_weights or scale,
            }
            return [pattern for pattern, there in varied.items() if there]
        case "trained_budgets" if {"none", "whitening"} <= {*given.methods}:
            recipes = {"constant_ema": given.checkpoints, "cosine": given.horizons}
            return ["controlled_final_*", *(f"horizon_*_{name}" for name, there in recipes.items() if there)]
    return []


def _kinds(targets: Iterable[str]) -> list[str]:
    """How the names of statistics of linear descent begin: by target, without and behind P."""
    starts = ["" if target == "velocity" else f"{target}_" for target in targets]
    return [start + behind for start in starts for behind in ("", "preconditioned_")]
