"""Commands for a user's own latents: do they profit from a map; fit one, map them and back, sample."""

from pathlib import Path
from typing import Annotated

import typer

from precfm.cli.arguments import Seed
from precfm.cli.running import called
from precfm.core.errors import PrecfmError

app = typer.Typer()

Source = Annotated[
    Path, typer.Argument(metavar="LATENTS", help=".npy, .npz, .safetensors, .pt, or a folder of such shards.")
]
Out = Annotated[
    Path, typer.Argument(help="NAME.npy, or a name without ending: a folder of .safetensors shards.")
]
LabelsFile = Annotated[
    Path | None,
    typer.Option(
        "--labels", help="File of one integer per row; default: the tensor 'labels' beside the latents."
    ),
]
TensorName = Annotated[
    str | None, typer.Option("--tensor", help="Which tensor, where a file holds several beside 'labels'.")
]
ChannelsLast = Annotated[
    bool,
    typer.Option(
        "--channels-last",
        help="LATENTS are (rows, height, width, channels); what is written has channels first.",
    ),
]
Force = Annotated[bool, typer.Option("--force", help="Replace what is there under that name.")]
Map = Annotated[Path, typer.Argument(metavar="MAP", help="A file of `precfm fit`.")]


@app.command()
def diagnose(
    latents: Annotated[
        Path,
        typer.Argument(
            metavar="LATENTS",
            help=".npy, .npz, .safetensors, .pt, or a folder of such shards; with --autoencoder a folder of images, "
            "whose subfolders are classes.",
        ),
    ],
    labels: LabelsFile = None,
    tensor: TensorName = None,
    channels_last: ChannelsLast = False,
    autoencoder: Annotated[
        str | None,
        typer.Option(
            metavar="FOLDER",
            help="An autoencoder of diffusers, or its name on the hub: encodes images, and decodes 64 per feature of "
            "the latents to see which directions it uses.",
        ),
    ] = None,
    size: Annotated[
        int | None, typer.Option(min=1, help="Resize and crop images to squares of so many pixels.")
    ] = None,
    rows: Annotated[
        int | None,
        typer.Option(min=1, help="Encode so many images at most, at random."),
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="Where the autoencoder runs, such as cuda; default: cpu.")
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(help="Draw the spectra into this file, such as FILE.png.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
    train: Annotated[
        float | None,
        typer.Option(
            metavar="MINUTES",
            help="Measure by short trainings of about so many minutes in all; about 10 for a few thousand rows.",
        ),
    ] = None,
    seed: Seed = 0,
    dense_features: Annotated[
        int, typer.Option(help="Try dense maps up to so many features: a minute each at 4,096.")
    ] = 1024,
) -> None:
    """Say whether latents profit from a preconditioner: use one, leave them, or too few rows to tell."""
    import json
    from functools import partial

    from precfm.diagnosis.diagnosis import diagnose as find
    from precfm.diagnosis.rendering import require_plot

    if plot is not None:
        require_plot(plot)

    measured = partial(find, seed=seed, minutes=train, dense_features=dense_features)
    with called(x=latents, labels=labels or "--labels", minutes="--train", dense_features="--dense-features"):
        if autoencoder is None:
            from precfm.latents.reading import open_latents

            for name, value in (("size", size), ("rows", rows), ("device", device)):
                if value is not None:
                    raise PrecfmError(
                        f"--{name}: got {value}, but is of images; --autoencoder is needed, too"
                    )
            found = measured(open_latents(latents, tensor=tensor, labels=labels, channels_last=channels_last))
        else:
            from precfm.diagnosis.images import encode_images

            for name, given in (("--tensor", tensor), ("--channels-last", channels_last)):
                if given:
                    raise PrecfmError(f"{name}: is of files of latents, but --autoencoder reads images")
            encoded = encode_images(
                latents, autoencoder, labels=labels, size=size, rows=rows, seed=seed, device=device or "cpu"
            )
            found = measured(encoded.latents, encoded.labels, decoder=encoded.decode)
    typer.echo(json.dumps(found.to_json(), indent=1, allow_nan=False) if as_json else str(found))
    if plot is not None:
        found.plot(plot)


@app.command()
def fit(
    latents: Source,
    output: Annotated[Path, typer.Option(help="The file to write, FILE.safetensors.")],
    name: Annotated[
        str, typer.Option("--map", help="A preconditioner's name, or one of the table of `precfm diagnose`.")
    ] = "whitening",
    option: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="One of its options; may be repeated.")
    ] = None,
    labels: LabelsFile = None,
    tensor: TensorName = None,
    channels_last: ChannelsLast = False,
    seed: Seed = 0,
    force: Force = False,
) -> None:
    """Fit a preconditioner to latents, reading them once in batches, and write it into one file."""
    from precfm.diagnosis.maps import TRIED
    from precfm.latents.mistaken import layout_notes
    from precfm.latents.reading import open_latents
    from precfm.streaming.maps import fit_map

    opened = open_latents(latents, tensor=tensor, labels=labels, channels_last=channels_last)
    for note in layout_notes(opened.shape):
        typer.echo(f"Look first: {note}")
    spec = TRIED[name].spec if name in TRIED else name
    with called(x=latents, labels=labels or "--labels", preconditioners="--map", option="--option"):
        fitted = fit_map(opened, spec, option or (), output, seed=seed, force=force)
    for note in fitted.notes:
        typer.echo(note)
    typer.echo(f"{output}: {name} of {len(opened):,} rows, {fitted.num_parameters:,} numbers")


@app.command()
def transform(
    preconditioner: Map,
    latents: Source,
    out: Out,
    labels: LabelsFile = None,
    tensor: TensorName = None,
    channels_last: ChannelsLast = False,
    force: Force = False,
) -> None:
    """Map latents into the space of the flow, batch by batch."""
    _mapped(preconditioner, latents, out, labels, tensor, channels_last, force, back=False)


@app.command()
def inverse(
    preconditioner: Map,
    latents: Source,
    out: Out,
    labels: LabelsFile = None,
    tensor: TensorName = None,
    channels_last: ChannelsLast = False,
    force: Force = False,
) -> None:
    """Map points of the flow's space back to latents, batch by batch."""
    _mapped(preconditioner, latents, out, labels, tensor, channels_last, force, back=True)


def _mapped(
    preconditioner: Path,
    latents: Path,
    out: Path,
    labels: Path | None,
    tensor: str | None,
    channels_last: bool,
    force: bool,
    *,
    back: bool,
) -> None:
    from precfm.latents.reading import open_latents
    from precfm.streaming.maps import map_file

    opened = open_latents(latents, tensor=tensor, labels=labels, channels_last=channels_last)
    with called(x=latents, z=latents, labels=labels or "--labels"):
        map_file(preconditioner, opened, out, back=back, force=force)
    typer.echo(f"{out}: {len(opened):,} rows of {' x '.join(map(str, opened.shape[1:]))}")


@app.command()
def sample(
    flow: Annotated[Path, typer.Argument(metavar="FLOW", help="A folder of `PreconditionedFlow.save`.")],
    count: Annotated[int, typer.Argument(metavar="N", min=1, help="How many.")],
    out: Out,
    labels: Annotated[
        Path | None,
        typer.Option(
            help="File of the N classes to ask for; default: those of the training data, in proportion."
        ),
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Of the solver, midpoint.")] = 50,
    guidance: Annotated[
        float, typer.Option(min=0, help="Weight of classifier-free guidance; 1 is none.")
    ] = 1.0,
    seed: Seed = 0,
    force: Force = False,
) -> None:
    """Draw samples of the data from a saved flow."""
    from precfm.streaming.samples import sample_file

    with called(labels="--labels", guidance="--guidance"):
        sample_file(flow, count, out, labels=labels, steps=steps, guidance=guidance, seed=seed, force=force)
    typer.echo(f"{out}: {count:,} samples")
