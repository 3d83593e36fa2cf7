"""The attic: artifacts that no plan wants at present; they come back when a plan wants them again."""

import itertools
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from filelock import FileLock, Timeout

from precfm.pipeline.build import adopt
from precfm.pipeline.files import remove
from precfm.pipeline.locks import lock
from precfm.pipeline.node import RECORD, RESULTS, Node
from precfm.pipeline.plan import KINDS, Plan


def tidy(plan: Plan) -> tuple[list[str], list[str]]:
    """Bring an experiment's folder in line with its plan, without making anything.

    Args:
        plan: what the experiment wants.

    Returns:
        Ids of the artifacts that went to the attic, and of those that came back or were copied from elsewhere.
    """
    home = RESULTS / plan.experiment
    left = []
    for kind in KINDS:
        (home / kind).mkdir(parents=True, exist_ok=True)
        for folder in sorted((home / kind).iterdir()):
            if f"{kind}/{folder.name}" not in plan.nodes and to_attic(folder, kind):
                left.append(f"{kind}/{folder.name}")
    returned = [node.id for node in plan.nodes.values() if not node.exists and _adopt_unless_busy(node)]
    return left, returned


def _adopt_unless_busy(node: Node) -> bool:
    """Adopt, unless a job that outlived its run is about to finish this very artifact."""
    with suppress(Timeout), lock(node, timeout=0):
        return not node.exists and adopt(node)
    return False


def to_attic(folder: Path, kind: str) -> bool:
    """Move one artifact out of DVC's sight; it comes back when a plan wants it again.

    What is no complete artifact is removed instead, so that it never replaces one. Another artifact of the same name
    that the attic holds is kept there as `<label>.<number>-<key>`.

    Returns:
        Whether it was moved.
    """
    if not (folder / RECORD).is_file():
        remove(folder)
        return False
    target = RESULTS / ".attic" / kind / folder.name
    target.parent.mkdir(parents=True, exist_ok=True)
    older = target / RECORD
    if older.is_file() and older.read_bytes() != (folder / RECORD).read_bytes():
        label, _, key = folder.name.rpartition("-")
        names = (f"{label}.{number}-{key}" for number in itertools.count(1))
        target.rename(next(path for name in names if not (path := target.with_name(name)).exists()))
    remove(target)
    folder.rename(target)
    return True


def collect_garbage(plans: Iterable[Plan]) -> int:
    """Empty the attic and remove the remains of jobs that no plan will go on with; running jobs are left alone.

    Returns:
        The number of bytes freed.

    Raises:
        OSError: a file cannot be removed.
    """
    nodes = [node for plan in plans for node in plan.nodes.values()]
    unfinished = {f"{node.kind}-{node.key}" for node in nodes if not node.exists}
    work = RESULTS / ".work"
    if not RESULTS.is_dir():
        return 0
    (work / "locks").mkdir(parents=True, exist_ok=True)
    freed = _freed(RESULTS / ".attic")
    remains = [
        *sorted(work.glob("parts/*")),
        *(folder for folder in sorted(work.glob("scratch/*")) if folder.name not in unfinished),
    ]
    for folder in remains:
        job = folder.name.split(".")[0]  # a part-folder's name goes on with the machine and the process
        with suppress(Timeout), FileLock(work / "locks" / f"{job}.lock", timeout=0):
            freed += _freed(folder)
    return freed


def _freed(folder: Path) -> int:
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    remove(folder)
    return size
