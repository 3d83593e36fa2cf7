"""Kind `figure_files`: one figure as PDF and PNG, with its caption."""

from precfm.pipeline.job import Job
from precfm.pipeline.snakemake_entry import run_rule
from precfm.report.products import write_figure


def make(job: Job) -> None:
    """Draw the figure, or write the reason why this experiment has none."""
    frames = job.parent("frames")
    tables = {name: frames.frame(f"{name}.csv") for name in frames.json("names.json")}
    grids = frames.tensors("grids.safetensors") if "grids.safetensors" in frames.record["files"] else {}
    images = {name: tensor.numpy() for name, tensor in grids.items()}
    write_figure(job.params["name"], tables, job.folder, job.params["experiment"], images)


if "snakemake" in globals():
    run_rule(make, snakemake)
