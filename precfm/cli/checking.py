"""Commands that ask whether what is there holds: files, numbers, lineage."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from precfm.cli.arguments import LARGEST_SEED
from precfm.cli.stopping import stoppable
from precfm.core.errors import PrecfmError

app = typer.Typer()

MISUSE = 3  # exit code of `compare` and `challenge`, whose 1 and 2 are results


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
        int | None,
        typer.Option(min=0, max=LARGEST_SEED, help="Of the draw. Default: a fresh one, which is printed."),
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

    try:
        with stoppable("stopped"):
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
    except typer.Exit:  # stopped
        raise
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


# Exit codes of misuse, where it is not 1.
MISUSES: dict[Callable[..., Any], int] = {audit: 2, compare_numbers: MISUSE, challenge: MISUSE}
