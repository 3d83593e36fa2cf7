"""What an audit has to say: findings and the report of them."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from precfm.audit.comparison import Comparison

_SHOWN = 3  # names in one sentence; --json lists all


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong, or that deserves to be known.

    Attributes:
        level: an error makes the audit fail, a warning does not.
        check: which promise is broken, such as `payload` or `plan`.
        file: where.
        problem: what is wrong there.
        remedy: what mends it.
        names: the artifacts that are meant, where it is about several.
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
        not_here: for each experiment and kind, how many published artifacts are not on this machine.
        files: the number of files that were read.
        bytes: and their size.
        notes: what could not be checked, and why.
        comparisons: with another revision or folder, see `precfm.audit.comparison`.
    """

    experiments: list[str]
    findings: list[Finding] = field(default_factory=list)
    not_here: dict[str, dict[str, int]] = field(default_factory=dict)
    files: int = 0
    bytes: int = 0
    notes: list[str] = field(default_factory=list)
    comparisons: list[Comparison] = field(default_factory=list)

    @property
    def clean(self) -> bool:
        """Whether there is no error."""
        return not any(finding.level == "error" for finding in self.findings)

    def add(self, check: str, file: Path | str, problem: str, remedy: str, names: Iterable[str] = ()) -> None:
        """Add an error."""
        self.findings.append(Finding("error", check, str(file), problem, remedy, tuple(names)))

    def warn(
        self, check: str, file: Path | str, problem: str, remedy: str, names: Iterable[str] = ()
    ) -> None:
        """Add a warning."""
        self.findings.append(Finding("warning", check, str(file), problem, remedy, tuple(names)))

    def to_json(self) -> dict[str, Any]:
        """Plain data, for other programs."""
        return {"clean": self.clean, **asdict(self)}

    def lines(self) -> Iterator[str]:
        """The report for people: what was found, one sentence each, and a summary."""
        for level in ("error", "warning"):
            for finding in self.findings:
                if finding.level == level:
                    yield f"{level}: {finding}"
        for comparison in self.comparisons:
            yield f"compared: {comparison}"
        for name, kinds in self.not_here.items():
            told = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
            yield f"not here: {told}; `make pull EXPERIMENT={name}` fetches them"
        yield from (f"not checked: {note}" for note in self.notes)
        counted = Counter(finding.level for finding in self.findings)
        yield (
            f"{', '.join(self.experiments)}: {self.files} files ({self.bytes / 1e6:.1f} MB), "
            f"{counted['error']} errors, {counted['warning']} warnings"
        )


def counted(ids: Sequence[str]) -> str:
    """How many artifacts of which kinds."""
    kinds = Counter(node_id.split("/")[0] for node_id in ids)
    return f"{len(ids)} artifacts ({', '.join(f'{count} {kind}' for kind, count in kinds.items())})"
