"""Where Snakemake hands jobs over: each makes the artifacts that it is asked for, parents before children."""

import os
import signal
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from precfm.core.errors import PrecfmError
from precfm.pipeline.build import build, build_side_by_side
from precfm.pipeline.job import script_of
from precfm.pipeline.node import WITHOUT_TORCH, Node


@contextmanager
def messages_to(log: Path) -> Iterator[None]:
    """Send standard output and error of a job to its log file."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a", encoding="utf-8") as file:
        kept = [(descriptor, os.dup(descriptor)) for descriptor in (1, 2)]
        try:
            for descriptor, _ in kept:
                os.dup2(file.fileno(), descriptor)
            yield
        finally:
            for stream in (sys.stdout, sys.stderr):
                with suppress(OSError):  # a full disk must not hide what went wrong
                    stream.flush()
            for descriptor, copy in kept:
                os.dup2(copy, descriptor)
                os.close(copy)


def run_job(snakemake: Any) -> None:
    """Make the artifacts of a job, each by its kind's script; those that exist are kept.

    Where one fails, the others are made all the same. What went wrong is one line each on standard error, and kept
    beside the log for the end of the run; what is no user's mistake leaves its traceback in the log.
    """
    nodes = [Node.from_json(node) for node in snakemake.params.nodes]
    log = Path(snakemake.log[0])
    complaints = log.with_suffix(".error")
    said: list[str] = []
    try:
        complaints.unlink(missing_ok=True)
        with messages_to(log):
            if any(node.kind not in WITHOUT_TORCH for node in nodes):
                _set_threads(snakemake.threads)
            build_side_by_side([node for node in nodes if node.batch])
            for node in nodes:
                try:
                    build(node, script_of(node))
                except PrecfmError as error:
                    said.append(f"precfm: {node.id}: {error}")
                except Exception as error:
                    traceback.print_exc()
                    said.append(
                        f"precfm: {node.id}: {type(error).__name__}: {' '.join(str(error).split())}; see {log}"
                    )
    except OSError as error:  # of the log itself
        said.append(f"precfm: {log}: {error.strerror or error}")
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    if said:
        with suppress(OSError):
            complaints.write_text("\n".join(said) + "\n", encoding="utf-8")
        sys.exit("\n".join(said))


def _set_threads(threads: int) -> None:
    import torch

    torch.set_num_threads(threads)
    torch.backends.cudnn.allow_tf32 = False  # sampling and judging are in full precision, as training is
