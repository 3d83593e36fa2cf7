"""How a flow is built and trained, as data; and how a matched or tuned one differs from it."""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, model_validator

from precfm.core.errors import PrecfmError
from precfm.core.options import Count, Natural, Positive, Strict
from precfm.flows.times import TimeName
from precfm.training.options import TrainingOptions

Spec = Mapping[str, Any]
"""A registered class and its options, as in `{"name": "mlp", "width": 512}`."""


class Recipe(Strict):
    """What a search chooses for a method.

    Attributes:
        time: law of the training times.
        learning_rate: peak learning rate.
        schedule: of the learning rate.
        solver_steps: of the sampling; the training does not read it.
    """

    time: TimeName
    learning_rate: Positive
    schedule: Literal["constant", "cosine"]
    solver_steps: Count = 50


class Budget(Strict):
    """What a preconditioner and the flow behind it cost, and which flow without it costs as much.

    Attributes:
        flow_parameters: of the velocity network.
        preconditioner_parameters: of the map.
        flops_per_step: of one training step of the flow, forward and backward.
        fit_flops: of the map's fit.
        steps: of the flow's training.
        matched_width: of the network that has as many parameters as both.
        matched_steps: of the training that costs as many FLOPs as both.
    """

    flow_parameters: Natural
    preconditioner_parameters: Natural
    flops_per_step: Natural
    fit_flops: Natural
    steps: Count
    matched_width: Count
    matched_steps: Count


class FlowSettings(Strict):
    """How a flow is built and trained.

    Attributes:
        model: the velocity network; `shape` and `num_classes` come from the data.
        wrappers: around the network, the innermost first; each is fitted on the data before training.
        path: the probability path.
        objective: what is minimised.
        training: how.
    """

    model: dict[str, Any] = Field(default={"name": "mlp"})
    wrappers: tuple[dict[str, Any], ...] = ()
    path: dict[str, Any] = Field(default={"name": "linear"})
    objective: dict[str, Any] = Field(default={"name": "flow_matching"})
    training: TrainingOptions = TrainingOptions()

    @model_validator(mode="after")
    def _without_validation(self) -> "FlowSettings":
        if self.training.validate_every:
            raise PrecfmError(
                f"training.validate_every: got {self.training.validate_every}; 0 is needed, since a flow is trained "
                "without validation"
            )
        return self

    def with_width(self, width: int) -> "FlowSettings":
        """The same with a network of another width."""
        return self.model_copy(update={"model": {**self.model, "width": width}})

    def matched(self, budget: Budget, match: Literal["P", "F"]) -> "FlowSettings":
        """The baseline that costs as much as this flow and a preconditioner together.

        Args:
            budget: of the flow and the preconditioner.
            match: `P`: as many parameters, by width; `F`: as many training FLOPs, by steps, with the checkpoints
                where they were but for the last.
        """
        if match == "P":
            return self.with_width(budget.matched_width)
        steps = budget.matched_steps
        return self._trained(steps=steps, checkpoints=(*self.training.checkpoints[:-1], steps))

    def tuned(self, recipe: Recipe) -> "FlowSettings":
        """The same under a recipe that a search has chosen."""
        trained = self._trained(learning_rate=recipe.learning_rate, schedule=recipe.schedule)
        return trained.model_copy(update={"objective": {**self.objective, "time": recipe.time}})

    def shortened(self, steps: int) -> "FlowSettings":
        """The same, trained for fewer steps, with one checkpoint at the end and without a warm-up."""
        return self._trained(steps=steps, checkpoints=(steps,), warmup_steps=0)

    def _trained(self, **changes: Any) -> "FlowSettings":
        return self.model_copy(
            update={"training": TrainingOptions(**{**self.training.model_dump(), **changes})}
        )
