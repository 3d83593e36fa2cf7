"""Locks: one job for an artifact, one run for an experiment, one writer for the ledger."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock

from precfm.pipeline.node import RESULTS, Node

LOCKS = RESULTS / ".work" / "locks"


def lock(node: Node, timeout: float = -1) -> FileLock:
    """The lock that whoever makes or moves an artifact holds; -1 waits for it as long as it takes."""
    LOCKS.mkdir(parents=True, exist_ok=True)
    return FileLock(_of_artifact(node), timeout=timeout)


def is_being_made(node: Node) -> bool:
    """Whether a job, on whatever machine locks reach, makes or moves an artifact; one that was killed does not."""
    return _is_held(_of_artifact(node))


def is_being_run(what: str) -> bool:
    """Whether a run works on an experiment (`alone`)."""
    return _is_held(_of_run(what))


def _of_artifact(node: Node) -> Path:
    return LOCKS / f"{node.kind}-{node.key}.lock"


def _of_run(what: str) -> Path:
    return LOCKS / f"run-{what}.lock"


def _is_held(file: Path) -> bool:
    """Whether somebody holds a lock; nothing is written, and it is shared for the moment that it takes to ask."""
    import fcntl

    try:
        descriptor = os.open(file, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


@contextmanager
def alone(what: str) -> Iterator[int]:
    """Let one run at a time work on an experiment, or on the ledger; a second one waits.

    Whoever needs both takes the experiment first.

    Yields:
        The lock's file descriptor. Whoever inherits it holds the lock too, so that Snakemake keeps others away
        even where the process that started it was killed.
    """
    import fcntl

    LOCKS.mkdir(parents=True, exist_ok=True)
    held = os.open(_of_run(what), os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"{what}: another run is at work; waiting for it", flush=True)
            fcntl.flock(held, fcntl.LOCK_EX)
        yield held
    finally:
        os.close(held)
