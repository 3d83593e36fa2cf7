"""Experiment: short to very long trainings on one Gaussian: a plateau, or only a delay (C7, C9)."""

import itertools

import pandas as pd

from precfm.core.errors import PrecfmError
from precfm.core.options import Count, checked
from precfm.theory.experiments.trained_factors import Case, Method, run_case, tables
from precfm.theory.option_types import ConditionNumber, Levels, Several
from precfm.theory.trained_networks import NetworkSetup
from precfm.training.options import TrainingOptions

EMA_DECAY = 0.999


@checked
def run(
    *,
    dim: Count = 32,
    condition_number: ConditionNumber = 1e3,
    methods: Several[Method] = ("none", "whitening"),
    checkpoints: Levels[Count] = (500, 1000, 2000, 4000, 8000, 16_000, 32_000, 64_000, 128_000),
    horizons: Levels[Count] = (2000, 16_000, 128_000),
    width: Count = 128,
    data_size: Count = 20_000,
    samples: Count = 5000,
    seed: int = 0,
) -> dict[str, pd.DataFrame]:
    """Train to several lengths by two recipes, in which length means different things.

    `constant_ema`: a constant rate and an average of the weights, one training, seen at its checkpoints. `cosine`: the
    rate falls towards zero over the horizon, without an average; every horizon is a training of its own, since no
    checkpoint of a longer one is what a shorter one gives. The peak rate is Adam's 1e-3 in both. Data are a fixed set
    of samples that all share, no fresh ones, so that long trainings pass over them many times.

    Args:
        checkpoints: steps at which the training at constant rate is sampled, ascending; none leaves it out.
        horizons: lengths of the trainings with a cosine schedule, each sampled at its end; none leaves them out.

    Returns:
        `recovery` and `summary` as of `trained_factors`, with factor `budget` and the recipe as level.

    Raises:
        PrecfmError: there is nothing to train.
    """
    if not checkpoints and not horizons:
        raise PrecfmError("checkpoints, horizons: both are empty, so there is nothing to train")
    trainings = [("constant_ema", _constant(checkpoints))] if checkpoints else []
    trainings += [("cosine", _cosine(horizon)) for horizon in horizons]
    first = [
        position for position, (level, _) in enumerate(trainings) if level not in dict(trainings[:position])
    ]
    found = []
    for method, (position, (level, training)) in itertools.product(methods, enumerate(trainings)):
        case = Case("budget", level, dim, condition_number, NetworkSetup(width, training))
        references = position in first  # once for each recipe
        found.append(run_case(case, method, data_size, samples, seed, references=references))
    return tables(found)


def _constant(checkpoints: tuple[int, ...]) -> TrainingOptions:
    return TrainingOptions(steps=checkpoints[-1], ema_decay=EMA_DECAY, checkpoints=checkpoints)


def _cosine(horizon: int) -> TrainingOptions:
    return TrainingOptions(steps=horizon, schedule="cosine", ema_decay=None, checkpoints=(horizon,))
