"""Front doors: what a package offers is listed in its `__init__.pyi` and imported when it is first asked for.

The list is a stub file, so that editors and type checkers read it, too. Inside precfm everything is imported from the
module that defines it, never from here: the fingerprints of artifacts follow those imports.
"""

import ast
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any


def front_door(package: str, file: str) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """`__getattr__`, `__dir__` and `__all__` of a package.

    Args:
        package: its name, `__name__`.
        file: its `__init__.py`, `__file__`; the stub lies beside it.
    """
    stub = ast.parse(Path(file).with_suffix(".pyi").read_text(encoding="utf-8"))
    defined_in = {
        alias.name: str(node.module)
        for node in stub.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }

    def attribute(name: str) -> Any:
        if name not in defined_in:
            raise AttributeError(f"{package} has no '{name}'; it offers {', '.join(sorted(defined_in))}")
        module = defined_in[name]
        value = (
            import_module(f"{package}.{name}") if module == package else getattr(import_module(module), name)
        )
        setattr(sys.modules[package], name, value)
        return value

    return attribute, lambda: sorted(defined_in), sorted(defined_in)
