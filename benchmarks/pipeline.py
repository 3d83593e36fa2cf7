"""How long the pipeline takes and how much memory it needs, measured in a fresh clone.

    .venv/bin/python benchmarks/pipeline.py [EXPERIMENT] [--installed]

`--installed` uses this checkout's environment instead of installing one in the clone. Writes a Markdown table to
standard output; the committed numbers stand in benchmarks/README.md.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil
import yaml

ROOT = Path(__file__).parent.parent
SAMPLE_EVERY_SECONDS = 0.5


def measured(folder: Path, *command: str) -> tuple[float, float]:
    """Wall seconds of a command, and the peak of what it and all its descendants hold in memory, in GB.

    Shared pages are counted once (proportional set size), because every job maps the same libraries.
    """
    started = time.monotonic()
    process = subprocess.Popen(command, cwd=folder, env={**os.environ, "PYTHONPATH": str(folder)})
    peak = 0.0
    finished = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not finished.wait(SAMPLE_EVERY_SECONDS):
            total = 0
            for member in [
                psutil.Process(process.pid),
                *psutil.Process(process.pid).children(recursive=True),
            ]:
                try:
                    total += member.memory_full_info().pss
                except (psutil.NoSuchProcess, psutil.AccessDenied):
                    continue
            peak = max(peak, total / 1e9)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    if process.wait():
        sys.exit(f"{' '.join(command)} failed")
    seconds = time.monotonic() - started
    finished.set()
    return seconds, peak


def main() -> None:
    """Clone, run, run again, change one parameter, run, and print what each took."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("experiment", nargs="?", default="quick")
    parser.add_argument("--installed", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        clone = Path(temporary) / "precfm"
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
        rows = []
        if not arguments.installed:
            rows.append(("install", *measured(clone, "make", "install")))
        python = sys.executable if arguments.installed else str(clone / ".venv/bin/python")
        reproduce = (python, "workflow_scripts/reproduce.py", arguments.experiment)
        rows.append((f"{arguments.experiment}, everything", *measured(clone, *reproduce)))
        rows.append((f"{arguments.experiment}, again: nothing to do", *measured(clone, *reproduce)))
        config = clone / "config/changed.yaml"
        changed = {
            "description": "One parameter of one method changed.",
            "extends": arguments.experiment,
            "methods": {"whitening": {"preconditioner": {"exponent": 0.4}}},
        }
        config.write_text(yaml.safe_dump(changed))
        one = (python, "workflow_scripts/reproduce.py", "changed")
        rows.append(("one parameter of one method changed", *measured(clone, *one)))
    print("\n| what | seconds | peak memory (GB) |\n| --- | ---: | ---: |")
    for what, seconds, peak in rows:
        print(f"| {what} | {seconds:.1f} | {peak:.2f} |")


if __name__ == "__main__":
    main()
