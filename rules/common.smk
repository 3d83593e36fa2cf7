"""The plan of the experiment (precfm/pipeline/builder.py makes it), and the functions by which rules ask it."""

import sys

sys.path.insert(0, workflow.basedir)

import shlex
from collections import defaultdict
from pathlib import Path

from snakemake.exceptions import WorkflowError

from precfm.core.errors import PrecfmError
from precfm.pipeline.plan import KINDS, load_plan

# Snakemake hands it to a shell as it is; the directory that it also takes from it is looked for in vain, without harm.
sys.executable = shlex.quote(sys.executable)

EXPERIMENT = str(config.get("experiment", "quick"))
# `--config full_graph=true`: as if nothing existed, for --dag and --rulegraph.
FULL_GRAPH = config.get("full_graph", False)

try:
    PLAN = load_plan(EXPERIMENT)
except PrecfmError as error:
    raise WorkflowError(str(error))

HOME = f"results/{EXPERIMENT}"
RECORDS = f"{HOME}/records"
PRODUCTS_WRITTEN = f"{RECORDS}/products-{PLAN.key}"


BATCHES = defaultdict(list)
for node in PLAN.nodes.values():
    if node.batch:
        BATCHES[node.kind, node.batch].append(node)


def wanted(node):
    """Whether an artifact is to be made: it is not there, or the whole graph is asked for."""
    return FULL_GRAPH or not node.exists


def together(node):
    """What one job makes: an artifact, what else of its batch is wanted, and before evaluations their samples."""
    batch = BATCHES[node.kind, node.batch] if node.batch else [node]
    made = []
    for each in filter(wanted, batch if wanted(node) else []):
        if each.kind == "evaluations":
            made += filter(wanted, map(PLAN.node, each.parents["samples"]))
        made.append(each)
    return made


def records(nodes):
    """The files that Snakemake has to ask for, so that these artifacts are there.

    An artifact's record is written last, so where it is, the artifact is whole. For a batch the record of its last
    artifact stands that is not there yet.
    """
    asked = [together(node)[-1] if wanted(node) else node for node in nodes]
    return sorted({f"{node.folder}/artifact.json" for node in asked})


def made(wildcards):
    """What the job of these wildcards makes."""
    return together(PLAN.node(f"{wildcards.kind}/{wildcards.name}"))


def parents(role):
    """What stands in a role of the artifacts that a job makes.

    Nothing once they exist, so that no file time can make them again.
    """

    def inputs(wildcards):
        nodes = made(wildcards)
        ids = {parent for node in nodes for parent in node.parents.get(role, ())}
        return records(
            PLAN.node(parent) for parent in ids - {node.id for node in nodes}
        )

    return inputs


def plain(wildcards):
    """What a job needs to know of the artifacts that it makes, as plain data."""
    return [node.to_json() for node in made(wildcards)]


def gpus(wildcards):
    """How many GPUs a job asks for."""
    on_device = [node.devices for node in made(wildcards) if node.on_device]
    return max(on_device, default=0) if PLAN.device == "cuda" else 0


def cores(wildcards):
    """How many cores a job asks for: for each of its processes as many as the experiment says."""
    return PLAN.threads * max((node.devices for node in made(wildcards)), default=1)


def unless_written(kind):
    """The artifacts that products are copied from, unless the products are written."""
    written = Path(PRODUCTS_WRITTEN).exists() and not FULL_GRAPH
    return [] if written else records(PLAN.of(kind))
