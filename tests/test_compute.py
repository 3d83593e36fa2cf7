"""Counts of parameters and operations beside counts by hand, and searches beside counting up."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from precfm.core.errors import PrecfmError
from precfm.flows.compute import flops_of, flops_per_step, matched_steps, matched_width, num_parameters
from precfm.flows.models.mlp import MLPVelocity
from precfm.flows.sampling import integrate


def mlp(width: int) -> MLPVelocity:
    return MLPVelocity(3, 2, width=width, depth=2)


class Squares:
    def draw(self, batch_size, generator):
        return (torch.randn(batch_size, 4, generator=generator),)

    def loss(self, module, batch, draws):
        return (module(batch[0]) - draws[0]).square().mean()


def test_parameters_are_counted_frozen_or_not_and_buffers_are_not():
    module = nn.BatchNorm1d(5)  # two parameters of size 5, three buffers
    module.weight.requires_grad_(False)
    assert num_parameters(module) == 10


def test_operations_of_a_call_are_those_counted_by_hand():
    calls = []
    x = torch.ones(7, 4)
    layer = nn.Linear(4, 6)

    def call():
        calls.append(None)
        return layer(x).relu()

    assert flops_of(call) == 2 * 7 * 4 * 6
    assert len(calls) == 1
    image, convolution = torch.ones(2, 3, 8, 8), nn.Conv2d(3, 5, 3, padding=1)
    assert flops_of(lambda: convolution(image)) == 2 * 2 * 8 * 8 * 5 * 3 * 9
    assert flops_of(lambda: x.exp()) == 0


def test_operations_of_a_solver_count_every_evaluation_and_no_call_sees_another():
    module, x = mlp(8), torch.ones(5, 3)
    labels = torch.zeros(5, dtype=torch.int64)
    once = flops_of(lambda: module(x, torch.zeros(5), labels))
    assert once > 0
    midpoint = flops_of(lambda: integrate(module, x, labels, solver="midpoint", steps=4))
    assert midpoint == 8 * once
    assert flops_of(lambda: module(x, torch.zeros(5), labels)) == once


def test_a_training_step_costs_forward_and_backward_and_leaves_everything_alone():
    module = nn.Linear(4, 4, bias=False)
    two = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Dropout(), nn.Linear(4, 4, bias=False))
    weight, state, data = module.weight.clone(), torch.get_rng_state(), (torch.ones(3, 4),)
    forward = 2 * 10 * 4 * 4  # fewer rows of data than the mini-batch has
    assert flops_per_step(module, Squares(), data, 10) == 2 * forward  # no gradient of the inputs
    assert flops_per_step(two, Squares(), data, 10) == 5 * forward
    assert torch.equal(module.weight, weight)
    assert module.weight.grad is None
    assert two.training
    assert torch.equal(torch.get_rng_state(), state)


@given(st.integers(1, 40), st.integers(0, 3000), st.integers(1, 7))
@settings(max_examples=60, deadline=None)
def test_matched_width_is_the_first_that_suffices(width, extra, multiple_of):
    goal = num_parameters(mlp(width)) + extra
    first = width
    while num_parameters(mlp(first)) < goal:
        first += multiple_of
    assert matched_width(mlp, width, extra, multiple_of=multiple_of) == first


def test_matched_width_builds_few_networks_and_leaves_the_global_generator_alone():
    built = []

    def build(width):
        built.append(width)
        return nn.Linear(width, 1)

    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    assert matched_width(build, 16, 5000) == 5016
    assert torch.equal(torch.rand(2), expected)
    assert len(built) < 30


@given(st.integers(0, 1000), st.integers(1, 1000), st.integers(0, 10**6))
def test_matched_steps_is_the_first_number_that_suffices(steps, each, extra):
    found = matched_steps(steps, each, extra)
    assert found * each >= steps * each + extra
    assert (found - 1) * each < steps * each + extra


@pytest.mark.parametrize(
    ("field", "call"),
    [
        ("width", lambda: matched_width(mlp, 0, 5)),
        ("extra_parameters", lambda: matched_width(mlp, 8, -1)),
        ("multiple_of", lambda: matched_width(mlp, 8, 1, multiple_of=0)),
        ("build", lambda: matched_width(lambda width: nn.Linear(2, 2), 8, 1)),
        ("flops_per_step", lambda: matched_steps(5, 0, 1)),
        ("extra_flops", lambda: matched_steps(5, 1, -1)),
    ],
)
def test_impossible_matches_are_refused(field, call):
    with pytest.raises(PrecfmError, match=f"^{field}: "):
        call()
