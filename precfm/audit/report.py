"""What an audit has to say: findings, notes, and the report of them."""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

_SHOWN = 3  # names in one sentence; --json lists all


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong, or that deserves to be known.

    Attributes:
        level: an error makes the audit fail, a warning does not.
        check: which promise is broken, such as `payload` or `plan`.
        file: where.
        problem: what is wrong there.
        remedy: what to do about it.
        names: the artifacts or files that are meant, where it is about several.
    """

    level: Literal["error", "warning"]
    check: str
    file: str
    problem: str
    remedy: str
    names: tuple[str, ...] = ()

    def __str__(self) -> str:
        shown = ", ".join(self.names[:_SHOWN]) + (", ..." if len(self.names) > _SHOWN else "")
        return f"{self.file}: {self.problem}{f': {shown}' if shown else ''}; {self.remedy}"


@dataclass
class Report:
    """What an audit found.

    Attributes:
        experiments: what was looked at.
        findings: errors and warnings.
        notes: what is worth knowing and no finding, such as what could not be checked.
        absent: for each experiment and kind, how many artifacts of the plan are not on this machine.
        files: the number of files that were read.
        size: of these files, in bytes.
    """

    experiments: list[str] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    absent: dict[str, dict[str, int]] = field(default_factory=dict)
    files: int = 0
    size: int = 0

    @property
    def errors(self) -> list[Finding]:
        """The findings that make the audit fail."""
        return [finding for finding in self.findings if finding.level == "error"]

    def error(
        self, check: str, file: Path | str, problem: str, remedy: str, names: Iterable[str] = ()
    ) -> None:
        """Add a finding that makes the audit fail."""
        self.findings.append(Finding("error", check, str(file), problem, remedy, tuple(names)))

    def warn(
        self, check: str, file: Path | str, problem: str, remedy: str, names: Iterable[str] = ()
    ) -> None:
        """Add a finding that is worth knowing."""
        self.findings.append(Finding("warning", check, str(file), problem, remedy, tuple(names)))

    def read(self, file: Path) -> bytes:
        """The contents of a file, counted."""
        content = file.read_bytes()
        self.files, self.size = self.files + 1, self.size + len(content)
        return content

    def to_json(self) -> dict[str, Any]:
        """Plain data, for other programs."""
        return {"clean": not self.errors, **asdict(self)}

    def lines(self) -> Iterator[str]:
        """The report for people: what was found, one sentence each, and a summary."""
        for level in ("error", "warning"):
            yield from (f"{level}: {finding}" for finding in self.findings if finding.level == level)
        for name, kinds in self.absent.items():
            counts = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
            remedy = f"`make pull EXPERIMENT={name}` fetches, `precfm make {name}` makes them"
            yield f"not on this machine: {counts}; {remedy}"
        yield from (f"note: {note}" for note in self.notes)
        yield (
            f"{', '.join(self.experiments)}: {self.files} files ({self.size / 1e6:.1f} MB), "
            f"{len(self.errors)} errors, {len(self.findings) - len(self.errors)} warnings"
        )


def counted(ids: Iterable[str]) -> str:
    """How many artifacts of which kinds."""
    kinds = Counter(node_id.split("/")[0] for node_id in ids)
    counts = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
    return f"{kinds.total()} artifacts ({counts})"
