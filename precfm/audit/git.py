"""Git, asked for what it holds; nothing is changed."""

import subprocess
from pathlib import Path


def asked(*arguments: str) -> bytes | None:
    """What a git command prints; None if it fails, as where git is not installed or nothing is a repository."""
    try:
        return subprocess.run(["git", *arguments], capture_output=True, check=True).stdout
    except (OSError, ValueError, subprocess.CalledProcessError):  # no argument can hold a zero byte
        return None


def committed(file: Path, revision: str = "HEAD") -> bytes | None:
    """What a commit holds of a file, by its path below the present folder; None if it holds none."""
    return asked("cat-file", "blob", f"{revision}:./{file.as_posix()}")
