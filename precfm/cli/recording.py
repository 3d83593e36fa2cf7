"""Commands that write down what was made: keys, publications, verdicts, archives."""

import os
from pathlib import Path
from typing import Annotated

import typer

from precfm.cli.arguments import ExperimentName
from precfm.core.errors import PrecfmError

app = typer.Typer()


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
def claims() -> None:
    """Merge the published verdicts into results/published/claims.md and the table of README.md."""
    from precfm.pipeline.node import PUBLISHED
    from precfm.pipeline.publication import collect_claims

    typer.echo(f"{PUBLISHED}/claims.md: verdicts of {', '.join(collect_claims())}")


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
