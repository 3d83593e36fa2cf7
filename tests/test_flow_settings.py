"""Settings of a flow: what matching, tuning and shortening change, and that they change nothing else."""

from typing import Any

import pytest

from precfm.core.errors import PrecfmError
from precfm.core.options import validated
from precfm.flows.settings import Budget, FlowSettings, Recipe
from precfm.training.options import TrainingOptions

SETTINGS = FlowSettings(
    model={"name": "mlp", "width": 16, "depth": 1},
    wrappers=({"name": "gaussian_skip"},),
    objective={"name": "flow_matching", "coupling": "optimal_transport"},
    training=TrainingOptions(steps=100, batch_size=8, warmup_steps=30, checkpoints=(50, 100), clip_norm=1.0),
)
BUDGET = Budget(
    flow_parameters=100,
    preconditioner_parameters=50,
    flops_per_step=10,
    fit_flops=400,
    steps=100,
    matched_width=23,
    matched_steps=140,
)
RECIPE = Recipe(time="logit_normal", learning_rate=4e-3, schedule="cosine")


def changes(before: FlowSettings, after: FlowSettings) -> dict[str, Any]:
    """Every value that differs, by its place."""

    def flat(value: Any, place: str = "") -> dict[str, Any]:
        if not isinstance(value, dict):
            return {place: value}
        return {
            key: leaf for name, item in value.items() for key, leaf in flat(item, f"{place}.{name}").items()
        }

    first, second = flat(before.model_dump()), flat(after.model_dump())
    return {place: second.get(place) for place in {*first, *second} if first.get(place) != second.get(place)}


@pytest.mark.parametrize(
    ("after", "expected"),
    [
        (SETTINGS.with_width(7), {".model.width": 7}),
        (SETTINGS.matched(BUDGET, "P"), {".model.width": 23}),
        (SETTINGS.matched(BUDGET, "F"), {".training.steps": 140, ".training.checkpoints": (50, 140)}),
        (
            SETTINGS.tuned(RECIPE),
            {
                ".objective.time": "logit_normal",
                ".training.learning_rate": 4e-3,
                ".training.schedule": "cosine",
            },
        ),
        (
            SETTINGS.shortened(20),
            {".training.steps": 20, ".training.checkpoints": (20,), ".training.warmup_steps": 0},
        ),
    ],
    ids=["width", "matched parameters", "matched FLOPs", "tuned", "shortened"],
)
def test_only_what_is_said_changes(after: FlowSettings, expected: dict[str, Any]) -> None:
    assert changes(SETTINGS, after) == expected
    assert SETTINGS.model == {"name": "mlp", "width": 16, "depth": 1}
    assert SETTINGS.objective == {"name": "flow_matching", "coupling": "optimal_transport"}
    assert validated(FlowSettings, after.model_dump(mode="json")) == after


def test_a_flow_without_checkpoints_is_matched_in_steps() -> None:
    plain = FlowSettings(training=TrainingOptions(steps=100))
    assert plain.matched(BUDGET, "F").training.steps == 140


def test_a_recipe_from_before_solver_steps_samples_as_then() -> None:
    old = {"time": "uniform", "learning_rate": 1e-3, "schedule": "cosine"}
    assert validated(Recipe, old).solver_steps == 50


@pytest.mark.parametrize(
    ("field", "make"),
    [
        ("model", lambda: FlowSettings(model="mlp")),
        ("wrappers", lambda: FlowSettings(wrappers={"name": "gaussian_skip"})),
        ("depth", lambda: FlowSettings(depth=3)),
        ("training.steps", lambda: validated(FlowSettings, {"training": {"steps": 0}})),
        (
            "training: warmup_steps",
            lambda: validated(FlowSettings, {"training": {"steps": 9, "warmup_steps": 9}}),
        ),
        ("training.validate_every", lambda: FlowSettings(training=TrainingOptions(validate_every=5))),
        ("time", lambda: Recipe(time="sometimes", learning_rate=1e-3, schedule="cosine")),
        ("solver_steps", lambda: validated(Recipe, {**RECIPE.model_dump(), "solver_steps": 0})),
        ("learning_rate", lambda: validated(Recipe, {**RECIPE.model_dump(), "learning_rate": 0.0})),
        ("score", lambda: validated(Recipe, {**RECIPE.model_dump(), "score": 1.0})),
        ("matched_width", lambda: validated(Budget, {**BUDGET.model_dump(), "matched_width": 0})),
        ("fit_flops", lambda: validated(Budget, {**BUDGET.model_dump(), "fit_flops": 1.5})),
    ],
)
def test_bad_values_are_refused_by_name(field: str, make: Any) -> None:
    with pytest.raises(PrecfmError, match=f"^{field}: got "):
        make()
