"""A node of the plan: one artifact as the experiment wants it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RESULTS = Path("results")
# What the project stands for, in git; all else in results/ is what this machine made.
PUBLISHED = RESULTS / "published"
MODELS = Path("data/models")  # pinned models, in git
RECORD = "artifact.json"
# What a record says of the machine under `made_on`; all else there are versions of libraries.
MACHINE = (
    "python",
    "device",
    "torch",
    "processor",
    "cpu_capability",
    "threads",
    "devices",
    "side_by_side",
)

# Kinds whose jobs compute on the configured device; all others use the processor, and reports no torch at all.
ON_DEVICE = frozenset(
    {
        "classifiers",
        "encoders",
        "latents",
        "features",
        "preconditioners",
        "recipes",
        "flows",
        "samples",
        "evaluations",
        "likelihoods",
    }
)
TOGETHER = frozenset({"flows"})  # kinds that several processes can make together
WITHOUT_TORCH = frozenset({"frames", "table_files", "figure_files", "verdicts", "pages"})


PINNED = "pinned.py"  # the script of all encoders and classifiers that come trained
# Scripts of what comes as it is and is not made here, by kind and the parameter that says so.
_GIVEN = {
    ("encoders", "pinned"): PINNED,
    ("classifiers", "pinned"): PINNED,
    ("classifiers", "extractor"): "fixed_extractors.py",
    ("latents", "own"): "own_latents.py",
}


def script_name(kind: str, params: Mapping[str, Any]) -> str:
    """The file in workflow_scripts/ that makes an artifact of a kind with these parameters."""
    return next((_GIVEN[kind, name] for name in params if (kind, name) in _GIVEN), f"{kind}.py")


def homes() -> list[Path]:
    """The folders of the experiments that this machine has something of."""
    return [path for path in sorted(RESULTS.glob("[!.]*")) if path != PUBLISHED and holds_files(path)]


def holds_files(folder: Path) -> bool:
    """Whether a folder is there and, at whatever depth, holds anything but folders."""
    return folder.is_dir() and any(not path.is_dir() or path.is_symlink() for path in folder.rglob("*"))


@dataclass(frozen=True)
class Node:
    """One artifact as the plan wants it.

    Attributes:
        kind: which sort of artifact, such as `flows`.
        label: a readable name; not part of the key.
        key: short hash of everything that decides the artifact's content.
        params: all parameters, as plain data.
        parents: for each role, the ids `kind/label-key` of the artifacts that are read.
        fingerprint: of the code that makes it.
        experiment: the experiment whose folder holds it.
        device: where it is made, `cpu` or `cuda`; not part of the key.
        devices: processes that make it together, each with a GPU where the device is one; not part of the key.
        targets: import strings of what the script loads from the registry.
        packages: modules of other packages that hold classes which it, or what it reads, is made with; imported
            before it is made, so that a saved object is found by its class's name.
        batch: one job makes all artifacts of a kind and a batch, which cost less than the start of a process; empty
            for a job of its own.
        libraries: other packages that it, or what it reads, is made with, by import name; not part of the key.
        stated: the parameters without options that are places alone; None where there are no such options.
    """

    kind: str
    label: str
    key: str
    params: Mapping[str, Any]
    parents: Mapping[str, tuple[str, ...]]
    fingerprint: str
    experiment: str
    device: str = "cpu"
    devices: int = 1
    targets: tuple[str, ...] = ()
    packages: tuple[str, ...] = ()
    batch: str = ""
    libraries: tuple[str, ...] = ()
    stated: Mapping[str, Any] | None = None

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Node":
        """The inverse of `to_json`."""
        tuples = {name: tuple(data[name]) for name in ("targets", "packages", "libraries")}
        parents = {role: tuple(ids) for role, ids in data["parents"].items()}
        return cls(**{**data, **tuples, "parents": parents})

    @property
    def recorded_params(self) -> Mapping[str, Any]:
        """The parameters as records have them: two machines that keep a file at different places say the same."""
        return self.params if self.stated is None else self.stated

    @property
    def name(self) -> str:
        """Name of the folder."""
        return f"{self.label}-{self.key}"

    @property
    def id(self) -> str:
        """Kind and folder name."""
        return f"{self.kind}/{self.name}"

    @property
    def script(self) -> str:
        """The file in workflow_scripts/ that makes it."""
        return script_name(self.kind, self.params)

    @property
    def on_device(self) -> bool:
        """Whether its job computes on the configured device."""
        return self.kind in ON_DEVICE and self.script not in _GIVEN.values()

    @property
    def folder(self) -> Path:
        """Where the artifact lives."""
        return RESULTS / self.experiment / self.id

    @property
    def exists(self) -> bool:
        """Whether the artifact is complete."""
        return (self.folder / RECORD).is_file()

    def to_json(self) -> dict[str, Any]:
        """Plain data, for a job in another process."""
        return dict(vars(self))
