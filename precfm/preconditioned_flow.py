"""The main flow from its specification: matched and tuned if asked, built, bound to its data, ready to train."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from precfm.core.errors import PrecfmError
from precfm.core.registry import build
from precfm.core.serialization import new_network
from precfm.flows.objectives import DenoisingScore, FlowMatching
from precfm.flows.paths import ProbabilityPath
from precfm.flows.sampling import Solver, integrate
from precfm.preconditioners.base import Preconditioner
from precfm.preconditioners.jacobian import inverse_jacobian
from precfm.training.trainer import TrainingOptions

Spec = Mapping[str, Any]


@dataclass(frozen=True)
class BoundFlow:
    """A velocity network with fresh weights, and all that its training needs.

    Attributes:
        model: the network, on the device of the data.
        description: how to build it again, for `save_network`.
        objective: the objective, prepared for the data.
        path: the probability path.
        training: how to train.
        data: what to train on, in the flow's space: z1 (n, dim) and labels (n,).
    """

    model: nn.Module
    description: dict[str, Any]
    objective: FlowMatching | DenoisingScore
    path: ProbabilityPath
    training: TrainingOptions
    data: tuple[Tensor, Tensor]


def bind(
    spec: Spec,
    preconditioner: Preconditioner,
    x1: Tensor,
    labels: Tensor,
    seed: int,
    decoder_metric: Tensor | None = None,
) -> BoundFlow:
    """Build what a specification asks for, for given data.

    Args:
        spec: `model`, `path`, `objective`, `training`, as a configuration gives them.
        preconditioner: fitted map into the flow's space, on the device of the data.
        x1: training data, shape (n, dim).
        labels: classes, shape (n,).
        seed: seed of the initial weights.
        decoder_metric: the decoder's mean pull-back metric in the space of `x1`, shape (dim, dim), where the
            objective measures errors in it.
    """
    z1 = preconditioner.forward(x1, labels)
    filled_in = {"dim": z1.shape[1], "num_classes": int(labels.max()) + 1}
    model, description = new_network("models", spec["model"], seed, **filled_in)
    model.to(z1.device)
    fit_statistics = getattr(model, "fit_statistics", None)  # of networks that know the data's moments
    if callable(fit_statistics):
        fit_statistics(z1, labels)
    path, objective = build("paths", spec["path"]), build("objectives", spec["objective"])
    geometry = {}
    if spec["objective"].get("metric") in ("latent", "decoder"):
        geometry = {
            "inverse_jacobian": inverse_jacobian(preconditioner, z1.shape[1], labels),
            "decoder_metric": decoder_metric,
        }
    objective.prepare(path, z1, labels, **geometry)
    training = TrainingOptions(**spec["training"])
    return BoundFlow(model, description, objective, path, training, (z1, labels))


def matched(spec: Spec, budget: Mapping[str, Any], match: str) -> dict[str, Any]:
    """The specification of a baseline that matches another flow and its preconditioner together.

    Args:
        spec: the flow to be matched.
        budget: what `flow.py`'s budget artifact holds: `matched_width` and `matched_steps`.
        match: `P`: as many parameters, by width; `F`: as many training FLOPs, by steps, with the checkpoints
            where they were but for the last.
    """
    if match == "P":
        return {**spec, "model": {**spec["model"], "width": budget["matched_width"]}}
    steps = budget["matched_steps"]
    checkpoints = [*spec["training"]["checkpoints"][:-1], steps]
    return {**spec, "training": {**spec["training"], "steps": steps, "checkpoints": checkpoints}}


def width_of(spec: Spec) -> int:
    """The width of the specification's network.

    Raises:
        PrecfmError: the model has no option `width`.
    """
    width = spec["model"].get("width")
    if width is None:
        raise PrecfmError(
            f"model '{spec['model']['name']}' has no option 'width'; set settings.<name>.matched to [] to do "
            "without baselines of matched parameters"
        )
    return int(width)


def tuned(spec: Spec, recipe: Mapping[str, Any]) -> dict[str, Any]:
    """The specification under a recipe that a search has chosen: `time`, `learning_rate`, `schedule`."""
    return {
        **spec,
        "objective": {**spec["objective"], "time": recipe["time"]},
        "training": {
            **spec["training"],
            "learning_rate": recipe["learning_rate"],
            "schedule": recipe["schedule"],
        },
    }


def generate(
    spec: Spec,
    model: nn.Module,
    preconditioner: Preconditioner,
    noise: Tensor,
    labels: Tensor,
    solver: Solver,
    steps: int,
) -> Tensor:
    """Samples in data space from a trained flow.

    Args:
        spec: what the flow was trained as: its `path` and `objective`.
        model: the trained network.
        preconditioner: what maps back.
        noise: standard normal, shape (n, dim), on the device of the model.
        labels: classes to ask for, shape (n,).
        solver: see `precfm.flows.sampling.integrate`.
        steps: steps of the solver.

    Returns:
        Samples, shape (n, dim).
    """
    path, objective = build("paths", spec["path"]), build("objectives", spec["objective"])
    field, z0 = objective.velocity(model, path), objective.start_noise(noise, path)
    z1 = integrate(field, z0, labels, solver=solver, steps=steps, t0=objective.start)
    return preconditioner.inverse(z1, labels)
