"""Which files count as images, and which class each of them belongs to, judged by their names alone."""

from collections.abc import Iterable
from pathlib import Path, PurePosixPath

IMAGE_SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})


def is_image_name(name: str) -> bool:
    """Whether a path is that of an image: it has an image's suffix and no part of it is hidden.

    Example:
        >>> is_image_name("daisy/1.JPG"), is_image_name("daisy/.1.jpg"), is_image_name("LICENSE.txt")
        (True, False, False)
    """
    path = PurePosixPath(name)
    hidden = any(part.startswith(".") or part == "__MACOSX" for part in path.parts)
    return path.suffix.lower() in IMAGE_SUFFIXES and not hidden


def image_names(names: Iterable[str]) -> list[str]:
    """Those names that are images', sorted."""
    return sorted(name for name in names if is_image_name(name))


def names_below(folder: Path) -> list[str]:
    """The paths of all files below a folder, relative to it, with forward slashes."""
    return [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]


def class_name(name: str) -> str:
    """The name of the folder that an image lies in; empty if it lies in none.

    Example:
        >>> class_name("train/daisy/1.jpg"), class_name("1.jpg")
        ('daisy', '')
    """
    return PurePosixPath(name).parent.name
