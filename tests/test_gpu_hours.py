"""Estimated GPU-hours: operations as counted by hand, and what they depend on."""

import pytest

from precfm.gpu_hours import EVALUATIONS, PEAKS, SECONDS_PER_CALL, gpu_hours
from precfm.pipeline.plan import load_plan

MLP = {"name": "mlp", "width": 64, "depth": 2}
DIM = 64  # of the latents
TRAINING = {"steps": 100, "batch_size": 32, "checkpoints": [50, 100]}


def test_operations_are_those_of_the_layers(planned):
    change = {"seeds": [0], "methods": {"none": {"preconditioner": {"name": "none"}}}}
    settings = {"plain": {"matched": []}, "tuned": None}
    flow = {"model": MLP, "training": TRAINING}
    plan = planned({**change, "flow": flow, "settings": settings, "predict": []})
    training, sampling = gpu_hours(plan)
    latents = 16 if "L16" in plan.of("latents")[0].id else DIM
    # first layer, time features, hidden layer, last layer: two operations for each weight
    forward = 2 * (latents * 64 + 32 * 64 + 64 * 64 + 64 * latents)
    assert training.operations == len(plan.of("flows")) * 100 * 32 * 3 * forward
    assert training.hours * 3600 == pytest.approx(len(plan.of("flows")) * 2 * 100 * SECONDS_PER_CALL)
    asked = plan.of("samples")[0].params["sampling"]
    calls = asked["steps"] * EVALUATIONS[asked["solver"]] * 2
    assert sampling.operations == len(plan.of("flows")) * calls * asked["n"] * forward


def test_a_large_network_is_bound_by_its_products(project):
    training, _ = gpu_hours(load_plan("church256"))
    assert training.hours * 3600 == pytest.approx(training.operations / (0.3 * PEAKS["bfloat16"]))
    half, _ = gpu_hours(load_plan("church256"), 0.15)
    assert half.hours == pytest.approx(2 * training.hours)
