"""Experiment: a few to long budgets of training on one Gaussian: a plateau, or only a delay (C7, C9)."""

import pandas as pd

from precfm.core.options import Count, checked
from precfm.theory.experiments.trained_factors import Case, Method, run_case, tables
from precfm.theory.option_types import ConditionNumber, Several
from precfm.theory.trained_networks import NetworkSetup
from precfm.training.options import TrainingOptions


@checked
def run(
    *,
    dim: Count = 32,
    condition_number: ConditionNumber = 1e3,
    methods: Several[Method] = ("none", "whitening"),
    checkpoints: Several[Count] = (500, 1000, 2000, 5000, 10_000, 20_000),
    width: Count = 128,
    data_size: Count = 20_000,
    samples: Count = 5000,
    seed: int = 0,
) -> dict[str, pd.DataFrame]:
    """Train once to the longest budget; the rate is constant, so a checkpoint is what a shorter run gives.

    Args:
        checkpoints: steps at which to sample, ascending.

    Returns:
        `recovery` and `summary` as of `trained_factors`, with factor `budget`.
    """
    training = TrainingOptions(steps=checkpoints[-1], ema_decay=None, checkpoints=tuple(checkpoints))
    case = Case("budget", "base", dim, condition_number, NetworkSetup(width, training))
    return tables([run_case(case, method, data_size, samples, seed) for method in methods])
