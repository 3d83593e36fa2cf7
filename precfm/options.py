"""The options of a registered class, read from its source: one place holds each default, and torch stays asleep.

An option is an argument of `__init__` that has a default (for a dataclass: a field). Annotations are built from
plain types, so a schema for configurations can be made without importing the class.
"""

import ast
import math
from dataclasses import dataclass, fields
from functools import cache
from typing import Annotated, Any, Literal

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


class Strict(BaseModel):
    """Base of every part of a configuration: frozen, unknown keys and wrong types refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


_TYPES: dict[str, Any] = {
    kind.__name__: kind for kind in (Neutral, bool, dict, float, int, list, str, tuple)
} | {"Annotated": Annotated, "Any": Any, "Literal": Literal}


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
