"""All seeds in one batched computation: the results of training them one by one, up to rounding."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from precfm.core.errors import DivergenceError, PrecfmError
from precfm.core.seeds import seeded_module
from precfm.flows.models.gaussian_skip import GaussianSkip
from precfm.flows.models.mlp import MLPVelocity
from precfm.flows.objectives import FlowMatching
from precfm.flows.paths import LinearPath
from precfm.training.batched import train_many
from precfm.training.options import TrainingOptions
from precfm.training.state import TrainingResult
from precfm.training.trainer import train
from tests.test_training import Killed, clusters

SEEDS = (0, 4, 9)
OPTIONS = {
    "steps": 50,
    "batch_size": 16,
    "learning_rate": 3e-3,
    "schedule": "cosine",
    "warmup_steps": 3,
    "weight_decay": 0.01,
    "ema_decay": 0.9,
    "clip_norm": 0.5,
    "checkpoints": (20, 50),
    "save_every": 20,
}


def networks(skip: bool) -> list[nn.Module]:
    def network() -> nn.Module:
        inside = MLPVelocity(4, 3, width=16, depth=2)
        if not skip:
            return inside
        around = GaussianSkip(inside, LinearPath())
        around.fit(*clusters())
        return around

    return [seeded_module(network, seed) for seed in SEEDS]


def data_of_seeds(apart: bool) -> Any:
    x1, labels = clusters()
    return [((1 + seed) * x1, labels) for seed in SEEDS] if apart else (x1, labels)


class Handed(dict[tuple[int, int], dict[str, Tensor]]):
    def keep(self, position: int, step: int, module: nn.Module) -> None:
        self[position, step] = {name: value.clone() for name, value in module.state_dict().items()}


def many(
    skip: bool, apart: bool, scratch: Path | None = None, dies_after: int = -1, **options: Any
) -> tuple[list[TrainingResult], list[nn.Module], Handed]:
    modules, handed = networks(skip), Handed()
    objective = FlowMatching().prepare(LinearPath(), clusters()[0])
    asked = [0]

    class Dying:
        draw = staticmethod(objective.draw)

        def loss(self, *given: Any) -> Tensor:
            asked[0] += 1
            if asked[0] == dies_after:
                raise Killed
            return objective.loss(*given)

    results = train_many(
        modules, Dying(), data_of_seeds(apart), TrainingOptions(**{**OPTIONS, **options}),
        seeds=SEEDS, scratch=scratch, on_checkpoint=handed.keep,
    )  # fmt: skip
    return results, modules, handed


@pytest.mark.parametrize(
    ("skip", "apart", "options"),
    [
        (False, False, {}),
        (True, False, {"optimizer": "sgd", "accumulate": 2}),
        (False, True, {"ema_decay": None, "checkpoints": (20, 40)}),
    ],
)
def test_seeds_side_by_side_train_as_one_by_one(skip: bool, apart: bool, options: dict[str, Any]) -> None:
    results, modules, handed = many(skip, apart, **options)
    objective = FlowMatching().prepare(LinearPath(), clusters()[0])
    for position, (seed, alone) in enumerate(zip(SEEDS, networks(skip), strict=True)):
        own = Handed()
        data = data_of_seeds(apart)[position] if apart else data_of_seeds(apart)
        how = TrainingOptions(**{**OPTIONS, **options})
        result = train(
            alone, objective, data, how, seed=seed,
            on_checkpoint=lambda step, module, at=position, own=own: own.keep(at, step, module),
        )  # fmt: skip
        columns = [torch.tensor(each.history.to_numpy()) for each in (results[position], result)]
        torch.testing.assert_close(*columns, rtol=1e-5, atol=1e-7)
        for place, theirs in own.items():
            for name, value in theirs.items():
                torch.testing.assert_close(handed[place][name], value, rtol=1e-5, atol=1e-6)
        for name, value in alone.state_dict().items():
            torch.testing.assert_close(modules[position].state_dict()[name], value, rtol=1e-5, atol=1e-6)
        assert not modules[position].training


def test_killed_and_resumed_equals_never_killed(tmp_path: Path) -> None:
    whole = many(False, False)
    with pytest.raises(Killed):
        many(False, False, tmp_path, dies_after=33)
    again = many(False, False, tmp_path)
    for one, other in zip(whole[0], again[0], strict=True):
        assert one.history.equals(other.history)
    assert whole[2].keys() == again[2].keys()
    for place, weights in whole[2].items():
        assert all(torch.equal(weights[name], again[2][place][name]) for name in weights)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"seeds": (0, 1)}, "seeds"),
        ({"modules": [nn.Linear(4, 4), nn.Linear(4, 5), nn.Linear(4, 4)]}, "modules"),
        ({"modules": [nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.1)) for _ in SEEDS]}, "modules"),
        ({"options": TrainingOptions(optimizer="muon")}, "options"),
        ({"objective": FlowMatching(coupling="optimal_transport")}, "objective"),
    ],
)
def test_what_cannot_be_batched_is_refused(change: dict[str, Any], field: str) -> None:
    usual = {"modules": networks(False), "objective": FlowMatching(), "data": clusters(), "seeds": SEEDS}
    with pytest.raises(PrecfmError, match=f"^trainings: {field}"):
        train_many(**{"options": TrainingOptions(), **usual, **change})


def test_one_seed_that_diverges_stops_all() -> None:
    with pytest.raises(DivergenceError, match="step"):
        many(False, False, optimizer="sgd", learning_rate=1e30, clip_norm=None, warmup_steps=0)
