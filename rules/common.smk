"""What all rules share: the plan, and the functions that ask it."""

import sys

sys.path.insert(0, workflow.basedir)

from pathlib import Path

from snakemake.exceptions import WorkflowError

from precfm.core.errors import PrecfmError
from precfm.pipeline.plan import load_plan
from precfm.pipeline.products import PRODUCTS

EXPERIMENT = config.get("experiment", "quick")

try:
    PLAN = load_plan(EXPERIMENT)
except PrecfmError as error:
    raise WorkflowError(str(error))

HOME = f"results/{EXPERIMENT}"
RECORDS = f"{HOME}/records"
PRODUCTS_WRITTEN = f"{RECORDS}/products-{PLAN.key}"


def artifacts(kind=None):
    """The record of every artifact of a kind; of the whole plan without a kind."""
    return [
        f"{node.folder}/artifact.json"
        for node in PLAN.nodes.values()
        if kind in (None, node.kind)
    ]


def parents(kind):
    """Inputs of an artifact: none once it exists, so that no file time can make it again."""

    def of(wildcards):
        node = PLAN.node(f"{kind}/{wildcards.name}")
        if node.exists:
            return []
        return [
            f"{PLAN.node(parent).folder}/artifact.json"
            for ids in node.parents.values()
            for parent in ids
        ]

    return of


def node(kind):
    """What a job needs to know of the artifact that it makes."""
    return lambda wildcards: PLAN.node(f"{kind}/{wildcards.name}").to_json()


def gpus(wildcards):
    """How many GPUs a training job asks for."""
    return int(PLAN.device == "cuda")
