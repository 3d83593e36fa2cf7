"""Options out of range: the plan refuses them before the first job, in the sentence in which the class does."""

from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from precfm.core.errors import PrecfmError
from precfm.core.options import options_of
from precfm.core.registry import REGISTRY, load
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


@pytest.mark.parametrize(
    ("name", "options", "begins"),
    [
        ("whitening", {"exponent": 1.5}, "exponent: got 1.5"),
        ("whitening", {"rows": 1}, "rows: got 1"),
        ("class_whitening", {"rows_per_feature": -1.0}, "rows_per_feature: got -1.0"),
        ("normalizing_flow", {"learning_rate": 0.0}, "learning_rate: got 0.0"),
        ("normalizing_flow", {"validate_every": 0}, "patience: got 5"),
        ("low_capacity_flow", {"solver_steps": 9, "max_solver_steps": 8}, "max_solver_steps: got 8"),
        ("composition", {"stages": []}, "stages: got "),
        ("auto", {"candidates": [{"name": "none"}, {"name": "auto"}]}, "candidates: "),
        (
            "composition",
            {"stages": [{"name": "projection", "explained": 0.0}]},
            "stages.0: explained: got 0.0",
        ),
        ("auto", {"candidates": [{"name": "auto", "margin": -1.0}]}, "candidates.0: margin: got -1.0"),
    ],
)
def test_fields_are_named_by_plan_and_class(name: str, options: dict[str, Any], begins: str) -> None:
    assert planned("preconditioners", name, options).startswith(begins)
    as_tuples = {key: tuple(value) if isinstance(value, list) else value for key, value in options.items()}
    assert constructed("preconditioners", name, as_tuples).startswith(
        begins.partition(":")[0].partition(".")[0]
    )


@pytest.mark.parametrize("wrong", ["text", None, [1]])
def test_a_class_refuses_what_is_no_number(wrong: Any) -> None:
    assert constructed("preconditioners", "whitening", {"exponent": wrong}).startswith(
        f"exponent: got {wrong!r}; "
    )


def test_what_is_right_is_kept() -> None:
    found = component("preconditioners", {"name": "low_capacity_flow", "patience": 0, "validate_every": 0})
    assert found.options.validate_every == 0  # type: ignore[attr-defined]
