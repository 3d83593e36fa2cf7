"""DVC's ledger, dvc.lock: what it says of the files of each stage. DVC itself judges the rest of its form."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from precfm.core.errors import PrecfmError
from precfm.pipeline.experiments import PARAMS, check_name, read_recorded, read_yaml
from precfm.pipeline.files import remove, write_whole
from precfm.pipeline.key_lists import KEYS
from precfm.pipeline.locks import alone
from precfm.pipeline.plan import load_plan

LEDGER = Path("dvc.lock")
HEADER = "# What the ledger holds; `make reproduce EXPERIMENT=x` adds x when it is first recorded.\n"
Outs = dict[str, dict[str, str]]  # by stage and path, the checksum that DVC recorded


def read_ledger() -> Outs:
    """The outputs of every stage; none where there is no ledger.

    Raises:
        PrecfmError: it is cut, or not as DVC writes it.
    """
    return _read("outs")


def read_dependencies() -> Outs:
    """The dependencies of every stage, in the same form.

    Raises:
        PrecfmError: the ledger is cut, or not as DVC writes it.
    """
    return _read("deps")


def _read(field: str) -> Outs:
    try:
        return files_of(read_yaml(LEDGER), field) if LEDGER.is_file() else {}
    except PrecfmError as error:
        raise PrecfmError(f"{error}; `git checkout -- {LEDGER}` brings back what was committed") from None


def files_of(content: Any, field: str = "outs") -> Outs:
    """The outputs, or the dependencies (`deps`), of every stage in what a ledger holds.

    Raises:
        PrecfmError: it is not as DVC writes it.
    """
    try:
        stages = content["stages"].items()
        files = {
            str(stage): fields["outs"] if field == "outs" else fields.get(field, ())
            for stage, fields in stages
        }
        return {stage: {file["path"]: file["md5"] for file in listed} for stage, listed in files.items()}
    except (TypeError, KeyError, AttributeError):
        raise PrecfmError(f"{LEDGER}: damaged, not as DVC writes it") from None


def write_recorded(listed: Mapping[str, list[str]]) -> None:
    """Replace params.yaml: the `experiments` and the `sources` that the ledger holds."""
    write_whole(PARAMS, (HEADER + yaml.safe_dump(dict(listed), default_flow_style=None)).encode())


def forget(experiment: str) -> list[str]:
    """Take an experiment out of the ledger: its stages, its keys, and the sources that no other one uses.

    Its configuration, what was made of it, and what is published stay.

    Returns:
        The stages that were removed.

    Raises:
        PrecfmError: it was never recorded, the ledger is damaged, or another experiment that is recorded has no plan
            which would say what sources it uses.
    """
    check_name(experiment)
    with alone(experiment), alone("ledger"):
        listed, stages = read_recorded(), read_ledger()
        gone = {stage for stage in stages if stage.partition("@")[2] == experiment}
        if experiment not in listed["experiments"] and not gone:
            known = ", ".join(listed["experiments"]) or "none"
            raise PrecfmError(f"{PARAMS}: '{experiment}' was never recorded (recorded: {known})")
        others = [name for name in listed["experiments"] if name != experiment]
        used = {source for name in others for source in load_plan(name).sources.values()}
        sources = [name for name in listed["sources"] if name in used]
        gone |= {f"raw@{name}" for name in listed["sources"] if name not in used} & stages.keys()
        content = read_yaml(LEDGER) if gone else {}
        if left := {
            stage: fields for stage, fields in content.get("stages", {}).items() if stage not in gone
        }:
            text = yaml.safe_dump({**content, "stages": left}, sort_keys=False, allow_unicode=True)
            write_whole(LEDGER, text.encode())
        elif gone:  # DVC makes a new one
            remove(LEDGER)
        write_recorded({"experiments": others, "sources": sources})
        remove(KEYS / experiment)
    return sorted(gone)
