"""Docstrings as mkdocstrings' parser knows them: the section is called Examples there, Example here."""

from typing import Any

from griffe import Extension, Object


class Examples(Extension):
    """Renames the section, without which doctests would be read as prose."""

    def on_object(self, *, obj: Object, **kwargs: Any) -> None:
        """Called for each object once it and its members are known."""
        if obj.docstring:
            obj.docstring.value = obj.docstring.value.replace("Example:\n", "Examples:\n")
