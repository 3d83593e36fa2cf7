"""All random numbers of a training are the CPU's, and those of step k a function of (seed, k)."""

from collections.abc import Callable
from typing import Any, get_args

import pytest
import torch
from torch import Tensor, nn

from precfm.core.seeds import seeded_module
from precfm.flows.models.mlp import MLPVelocity
from precfm.flows.objectives import DenoisingScore, FlowMatching
from precfm.flows.paths import LinearPath, VariancePreservingPath
from precfm.flows.times import TimeName
from precfm.preconditioners.low_capacity_flow import LowCapacityFlow
from precfm.preconditioners.normalizing_flow import NormalizingFlow
from precfm.training import draws
from precfm.training.draws import NotRandom, Objective, draws_of_steps
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


def drawn(objective: Objective, steps: range, seed: int = 0, ahead: int | None = None) -> list[Step]:
    return list(draws_of_steps(objective, len(DATA), 8, seed, steps, CPU, ahead=ahead))


def assert_same(first: list[Step], second: list[Step]) -> None:
    for (rows, numbers), (other_rows, others) in zip(first, second, strict=True):
        assert torch.equal(rows, other_rows)
        for number, other in zip(numbers, others, strict=True):
            assert number.dtype == other.dtype
            assert torch.equal(number, other)


@every_objective
@pytest.mark.parametrize("ahead", [2, 5, draws.BLOCK_STEPS])
def test_blocks_as_for_an_accelerator_hold_the_draws_of_single_steps(
    make: Callable[[], Objective], ahead: int
) -> None:
    assert_same(drawn(make(), range(3, 14), ahead=ahead), drawn(make(), range(3, 14)))


@every_objective
def test_a_resumed_training_sees_the_same_draws(make: Callable[[], Objective]) -> None:
    whole = drawn(make(), range(12))
    for start in (1, 5, 11, 12):
        for ahead in (None, 4):
            assert_same(drawn(make(), range(start, 12), ahead=ahead), whole[start:])


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


@pytest.mark.parametrize(("most_bytes", "longest"), [(1, 1), (3 * 8 * (8 + 4 + 12), 3), (2**26, 6)])
def test_blocks_are_bounded_in_bytes_and_end_with_the_steps(
    monkeypatch: pytest.MonkeyPatch, most_bytes: int, longest: int
) -> None:
    """Eight rows of a step: an index, a time, and three numbers of noise."""
    objective = FlowMatching().prepare(LinearPath(), DATA)
    drawn_steps = [0]

    class Counting:
        def draw(self, batch_size: int, generator: torch.Generator) -> tuple[Tensor, ...]:
            drawn_steps[0] += 1
            return objective.draw(batch_size, generator)

    monkeypatch.setattr(draws, "BLOCK_BYTES", most_bytes)
    ahead = []
    for step, _ in enumerate(draws_of_steps(Counting(), 50, 8, 0, range(10), CPU, ahead=6)):  # type: ignore[arg-type]
        ahead.append(drawn_steps[0] - step)
    assert max(ahead) == longest
    assert drawn_steps[0] == 10


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
