"""All random numbers of a training are the CPU's, and those of step k a function of (seed, k)."""

from collections.abc import Callable
from typing import Any, get_args

import pytest
import torch
from torch import Tensor, nn

from precfm.core.errors import PrecfmError
from precfm.core.seeds import seeded_module
from precfm.flows.models.mlp import MLPVelocity
from precfm.flows.objectives import DenoisingScore, FlowMatching
from precfm.flows.paths import LinearPath, VariancePreservingPath
from precfm.flows.times import TimeName
from precfm.preconditioners.low_capacity_flow import LowCapacityFlow
from precfm.preconditioners.normalizing_flow import NormalizingFlow
from precfm.training.batches import AHEAD, ahead
from precfm.training.draws import NotRandom, Objective, draws_of_step
from precfm.training.negative_elbo import NegativeELBO
from precfm.training.options import TrainingOptions
from precfm.training.trainer import train

CPU = torch.device("cpu")
DATA = torch.randn(50, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([2.0, 1.0, 0.1])
Step = tuple[Tensor, tuple[Tensor, ...]]


def flow_objectives() -> dict[str, Callable[[], Objective]]:
    kinds: list[tuple[type[Any], dict[str, Any]]] = [
        (kind, {"time": time}) for kind in (FlowMatching, DenoisingScore) for time in get_args(TimeName)
    ]
    kinds.append((FlowMatching, {"coupling": "optimal_transport", "metric": "inverse_variance"}))
    return {
        f"{kind.__name__} {options}": lambda kind=kind, options=options: kind(**options).prepare(
            LinearPath(), DATA
        )
        for kind, options in kinds
    }


OBJECTIVES: dict[str, Callable[[], Objective]] = {
    **flow_objectives(),
    "not random": lambda: NotRandom(lambda module, batch: module(batch[0]).square().mean()),
    "encoder": lambda: NegativeELBO(3, beta=1.0),
    "normalizing flow": lambda: NormalizingFlow()._objective(DATA),
    "low-capacity flow": lambda: LowCapacityFlow()._objective(DATA),
}
every_objective = pytest.mark.parametrize("make", OBJECTIVES.values(), ids=OBJECTIVES)


def drawn(objective: Objective, steps: range, seed: int = 0) -> list[Step]:
    return [draws_of_step(objective, len(DATA), 8, seed, step) for step in steps]


def assert_same(first: list[Step], second: list[Step]) -> None:
    for (rows, numbers), (other_rows, others) in zip(first, second, strict=True):
        assert torch.equal(rows, other_rows)
        for number, other in zip(numbers, others, strict=True):
            assert number.dtype == other.dtype
            assert torch.equal(number, other)


@every_objective
def test_draws_of_a_step_do_not_depend_on_those_before_and_a_thread_draws_the_same(
    make: Callable[[], Objective],
) -> None:
    objective, steps = make(), range(3, 14)
    whole = drawn(objective, steps)
    assert_same([drawn(make(), range(step, step + 1))[0] for step in steps], whole)
    assert_same(list(ahead(lambda step: drawn(objective, range(step, step + 1))[0], steps)), whole)


@every_objective
def test_draws_are_the_cpus_and_leave_global_state_alone(make: Callable[[], Objective]) -> None:
    before, objective = torch.get_rng_state(), make()
    numbers = objective.draw(8, torch.Generator().manual_seed(1))
    assert torch.equal(torch.get_rng_state(), before)
    for number, again in zip(numbers, objective.draw(8, torch.Generator().manual_seed(1)), strict=True):
        assert number.device == CPU
        assert len(number) == 8
        assert torch.equal(number, again)
        assert not number.requires_grad


def test_steps_and_seeds_differ_and_rows_do_not_depend_on_what_else_is_drawn() -> None:
    times = OBJECTIVES["FlowMatching {'time': 'uniform'}"]()
    first, other = drawn(times, range(20)), drawn(times, range(20), seed=1)
    everything = torch.stack(
        [torch.cat([t, x0.flatten(), rows.float()]) for rows, (t, x0) in (*first, *other)]
    )
    assert len(everything.unique(dim=0)) == 40
    rows = drawn(OBJECTIVES["not random"](), range(20))
    assert all(torch.equal(plain, beside) for (plain, _), (beside, _) in zip(rows, first, strict=True))


def test_a_thread_is_a_few_steps_ahead_and_hands_over_what_went_wrong() -> None:
    made = []

    def make(step: int) -> int:
        made.append(step)
        if step == 9:
            raise PrecfmError("rows: gone")
        return step

    steps = ahead(make, range(2, 20))
    for step in range(2, 9):
        assert next(steps) == step
        assert len(made) <= step - 1 + AHEAD
    with pytest.raises(PrecfmError, match="rows"):
        next(steps)


@pytest.mark.parametrize("path", [LinearPath(), VariancePreservingPath()])
def test_data_on_an_accelerator_do_not_decide_where_draws_are_made(path: Any) -> None:
    """`prepare` keeps no data, so a device other than the CPU cannot enter: shown with data that have no numbers."""
    objective = FlowMatching().prepare(path, torch.empty(5, 3, device="meta"))
    assert {number.device.type for number in objective.draw(4, torch.Generator())} == {"cpu"}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("options", [{}, {"time": "kappa_directed", "coupling": "optimal_transport"}])
def test_an_accelerator_changes_rounding_alone(options: dict[str, Any]) -> None:
    def losses(device: str) -> Tensor:
        data = DATA.to(device)
        module: nn.Module = seeded_module(lambda: MLPVelocity(3, width=16, depth=2), 0).to(device)
        objective = FlowMatching(**options).prepare(LinearPath(), data)
        result = train(module, objective, (data,), TrainingOptions(steps=100, batch_size=16), seed=0)
        return torch.tensor(result.history.loss)

    torch.testing.assert_close(losses("cuda"), losses("cpu"), rtol=1e-3, atol=1e-5)
