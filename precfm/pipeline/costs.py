"""What a run took, by kind of artifact: from the benchmark files that Snakemake writes, one for each job.

`precfm publish` keeps it as `results/published/<experiment>/costs.json`, so that `precfm challenge` can say what a part
of the run will cost, and `precfm status` what is left of it.
"""

import csv
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Annotated

from pydantic import Field, TypeAdapter, ValidationError

from precfm.core.errors import PrecfmError
from precfm.core.options import Strict, sentence
from precfm.pipeline.manifest import canonical
from precfm.pipeline.node import RESULTS, Node
from precfm.pipeline.plan import KINDS, Plan

COSTS = "costs.json"


class Cost(Strict):
    """What the artifacts of a kind took together.

    Attributes:
        artifacts: how many the jobs made.
        seconds: of all these jobs; none where other kinds' jobs made them, as those of evaluations make samples.
        megabytes: of the job that needed most memory; None where no job ran for long enough to be measured.
        by_label: mean seconds of a job by the label of what it made, without the seed; of kinds with a job for each
            artifact.
    """

    artifacts: Annotated[int, Field(ge=1)]
    seconds: Annotated[float, Field(ge=0)]
    megabytes: Annotated[float, Field(ge=0)] | None = None
    by_label: dict[str, Annotated[float, Field(ge=0)]] = Field(default_factory=dict)


_COSTS = TypeAdapter(dict[str, Cost])


def measured_costs(plan: Plan) -> dict[str, Cost]:
    """What the jobs on this machine took, by kind; artifacts that came from elsewhere have no job and do not count."""
    timed = {node.id: found for node in plan.nodes.values() if (found := _benchmark(node))}
    made: dict[str, set[str]] = defaultdict(set)
    for node_id in timed:
        for node in _together(plan, plan.nodes[node_id]):
            made[node.kind].add(node.id)
    costs = {}
    for kind in (kind for kind in KINDS if made[kind]):
        jobs = [found for node_id, found in timed.items() if plan.nodes[node_id].kind == kind]
        memory = [megabytes for _, megabytes in jobs if megabytes is not None]
        costs[kind] = Cost(
            artifacts=len(made[kind]),
            seconds=round(sum(seconds for seconds, _ in jobs), 1),
            megabytes=max(memory, default=None),
            by_label=_by_label(
                (plan.nodes[node_id], found[0])
                for node_id, found in timed.items()
                if plan.nodes[node_id].kind == kind
            ),
        )
    return costs


def _by_label(seconds: Iterable[tuple[Node, float]]) -> dict[str, float]:
    """Mean seconds of jobs by label without the seed."""
    found: dict[str, list[float]] = defaultdict(list)
    for node, taken in seconds:
        if not node.batch:
            found[_without_seed(node.label)].append(taken)
    return {label: round(sum(several) / len(several), 1) for label, several in sorted(found.items())}


def _without_seed(label: str) -> str:
    return re.sub(r"-s\d+$", "", label)


def expected_seconds(node: Node, costs: Mapping[str, Cost], *, of_label: bool) -> float | None:
    """What a job takes for an artifact: as long as for those of its label, or of its kind; None without a record."""
    if node.kind not in costs:
        return None
    cost = costs[node.kind]
    return cost.by_label.get(_without_seed(node.label)) if of_label else cost.seconds / cost.artifacts


def _together(plan: Plan, node: Node) -> Iterator[Node]:
    """What an artifact's job makes: all of its batch, and with evaluations their samples."""
    for each in plan.of(node.kind) if node.batch else [node]:
        if each.batch == node.batch:
            yield each
            if each.kind == "evaluations":
                yield from (plan.nodes[parent] for parent in each.parents["samples"])


def _benchmark(node: Node) -> tuple[float, float | None] | None:
    """Seconds, and largest memory in MB where it was measured, of an artifact's job; None if it had none."""
    file = RESULTS / node.experiment / "records" / "benchmarks" / node.kind / f"{node.name}.tsv"
    with suppress(OSError, ValueError, KeyError, StopIteration):  # there is none, or it is damaged
        with file.open(encoding="utf-8", newline="") as stream:
            row = next(csv.DictReader(stream, delimiter="\t"))
        seconds, memory = float(row["s"]), None
        with suppress(ValueError):  # "NA": it was over too soon
            memory = float(row["max_rss"])
        return seconds, memory
    return None


def costs_text(costs: Mapping[str, Cost]) -> bytes:
    """What is written of costs."""
    return canonical(_COSTS.dump_python(dict(costs))).encode()


def read_costs(home: Path) -> dict[str, Cost]:
    """What is kept of a published run; empty where nothing is.

    Args:
        home: `results/published/<experiment>`.

    Raises:
        PrecfmError: the file is damaged.
    """
    file = home / COSTS
    try:
        return _COSTS.validate_json(file.read_bytes())
    except FileNotFoundError:
        return {}
    except ValidationError as error:
        raise PrecfmError(f"{file}: {sentence(error)}; `git checkout -- {file}` brings it back") from None
