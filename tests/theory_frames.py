"""The tables of the controlled experiments at toy size, as `<experiment>.<table>`."""

from functools import cache
from typing import Any

import pandas as pd
import torch

from precfm.core.registry import load

_NETWORK = {"dim": 4, "width": 8, "steps": 8, "data_size": 400, "samples": 200}
_MIXTURE = {"worst_weights": (0.5, 0.8), "worst_condition_numbers": (1.0, 30.0)}
TOY: dict[str, dict[str, Any]] = {
    "linear_grid": {
        "dim": 4,
        "condition_numbers": (1.0, 100.0),
        "times": (0.5, 0.99),
        "steps": 64,
        "seeds": 3,
        "preconditioned_steps": 8,
    },
    "steps_to_accuracy": {
        "dim": 3,
        "condition_numbers": (1.0, 20.0, 400.0),
        "times": (0.5, 0.99),
        "seeds": 3,
    },
    "residual_linear": {
        "dim": 4,
        "condition_numbers": (100.0,),
        "times": (0.99,),
        "samples_per_dim": (2.0, 64.0),
        "seeds": 2,
    },
    "mixture_linear": {
        **_MIXTURE,
        "dim": 3,
        "condition_numbers": (1.0, 30.0),
        "separations": (4.0,),
        "control_condition_number": 30.0,
        "samples": 256,
        "steps": 64,
        "seeds": 2,
    },
    "trained_factors": {**_NETWORK, "condition_numbers": (10.0,), "dims": (3,)},
    "trained_budgets": {
        "dim": 4,
        "width": 8,
        "data_size": 400,
        "samples": 200,
        "checkpoints": (4, 8),
        "horizons": (4, 8),
    },
    "mixture_networks": {**_NETWORK, "condition_numbers": (1.0, 50.0), "flow_steps": 2},
    "mixture_ablations": {
        **_NETWORK,
        **_MIXTURE,
        "condition_numbers": (1.0, 50.0),
        "control_condition_number": 50.0,
    },
    "residual_networks": {
        "dim": 4,
        "residual_kappas": (1.0, 10.0),
        "widths": (8, 12),
        "weight_decays": (0.0,),
        "steps": 8,
        "data_size": 200,
        "samples": 100,
    },
}


def run(name: str, seed: int, **changes: Any) -> dict[str, pd.DataFrame]:
    """The tables of one experiment."""
    return load("theory", name)(**{**TOY[name], **changes}, seed=seed)


@cache
def frames() -> dict[str, pd.DataFrame]:
    """All tables; of two seeds where an experiment does not repeat over seeds by itself."""
    torch.set_num_threads(1)
    tables: dict[str, list[pd.DataFrame]] = {}
    for name, options in TOY.items():
        for seed in (0,) if "seeds" in options else (0, 1):
            for table, frame in run(name, seed).items():
                tables.setdefault(f"{name}.{table}", []).append(frame)
    return {name: pd.concat(parts, ignore_index=True) for name, parts in tables.items()}
