"""Options out of range: the plan refuses them before the first job, in the sentence in which the class does."""

from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from precfm.core.errors import PrecfmError
from precfm.core.options import Bound, options_of
from precfm.core.registry import REGISTRY, import_string, load
from precfm.pipeline.schema import FILLED_IN, Component, _component

ROOMS = ("preconditioners", "models", "objectives", "encoders", "extractors", "datasets")
UNBOUNDED = {("objectives", "time_mean")}  # any number is right
NUMBERS: dict[type, st.SearchStrategy[Any]] = {
    int: st.integers(-3, 20),
    float: st.one_of(
        st.floats(-1.0, 6.0), st.floats(-1e300, 1e300), st.sampled_from([0.0, 1e-6, 0.5, 1.0, 5.0])
    ),
}


def kinds(annotation: Any) -> set[type]:
    return {annotation, *get_args(annotation)} & set(NUMBERS)


def numeric_options() -> list[tuple[str, str, str]]:
    return [
        (room, name, option)
        for room in ROOMS
        for name in REGISTRY[room]
        for option, field in schema(room, name).model_fields.items()
        if kinds(field.annotation)
    ]


def schema(room: str, name: str) -> Any:
    return options_of(import_string(room, name), FILLED_IN.get(room, frozenset()))


def said(make: Any) -> str:
    try:
        make()
    except PrecfmError as error:
        return str(error)
    return ""


def planned(room: str, name: str, options: dict[str, Any]) -> str:
    return said(lambda: _component(room, {"name": name, **options}))


def constructed(room: str, name: str, options: dict[str, Any]) -> str:
    filled_in = {"dim": 2} if room == "models" else {}
    return said(lambda: load(room, name)(**filled_in, **options))


@pytest.mark.parametrize(("room", "name", "option"), numeric_options())
def test_every_number_has_a_bound_that_refuses_something(room: str, name: str, option: str) -> None:
    if (room, option) in UNBOUNDED:
        pytest.skip("any number is right")
    field = schema(room, name).model_fields[option]
    assert [mark for mark in field.metadata if isinstance(mark, Bound)]
    (kind,) = kinds(field.annotation)
    assert planned(room, name, {option: kind(-1)}).startswith(f"{option}: got {kind(-1)!r}, but ")


@pytest.mark.parametrize(("room", "name", "option"), numeric_options())
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_the_plan_and_the_class_say_the_same(room: str, name: str, option: str, data: st.DataObject) -> None:
    (kind,) = kinds(schema(room, name).model_fields[option].annotation)
    options = {option: data.draw(NUMBERS[kind])}
    assert planned(room, name, options) == constructed(room, name, options)


@pytest.mark.parametrize(
    ("name", "options", "sentence"),
    [
        ("whitening", {"exponent": 1.5}, "exponent: got 1.5, but a number from 0 to 1 is needed"),
        ("whitening", {"rows": 1}, "rows: got 1, but at least 2, or null, is needed"),
        ("class_whitening", {"rows_per_feature": -1.0}, "rows_per_feature: got -1.0, but a finite number"),
        ("normalizing_flow", {"learning_rate": 0.0}, "learning_rate: got 0.0, but a positive, finite number"),
        (
            "normalizing_flow",
            {"validate_every": 0},
            "patience: got 5, but 0, or a positive number together with",
        ),
        (
            "low_capacity_flow",
            {"solver_steps": 9, "max_solver_steps": 8},
            "max_solver_steps: got 8, but at least solver_steps (9) is needed",
        ),
        ("composition", {"stages": []}, "stages: got (), but at least one preconditioner is needed"),
        ("auto", {"candidates": [{"name": "none"}, {"name": "auto"}]}, "candidates: got "),
        (
            "composition",
            {"stages": [{"name": "projection", "explained": 0.0}]},
            "stages.0: explained: got 0.0",
        ),
        ("auto", {"candidates": [{"name": "auto", "margin": -1.0}]}, "candidates.0: margin: got -1.0"),
    ],
)
def test_what_is_said(name: str, options: dict[str, Any], sentence: str) -> None:
    assert planned("preconditioners", name, options).startswith(sentence)
    if "auto" not in str(options):  # where the plan shows defaults too, or looks inside first
        as_tuples = {
            key: tuple(value) if isinstance(value, list) else value for key, value in options.items()
        }
        assert planned("preconditioners", name, options) == constructed("preconditioners", name, as_tuples)


@pytest.mark.parametrize("wrong", ["text", None, [1]])
def test_a_class_refuses_what_is_no_number(wrong: Any) -> None:
    assert constructed("preconditioners", "whitening", {"exponent": wrong}).startswith(
        f"exponent: got {wrong!r}, but"
    )


def test_what_is_right_is_kept() -> None:
    component = _component(
        "preconditioners", {"name": "low_capacity_flow", "patience": 0, "validate_every": 0}
    )
    assert isinstance(component, Component)
    assert component.options.validate_every == 0  # type: ignore[attr-defined]
