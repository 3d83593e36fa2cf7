"""DVC's ledger, dvc.lock, held against the files, against dvc.yaml and params.yaml, and against itself.

DVC is not asked: it compares with its cache, which is empty after an import or a cleanup, and it trusts file times. A
folder's checksum is computed as DVC does: of the listing of its files and their checksums.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, ValidationError

from precfm.audit.archive.manifest import first_mistake
from precfm.audit.findings import Report
from precfm.audit.git import asked, committed
from precfm.core.errors import PrecfmError
from precfm.pipeline.experiments import PARAMS, read_recorded, read_yaml
from precfm.pipeline.manifest import MANIFEST
from precfm.pipeline.node import RESULTS

LEDGER = Path("dvc.lock")
STAGES = Path("dvc.yaml")
CACHE = Path(".dvc/cache/files/md5")
IGNORED = ("__pycache__", "*.pyc")  # as .dvcignore says
RAW = "raw"  # the stage whose matrix goes over sources; all others go over experiments
Model = TypeVar("Model", bound=BaseModel)
_VARIABLE = re.compile(r"\$\{item\.\w+\}")
_FOLDER = ".dir"
_EMPTY = hashlib.md5(b"[]").hexdigest() + _FOLDER
_BACK = f"`git checkout -- {LEDGER}` brings back what was committed, `make reproduce` records anew"
_RECORD = "`make reproduce` records what is right; `make pull` brings back what is damaged"


@dataclass(frozen=True)
class State:
    """What DVC records of a file or a folder."""

    md5: str
    size: int
    nfiles: int | None


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Entry(_Strict):
    """What the ledger says of one file or folder."""

    path: str
    hash: Literal["md5"]
    md5: Annotated[str, Field(pattern=r"^[0-9a-f]{32}(\.dir)?$")]
    size: NonNegativeInt
    nfiles: NonNegativeInt | None = None
    isexec: bool = False

    @property
    def state(self) -> State:
        """Without its path."""
        return State(self.md5, self.size, self.nfiles)


class Stage(_Strict):
    """A stage of the ledger."""

    cmd: str
    deps: list[Entry] = []
    outs: list[Entry] = []


class _Ledger(_Strict):
    form: Literal["2.0"] = Field(alias="schema")
    stages: dict[str, Stage]


_Named = (
    str | Annotated[dict[str, Any], Field(min_length=1, max_length=1)]
)  # a path, or a path with its options


class Definition(BaseModel):
    """A stage of dvc.yaml, as far as the ledger repeats it."""

    model_config = ConfigDict(strict=True, frozen=True)
    cmd: str
    deps: list[_Named] = []
    outs: list[_Named] = []
    metrics: list[_Named] = []


class _Definitions(BaseModel):
    stages: dict[str, Definition]


@dataclass(frozen=True)
class Claim:
    """What an audit knows of one experiment's results.

    Attributes:
        name: the experiment.
        published: ids of the artifacts in its manifest.
        sources: the data sources that it reads.
    """

    name: str
    published: Sequence[str]
    sources: Sequence[str]

    def partial(self, kind: str) -> bool:
        """Whether some of the published artifacts of a kind are not here, as after a partial pull or an import."""
        home = RESULTS / self.name
        return any(
            not (home / node_id).is_dir() for node_id in self.published if node_id.startswith(f"{kind}/")
        )


def check_ledger(report: Report, claims: Sequence[Claim]) -> None:
    """Hold the ledger against everything that it speaks of; what is not here is no finding."""
    if _at_work():
        report.notes.append(f"{LEDGER}: a run is recording here; try again when it is finished")
        return
    try:
        definitions, stages = _definitions(), _ledger()
        listed = read_recorded() if PARAMS.is_file() else {"experiments": [], "sources": []}
    except PrecfmError as error:
        file, _, told = str(error).partition(": ")
        report.add("ledger", file, told, f"`git checkout -- {file}` brings back what was committed")
        return
    recorded = [claim for claim in claims if _check_recorded(report, claim, definitions, listed, stages)]
    if recorded and LEDGER.is_file():
        _check_listed(report, listed, stages)
    sources = sorted({source for claim in recorded for source in claim.sources} & _names(stages, RAW))
    before = _committed() if recorded else {}
    for claim in recorded:
        _check_stages(report, definitions, stages, before, claim.name, claim)
    for source in sources:
        _check_stages(report, definitions, stages, before, source, None)
    _check_code(report, stages, [*(claim.name for claim in recorded), *sources])


def _at_work() -> bool:
    """Whether `make reproduce` or `make pull` holds the ledger."""
    import fcntl

    file = RESULTS / ".work" / "locks" / "run-ledger.lock"
    if not file.is_file():
        return False
    with file.open("rb") as held:
        try:
            fcntl.flock(held, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _definitions() -> Mapping[str, Definition]:
    """The stages of dvc.yaml; nothing where there is none."""
    return _fits(STAGES, _Definitions, read_yaml(STAGES)).stages if STAGES.is_file() else {}


def _ledger() -> Mapping[str, Stage]:
    """The stages of the ledger; nothing where there is none."""
    return _stages_of(LEDGER.read_bytes()) if LEDGER.is_file() else {}


def _stages_of(ledger: bytes) -> Mapping[str, Stage]:
    try:
        # The compiled loader is faster, but deep nesting ends the whole process.
        content = yaml.safe_load(ledger)
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        raise PrecfmError(f"{LEDGER}: no valid YAML ({' '.join(str(error).split())[:200]})") from None
    return _fits(LEDGER, _Ledger, content).stages


def _fits(file: Path, model: type[Model], content: Any) -> Model:
    try:
        return model.model_validate(content)
    except ValidationError as error:
        raise PrecfmError(f"{file}: {first_mistake(error)}") from None


def _names(stages: Iterable[str], stage: str) -> set[str]:
    """The experiments or sources for which a stage is there."""
    return {name.partition("@")[2] for name in stages if name.startswith(f"{stage}@")}


def _check_recorded(
    report: Report,
    claim: Claim,
    definitions: Mapping[str, Definition],
    listed: Mapping[str, Sequence[str]],
    stages: Mapping[str, Stage],
) -> bool:
    """Whether an experiment was recorded; what was must be in params.yaml and in the ledger as a whole.

    `precfm make` records nothing, so an experiment that neither git nor DVC knows is no error.
    """
    name = claim.name
    wanted = [f"{stage}@{name}" for stage in definitions if stage != RAW]
    lacking = [stage for stage in wanted if stage not in stages]
    in_params = name in listed["experiments"]
    stamp = RESULTS / name / "records" / "ledger"
    known = (
        in_params
        or len(lacking) < len(wanted)
        or stamp.is_file()
        or bool(asked("ls-files", "--", str(RESULTS / name / MANIFEST)))
    )
    again = f"`make reproduce EXPERIMENT={name}` records it"
    if not known:
        problem = f"{name} was never recorded, as after `precfm make`, so no ledger tells whether it changed"
        report.warn("ledger", LEDGER, problem, again)
        return False
    for file in (STAGES, PARAMS, LEDGER):
        if not file.is_file():
            problem = f"missing, though {name} was recorded"
            report.add("ledger", file, problem, f"`git checkout -- {file}` brings it back")
    if PARAMS.is_file() and not in_params:
        problem = f"experiments: {name} is missing, though it was recorded"
        report.add("ledger", PARAMS, problem, f"`git checkout -- {PARAMS}` brings it back, or {again}")
    if LEDGER.is_file() and lacking:
        report.add("ledger", LEDGER, f"{len(lacking)} stages of {name} are missing", again, lacking)
    return LEDGER.is_file() and STAGES.is_file()


def _check_listed(report: Report, listed: Mapping[str, Sequence[str]], stages: Mapping[str, Stage]) -> None:
    """What params.yaml lists is in the ledger, and the ledger's sources are listed."""
    experiments, sources = (set(listed[field]) for field in ("experiments", "sources"))
    told = [
        *(
            f"experiments: lists {name}, but {LEDGER} does not"
            for name in sorted(experiments - _names(stages, "publish"))
        ),
        *(f"sources: lists {name}, but {LEDGER} does not" for name in sorted(sources - _names(stages, RAW))),
        *(
            f"sources: {name} is missing, but {LEDGER} has it"
            for name in sorted(_names(stages, RAW) - sources)
        ),
    ]
    for problem in told:
        report.add(
            "ledger", PARAMS, problem, f"`git checkout -- {PARAMS}` brings it back, or `make reproduce`"
        )


def _check_stages(
    report: Report,
    definitions: Mapping[str, Definition],
    stages: Mapping[str, Stage],
    before: Mapping[str, State],
    name: str,
    claim: Claim | None,
) -> None:
    """The stages of one experiment, or of one source."""
    recorded = _outs(stages)
    for definition in [stage for stage in definitions if (stage == RAW) == (claim is None)]:
        stage = f"{definition}@{name}"
        if stage not in stages:
            continue
        found = stages[stage]
        says = {
            "cmd": found.cmd,
            "deps": sorted(entry.path for entry in found.deps),
            "outs": sorted(entry.path for entry in found.outs),
        }
        for field, wanted in expected(definitions[definition], name).items():
            if (told := says[field]) != wanted:
                report.add(
                    "ledger", LEDGER, f"{stage}: {field}: got {told!r}, {STAGES} says {wanted!r}", _BACK
                )
        for entry in found.outs:
            path = entry.path
            if claim and path == f"{RESULTS}/{name}/{definition}" and claim.partial(definition):
                if any(Path(path).glob("[!.]*")):
                    report.notes.append(
                        f"{path}: here in part, so it is held against the manifest and not {LEDGER}"
                    )
            else:
                _check_out(report, stage, path, entry.state, before)
        for entry in found.deps:
            if recorded.get(entry.path, entry.state) != entry.state:
                problem = f"contradicts itself about {entry.path}: {stage} was made from another"
                report.add("ledger", LEDGER, problem, _BACK)


def _outs(stages: Mapping[str, Stage]) -> dict[str, State]:
    """What the ledger says of each output."""
    return {entry.path: entry.state for stage in stages.values() for entry in stage.outs}


def _committed() -> dict[str, State]:
    """What the last commit's ledger says of each output; nothing where there is none."""
    with suppress(PrecfmError):
        return _outs(_stages_of(committed(LEDGER) or b""))
    return {}


def expected(definition: Definition, name: str) -> dict[str, Any]:
    """What the ledger should say of a stage of dvc.yaml for one experiment or source: `cmd`, and paths, sorted."""

    def told(text: str | dict[str, Any]) -> str:
        return _VARIABLE.sub(name, text if isinstance(text, str) else next(iter(text)))

    return {
        "cmd": told(definition.cmd),
        "deps": sorted(map(told, definition.deps)),
        "outs": sorted(map(told, [*definition.outs, *definition.metrics])),
    }


def _check_out(
    report: Report, stage: str, path: str, recorded: State, committed_states: Mapping[str, State]
) -> None:
    """An output against the ledger; where it is not here, the ledger against the last commit's."""
    place = Path(path)
    if not place.exists() or (place.is_dir() and not any(place.iterdir()) and recorded.md5 != _EMPTY):
        if recorded != committed_states.get(path, recorded):
            problem = f"{stage}: {path}: not as committed, and the files are not here to tell which is right"
            report.add("ledger", LEDGER, problem, f"{_BACK}; or commit {LEDGER}")
        return
    try:
        listing = _listing(place) if place.is_dir() else None
        found = _state(place, listing)
    except OSError as error:
        report.add("ledger", path, f"cannot be read ({error.strerror})", _RECORD)
        return
    if found == recorded:
        return
    if found.md5 == recorded.md5:
        problem = (
            f"{stage}: size or number of files of {path} is not that of the files, whose checksum is right"
        )
        report.add("ledger", LEDGER, problem, _BACK)
        return
    told = {finding.file for finding in report.findings if finding.level == "error"}
    before = _cached(recorded.md5)
    if listing is not None and before is not None:
        for name in sorted(before.keys() | listing.keys()):
            file = (place / name).as_posix()
            if before.get(name) != listing.get(name) and file not in told:
                what = "added" if name not in before else "deleted" if name not in listing else "modified"
                report.add("ledger", file, f"{what} since {LEDGER} was written", _RECORD)
    elif not any(name == path or name.startswith(f"{path}/") for name in told):
        report.add("ledger", path, f"is not what {LEDGER} holds", _RECORD)


def state(path: Path) -> State:
    """What DVC would record of a file or folder: its checksum, size and number of files."""
    return _state(path, _listing(path) if path.is_dir() else None)


def _state(path: Path, listing: Mapping[str, str] | None) -> State:
    if listing is None:
        return State(_md5(path), path.stat().st_size, None)
    entries = [{"md5": md5, "relpath": name} for name, md5 in sorted(listing.items())]
    digest = hashlib.md5(json.dumps(entries, sort_keys=True).encode()).hexdigest()
    return State(digest + _FOLDER, sum((path / name).stat().st_size for name in listing), len(listing))


def _listing(folder: Path) -> dict[str, str]:
    """The checksum of every file in a folder, by its path below it."""
    found = {}
    for place, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not _ignored(name)]
        for name in files:
            file = Path(place) / name
            if not _ignored(name) and file.is_file():  # a pipe would be waited for
                found[file.relative_to(folder).as_posix()] = _md5(file)
    return found


def _ignored(name: str) -> bool:
    return name == IGNORED[0] or name.endswith(IGNORED[1][1:])


def _md5(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "md5").hexdigest()


def _cached(md5: str) -> dict[str, str] | None:
    """The listing that a folder's checksum stands for, where DVC's cache holds it whole."""
    if not md5.endswith(_FOLDER):
        return None
    with suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
        data = (CACHE / md5[:2] / md5[2:]).read_bytes()
        if hashlib.md5(data).hexdigest() + _FOLDER == md5:
            return {entry["relpath"]: entry["md5"] for entry in json.loads(data)}
    return None


def _check_code(report: Report, stages: Mapping[str, Stage], names: Sequence[str]) -> None:
    """Code and configuration with which stages were recorded: one state per experiment, and the present one."""
    outs = _outs(stages)
    seen: dict[tuple[str, str], dict[State, str]] = {}
    for stage, content in stages.items():
        name = stage.partition("@")[2]
        for entry in content.deps:
            if name in names and entry.path not in outs:
                seen.setdefault((name, entry.path), {}).setdefault(entry.state, stage)
    present: dict[str, State | None] = {}
    older = set()
    for (_, path), states in seen.items():
        if len(states) > 1:
            problem = (
                f"contradicts itself about {path}: {' and '.join(states.values())} were recorded at once"
            )
            report.add("ledger", LEDGER, problem, _BACK)
        if path not in present:
            present[path] = state(Path(path)) if Path(path).exists() else None
        now = present[path]
        if now is not None and now not in states and now.md5 in {one.md5 for one in states}:
            problem = f"{' and '.join(states.values())}: a wrong size or number of files of {path}"
            report.add("ledger", LEDGER, problem, _BACK)
        elif now not in states:
            older.add(path)
    for path in sorted(older):
        problem = f"was recorded with another state of {path}"
        report.warn("ledger", LEDGER, problem, "`make reproduce` records the present one")
