"""What a script of workflow_scripts/ sees of the artifact that it makes."""

import importlib.util
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from precfm.pipeline.artifact import Artifact
from precfm.pipeline.fingerprints import SCRIPTS
from precfm.pipeline.node import RESULTS, Node
from precfm.pipeline.shards import StoredRows, shard_names

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor


@dataclass(frozen=True)
class Job:
    """What a script sees of the artifact that it makes.

    Attributes:
        node: the artifact as planned.
        folder: where to write the payload.
        scratch: where to keep what a killed run needs to go on; emptied when the artifact is finished.
    """

    node: Node
    folder: Path
    scratch: Path

    @property
    def params(self) -> Mapping[str, Any]:
        """The parameters of the artifact."""
        return self.node.params

    def parents(self, role: str) -> list[Artifact]:
        """The artifacts that stand in a role; none where the plan gives none."""
        base = RESULTS / self.node.experiment
        return [Artifact.open(base / parent) for parent in self.node.parents.get(role, ())]

    def parent(self, role: str) -> Artifact:
        """The one artifact that stands in a role."""
        (artifact,) = self.parents(role)
        return artifact

    def tensor(self, role: str, file: str, name: str) -> "Tensor | None":
        """One tensor of the artifact in a role; None where the plan gives none."""
        return self.parent(role).tensors(file)[name] if self.parents(role) else None

    def write_json(self, name: str, value: Any) -> None:
        """Write plain data as JSON; NaN and infinity are refused."""
        (self.folder / name).write_text(json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n")

    def write_frame(self, name: str, frame: "pd.DataFrame") -> None:
        """Write a data frame as CSV; floats keep all their digits."""
        frame.to_csv(self.folder / name, index=False, lineterminator="\n")

    def write_tensors(self, name: str, tensors: Mapping[str, "Tensor"]) -> None:
        """Write tensors as one safetensors file."""
        from safetensors.torch import save_file

        save_file(
            {key: value.detach().cpu().contiguous() for key, value in tensors.items()}, self.folder / name
        )

    def write_rows(
        self, name: str, rows: int, row_bytes: int, read: Callable[[int, int], Mapping[str, "Tensor"]]
    ) -> StoredRows:
        """Write tensors of many rows as one safetensors file, or as shards if they are large.

        A shard that a killed run has written is kept.

        Args:
            name: of the file, such as `train.safetensors`; of shards `train-00000-of-00003.safetensors`.
            rows: how many there are.
            row_bytes: bytes of one in the largest tensor.
            read: gives the tensors of the rows from a first to a last.

        Returns:
            What was written.
        """
        shards = shard_names(name, rows, row_bytes)
        if len(shards) == 1:
            self.write_tensors(name, read(0, rows))
            return StoredRows([self.folder / name])
        for file, start, stop in shards:
            if not (self.scratch / file).is_file():
                self._write_shard(file, read(start, stop))
        for file, _, _ in shards:
            shutil.move(self.scratch / file, self.folder / file)
        return StoredRows([self.folder / file for file, _, _ in shards])

    def _write_shard(self, file: str, tensors: Mapping[str, "Tensor"]) -> None:
        """Keep one shard in scratch; a function, so that no variable holds its rows while the next ones are made."""
        from safetensors.torch import save_file

        part = self.scratch / f"{file}.part"
        save_file({key: value.cpu().contiguous() for key, value in tensors.items()}, part)
        part.replace(self.scratch / file)


Make = Callable[[Job], None]
MakeMany = Callable[[Sequence[Job]], None]


def script_of(node: Node) -> Make:
    """The function that makes an artifact, from its script."""
    make: Make = _script(node).make
    return make


def script_of_many(node: Node) -> MakeMany | None:
    """The function that makes several artifacts of a batch in one computation, where the script has one."""
    make_many: MakeMany | None = getattr(_script(node), "make_many", None)
    return make_many


def _script(node: Node) -> Any:
    spec = importlib.util.spec_from_file_location("precfm_script", SCRIPTS / node.script)
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script
