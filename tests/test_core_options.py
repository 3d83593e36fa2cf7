"""What an option may be: read from signatures, inherited, and judged in one sentence by pydantic alone."""

import datetime
import json
import math
import re
from typing import Annotated, Any, Literal

import numpy as np
import pytest
import torch
from pydantic import Field, ValidationError, model_validator
from torch import Tensor, nn

from precfm.core.components import component, spec_of
from precfm.core.errors import PrecfmError
from precfm.core.options import (
    Count,
    Fraction,
    Natural,
    NotNegative,
    Positive,
    Share,
    Strict,
    checked,
    options_in,
    options_of,
    parameters,
    sentence,
    validated,
)
from precfm.preconditioners.base import Preconditioner
from precfm.preconditioners.whitening import Whitening
from precfm.training.options import TrainingOptions


class Layer(nn.Module):
    @checked
    def __init__(
        self, dim: Count, *, width: Count = 8, rate: Positive = 0.1, kind: Literal["a", "b"] = "a"
    ) -> None:
        super().__init__()
        self.dim, self.width, self.rate, self.kind = dim, width, rate, kind


class Deeper(Layer):
    """Adds an option, gives another one a new default, and repeats nothing else."""

    @checked
    def __init__(self, *, depth: Natural = 2, rate: Positive = 0.5, **inherited: Any) -> None:
        super().__init__(rate=rate, **inherited)
        self.depth = depth


class Renamed(Deeper):
    """Takes over everything."""


class Fixed(Layer):
    """Leaves its base class no options."""

    def __init__(self, size: Count = 3) -> None:
        super().__init__(size)


# ---- parameters


def test_a_subclass_has_its_own_options_and_those_that_it_passes_on() -> None:
    assert list(parameters(Layer)) == ["dim", "width", "rate", "kind"]
    for kind in (Deeper, Renamed):
        assert set(parameters(kind)) == {"depth", "rate", "dim", "width", "kind"}
        assert options_of(kind)().model_dump() == {"depth": 2, "rate": 0.5, "width": 8, "kind": "a"}
    assert list(parameters(Fixed)) == ["size"]
    assert parameters(nn.Module) == parameters(type("Bare", (), {})) == {}


def test_parameters_of_a_function_have_their_annotations_resolved() -> None:
    def function(x: "Tensor", *, width: "Count" = 3, anything=None) -> None: ...  # type: ignore[no-untyped-def]

    found = parameters(function)
    assert found["x"].annotation is Tensor
    assert found["width"].annotation == Count
    assert found["anything"].annotation is Any
    assert set(options_of(function).model_fields) == {"width", "anything"}


def test_an_object_tells_the_options_that_it_was_made_with() -> None:
    made = Deeper(dim=4, width=5)
    assert options_in(made, without={"dim"}) == {"depth": 2, "rate": 0.5, "width": 5, "kind": "a"}
    assert options_in(Deeper(**options_in(made))) == options_in(made)


def test_what_is_filled_in_is_no_option() -> None:
    assert set(options_of(Layer, frozenset({"width"})).model_fields) == {"rate", "kind"}
    with pytest.raises(PrecfmError, match=r"^width: got 3"):
        options_of(Layer, frozenset({"width"}))(width=3)


# ---- what is judged


def judgements(options: dict[str, Any]) -> set[str]:
    """What the class, its schema and the schema of its JSON say."""
    said = set()
    for make in (
        lambda: Deeper(dim=2, **options),
        lambda: options_of(Deeper)(**options),
        lambda: validated(options_of(Deeper), options),
    ):
        with pytest.raises(PrecfmError) as error:
            make()
        said.add(str(error.value))
    return said


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("width", 0),
        ("width", 2.0),
        ("width", "2"),
        ("width", None),
        ("width", True),
        ("depth", -1),
        ("rate", 0.0),
        ("rate", False),
        ("rate", [1.0]),
        ("kind", "c"),
    ],
)
def test_class_schema_and_json_say_the_same_sentence(field: str, value: Any) -> None:
    (said,) = judgements({field: value})
    assert said.startswith(f"{field}: got {value!r}; ")
    assert "\n" not in said


def test_an_integer_is_a_number_and_numpys_floats_are_too() -> None:
    assert Deeper(dim=2, rate=1).rate == 1
    assert Deeper(dim=2, rate=np.float64(0.5)).rate == 0.5
    assert options_of(Deeper)(rate=1).model_dump()["rate"] == 1


@pytest.mark.parametrize(
    ("kind", "right", "wrong"),
    [
        (Count, [1, 10**9], [0, -1, 1.0]),
        (Natural, [0, 5], [-1, 0.5]),
        (NotNegative, [0.0, 3], [-1e-9, math.inf, math.nan]),
        (Positive, [1e-300, 3], [0.0, -1.0, math.inf, math.nan]),
        (Share, [0.0, 1.0], [-0.1, 1.1, math.nan, math.inf]),
        (Fraction, [0.5], [0.0, 1.0, math.nan]),
    ],
)
def test_each_kind_of_number_has_its_range(kind: Any, right: list[Any], wrong: list[Any]) -> None:
    @checked
    def function(value: kind) -> Any:
        return value

    assert [function(value) for value in right] == right
    for value in wrong:
        with pytest.raises(PrecfmError, match=r"^value: got "):
            function(value)


def test_checked_functions_take_tensors_defaults_and_positions() -> None:
    @checked
    def scaled(x: Tensor, *others: Tensor, by: Positive = 2.0, **more: int) -> Tensor:
        return by * x

    assert scaled(torch.ones(1)).item() == 2
    assert scaled(torch.ones(1), torch.ones(1), by=3.0, anything=1).item() == 3
    assert scaled.__name__ == "scaled"
    with pytest.raises(PrecfmError, match=r"^x: got \[1\]; .*Tensor"):
        scaled([1])  # type: ignore[arg-type]
    with pytest.raises(PrecfmError, match=r"^by: got -1"):
        scaled(torch.ones(1), by=-1)
    with pytest.raises(PrecfmError, match="missing"):
        scaled()  # type: ignore[call-arg]


# ---- sentences


class Inner(Strict):
    steps: Count = 5
    sizes: Annotated[tuple[Count, ...], Field(strict=False)] = ()

    @model_validator(mode="after")
    def _together(self) -> "Inner":
        if len(self.sizes) > self.steps:
            raise PrecfmError(f"sizes: got {list(self.sizes)}; at most steps ({self.steps}) are needed")
        return self


class Outer(Strict):
    name: str
    inner: Inner = Inner()


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({}, "name: "),
        ({"name": 3}, "name: got 3; "),
        ({"name": "a", "colour": "red"}, "colour: got 'red'; "),
        ({"name": "a", "inner": {"steps": 0}}, "inner.steps: got 0; "),
        ({"name": "a", "inner": {"sizes": [1, 0]}}, "inner.sizes.1: got 0; "),
        ({"name": "a", "inner": {"steps": 1, "sizes": [1, 2]}}, "inner: sizes: got [1, 2]; "),
    ],
)
def test_the_first_mistake_is_told_by_its_place(value: dict[str, Any], expected: str) -> None:
    for make in (lambda: Outer(**value), lambda: validated(Outer, value)):
        with pytest.raises(PrecfmError) as error:
            make()
        assert str(error.value).lower().startswith(expected.lower())
    with pytest.raises(ValidationError) as raw:
        Outer.model_validate(value)
    assert sentence(raw.value).partition("; no such")[0] == str(error.value).partition("; no such")[0]


def test_a_structure_is_frozen_and_knows_its_json() -> None:
    outer = Outer(name="a", inner=Inner(steps=3, sizes=[1, 2]))  # type: ignore[arg-type]
    assert validated(Outer, json.loads(outer.model_dump_json())) == outer
    with pytest.raises(ValidationError):
        outer.name = "b"  # type: ignore[misc]
    for wrong in (math.nan, {1, 2}, object()):
        with pytest.raises(PrecfmError, match="inner"):
            validated(Outer, {"name": "a", "inner": wrong})
    with pytest.raises(PrecfmError, match=r"^2 mistakes$"):
        validated(Outer, {"colour": 1}, lambda error: f"{error.error_count()} mistakes")


def test_an_endless_value_is_cut_and_stays_on_one_line() -> None:
    for wrong in (list(range(10_000)), np.zeros((50, 50)), torch.zeros(50, 50)):
        with pytest.raises(PrecfmError, match=r"^width: got .*\.\.\.") as error:
            options_of(Layer)(width=wrong)
        assert len(str(error.value)) < 400


# ---- components


@pytest.mark.parametrize(
    "value",
    [
        "whitening",
        {"name": "precfm.preconditioners.whitening:Whitening"},
        Whitening(),
        {"name": "whitening", "rows": None},
    ],
)
def test_a_component_is_a_name_with_all_its_options(value: Any) -> None:
    spec = spec_of("preconditioners", value, Preconditioner)
    assert spec == {"name": "whitening", "exponent": 0.5, "shrinkage": "auto", "rows": None}
    made = component("preconditioners", value, Preconditioner)
    assert isinstance(made, Whitening)
    assert (made is value) == isinstance(value, Whitening)


@pytest.mark.parametrize(
    "wrong",
    [3, None, {}, {"name": 3}, "identity", {"name": "whitening", "rows": 1}, {"name": "whitening", "row": 2}],
)
def test_what_is_no_component_is_refused(wrong: Any) -> None:
    for make in (component, spec_of):
        with pytest.raises(PrecfmError, match=r"^preconditioners: .*got"):
            make("preconditioners", wrong, Preconditioner)


@pytest.mark.parametrize(
    ("value", "field"),
    [
        ({"name": "a", "inner": {"size": float("nan")}}, "inner.size: got nan"),
        ({"name": [1, float("inf")]}, "name.1: got inf"),
        ({"name": datetime.date(2026, 1, 1)}, "name: got datetime.date"),
    ],
)
def test_what_no_file_can_hold_is_told_by_its_field(value: dict[str, Any], field: str) -> None:
    with pytest.raises(PrecfmError, match=f"^{re.escape(field)}"):
        validated(Outer, value)


def test_an_unknown_option_is_told_with_what_there_is() -> None:
    for make in (
        lambda: Whitening(exponnet=0.25),
        lambda: validated(options_of(Whitening), {"exponnet": 0.25}),
    ):
        with pytest.raises(PrecfmError, match=r"exponnet.*did you mean exponent\?.*shrinkage, rows"):
            make()


def test_names_of_other_libraries_are_understood() -> None:
    for given, meant in {"lr": "learning_rate", "epochs": "steps", "batch": "batch_size"}.items():
        with pytest.raises(PrecfmError, match=f"^{given}: .*did you mean {meant}"):
            TrainingOptions(**{given: 1})
