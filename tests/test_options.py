"""Options of all that is registered: the plan refuses what is out of range before the first job, as the class does."""

import math
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from precfm.core.errors import PrecfmError
from precfm.core.options import options_of
from precfm.core.registry import REGISTRY, load
from precfm.flows.models.mlp import MLPVelocity
from precfm.flows.paths import LinearPath
from precfm.pipeline.components import FILLED_IN, component

UNBOUNDED = {("objectives", "time_mean")}  # any finite number is right
NUMBERS: dict[type, st.SearchStrategy[Any]] = {
    int: st.integers(-3, 20),
    float: st.one_of(
        st.floats(-1.0, 6.0), st.floats(-1e300, 1e300), st.sampled_from([0.0, 1e-6, 0.5, 1.0, 5.0])
    ),
}


def number(annotation: Any) -> type | None:
    """Whether an option is a whole number, any number, or neither."""
    parts = {annotation, *get_args(annotation)}
    return next((kind for kind in NUMBERS for part in parts if kind in (part, *get_args(part))), None)


def numeric_options() -> list[tuple[str, str, str, type]]:
    return [
        (group, name, option, kind)
        for group in (
            "preconditioners",
            "models",
            "wrappers",
            "objectives",
            "encoders",
            "extractors",
            "datasets",
        )
        for name in REGISTRY[group]
        for option, field in options_of(
            load(group, name), FILLED_IN.get(group, frozenset())
        ).model_fields.items()
        if (kind := number(field.annotation)) is not None
    ]


def said(make: Any) -> str:
    try:
        make()
    except PrecfmError as error:
        return str(error)
    return ""


def planned(group: str, name: str, options: dict[str, Any]) -> str:
    return said(lambda: component(group, {"name": name, **options}))


def constructed(group: str, name: str, options: dict[str, Any]) -> str:
    return said(lambda: load(group, name)(**options))


@pytest.mark.parametrize(("group", "name", "option", "kind"), numeric_options())
def test_every_number_has_a_bound_that_refuses_something(
    group: str, name: str, option: str, kind: type
) -> None:
    if (group, option) in UNBOUNDED:
        pytest.skip("any number is right")
    assert planned(group, name, {option: kind(-1)}).startswith(f"{option}: got {kind(-1)!r}; ")


@pytest.mark.parametrize(
    ("group", "name", "option", "kind"), [each for each in numeric_options() if each[0] not in FILLED_IN]
)
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_the_plan_and_the_class_say_the_same(
    group: str, name: str, option: str, kind: type, data: st.DataObject
) -> None:
    options = {option: data.draw(NUMBERS[kind])}
    assert planned(group, name, options) == constructed(group, name, options)


# What the pipeline fills in, as a user of the class gives it.
GIVEN: dict[str, dict[str, Any]] = {
    "models": {"shape": 4},
    "wrappers": {"network": MLPVelocity(4), "path": LinearPath()},
    "encoders": {"channels": 1, "image_size": 12},
    "theory": {"seed": 0},
}
OUT_OF_RANGE: dict[str, dict[str, dict[str, list[Any]]]] = {
    "preconditioners": {
        "whitening": {"exponent": [-0.6, 1.5, math.nan, "text", None, [1]], "shrinkage": [1.5], "rows": [1, True]},
        "class_whitening": {"rows_per_feature": [-1.0]},
        "normalizing_flow": {
            "kind": ["planar"], "width": [0], "max_log_scale": [0.0], "validation_share": [1.0], "steps": [0],
            "learning_rate": [0.0],
        },
        "low_capacity_flow": {"tolerance": [0.0], "max_solver_steps": [20], "width": [0], "shrinkage": ["much"]},
        "decoder_metric": {"floor": [0.0, 1.5]},
        "projection": {"rank": [0], "explained": [0.0]},
        "composition": {"stages": [(), ({"exponent": 0.5},)]},
    },
    "models": {"mlp": {"width": [0, 8.0], "depth": [0], "time_features": [3, 0]}},
    "wrappers": {"gaussian_skip": {"skip": ["some"], "input_scaling": [1]}},
    "objectives": {
        "flow_matching": {
            "time": ["never"], "time_std": [0.0, math.nan], "coupling": ["sinkhorn"], "metric": ["pixels"],
        },
        "denoising_score": {"time_std": [-1.0]},
    },
    "encoders": {"conv_vae": {"latent_dim": [0], "width": [0], "beta": [-1.0]}},
    "datasets": {
        **{name: {"resolution": [30]} for name in ("mnist5k", "mnist", "fashion_mnist")},
        "imagefolder": {"resolution": [0], "channels": [2]},
    },
    "theory": {
        "linear_grid": {
            "condition_numbers": [(0.5,)], "times": [()], "paths": [("circular",)], "descent_rate": [1.0],
        },
        "steps_to_accuracy": {"fraction": [0.0]},
        "residual_linear": {"rate": [0.6], "samples_per_dim": [(1.0,)]},
        "mixture_linear": {"worst_weights": [(1.0,)]},
        "mixture_ablations": {"control_condition_number": [0.0]},
        "trained_factors": {"factors": [("depth",)]},
        "trained_budgets": {"checkpoints": [(0, 4)]},
        "mixture_networks": {"steps": [0]},
        "residual_networks": {"weight_decays": [(-1.0,)]},
    },
}  # fmt: skip


@pytest.mark.parametrize(
    ("group", "name", "option", "value"),
    [
        (group, name, option, value)
        for group, classes in OUT_OF_RANGE.items()
        for name, options in classes.items()
        for option, values in options.items()
        for value in values
    ],
)
def test_what_is_out_of_range_is_refused_by_field(group: str, name: str, option: str, value: Any) -> None:
    given = list(value) if isinstance(value, tuple) else value  # as a file has it
    if not (isinstance(value, float) and math.isnan(value)):  # which is no plain data
        assert planned(group, name, {option: given}).startswith(option)
    assert constructed(group, name, {**GIVEN.get(group, {}), option: value}).startswith(option)


@pytest.mark.parametrize(
    ("name", "options", "field"),
    [
        ("normalizing_flow", {"validate_every": 0}, "patience: got 5"),
        ("low_capacity_flow", {"solver_steps": 9, "max_solver_steps": 8}, "max_solver_steps: got 8"),
        ("composition", {"stages": [{"name": "bleaching"}]}, "stages.0: preconditioners: got 'bleaching'"),
        ("composition", {"stages": [{"name": "whitening", "width": 3}]}, "stages.0: width: got 3"),
        ("composition", {"stages": [{"name": "projection", "explained": 0.0}]}, "stages.0: explained: got 0.0"),
        ("composition", {"stages": [{"name": "none"}, {"name": "os:getcwd"}]}, "stages.1: "),
    ],
)  # fmt: skip
def test_rules_across_options_and_inside_components_name_their_field(
    name: str, options: dict[str, Any], field: str
) -> None:
    assert planned("preconditioners", name, options).startswith(field)
    as_tuples = {key: tuple(value) if isinstance(value, list) else value for key, value in options.items()}
    assert constructed("preconditioners", name, as_tuples).startswith(field.split(":")[0].split(".")[0])


def test_what_is_right_is_kept() -> None:
    found = component("preconditioners", {"name": "low_capacity_flow", "patience": 0, "validate_every": 0})
    assert found.options.validate_every == 0  # type: ignore[attr-defined]
