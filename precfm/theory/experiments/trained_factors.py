"""Experiment: trained networks on Gaussians, one factor at a time, with and without whitening."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import pandas as pd
import torch
from torch import Tensor, nn

from precfm.core.options import Count, Positive, checked
from precfm.core.seeds import derived_seed
from precfm.datasets.synthetic import Gaussian, gaussian
from precfm.geometry.spectra import covariance, normalise_scale, path_condition_numbers
from precfm.preconditioners.identity import Identity
from precfm.preconditioners.whitening import Whitening
from precfm.theory.option_types import ConditionNumber, Levels, Several
from precfm.theory.trained_networks import (
    PATH,
    NetworkSetup,
    alone_samples,
    exact_samples,
    generate,
    late_loss,
    recovery_summary,
    train_network,
    variance_ratios,
)
from precfm.training.options import TrainingOptions

KAPPA_TIMES = (0.5, 0.9, 1.0)
_NAME = ["factor", "level", "method", "seed", "step"]
Factor: TypeAlias = Literal["base", "condition number", "dimension", "axes", "target", "optimizer"]
Method: TypeAlias = Literal["none", "whitening"]


@dataclass(frozen=True)
class Case:
    """One setting: which factor leaves its base value, and all that defines the data and the training."""

    factor: Factor | Literal["budget"]
    level: str
    dim: int
    condition_number: float
    setup: NetworkSetup
    rotated: bool = True


@checked
def run(
    *,
    dim: Count = 32,
    condition_number: ConditionNumber = 1e3,
    condition_numbers: Levels[ConditionNumber] = (10.0, 100.0, 1e4),
    dims: Levels[Count] = (16, 64),
    factors: Several[Factor] = ("base", "condition number", "dimension", "axes", "target", "optimizer"),
    methods: Several[Method] = ("none", "whitening"),
    steps: Count = 5000,
    width: Count = 128,
    sgd_learning_rate: Positive = 0.05,
    data_size: Count = 20_000,
    samples: Count = 5000,
    seed: int = 0,
) -> dict[str, pd.DataFrame]:
    """Vary one factor at a time around (dim, condition_number, rotated, velocity, Adam).

    Data are a fixed set of independent samples; the flow and whatever preconditioner share them.

    Args:
        dim: base dimension.
        condition_number: base condition number.
        condition_numbers: levels of the factor `condition number`.
        dims: levels of the factor `dimension`.
        factors: which factors to vary: also `axes` (aligned instead of rotated), `target` (score instead of
            velocity), `optimizer` (stochastic gradient descent instead of Adam); `base` varies none.
        sgd_learning_rate: learning rate of stochastic gradient descent; Adam's is 1e-3.

    Returns:
        `recovery`: variance ratios (factor, level, method, seed, step, direction, eigenvalue, ratio);
        `summary`: (factor, level, method, seed, step, ratio_low, log_error_low, log_error, loss, epochs: passes
        over the data, kappa_0.5, kappa_0.9, kappa_1.0 of the flow's space); at step 0 method `exact:<method>` is the
        solver's floor and `alone:<method>` what the map makes of noise without a flow.
    """
    training: dict[str, Any] = {"steps": steps, "ema_decay": None, "checkpoints": (steps,)}
    setup = NetworkSetup(width, TrainingOptions(**training))
    sgd = TrainingOptions(**training, optimizer="sgd", learning_rate=sgd_learning_rate)
    base = Case("base", "base", dim, condition_number, setup)
    cases = [
        base,
        *(
            replace(base, factor="condition number", level=f"{kappa:g}", condition_number=kappa)
            for kappa in condition_numbers
        ),
        *(replace(base, factor="dimension", level=str(d), dim=d) for d in dims),
        replace(base, factor="axes", level="aligned", rotated=False),
        replace(base, factor="target", level="score", setup=replace(setup, target="score")),
        replace(base, factor="optimizer", level="sgd", setup=replace(setup, training=sgd)),
    ]
    chosen = [case for case in cases if case.factor in factors]
    return tables([run_case(case, method, data_size, samples, seed) for case in chosen for method in methods])


def tables(evaluations: Sequence[pd.DataFrame]) -> dict[str, pd.DataFrame]:
    """The two tables of a trained experiment from what `run_case` found."""
    rows = pd.concat(evaluations, ignore_index=True)
    by_direction = ["direction", "eigenvalue", "ratio"]
    recovery = rows[[*_NAME, *by_direction]].explode(by_direction, ignore_index=True)
    types = {"direction": int, "eigenvalue": float, "ratio": float}
    return {"recovery": recovery.astype(types), "summary": rows.drop(columns=by_direction)}


def run_case(
    case: Case, method: Method, data_size: int, samples: int, seed: int, *, references: bool = True
) -> pd.DataFrame:
    """Train one network and evaluate it at its checkpoints.

    Args:
        case: the setting.
        method: without or with whitening.
        data_size: number of data points.
        samples: number of generated samples.
        seed: of law, data, training and evaluation.
        references: evaluate the exact field and the map alone, too.

    Returns:
        One row per evaluation: the columns of `summary`, and lists of direction, eigenvalue and ratio.
    """
    law = gaussian(case.dim, case.condition_number, rotated=case.rotated, seed=derived_seed(seed, "law"))
    x = law.sample(data_size, derived_seed(seed, "data"))
    preconditioner = (Identity() if method == "none" else Whitening(shrinkage=0.0)).fit(x)
    z = preconditioner.forward(x)
    kappas = path_condition_numbers(normalise_scale(covariance(z)), PATH, torch.tensor(KAPPA_TIMES))
    more = {f"kappa_{t:g}": float(k) for t, k in zip(KAPPA_TIMES, kappas, strict=True)}
    name = {"factor": case.factor, "level": case.level, "method": method, "seed": seed}
    training, target = case.setup.training, case.setup.target
    evaluation = derived_seed(seed, "evaluation")

    def evaluate(step: int, module: nn.Module) -> None:
        made = generate(module, preconditioner, samples, case.dim, target=target, seed=evaluation)
        ratios[step] = variance_ratios(made, law)

    ratios: dict[int, Tensor] = {}
    _, losses = train_network(
        z,
        None,
        case.setup,
        seed=seed,
        name=f"{case.factor} {case.level}, {method}",
        on_checkpoint=evaluate,
    )
    rows = []
    for step, values in ratios.items():
        facts = {"loss": late_loss(losses, step), "epochs": step * training.batch_size / data_size}
        rows.append(_row(name | {"step": step}, values, law, more | facts))
    others = {}
    if references:
        others["exact"] = exact_samples(law, method != "none", samples, target=target, seed=evaluation)
    if references and method != "none":
        others["alone"] = alone_samples(preconditioner, samples, seed=evaluation)
    for kind, made in others.items():
        of_kind = name | {"method": f"{kind}:{method}", "step": 0}
        rows.append(_row(of_kind, variance_ratios(made, law), law, more | {"loss": math.nan, "epochs": 0.0}))
    return pd.DataFrame(rows)


def _row(name: dict[str, Any], ratios: Tensor, law: Gaussian, more: dict[str, float]) -> dict[str, Any]:
    """One evaluation: `name` says of what."""
    of_directions = {"direction": list(range(law.dim)), "eigenvalue": law.eigenvalues.tolist()}
    return name | recovery_summary(ratios) | more | of_directions | {"ratio": ratios.tolist()}
