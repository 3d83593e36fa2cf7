"""The hash of a Python file's syntax tree, the same under every version of Python.

It walks the fields of the tree and skips empty ones, because `ast.dump` and `ast.unparse` differ between versions; the
same source has the same hash under Python 3.11, 3.12 and 3.13.
"""

import ast
import hashlib
from collections.abc import Callable, Iterator
from functools import wraps
from pathlib import Path
from typing import TypeVar

Value = TypeVar("Value")


def once_per_state(function: Callable[[Path], Value]) -> Callable[[Path], Value]:
    """Remember what a function says of a file as long as the file is not written again."""
    known: dict[Path, tuple[tuple[int, int], Value]] = {}

    @wraps(function)
    def remembered(file: Path) -> Value:
        stat = file.stat()
        state = (stat.st_mtime_ns, stat.st_size)
        if file not in known or known[file][0] != state:
            known[file] = (state, function(file))
        return known[file][1]

    return remembered


@once_per_state
def syntax_hash(file: Path) -> str:
    """The hash of one file's syntax tree, without docstrings, comments and formatting."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    digest = hashlib.sha256()
    for token in _tokens(tree):
        digest.update(token.encode())
        digest.update(b"\0")
    return digest.hexdigest()


def _tokens(node: object) -> Iterator[str]:
    """A tree as a sequence of words; empty fields leave no trace, since new Pythons add such fields."""
    if isinstance(node, ast.AST):
        yield f"({type(node).__name__}"
        for name, value in _fields(node):
            if value is None or value == []:
                continue
            yield f".{name}"
            yield from _tokens(value)
        yield ")"
    elif isinstance(node, list):
        yield "["
        for item in node:
            yield from _tokens(item)
        yield "]"
    else:
        yield f"{type(node).__name__}={node!r}"


def _fields(node: ast.AST) -> Iterator[tuple[str, object]]:
    documented = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
    for name, value in ast.iter_fields(node):
        if isinstance(node, ast.Constant) and name == "kind":  # u"x" is "x"
            continue
        if isinstance(node, ast.JoinedStr) and isinstance(
            value, list
        ):  # Python 3.12 leaves empty strings there
            yield name, [part for part in value if not (isinstance(part, ast.Constant) and part.value == "")]
        elif documented and name == "body" and ast.get_docstring(node, clean=False) is not None:  # type: ignore[arg-type]
            yield name, value[1:]
        else:
            yield name, value
