"""What `precfm why` is asked for: a file, and a row, a column or a claim in it."""

import csv
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from precfm.core.errors import PrecfmError
from precfm.core.options import shortened
from precfm.pipeline.node import RESULTS


@dataclass(frozen=True)
class Cell:
    """One row of a table, and one column of it; or one claim.

    Attributes:
        name: `row 3`, counted from 1 without the header, or `claim C2`.
        column: the column's name; empty for the row as a whole.
        value: what stands there.
        about: the whole row.
    """

    name: str
    column: str
    value: str
    about: Mapping[str, str]


def parsed_target(target: str) -> tuple[Path, Cell | None]:
    """A file, and the row and column, or the claim, that stand behind the colon."""
    if Path(target).is_file():
        return Path(target), None
    name, colon, cell = target.rpartition(":")
    file = Path(name)
    if not colon or not file.is_file():
        raise PrecfmError(
            f"{shortened(target)}: no such file; a product or artifact file below {RESULTS}/ is needed"
        )
    if file.name == "claims.json":
        return file, _claim(file, cell)
    match = re.fullmatch(r"(\d+)(?:,(.+))?", cell)
    if match is None or file.suffix != ".csv":
        raise PrecfmError(
            f"{file}: {cell!r} is no cell of a table in CSV; ROW or ROW,COLUMN is needed, as in 3,value"
        )
    with file.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    number, column = int(match[1]), match[2] or ""
    if not 1 <= number <= len(rows):
        raise PrecfmError(f"{file}: row {number}: it has rows 1 to {len(rows)}, the header not counted")
    about = rows[number - 1]
    if column and column not in about:
        raise PrecfmError(f"{file}: column {column!r}: it has {', '.join(about)}")
    return file, Cell(f"row {number}", column, about.get(column, ""), about)


def _claim(file: Path, claim: str) -> Cell:
    try:
        found = {each["claim"]: each["verdict"] for each in json.loads(file.read_bytes())["claims"]}
    except (ValueError, KeyError, TypeError, RecursionError):
        raise PrecfmError(f"{file}: damaged; `precfm audit` says more") from None
    if claim not in found:
        raise PrecfmError(f"{file}: {claim!r} is no claim in it; it has {', '.join(found)}")
    return Cell(f"claim {claim}", "verdict", found[claim], {"claim": claim})
