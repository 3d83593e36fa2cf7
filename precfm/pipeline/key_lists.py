"""The keys of an experiment's plan as text, in git: `keys/<experiment>/<kind>.txt`, a line `label-key` per artifact.

DVC's stages depend on these lists and not on code. So `dvc status` sees a change of code or configuration exactly where
a key has changed, and a pull request shows which artifacts it touches.
"""

from collections.abc import Collection, Sequence
from itertools import zip_longest
from pathlib import Path

from precfm.pipeline.files import remove, write_whole
from precfm.pipeline.plan import KINDS, Plan

KEYS = Path("keys")
_SHOWN = 80  # characters of a damaged line


def key_lists(plan: Plan) -> dict[Path, str]:
    """The text of every list, by its path; empty for a kind that the plan has no artifact of."""
    return lists_of(plan.experiment, plan.nodes)


def lists_of(experiment: str, ids: Collection[str]) -> dict[Path, str]:
    """The same of artifacts, `<kind>/<label>-<key>`, such as those that a manifest lists."""
    names: dict[str, list[str]] = {kind: [] for kind in KINDS}
    for kind, _, name in sorted(each.partition("/") for each in ids):
        names[kind].append(f"{name}\n")
    return {KEYS / experiment / f"{kind}.txt": "".join(lines) for kind, lines in names.items()}


def differences(plan: Plan) -> dict[Path, str]:
    """What is wrong in the experiment's folder, in words, by file; nothing if the lists are the plan's."""
    lists = key_lists(plan)
    wrong = {file: _difference(_read(file), text) for file, text in lists.items() if _read(file) != text}
    others = sorted(path for path in (KEYS / plan.experiment).glob("*") if path not in lists)
    return wrong | dict.fromkeys(others, "is the list of no kind")


def strays(recorded: Sequence[str]) -> list[Path]:
    """What lies in keys/ and belongs to no experiment that params.yaml lists."""
    return sorted(path for path in KEYS.glob("*") if not (path.is_dir() and path.name in recorded))


def changed_keys(plan: Plan) -> dict[str, int]:
    """How many keys of each kind are other ones than those that are listed."""
    changed = {}
    for file, text in key_lists(plan).items():
        listed, wanted = set((_read(file) or "").splitlines()), set(text.splitlines())
        changed[file.stem] = max(len(wanted - listed), len(listed - wanted))
    return {kind: count for kind, count in changed.items() if count}


def write_key_lists(plan: Plan) -> list[Path]:
    """Write the lists that are not the plan's, and remove what else is in the experiment's folder.

    Returns:
        The files that were changed.
    """
    lists, changed = key_lists(plan), list(differences(plan))
    (KEYS / plan.experiment).mkdir(parents=True, exist_ok=True)
    for file in changed:
        if file in lists:
            write_whole(file, lists[file].encode())
        else:
            remove(file)
    return changed


def _read(file: Path) -> str | None:
    try:
        return file.read_bytes().decode("utf-8", errors="replace")
    except OSError:
        return None


def _difference(found: str | None, wanted: str) -> str:
    """The first line in which two texts differ."""
    if found is None:
        return "missing"
    pairs = enumerate(zip_longest(found.split("\n"), wanted.split("\n")), start=1)
    number, (line, right) = next((number, pair) for number, pair in pairs if pair[0] != pair[1])
    is_there = "missing" if line is None else repr(line[:_SHOWN])
    return f"line {number} is {is_there}, and configuration and code give {right or 'none'}"
