"""The command line: `precfm VERB`. Reads arguments, calls the library, prints; nothing else."""

import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from precfm.core.errors import PrecfmError, one_sentence

if TYPE_CHECKING:
    from precfm.pipeline.node import Node
    from precfm.pipeline.plan import Plan

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Preconditioned flow matching: pipeline and library.",
)
data_app = typer.Typer(no_args_is_help=True, help="Raw data: fetch it, or register your own.")
app.add_typer(data_app, name="data")

FEW_FILES = 10  # so many are named one by one
MISUSE = 3  # exit code of `compare` and `challenge`, whose 1 and 2 are results

ExperimentName = Annotated[str, typer.Argument(help="An experiment: the name of a file in config/.")]


def main() -> None:
    """Run the command line; a user's mistake is one sentence on standard error and exit code 1."""
    with one_sentence():
        app()


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
    from precfm.pipeline.plan import KINDS, load_plan

    experiment += "-tiny" if tiny else ""
    plan = load_plan(experiment)
    for name in ids or []:
        _ = plan.required(name) if name in KINDS else plan.node(name)  # refuses what is not in the plan
    asked = {node.id for node in plan.nodes.values() if not ids or node.kind in ids or node.id in ids}
    wanted = plan.with_missing_parents(asked)
    _make(plan, wanted)
    if not ids:
        from precfm.pipeline.products import write_products

        write_products(plan)


def _make(plan: "Plan", wanted: "Sequence[Node]") -> None:
    """Make artifacts in order, and say which."""
    os.environ.setdefault("OMP_NUM_THREADS", str(plan.threads))
    import torch

    from precfm.pipeline.build import build
    from precfm.pipeline.job import script_of

    torch.set_num_threads(plan.threads)
    signal.signal(
        signal.SIGTERM, signal.default_int_handler
    )  # so that both signals clean up on their way out
    for count, node in enumerate(wanted, start=1):
        try:
            made = build(node, script_of(node))
        except PrecfmError as error:
            raise PrecfmError(f"{node.id}: {error}") from error
        except KeyboardInterrupt:
            typer.echo("precfm: stopped; what is finished is kept; the same command goes on", err=True)
            raise typer.Exit(128 + signal.SIGINT) from None
        typer.echo(f"[{count}/{len(wanted)}] {'made' if made else 'kept'} {node.id}")


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
def keys(
    experiments: Annotated[
        list[str] | None, typer.Argument(help="Experiments; default: those that params.yaml lists.")
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Write nothing; exit code 1 if they differ.")
    ] = False,
) -> None:
    """Write the keys of all artifacts to keys/, which git holds, and say how many a change has touched."""
    from precfm.pipeline.experiments import PARAMS, read_recorded
    from precfm.pipeline.key_lists import changed_keys, differences, strays, write_key_lists
    from precfm.pipeline.plan import load_plan

    wrong = []
    names = experiments or read_recorded()["experiments"]
    for name in names:
        try:
            plan = load_plan(name)
        except PrecfmError as error:  # the others are looked at all the same
            wrong.append(str(error))
            continue
        if check:
            for file, problem in list(differences(plan).items())[:1]:
                wrong.append(f"{file}: {problem}; `precfm keys {name}` writes it")
            continue
        counts = ", ".join(f"{count} {kind}" for kind, count in changed_keys(plan).items())
        written = write_key_lists(plan)
        typer.echo(f"{name}: {f'{counts or written[0]} changed' if written else 'unchanged'}")
    if check and not experiments:
        wrong += [f"{file}: is the list of no experiment in {PARAMS}; delete it" for file in strays(names)]
    for sentence in wrong:
        typer.echo(f"precfm: {sentence}", err=True)
    if wrong:
        raise typer.Exit(1)


@app.command("forget")
def forget_experiment(experiment: ExperimentName) -> None:
    """Take an experiment out of the ledger: params.yaml, dvc.lock, keys/; configuration and results stay."""
    from precfm.pipeline.ledger import forget

    count = len(forget(experiment))
    typer.echo(f"{experiment}: {count} stages removed; commit dvc.lock, params.yaml and keys/")


@app.command("publish")
def publish_experiment(experiment: ExperimentName) -> None:
    """Copy what a complete experiment has shown to results/published/, which git holds, with its revision."""
    from precfm.pipeline.node import PUBLISHED
    from precfm.pipeline.plan import load_plan
    from precfm.pipeline.publication import publish

    too_large = publish(load_plan(experiment))
    typer.echo(
        f"{PUBLISHED / experiment}: tables, figures, verdicts, frames, manifest; commit them with README.md"
    )
    for name in too_large:
        typer.echo(f"{name}: left out, too large for git")


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
    from precfm.pipeline.experiments import CONFIG_FOLDER
    from precfm.pipeline.plan import load_plan

    names = [file.stem for file in sorted(CONFIG_FOLDER.glob("*.yaml")) if file.stem != "claims"]
    typer.echo(f"freed {collect_garbage(load_plan(name) for name in names) / 1e6:.1f} MB")


@app.command("export")
def export_archive(
    experiment: ExperimentName,
    kind: Annotated[
        list[str] | None, typer.Option(help="Only this kind, without products; may be repeated.")
    ] = None,
    to: Annotated[
        Path | None, typer.Option(help="A new file; default: EXPERIMENT-KEY.zip with the plan's key.")
    ] = None,
) -> None:
    """Write a complete experiment into one file that anyone can verify: artifacts, products, configuration."""
    from precfm.audit.archive import export_experiment
    from precfm.pipeline.plan import load_plan

    file, count = export_experiment(load_plan(experiment), kind or (), to)
    typer.echo(f"{file}: {count} artifacts, {file.stat().st_size / 1e6:.1f} MB")


@app.command("import")
def import_file(file: Annotated[Path, typer.Argument(help="A file of `precfm export`.")]) -> None:
    """Verify exported artifacts and put them in place; nothing that is there already is changed."""
    from precfm.audit.importing import import_archive

    for line in import_archive(file).lines():
        typer.echo(line)


@app.command()
def doctor(
    network: Annotated[bool, typer.Option("--network", help="Also try to reach data sources.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the diagnoses as JSON.")] = False,
) -> None:
    """Look whether this machine can run the pipeline, and say what to do; exit code 1 if it cannot."""
    import json
    from dataclasses import asdict

    from precfm.audit.doctor import examine

    diagnoses = []
    for diagnosis in examine(network=network):
        diagnoses.append(diagnosis)
        if not as_json:
            typer.echo(str(diagnosis))
    well = all(diagnosis.status != "problem" for diagnosis in diagnoses)
    if as_json:
        typer.echo(json.dumps({"ok": well, "diagnoses": [asdict(each) for each in diagnoses]}, indent=1))
    if not well:
        raise typer.Exit(1)


@app.command()
def claims() -> None:
    """Merge the published verdicts into results/published/claims.md, and say there and in README.md what is current."""
    from precfm.pipeline.node import PUBLISHED
    from precfm.pipeline.publication import collect_claims

    typer.echo(f"{PUBLISHED}/claims.md: verdicts of {', '.join(collect_claims())}")


@app.command()
def metrics(
    real: Annotated[
        Path, typer.Argument(help="Folder of images, .npy or .safetensors file, or an artifact.")
    ],
    generated: Annotated[Path, typer.Argument(help="The same for the generated set.")],
    extractor: Annotated[
        str, typer.Option(help="inception, imagenet or identity; for folders of images.")
    ] = "inception",
    weights: Annotated[Path | None, typer.Option(help="File of the extractor's weights.")] = None,
    tensor: Annotated[str | None, typer.Option(help="Which tensor of .safetensors files.")] = None,
    generated_tensor: Annotated[
        str | None, typer.Option(help="Which tensor of the generated file, where it has another name.")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Write the records there as CSV, too.")] = None,
) -> None:
    """Compare generated with real: the pipeline's metrics, each with its protocol."""
    from precfm.metrics.files import compare
    from precfm.metrics.values import records

    values = compare(
        real,
        generated,
        extractor=extractor,
        weights=weights,
        tensor=tensor,
        generated_tensor=generated_tensor,
    )
    table = records(values)
    if output:
        table.to_csv(output, index=False, lineterminator="\n")
    typer.echo(table.dropna(axis="columns", how="all").to_string(index=False))


@app.command()
def audit(
    experiments: Annotated[
        list[str] | None, typer.Argument(help="Experiments; default: all, local and published.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Check results/ against checksums, plan, ledger and machine; exit code 1 with errors, 2 if misused."""
    import json

    from precfm.audit.integrity import audit as audit_results

    try:
        report = audit_results(experiments or ())
    except PrecfmError as error:
        typer.echo(f"precfm: {error}", err=True)
        raise typer.Exit(2) from None
    typer.echo(json.dumps(report.to_json(), indent=1) if as_json else "\n".join(report.lines()))
    if report.errors:
        raise typer.Exit(1)


class _MisuseIsNoResult(TyperCommand):
    """A command whose exit codes 1 and 2 are results: wrong options end it with another one, too."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except Exception as error:
            if getattr(error, "exit_code", 0) == 2:  # --help, too, leaves by an exception
                vars(error)["exit_code"] = MISUSE
            raise


@app.command("compare", cls=_MisuseIsNoResult)
def compare_numbers(
    place: Annotated[
        str | None,
        typer.Argument(
            metavar="[REV|FOLDER]",
            help="What to compare with: a revision, for what was published there, or a folder: a checkout, its "
            "results, its results/published, one experiment's. Default: what this machine made with what is published.",
        ),
    ] = None,
    experiment: Annotated[
        list[str] | None,
        typer.Option(help="Only this one; may be repeated. Default: all that are in both places."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print every difference, as JSON.")] = False,
) -> None:
    """Say whether the numbers of this run are those of another, the published one above all.

    Exit code 0: all agree to rounding; 2: they differ by no more than training seeds do, or two seeds cannot tell; 1:
    by more, or verdicts, rows, columns or files differ; 3: nothing was compared (wrong arguments, no such place).
    """
    import json

    from precfm.audit.agreement import agreements, worst

    try:
        found = agreements(place, experiment or ())
    except (PrecfmError, OSError) as error:
        typer.echo(f"precfm: {error}", err=True)
        raise typer.Exit(MISUSE) from None
    if as_json:
        typer.echo(json.dumps([each.to_json() for each in found], indent=1))
    else:
        typer.echo("\n\n".join("\n".join(each.lines()) for each in found))
    raise typer.Exit(worst(found))


@app.command(cls=_MisuseIsNoResult)
def challenge(
    count: Annotated[int, typer.Argument(metavar="N", help="How many numbers to draw.")] = 3,
    experiment: Annotated[
        str | None,
        typer.Option(help="Only this one. Default: all published ones that this checkout would make."),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Of the draw. Default: a fresh one, which is printed.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what is drawn and its cost only.")
    ] = False,
    scratch: Annotated[
        Path | None,
        typer.Option(
            help="Where to make them: a folder that is kept, so that the same command goes on there."
        ),
    ] = None,
) -> None:
    """Draw published numbers, make them again from sources and pinned models in an empty folder, and compare.

    Each time a table is drawn, all alike, then one of its numbers. Verdicts, outcomes, counts and texts are never
    drawn.

    Exit code 0: all agree to rounding; 2: they differ by no more than training seeds do, or two seeds cannot tell; 1:
    by more; 3: nothing was compared (wrong arguments, a source that cannot be had, nothing to challenge).
    """
    import secrets
    import traceback

    from precfm.audit.challenge import Challenge, exit_code, lines
    from precfm.audit.drawn_cells import challengeable, draw

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        tables, left_out = challengeable(experiment)
        for reason in left_out:
            typer.echo(f"left out: {reason}")
        seed = secrets.randbelow(2**32) if seed is None else seed
        drawn = draw(tables, count, seed)
        typer.echo(f"drawn with --seed {seed}:")
        for cell in drawn:
            typer.echo(f"  {cell}")
        challenged = Challenge.of(drawn)
        for line in challenged.cost():
            typer.echo(line)
        if dry_run:
            return
        outcomes = challenged.outcomes(scratch, typer.echo)
    except (PrecfmError, OSError) as error:
        typer.echo(f"precfm: {error}", err=True)
        raise typer.Exit(MISUSE) from None
    except KeyboardInterrupt:
        typer.echo("precfm: stopped", err=True)
        raise typer.Exit(128 + signal.SIGINT) from None
    except Exception:  # a defect: no number was compared
        traceback.print_exc()
        raise typer.Exit(MISUSE) from None
    for line in lines(outcomes):
        typer.echo(line)
    raise typer.Exit(exit_code(outcomes))


@app.command()
def why(
    target: Annotated[
        str, typer.Argument(help="FILE, FILE:ROW, FILE:ROW,COLUMN or claims.json:CLAIM below results/.")
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print all of it as JSON, as if --full.")] = False,
    full: Annotated[
        bool, typer.Option("--full", help="With the checksum of every file, in lines of any length.")
    ] = False,
    crate: Annotated[
        Path | None, typer.Option(help="Write it as a Workflow Run RO-Crate into this new folder, too.")
    ] = None,
) -> None:
    """Say where a file or a number comes from: artifacts, code, parameters, seeds, sources."""
    import json

    from precfm.audit.lineage import lineage
    from precfm.audit.lineage_text import tree

    traced = lineage(target)
    typer.echo(json.dumps(traced.to_json(), indent=1) if as_json else "\n".join(tree(traced, full=full)))
    if crate is not None:
        from precfm.audit.ro_crate import write_crate

        write_crate(traced, crate)
        typer.echo(f"{crate}: written", err=True)


@app.command()
def accept(
    kind: Annotated[str, typer.Argument(help="The kind whose code was rewritten.")],
    experiments: Annotated[
        list[str] | None, typer.Argument(help="Whose artifacts to compare with; default: all in results/.")
    ] = None,
    sample: Annotated[int, typer.Option(help="Artifacts to rebuild for each changed code.")] = 2,
) -> None:
    """Keep a kind's keys after a rewrite of its code, if a sample made with it is equal byte for byte."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    from precfm.audit.accept import accept as accept_kind

    recorded = accept_kind(kind, experiments or (), sample)
    for one in recorded:
        typer.echo(f"{one.new} stands for {one.old}: {', '.join(one.artifacts)} are equal byte for byte")
    typer.echo(
        "recorded in config/equivalences.json; commit it" if recorded else f"{kind}: no code has changed"
    )


@data_app.command("fetch")
def fetch_data(name: Annotated[str, typer.Argument(help="A source in data/sources.yaml.")]) -> None:
    """Bring the raw files of a source to data/raw/NAME and check them."""
    from precfm.datasets.sources import fetch_raw

    folder, files = fetch_raw(name)
    kept = sum(file.origin == "kept" for file in files)
    for file in files if len(files) <= FEW_FILES else [file for file in files if file.refused]:
        typer.echo(file)
    typer.echo(f"{folder}: files in place and intact: {len(files)} ({kept} from before)")


@data_app.command("add")
def add_data(
    name: Annotated[str, typer.Argument(help="A new name for the source.")],
    path: Annotated[Path, typer.Argument(help="A folder or zip file of images, one folder per class.")],
) -> None:
    """Register your own images: write their checksums into data/sources.yaml."""
    from precfm.datasets.image_names import class_name, image_names
    from precfm.datasets.manifest import add_source
    from precfm.datasets.sources import SOURCES

    images = image_names(file.name for file in add_source(name, path, SOURCES).files)
    classes = len({class_name(image) for image in images})
    what = f"{len(images)} images in {classes} classes" if images else "a zip file"
    typer.echo(
        f"{name}: {what}, registered in {SOURCES}; in a config it is "
        f"`source: {{name: imagefolder, source: {name}}}`"
    )
