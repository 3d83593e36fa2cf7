"""Commands that make artifacts, and that sort what was made."""

import itertools
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from precfm.cli.arguments import ExperimentName
from precfm.cli.stopping import stoppable
from precfm.core.errors import PrecfmError

if TYPE_CHECKING:
    from precfm.pipeline.node import Node
    from precfm.pipeline.plan import Plan

app = typer.Typer()


@app.command("ls")
def list_artifacts(
    experiment: ExperimentName,
    kind: Annotated[str | None, typer.Option(help="Only this kind.")] = None,
    missing: Annotated[bool, typer.Option("--missing", help="Only what does not exist yet.")] = False,
) -> None:
    """List the artifacts of a plan: + exists, - is still to be made."""
    from precfm.pipeline.plan import load_plan

    plan = load_plan(experiment)
    for node in plan.nodes.values() if kind is None else plan.required(kind):
        if not (missing and node.exists):
            typer.echo(f"{'+' if node.exists else '-'} {node.id}")


@app.command("status")
def show_status(
    experiment: ExperimentName,
    cores: Annotated[
        int, typer.Option(min=1, help="Jobs at a time, for the time left. Default: all of this machine's.")
    ] = os.cpu_count() or 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False,
    watching: Annotated[
        bool, typer.Option("--watch", help="Show it until nobody works on it: bars on a terminal.")
    ] = False,
) -> None:
    """Say what is made, running and missing, and about how long the rest takes, by recorded times."""
    import json

    from precfm.cli.watching import watch
    from precfm.pipeline.experiments import parts_of
    from precfm.pipeline.plan import load_plan
    from precfm.pipeline.status import status

    for part in parts_of(experiment):
        plan = load_plan(part)
        if watching:
            watch(plan, cores)
        found = status(plan, cores)
        typer.echo(json.dumps(found.to_json(), indent=1) if as_json else "\n".join(found.lines()))


@app.command("gpu-hours")
def show_gpu_hours(
    experiment: ExperimentName,
    utilisation: Annotated[
        float | None, typer.Option(min=0.001, max=1, help="Share of the peak; default 0.3.")
    ] = None,
) -> None:
    """Estimate the GPU-hours of trainings, searches and samples, from counted operations."""
    from precfm.gpu_hours import PEAKS, UTILISATION, gpu_hours
    from precfm.pipeline.experiments import parts_of
    from precfm.pipeline.plan import load_plan

    share = utilisation or UTILISATION
    for part in parts_of(experiment):
        stages = gpu_hours(load_plan(part), share)
        for stage in stages:
            cost = f"{stage.operations:.2g} operations, {stage.hours:.1f} h"
            typer.echo(f"{part}: {stage.name}: {stage.artifacts:,} artifacts, {cost}")
        typer.echo(f"{part}: {sum(stage.hours for stage in stages):.0f} GPU-hours")
    peaks = ", ".join(f"{peak / 1e12:g} in {name}" for name, peak in PEAKS.items())
    typer.echo(
        f"By counted operations at {share:g} of the peak of an H100 or H200 (10^12 a second: {peaks}); not counted: "
        "fits of maps, encoding, judging, likelihoods."
    )


@app.command()
def make(
    experiment: ExperimentName,
    ids: Annotated[
        list[str] | None,
        typer.Argument(help="Kinds, or KIND/LABEL-KEY, with what they need; default: everything."),
    ] = None,
    tiny: Annotated[
        bool, typer.Option("--tiny", help="In 12 steps on little data: the experiment EXPERIMENT-tiny.")
    ] = False,
) -> None:
    """Make artifacts in order, without Snakemake and DVC, in a checkout."""
    from precfm.pipeline.experiments import parts_of
    from precfm.pipeline.plan import KINDS, load_plan

    plans = [load_plan(part) for part in parts_of(experiment + ("-tiny" if tiny else ""))]
    for plan in plans:
        for name in ids or []:
            _ = plan.required(name) if name in KINDS else plan.node(name)  # refuses what is not in the plan
        asked = {node.id for node in plan.nodes.values() if not ids or node.kind in ids or node.id in ids}
        _make(plan, plan.with_missing_parents(asked))
        if not ids:
            from precfm.pipeline.products import write_products

            write_products(plan)


def _make(plan: "Plan", wanted: "Sequence[Node]") -> None:
    """Make artifacts in order, and say which."""
    os.environ.setdefault("OMP_NUM_THREADS", str(plan.threads))
    import torch

    from precfm.pipeline.build import build, build_side_by_side
    from precfm.pipeline.job import script_of
    from precfm.pipeline.plan import in_batches

    torch.set_num_threads(plan.threads)
    count = itertools.count(1)
    with stoppable("stopped; what is finished is kept; the same command goes on"):
        for batch in in_batches(wanted):
            made = {node.id for node in build_side_by_side(batch)}
            for node in batch:
                try:
                    new = build(node, script_of(node)) or node.id in made
                except PrecfmError as error:
                    raise PrecfmError(f"{node.id}: {error}") from error
                typer.echo(f"[{next(count)}/{len(wanted)}] {'made' if new else 'kept'} {node.id}")


@app.command("pin")
def pin_models(
    experiment: Annotated[str, typer.Argument(help="Whose trained encoders and classifiers.")] = "models",
) -> None:
    """Train encoders and classifiers and pin them: weights and records in data/models/, which git holds."""
    from precfm.pipeline.node import MODELS
    from precfm.pipeline.pinning import pin, rename_in_configurations, trained_models
    from precfm.pipeline.plan import load_plan
    from precfm.pipeline.publication import revision

    plan = load_plan(experiment)
    nodes, made_by = trained_models(plan), revision()
    _make(plan, plan.with_missing_parents(node.id for node in nodes))
    references = pin(nodes, made_by)
    for reference in references:
        typer.echo(reference)
    for file in rename_in_configurations(references):
        typer.echo(f"{file}: names them now")
    size = sum(file.stat().st_size for file in MODELS.iterdir()) / 1e6
    typer.echo(f"{MODELS}: {size:.1f} MB; commit it with config/")


@app.command()
def tidy(experiment: ExperimentName) -> None:
    """Move what the plan no longer wants to the attic, and fetch back what it wants again."""
    from precfm.pipeline.attic import tidy as tidy_results
    from precfm.pipeline.plan import load_plan
    from precfm.pipeline.products import summary

    plan = load_plan(experiment)
    left, returned = tidy_results(plan)
    wanted, existing = (sum(column) for column in list(zip(*summary(plan), strict=True))[1:])
    typer.echo(
        f"{experiment}: {wanted} artifacts, {existing} exist "
        f"({len(left)} moved to the attic, {len(returned)} fetched back or copied)"
    )


@app.command("gc")
def garbage() -> None:
    """Empty the attic and remove the remains of abandoned jobs."""
    from precfm.pipeline.attic import collect_garbage
    from precfm.pipeline.experiments import configured
    from precfm.pipeline.plan import load_plan

    typer.echo(f"freed {collect_garbage(map(load_plan, configured())) / 1e6:.1f} MB")
