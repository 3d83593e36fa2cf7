"""The options of a registered class, read from its source: one place holds each default, and torch stays asleep.

An option is an argument of `__init__` that has a default (for a dataclass: a field). Annotations are built from
plain types, so a schema for configurations can be made without importing the class. A `Bound` in an annotation says
which values are right; the plan and, through `checked`, the class refuse others in the same sentence.
"""

import ast
import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from functools import cache, wraps
from typing import Annotated, Any, Literal, ParamSpec, TypeVar, get_origin

from pydantic import BaseModel, ConfigDict, create_model

from precfm.errors import PrecfmError
from precfm.fingerprint import module_file


@dataclass(frozen=True)
class Neutral:
    """Marks an option that came later: at this value nothing changes, so it is left out of an artifact's key.

    Attributes:
        value: the value at which the artifact is what it was before the option existed.
    """

    value: Any


@dataclass(frozen=True)
class Bound:
    """Marks an option of which not every value of its type is right.

    Attributes:
        is_right: judges a value, given all arguments by name; it uses nothing but these two, so that it can be read
            from the source of a class. A value that it cannot compare is wrong.
        words: what would be right, as in "at least 1"; `{name}` stands for another argument.
    """

    is_right: Callable[[Any, Mapping[str, Any]], bool]
    words: str

    def holds(self, value: Any, arguments: Mapping[str, Any]) -> bool:
        """Whether a value is right beside the other arguments."""
        try:
            return self.is_right(value, arguments)
        except (TypeError, AttributeError):
            return False


Count = Annotated[int, Bound(lambda n, _: n >= 1, "at least 1")]
Natural = Annotated[int, Bound(lambda n, _: n >= 0, "0 or more")]
TimeFeatures = Annotated[int, Bound(lambda n, _: n >= 2 and n % 2 == 0, "an even number of at least 2")]
NotNegative = Annotated[float, Bound(lambda x, _: 0 <= x < math.inf, "a finite number of at least 0")]
Positive = Annotated[float, Bound(lambda x, _: 0 < x < math.inf, "a positive, finite number")]
Share = Annotated[float, Bound(lambda x, _: 0 <= x <= 1, "a number from 0 to 1")]
Fraction = Annotated[float, Bound(lambda x, _: 0 < x < 1, "a number between 0 and 1")]
Patience = Annotated[
    int,
    Bound(
        lambda n, others: n == 0 or (n > 0 and others["validate_every"] > 0),
        "0, or a positive number together with validate_every,",
    ),
]
Components = Annotated[
    tuple[dict[str, Any], ...],
    Bound(lambda stages, _: len(stages) > 0, "at least one preconditioner"),
    Bound(
        lambda stages, _: "auto" not in [stage.get("name") for stage in stages],
        "a list without 'auto', which chooses by itself,",
    ),
]


def refuse(marks: Mapping[str, Iterable[Any]], arguments: Mapping[str, Any]) -> None:
    """Refuse arguments that break a bound.

    Args:
        marks: for each option what stands beside the type in its annotation.
        arguments: all arguments by name.

    Raises:
        PrecfmError: a bound is broken; the sentence names the first such option, its value and what would be right.
    """
    for name, beside in marks.items():
        for bound in beside:
            if isinstance(bound, Bound) and not bound.holds(arguments[name], arguments):
                wanted = bound.words.format(**arguments)
                raise PrecfmError(f"{name}: got {arguments[name]!r}, but {wanted} is needed")


Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def checked(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Make a function, such as an `__init__`, refuse arguments that break a bound in its annotations.

    Example:
        >>> @checked
        ... def half(width: Count) -> float:
        ...     return width / 2
        >>> half(0)
        Traceback (most recent call last):
        precfm.errors.PrecfmError: width: got 0, but at least 1 is needed
    """
    signature = inspect.signature(function)
    marks = {
        name: getattr(parameter.annotation, "__metadata__", ())
        for name, parameter in signature.parameters.items()
    }
    assert any(marks.values()), f"{function.__qualname__}: no annotation holds a bound that could be checked"

    @wraps(function)
    def judged(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        given = signature.bind(*args, **kwargs)
        given.apply_defaults()
        refuse(marks, given.arguments)
        return function(*args, **kwargs)

    return judged


class Strict(BaseModel):
    """Base of every part of a configuration: frozen, unknown keys and wrong types refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


# What an annotation may be built from: plain types, and the bounded ones above.
_TYPES: dict[str, Any] = {
    kind.__name__: kind for kind in (Bound, Neutral, bool, dict, float, int, list, str, tuple)
} | {"Annotated": Annotated, "Any": Any, "Literal": Literal}
_TYPES |= {name: kind for name, kind in globals().items() if get_origin(kind) is Annotated}


@cache
def options_of(target: str, without: frozenset[str] = frozenset()) -> type[Strict]:
    """The schema of a class's or function's options.

    Args:
        target: import string `module:name`, inside precfm.
        without: arguments that the pipeline fills in itself, such as the number of classes.

    Returns:
        A pydantic model with one field per option, its default included.

    Raises:
        PrecfmError: there is no such class or function, or a default is no literal.
    """
    module, name = target.split(":")
    tree = ast.parse(module_file(module).read_text(encoding="utf-8"))
    definition = next((node for node in tree.body if getattr(node, "name", None) == name), None)
    if isinstance(definition, ast.ClassDef):
        options = _dataclass_options(definition) if _is_dataclass(definition) else _init_options(definition)
    elif isinstance(definition, ast.FunctionDef):
        options = _argument_options(definition)
    else:
        raise PrecfmError(f"registry: '{target}' names no class or function")
    fields: dict[str, Any] = {}
    for option, annotation, default in options:
        if option in without:
            continue
        try:
            kind = eval(compile(ast.Expression(annotation), target, "eval"), dict(_TYPES))  # our own source
            fields[option] = (kind, ast.literal_eval(default))
        except (NameError, ValueError) as error:
            raise PrecfmError(
                f"{target}: option '{option}' needs a plain type and a literal default ({error})"
            ) from None
    return create_model(name, __base__=Strict, **fields)


def check_ranges(target: str, options: Strict) -> Any:
    """Let a dataclass judge values by its own `__post_init__`, without importing its module.

    Args:
        target: import string `module:class`, inside precfm; the class may use what `_dataclass_of` lends it.
        options: made by the schema of `options_of(target)`.

    Returns:
        The same values as an instance of the class.

    Raises:
        PrecfmError: the class refuses a value.
    """
    return _dataclass_of(target)(**{name: getattr(options, name) for name in type(options).model_fields})


@cache
def _dataclass_of(target: str) -> Any:
    """A dataclass made from its source alone: the module around it, which may need torch, is not run."""
    module, name = target.split(":")
    tree = ast.parse(module_file(module).read_text(encoding="utf-8"))
    tree.body = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name]
    lent = {"__name__": __name__, "dataclass": dataclass, "fields": fields, "math": math}
    namespace: dict[str, Any] = {**lent, "Literal": Literal, "PrecfmError": PrecfmError}
    exec(compile(tree, target, "exec"), namespace)  # our own source
    return namespace[name]


_Option = tuple[str, ast.expr, ast.expr]


@cache
def class_constant(target: str, name: str, otherwise: Any) -> Any:
    """The literal value of a class attribute, read from the source of the class.

    Args:
        target: import string `module:class`, inside precfm.
        name: the attribute.
        otherwise: the value where the class does not set it.
    """
    module, class_name = target.split(":")
    for definition in ast.parse(module_file(module).read_text(encoding="utf-8")).body:
        if isinstance(definition, ast.ClassDef) and definition.name == class_name:
            for node in definition.body:
                targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
                if any(isinstance(item, ast.Name) and item.id == name for item in targets):
                    return ast.literal_eval(node.value)  # type: ignore[attr-defined]
    return otherwise


def _is_dataclass(definition: ast.ClassDef) -> bool:
    return any("dataclass" in ast.unparse(decorator) for decorator in definition.decorator_list)


def _dataclass_options(definition: ast.ClassDef) -> list[_Option]:
    return [
        (node.target.id, node.annotation, node.value)
        for node in definition.body
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value is not None
    ]


def _init_options(definition: ast.ClassDef) -> list[_Option]:
    for node in definition.body:
        if isinstance(node, ast.FunctionDef) and node.name == "__init__":
            return _argument_options(node)
    return []


def _argument_options(function: ast.FunctionDef) -> list[_Option]:
    arguments = function.args
    positional = arguments.args[len(arguments.args) - len(arguments.defaults) :]
    pairs = [
        *zip(positional, arguments.defaults, strict=True),
        *zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True),
    ]
    return [
        (argument.arg, argument.annotation, default)
        for argument, default in pairs
        if default is not None and argument.annotation is not None
    ]
