"""The plan of the experiment, and the functions by which rules ask it."""

import sys

sys.path.insert(0, workflow.basedir)

import shlex
from pathlib import Path

from snakemake.exceptions import WorkflowError

from precfm.core.errors import PrecfmError
from precfm.pipeline.node import ON_DEVICE
from precfm.pipeline.plan import KINDS, load_plan

sys.executable = shlex.quote(sys.executable)  # Snakemake hands it to a shell as it is

EXPERIMENT = config.get("experiment", "quick")
# `--config full_graph=true`: as if nothing existed, for --dag and --rulegraph.
FULL_GRAPH = config.get("full_graph", False)

try:
    PLAN = load_plan(EXPERIMENT)
except PrecfmError as error:
    raise WorkflowError(str(error))

HOME = f"results/{EXPERIMENT}"
RECORDS = f"{HOME}/records"
PRODUCTS_WRITTEN = f"{RECORDS}/products-{PLAN.key}"


def records(nodes):
    """The record of each artifact: it is written last, so where it is, the artifact is whole."""
    return [f"{node.folder}/artifact.json" for node in nodes]


def light(kind):
    """The artifacts of a kind that cost less than the start of a process: one job makes them all."""
    return [node for node in PLAN.of(kind) if node.light]


def with_samples(evaluations):
    """Evaluations, each behind the samples that it is of: one job makes both."""
    return [
        node
        for evaluation in evaluations
        for node in (PLAN.node(*evaluation.parents["samples"]), evaluation)
    ]


def missing(of=None):
    """What a job has to make: the artifact that its wildcards name, or those of a list, unless they exist."""

    def nodes(wildcards):
        wanted = of
        if of is None:
            wanted = [PLAN.node(f"{wildcards.kind}/{wildcards.name}")]
            if wildcards.kind == "evaluations":
                wanted = with_samples(wanted)
        return [node for node in wanted if FULL_GRAPH or not node.exists]

    return nodes


def parents(role, of=None):
    """What stands in a role of the artifacts that a job has to make.

    Nothing once they exist, so that no file time can make them again.
    """

    def inputs(wildcards):
        made = missing(of)(wildcards)
        ids = {parent for node in made for parent in node.parents.get(role, ())}
        return records(
            PLAN.node(parent) for parent in sorted(ids - {node.id for node in made})
        )

    return inputs


def plain(of=None):
    """What a job needs to know of the artifacts that it makes, as plain data."""
    return lambda wildcards: [node.to_json() for node in missing(of)(wildcards)]


def gpus(kind=None):
    """How many GPUs a job asks for."""

    def number(wildcards):
        return int(
            PLAN.device == "cuda" and (kind or wildcards.get("kind")) in ON_DEVICE
        )

    return number


def unless_written(kind):
    """The artifacts that products are copied from, unless the products are written."""
    written = Path(PRODUCTS_WRITTEN).exists() and not FULL_GRAPH
    return [] if written else records(PLAN.of(kind))
