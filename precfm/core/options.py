"""What an option may be: declared once, in the signature of the class or function that takes it, checked by pydantic.

An option is an argument that has a default. Its annotation says what is right, with pydantic's constraints; the same
model checks a call of the class and an entry of a configuration. Where a class takes `**inherited`, the arguments of
its base class follow, so a subclass repeats nothing.
"""

import inspect
import json
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache, wraps
from math import isfinite
from textwrap import shorten
from types import UnionType
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    ParamSpec,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, create_model

from precfm.core.errors import PrecfmError

if TYPE_CHECKING:
    from pydantic._internal._model_construction import ModelMetaclass
else:
    ModelMetaclass = type(BaseModel)  # without a private import at run time

LONGEST_VALUE = 100  # characters of a wrong value that a sentence shows
LISTED = 240  # characters of the names that a sentence lists; half of it beside the one that was meant
# Names that other libraries have for an option, which no likeness of spelling finds.
SYNONYMS = {
    synonym: name
    for name, synonyms in {
        "learning_rate": "lr rate step_size",
        "batch_size": "batch bs",
        "steps": "epochs num_epochs max_epochs iterations num_iterations iters max_iter n_iter",
        "weight_decay": "wd l2",
        "ema_decay": "ema",
        "clip_norm": "grad_clip gradient_clip_val max_grad_norm",
        "schedule": "lr_scheduler scheduler",
        "width": "hidden_dim hidden_size",
        "depth": "layers num_layers n_layers",
        "rank": "n_components",
        "exponent": "power",
        "seed": "random_state",
    }.items()
    for synonym in synonyms.split()
}
LARGEST = 2**53  # up to here every whole number is a float, too, as which readers of JSON take it


@dataclass(frozen=True)
class Neutral:
    """Marks an option that came later: at this value nothing changes, so it is left out of an artifact's key.

    Attributes:
        value: the value at which the artifact is what it was before the option existed.
    """

    value: Any


@dataclass(frozen=True)
class Place:
    """Marks an option that says where a file lies whose checksum another option is: in no key and no record."""


Count = Annotated[int, Field(ge=1, le=LARGEST)]
Natural = Annotated[int, Field(ge=0, le=LARGEST)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]  # what torch takes
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]
Fraction = Annotated[float, Field(gt=0, lt=1)]


def _of_positive_numbers(shape: int | tuple[int, ...]) -> int | tuple[int, ...]:
    numbers = (shape,) if isinstance(shape, int) else shape
    if not numbers or min(numbers) < 1:
        raise ValueError(f"got {shape}; numbers of at least 1 are needed")
    return shape


Shape = Annotated[int | tuple[int, ...], AfterValidator(_of_positive_numbers)]
"""Shape of one datum; a number is the dimension of a vector."""


class _InOneSentence(ModelMetaclass):
    """Lets a call of a schema raise what a user can read; `model_validate` raises pydantic's own error."""

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:  # noqa: N805
        try:
            return super().__call__(*args, **kwargs)
        except ValidationError as error:
            fields: Collection[str] = cls.model_fields  # type: ignore[attr-defined]
            raise PrecfmError(_unknown(error, fields) or sentence(error)) from None


class Strict(BaseModel, metaclass=_InOneSentence):
    """Base of every checked structure: frozen, unknown fields and wrong types refused, in one sentence if called."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, arbitrary_types_allowed=True)


Model = TypeVar("Model", bound=BaseModel)
Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def validated(
    schema: type[Model], value: Any, in_words: Callable[[ValidationError], str] | None = None
) -> Model:
    """Plain data as an object of a schema; read as JSON, which takes a list for a tuple and is strict otherwise.

    Args:
        schema: a pydantic model.
        value: plain data.
        in_words: makes the sentence of what pydantic found; None for `sentence`.

    Raises:
        PrecfmError: something is wrong; the sentence names the field, the value and what would be right.
    """
    for field, each in _leaves(value):
        if not (each is None or isinstance(each, str | int) or (isinstance(each, float) and isfinite(each))):
            what = f"{field}: got" if field else "got"
            raise PrecfmError(
                f"{what} {shortened(each)}; text, a finite number, true, false or nothing is needed"
            )
    try:
        return schema.model_validate_json(json.dumps(value))
    except ValidationError as error:
        told = in_words(error) if in_words else _unknown(error, schema.model_fields) or sentence(error)
        raise PrecfmError(told) from None


def _leaves(value: Any, field: str = "") -> Iterator[tuple[str, Any]]:
    """What nested mappings and lists hold in the end, each with the fields that lead to it."""
    if isinstance(value, Mapping | list | tuple):
        for key, each in value.items() if isinstance(value, Mapping) else enumerate(value):
            yield from _leaves(each, f"{field}.{key}" if field else str(key))
    else:
        yield field, value


def _unknown(error: ValidationError, fields: Collection[str]) -> str | None:
    """The sentence about an option that does not exist, if that is the first mistake."""
    first = error.errors(include_url=False)[0]
    if first["type"] != "extra_forbidden" or len(first["loc"]) != 1:
        return None
    name = str(first["loc"][0])
    return (
        f"{name[:LONGEST_VALUE]}: got {shortened(first['input'])}; no such option{suggestion(name, fields)}"
    )


def suggestion(name: str, known: Collection[str]) -> str:
    """The end of a sentence about a name that is unknown: what it may have meant, and what there is.

    Example:
        >>> suggestion("exponnet", ["exponent", "rows"])
        '; did you mean exponent? There are exponent, rows'
        >>> suggestion("lr", ["learning_rate", "steps"])
        '; did you mean learning_rate? There are learning_rate, steps'
    """
    other = SYNONYMS.get(name.lower())
    close = [other] if other in known else get_close_matches(name, known, n=1)
    meant = f"; did you mean {close[0]}? There are" if close else "; there are"
    listed = shorten(", ".join(known), LISTED // 2 if close else LISTED, placeholder=" ...")
    return f"{meant} {listed}" if known else "; there are none"


def sentence(error: ValidationError) -> str:
    """The first mistake in one sentence: field, value, and what would be right.

    Example:
        >>> try:
        ...     create_model("Layer", width=(Count, ...))(width=0)
        ... except ValidationError as error:
        ...     sentence(error)
        'width: got 0; input should be greater than or equal to 1'
    """
    first = error.errors(include_url=False)[0]
    field = ".".join(str(part) for part in first["loc"])
    return f"{field}: {complaint(first)}" if field else complaint(first)


def complaint(mistake: Any) -> str:
    """What pydantic says of one mistake, as the end of a sentence: the value, and what would be right."""
    wanted = mistake["msg"].removeprefix("Value error, ")
    if mistake["type"] == "extra_forbidden":
        wanted = "no such field; remove it or correct its spelling"
    if mistake["type"] in (
        "missing",
        "value_error",
        "json_invalid",
    ):  # of nothing, with its value, of everything
        return str(wanted)
    return f"got {shortened(mistake['input'])}; {wanted[:1].lower()}{wanted[1:]}"


def shortened(value: Any) -> str:
    """A wrong value on one line, as a sentence shows it."""
    shown = repr(value)
    if len(shown) > LONGEST_VALUE or "\n" in shown:
        return f"{' '.join(shown.split())[:LONGEST_VALUE]}..."
    return shown


def parameters(target: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """The arguments of a class or function by name, annotations resolved; `**inherited` stands for the base class's."""
    if not inspect.isclass(target):
        return _own(target)
    owner = next(base for base in target.__mro__ if "__init__" in vars(base))
    if owner.__module__.partition(".")[0] in ("builtins", "torch"):
        return {}
    found = _own(vars(owner)["__init__"])
    found.pop("self", None)
    if any(argument.kind is argument.VAR_KEYWORD for argument in found.values()):
        found = {
            name: argument for name, argument in found.items() if argument.kind is not argument.VAR_KEYWORD
        }
        for base in owner.__mro__[1:]:
            if "__init__" in vars(base):
                return found | {name: each for name, each in parameters(base).items() if name not in found}
    return found


def readable(found: Mapping[str, inspect.Parameter]) -> dict[str, inspect.Parameter]:
    """Arguments with plain types, as `help` shows them: the constraints are pydantic's business."""
    return {
        name: argument.replace(annotation=_plain(argument.annotation)) for name, argument in found.items()
    }


def _plain(annotation: Any) -> Any:
    if get_origin(annotation) is Annotated:
        return _plain(get_args(annotation)[0])
    if isinstance(annotation, UnionType) or get_origin(annotation) is Union:
        return Union[tuple(_plain(each) for each in get_args(annotation))]  # noqa: UP007
    return annotation


def _own(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    plain = inspect.unwrap(function)
    hints = get_type_hints(plain, include_extras=True)
    return {
        name: argument.replace(annotation=hints.get(name, Any))
        for name, argument in inspect.signature(plain).parameters.items()
    }


def options_in(instance: object, without: Collection[str] = ()) -> dict[str, Any]:
    """The options with which an object was made, from attributes of the same names.

    Args:
        instance: of a class that stores each argument of its `__init__` in an attribute of the same name.
        without: arguments that are left out.
    """
    return {name: getattr(instance, name) for name in parameters(type(instance)) if name not in without}


@cache
def options_of(target: Callable[..., Any], without: frozenset[str] = frozenset()) -> type[Strict]:
    """The schema of the options of a class or function.

    Args:
        target: the class or function.
        without: arguments that are filled in from the data, such as `shape`, and are never configured.

    Returns:
        A pydantic model with one field per option, its default included.

    Example:
        >>> def layer(size: int, *, width: Count = 3) -> None: ...
        >>> options_of(layer)().width
        3
    """
    fields: dict[str, Any] = {
        name: (argument.annotation, argument.default)
        for name, argument in parameters(target).items()
        if argument.default is not argument.empty and name not in without
    }
    return create_model(target.__name__, __base__=Strict, **fields)


def without_neutral(target: Callable[..., Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of a class or function without those at a neutral value (`Neutral`)."""
    fields = options_of(target).model_fields
    neutral = {
        name for name in fields.keys() & options.keys() if Neutral(options[name]) in fields[name].metadata
    }
    return {name: value for name, value in options.items() if name not in neutral}


def checked(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Make a function, such as an `__init__`, refuse arguments that do not fit their annotations.

    Example:
        >>> @checked
        ... def half(width: Count) -> float:
        ...     return width / 2
        >>> half(0)
        Traceback (most recent call last):
        precfm.core.errors.PrecfmError: width: got 0; input should be greater than or equal to 1
    """
    signature = inspect.signature(function)

    @cache
    def schema() -> type[Strict]:  # at the first call: an annotation may name what is defined further below
        variable = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
        fields: dict[str, Any] = {
            name: (argument.annotation, ...)
            for name, argument in _own(function).items()
            if name != "self" and argument.kind not in variable
        }
        return create_model(function.__name__, __base__=Strict, **fields)

    @wraps(function)
    def wrapper(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        try:
            given = signature.bind(*args, **kwargs)
        except TypeError as error:
            owner = function.__qualname__.removesuffix(".__init__")
            known = [name for name in signature.parameters if name != "self"]
            unknown = next((name for name in kwargs if name not in known), "")
            raise PrecfmError(f"{owner}: {error}{suggestion(unknown, known)}") from None
        given.apply_defaults()
        model = schema()
        try:
            model.model_validate({name: given.arguments[name] for name in model.model_fields})
        except ValidationError as error:
            raise PrecfmError(sentence(error)) from None
        return function(*args, **kwargs)

    with suppress(NameError):  # an annotation names what is defined further below
        shown = readable(_own(function))
        wrapper.__signature__ = signature.replace(parameters=list(shown.values()))  # type: ignore[attr-defined]
    return wrapper
