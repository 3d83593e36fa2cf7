"""Commands that need no experiment: the machine, metrics of any two sets, raw data."""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer()
data_app = typer.Typer(no_args_is_help=True, help="Raw data: fetch it, or register your own.")
app.add_typer(data_app, name="data")

FEW_FILES = 10  # so many are named one by one


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
def metrics(
    real: Annotated[
        Path,
        typer.Argument(
            help="Folder of images, file of features (.npy, .npz, .safetensors, .pt), or an artifact."
        ),
    ],
    generated: Annotated[Path, typer.Argument(help="The same for the generated set.")],
    extractor: Annotated[
        str, typer.Option(help="inception, imagenet or identity; for folders of images.")
    ] = "inception",
    weights: Annotated[Path | None, typer.Option(help="File of the extractor's weights.")] = None,
    tensor: Annotated[str | None, typer.Option(help="Which tensor of files that hold several.")] = None,
    generated_tensor: Annotated[
        str | None, typer.Option(help="Which tensor of the generated file, where it has another name.")
    ] = None,
    metric: Annotated[
        list[str] | None,
        typer.Option(help="frechet, kid, mmd_rbf, precision or recall; may be repeated. Default: all."),
    ] = None,
    allow_few_samples: Annotated[
        bool,
        typer.Option(
            "--allow-few-samples", help="Give the Frechet distance of no more samples than features, too."
        ),
    ] = False,
    bandwidth: Annotated[
        float | None,
        typer.Option(help="Of the RBF kernel; default: the median distance within the real set."),
    ] = None,
    neighbours: Annotated[int, typer.Option(min=1, help="k of precision and recall.")] = 3,
    output: Annotated[Path | None, typer.Option(help="Write the records there as CSV, too.")] = None,
) -> None:
    """Compare generated with real: the pipeline's metrics, each with its protocol.

    A metric that cannot be had of these sets is left out, and why is said on standard error; exit code 1 if none can.
    """
    from precfm.metrics.evaluate import METRICS
    from precfm.metrics.files import compare
    from precfm.metrics.values import records

    refused: dict[str, str] = {}
    values = compare(
        real,
        generated,
        extractor=extractor,
        weights=weights,
        tensor=tensor,
        generated_tensor=generated_tensor,
        metrics=metric or METRICS,
        few_samples="allow" if allow_few_samples else "refuse",
        bandwidth=bandwidth,
        k=neighbours,
        refused=refused,
    )
    if values:
        table = records(values)
        if output:
            table.to_csv(output, index=False, lineterminator="\n")
        typer.echo(table.dropna(axis="columns", how="all").to_string(index=False))
    for name, reason in refused.items():
        typer.echo(f"precfm: {name}: {reason}", err=True)
    if not values:
        raise typer.Exit(1)


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
    path: Annotated[
        Path,
        typer.Argument(
            help="A folder or zip file of images, one folder per class; or latents: .safetensors, .npy, .npz, .pt, or "
            "a folder of such files."
        ),
    ],
    labels: Annotated[
        Path | None, typer.Option("--labels", help="Of latents: a file of one integer per row.")
    ] = None,
) -> None:
    """Register your own images or latents: their checksums in data/NAME.files, an entry in data/sources.yaml."""
    from precfm.datasets.image_names import class_name, image_names, names_below
    from precfm.datasets.latents import add_latents, are_latents
    from precfm.datasets.manifest import LIST, add_source, images_at
    from precfm.datasets.sources import SOURCES

    if labels is not None or (are_latents(path) and not (path.is_dir() and image_names(names_below(path)))):
        stored = add_latents(name, path, SOURCES, labels)
        rows, *shape = stored.shape
        with_labels = "without labels" if stored.labels is None else "with labels"
        typer.echo(
            f"{name}: {rows} latents of shape {shape} {with_labels}, listed in {SOURCES.parent / f'{name}{LIST}'}, "
            f"registered in {SOURCES}; in a config it is `source: {{name: latents, source: {name}, shape: {shape}}}`"
        )
        return
    add_source(name, path, SOURCES)
    images = images_at(path)
    classes = sorted({class_name(image) for image in images})
    named = ", ".join(classes[:FEW_FILES]) + (", ..." if len(classes) > FEW_FILES else "")
    what = f"{len(classes)} classes ({named})" if classes != [""] else "1 class, since they lie in no folders"
    typer.echo(
        f"{name}: {len(images)} images in {what} below {path}, listed in {SOURCES.parent / f'{name}{LIST}'}, "
        f"registered in {SOURCES}; in a config it is `source: {{name: imagefolder, source: {name}}}`"
    )
    if single := [known for known in classes if [class_name(image) for image in images].count(known) == 1]:
        typer.echo(
            f"{name}: class '{single[0]}' has one image, so no data set can be split with it", err=True
        )
