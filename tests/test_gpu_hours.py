"""Estimated GPU-hours: operations as counted by hand, and what they depend on."""

import json
from pathlib import Path

import numpy as np
import pytest

from precfm.core.errors import PrecfmError
from precfm.datasets.latents import add_latents
from precfm.datasets.sources import SOURCES
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


def test_own_latents_need_their_shape(project):
    np.save("z.npy", np.random.default_rng(0).standard_normal((60, 2, 4, 4)).astype("float32"))
    add_latents("sound", Path("z.npy"), SOURCES)

    def plan(**source):
        data = {"source": {"name": "latents", "source": "sound", **source}, "train": 40, "validation": 10}
        content = {
            "description": "latents",
            "datasets": {"mine": {**data, "heldout": 10}},
            "flow": {
                "model": MLP,
                "path": {"name": "linear"},
                "training": TRAINING | {"learning_rate": 1e-3},
            },
            "methods": {"none": {"preconditioner": {"name": "none"}}},
            "seeds": [0],
            "settings": {"plain": {}},
            "sampling": {"n": 8, "steps": 2},
        }
        (project / "config/mine.yaml").write_text(json.dumps(content))
        return load_plan("mine")

    assert gpu_hours(plan(shape=[2, 4, 4]))[0].operations > 0
    with pytest.raises(PrecfmError, match=r"^datasets\.mine\.source\.shape: missing, of 'sound'; "):
        gpu_hours(plan())
