"""How many GPU-hours an experiment takes that nobody has run: from counted operations and a stated utilisation."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch

from precfm.core.errors import PrecfmError
from precfm.core.options import validated
from precfm.core.registry import build
from precfm.flows.compute import flops_of
from precfm.flows.settings import FlowSettings
from precfm.pipeline.components import component
from precfm.pipeline.networks import without_weights
from precfm.pipeline.node import Node
from precfm.pipeline.pinned import pinned_model
from precfm.pipeline.plan import Plan

# Dense matrix products of one H100 or H200 (SXM), operations per second, by their data sheet.
PEAKS = {"bfloat16": 989e12, "float32": 67e12}
UTILISATION = 0.3  # of the peak
SECONDS_PER_CALL = 5e-4  # at least: what a small network waits for its kernels to start, forward or backward
EVALUATIONS = {"euler": 1, "midpoint": 2, "rk4": 4, "dopri5": 4}  # of the field, for one step of a solver
PRETRAINED = (
    4,
    8,
)  # channels of latents, and images' side over theirs, of an autoencoder that is not on this machine


@dataclass(frozen=True)
class Stage:
    """What a stage costs.

    Attributes:
        name: the kind of artifacts.
        artifacts: how many.
        operations: floating point operations.
        hours: of one GPU.
    """

    name: str
    artifacts: int
    operations: float
    hours: float


def gpu_hours(plan: Plan, utilisation: float = UTILISATION) -> list[Stage]:
    """Training, search and sampling, which are nearly all.

    Fits of maps, encoding, judging and likelihoods are left out. A matched baseline counts as the flow that it matches.

    Args:
        plan: of an experiment with data.
        utilisation: share of the peak that matrix products reach.
    """
    found = []
    for kind, work in (("flows", _training), ("recipes", _search), ("samples", _sampling)):
        costs = [cost for node in plan.of(kind) for cost in work(plan, node, utilisation)]
        if costs:
            operations, seconds = (sum(column) for column in zip(*costs, strict=True))
            found.append(Stage(kind, len(plan.of(kind)), operations, seconds / 3600))
    return found


def _training(plan: Plan, node: Node, utilisation: float) -> Iterator[tuple[float, float]]:
    settings = validated(FlowSettings, node.params["flow"])
    yield _steps(settings, _latent_shape(plan, node), settings.training.steps, utilisation)


def _search(plan: Plan, node: Node, utilisation: float) -> Iterator[tuple[float, float]]:
    settings, search = validated(FlowSettings, node.params["flow"]), node.params["search"]
    trainings = len(search["time"]) * len(search["learning_rate"]) * len(search["schedule"])
    yield _steps(settings, _latent_shape(plan, node), trainings * search["steps"], utilisation)


def _sampling(plan: Plan, node: Node, utilisation: float) -> Iterator[tuple[float, float]]:
    if "flow" not in node.parents:
        return
    (flow,) = node.parents["flow"]
    made = plan.node(flow)
    if made.kind != "flows":  # a skip alone: elementwise
        return
    settings, sampling = validated(FlowSettings, made.params["flow"]), node.params["sampling"]
    calls = sampling["steps"] * EVALUATIONS[sampling["solver"]] * max(1, len(settings.training.checkpoints))
    calls *= 1 if sampling.get("guidance", 1) == 1 else 2
    operations = calls * sampling["n"] * _operations(_spec(settings), _latent_shape(plan, made))[0]
    yield operations, max(operations / (PEAKS["float32"] * utilisation), calls * SECONDS_PER_CALL)


def _steps(
    settings: FlowSettings, shape: tuple[int, ...], steps: int, utilisation: float
) -> tuple[float, float]:
    training = settings.training
    operations = steps * training.batch_size * _operations(_spec(settings), shape)[1]
    peak = PEAKS[training.precision] * utilisation
    return operations, max(operations / peak, 2 * steps * SECONDS_PER_CALL)


def _spec(settings: FlowSettings) -> tuple[tuple[str, Any], ...]:
    return tuple((name, _frozen(value)) for name, value in sorted(settings.model.items()))


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


@lru_cache(maxsize=64)
def _operations(model: tuple[tuple[str, Any], ...], shape: tuple[int, ...]) -> tuple[float, float]:
    """Of one row, forward alone, and forward and backward; nothing is computed."""
    network = without_weights(dict(model), shape)
    with torch.device("meta"):
        points, labels = torch.empty(2, *shape), torch.zeros(2, dtype=torch.int64)
        times = torch.empty(2)
        network.checked_labels = lambda labels, batch: labels  # type: ignore[method-assign]  # which asks for values
        forward = flops_of(lambda: network(points, times, labels)) / 2
    return forward, 3 * forward


def _latent_shape(plan: Plan, node: Node) -> tuple[int, ...]:
    """Shape of the latents that an artifact is made from."""
    (latents,) = node.parents["latents"]
    made = plan.node(latents)
    (data,) = made.parents["data"]
    of_data = plan.node(data)
    source = component("datasets", of_data.params["dataset"]["source"]).made()
    if "encoder" not in made.parents:
        if (shape := getattr(source, "shape", None)) is None:
            raise PrecfmError(
                f"datasets.{of_data.label}.source.shape: missing, of '{of_data.params['source']}'; that of a latent, "
                "such as [4, 32, 32], is needed to count operations"
            )
        return tuple(shape)
    (encoder,) = made.parents["encoder"]
    params = plan.node(encoder).params
    if "pinned" in params:
        record = pinned_model(f"{params['pinned']['name']}@{params['pinned']['sha256'][:12]}", "encoders")
        return _encoded(record.model, *record.image_shape)
    return _encoded(params["model"], source.channels, source.resolution)


def _encoded(model: Mapping[str, Any], channels: int, image_size: int) -> tuple[int, ...]:
    must_be_fetched = component("encoders", model).constant("must_be_fetched")
    if must_be_fetched and must_be_fetched(
        **{name: value for name, value in model.items() if name != "name"}
    ):
        latent_channels, factor = PRETRAINED
        return latent_channels, image_size // factor, image_size // factor
    shape: tuple[int, ...] = build("encoders", model, channels=channels, image_size=image_size).latent_shape
    return shape
