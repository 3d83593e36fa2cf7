"""DVC's ledger, dvc.lock: what it says of the outputs of each stage. DVC itself judges the rest of its form."""

from pathlib import Path
from typing import Any

from precfm.core.errors import PrecfmError
from precfm.pipeline.experiments import read_yaml

LEDGER = Path("dvc.lock")
Outs = dict[str, dict[str, str]]  # by stage and path, the checksum that DVC recorded


def read_ledger() -> Outs:
    """The outputs of every stage; none where there is no ledger.

    Raises:
        PrecfmError: it is cut, or not as DVC writes it.
    """
    try:
        return outs_of(read_yaml(LEDGER)) if LEDGER.is_file() else {}
    except PrecfmError as error:
        raise PrecfmError(f"{error}; `git checkout -- {LEDGER}` brings back what was committed") from None


def outs_of(content: Any) -> Outs:
    """The outputs of every stage in what a ledger holds.

    Raises:
        PrecfmError: it is not as DVC writes it.
    """
    try:
        stages = content["stages"].items()
        return {str(stage): {out["path"]: out["md5"] for out in fields["outs"]} for stage, fields in stages}
    except (TypeError, KeyError, AttributeError):
        raise PrecfmError(f"{LEDGER}: damaged, not as DVC writes it") from None
