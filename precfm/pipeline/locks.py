"""Locks: one job for an artifact, one run for an experiment, one writer for the ledger."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from filelock import FileLock

from precfm.pipeline.node import RESULTS, Node


def lock(node: Node, timeout: float = -1) -> FileLock:
    """The lock that whoever makes or moves an artifact holds; -1 waits for it as long as it takes."""
    folder = RESULTS / ".work" / "locks"
    folder.mkdir(parents=True, exist_ok=True)
    return FileLock(folder / f"{node.kind}-{node.key}.lock", timeout=timeout)


@contextmanager
def alone(what: str) -> Iterator[int]:
    """Let one run at a time work on an experiment, or on the ledger; a second one waits.

    Whoever needs both takes the experiment first.

    Yields:
        The lock's file descriptor. Whoever inherits it holds the lock too, so that Snakemake keeps others away
        even where the process that started it was killed.
    """
    import fcntl

    folder = RESULTS / ".work" / "locks"
    folder.mkdir(parents=True, exist_ok=True)
    held = os.open(folder / f"run-{what}.lock", os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"{what}: another run is at work; waiting for it", flush=True)
            fcntl.flock(held, fcntl.LOCK_EX)
        yield held
    finally:
        os.close(held)
