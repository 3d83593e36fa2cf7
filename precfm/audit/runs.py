"""Where the numbers of a run are: on this machine, published, at a revision, in another folder."""

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Protocol

from precfm.audit.git import asked
from precfm.core.errors import PrecfmError
from precfm.pipeline.manifest import MANIFEST, without_label
from precfm.pipeline.node import PUBLISHED, RESULTS

CLAIMS = "claims.json"
_UNREADABLE = (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError)


@dataclass(frozen=True)
class Run:
    """What one run of an experiment has shown.

    Attributes:
        numbers: the contents of its tables and verdicts, by path below its folder.
        keys: of its artifacts, without labels; empty where no manifest says.
        revision: which commit made it; empty where no manifest says.
        folder: where it lies, if it lies in one.
    """

    numbers: Mapping[str, bytes] = field(default_factory=dict)
    keys: frozenset[str] = frozenset()
    revision: str = ""
    folder: Path | None = None

    @property
    def experiment(self) -> str:
        """The experiment that its verdicts name; empty if they name none."""
        try:
            return str(json.loads(self.numbers[CLAIMS])["claims"][0]["experiment"])
        except _UNREADABLE:
            return ""

    @classmethod
    def of(cls, files: Mapping[str, bytes], folder: Path | None = None) -> "Run":
        """A run by its files: tables, verdicts and manifest; a manifest that cannot be read says nothing."""
        numbers = {name: content for name, content in files.items() if name != MANIFEST}
        try:
            manifest = json.loads(files[MANIFEST])
            keys = frozenset(map(without_label, manifest["artifacts"]))
            revision = str((manifest.get("revision") or {"commit": ""})["commit"])[:12]
        except _UNREADABLE:
            return cls(numbers, folder=folder)
        return cls(numbers, keys, revision, folder)


class Place(Protocol):
    """Where runs of experiments are."""

    @property
    def name(self) -> str:
        """What a sentence calls it."""
        ...

    def experiments(self) -> set[str]:
        """Those with numbers."""
        ...

    def run(self, experiment: str) -> Run:
        """What is there of an experiment; a run without numbers where nothing is."""
        ...


@dataclass(frozen=True)
class Folder:
    """Folders that hold experiments under their names; the first that has numbers of one counts."""

    name: str
    folders: tuple[Path, ...]

    def experiments(self) -> set[str]:
        """See `Place`."""
        found = (path for folder in self.folders for path in folder.glob("[!.]*") if path.is_dir())
        return {path.name for path in found if path.name != PUBLISHED.name and run_in(path).numbers}

    def run(self, experiment: str) -> Run:
        """See `Place`."""
        return next((run for folder in self.folders if (run := run_in(folder / experiment)).numbers), Run())


@dataclass(frozen=True)
class Home:
    """The folder of one experiment, whatever its name."""

    name: str
    found: Run

    def experiments(self) -> set[str]:
        """See `Place`."""
        assert self.found.folder is not None
        return {self.found.experiment or self.found.folder.resolve().name}

    def run(self, experiment: str) -> Run:
        """See `Place`."""
        return self.found if experiment in self.experiments() else Run()


THIS_MACHINE = Folder("this machine", (RESULTS,))
HERE = Folder("this checkout", (RESULTS, PUBLISHED))
THE_PUBLISHED = Folder("the published run", (PUBLISHED,))


def run_in(home: Path) -> Run:
    """What the folder of an experiment holds; a run without numbers where there are none."""
    files = [*sorted(home.glob("tables/*.csv")), home / CLAIMS, home / MANIFEST]
    return Run.of(
        {file.relative_to(home).as_posix(): file.read_bytes() for file in files if file.is_file()}, home
    )


@dataclass(frozen=True)
class Revision:
    """What was published at a revision of this repository.

    Attributes:
        asked_for: as the user wrote it.
        commit: the commit that this names.
    """

    asked_for: str
    commit: str

    @property
    def name(self) -> str:
        """See `Place`."""
        return f"the run published at {self.asked_for}"

    def experiments(self) -> set[str]:
        """See `Place`."""
        return {experiment for experiment, file in self._listed if file != MANIFEST}

    def run(self, experiment: str) -> Run:
        """See `Place`."""
        wanted = [file for name, file in self._listed if name == experiment]
        return Run.of({file: self._content(PUBLISHED / experiment / file) for file in wanted})

    @cached_property
    def _listed(self) -> list[tuple[str, str]]:
        listed = asked("ls-tree", "-r", "-z", "--name-only", self.commit, "--", f"./{PUBLISHED}/") or b""
        needed = re.compile(rf"{PUBLISHED.as_posix()}/([^/]+)/(tables/[^/]+\.csv|{CLAIMS}|{MANIFEST})")
        return [
            (found[1], found[2])
            for path in os.fsdecode(listed).split("\0")
            if (found := needed.fullmatch(path))
        ]

    def _content(self, path: Path) -> bytes:
        content = asked("cat-file", "blob", f"{self.commit}:./{path.as_posix()}")
        if content is None:
            raise PrecfmError(f"{self.asked_for!r} lists {path}, but this repository does not hold it")
        return content


def place_of(text: str) -> Place:
    """Where `precfm compare` is told to look: a folder, or else a revision; `git:` says that it is one.

    Raises:
        PrecfmError: there is no such folder or revision, or it is this run itself.
    """
    folder = Path(text)
    if text and not text.startswith("git:") and folder.is_dir():
        if folder.resolve() in (Path.cwd(), RESULTS.resolve()):
            raise PrecfmError(f"{text}: is this run itself; another folder or a revision is needed")
        if (run := run_in(folder)).numbers and not any(folder.glob(f"*/{MANIFEST}")):
            return Home(f"the run in {text}", run)
        inside = (folder / RESULTS, folder / PUBLISHED, folder, folder / PUBLISHED.name)
        return Folder(f"the run in {text}", inside)
    revision = text.removeprefix("git:")
    found = asked("rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}")
    if not revision or found is None:
        raise PrecfmError(f"{text!r}: there is no such folder, and no such revision of this repository")
    return Revision(revision, found.decode().strip())
