"""Files that are replaced or removed as a whole."""

import shutil
from pathlib import Path


def remove(path: Path) -> None:
    """Remove a folder, a file, a link, or nothing."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_whole(file: Path, content: bytes) -> None:
    """Replace a file by one rename: a reader, or a run after a kill, finds the old content or the new."""
    part = file.with_name(f".{file.name}.part")
    part.write_bytes(content)
    part.replace(file)
