"""Where Snakemake hands a job to a script of workflow_scripts/."""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from precfm.core.errors import PrecfmError
from precfm.pipeline.build import build
from precfm.pipeline.job import Make
from precfm.pipeline.node import Node


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


def run_rule(make: Make, snakemake: Any) -> None:
    """Entry point of a script under Snakemake: build the node that the rule asks for.

    A user's mistake is one line on standard error, and kept beside the log for the end of the run.
    """
    node = Node.from_json(snakemake.params.node)
    if (torch := sys.modules.get("torch")) is not None:
        torch.set_num_threads(snakemake.threads)
    log = Path(snakemake.log[0])
    complaint = log.with_suffix(".error")
    try:
        complaint.unlink(missing_ok=True)
        with messages_to(log):
            build(node, make)
    except (PrecfmError, OSError) as error:
        sentence = f"precfm: {node.id}: {error}"
        with suppress(OSError):
            complaint.write_text(sentence + "\n", encoding="utf-8")
        sys.exit(sentence)
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
