"""Kind `figure_files`: one figure as PDF and PNG, with its caption."""

from safetensors.numpy import load_file

from precfm.core.registry import load
from precfm.pipeline.job import Job
from precfm.report.frames import GRIDS, read_frames
from precfm.report.products import write_figure
from precfm.report.reads import declared


def make(job: Job) -> None:
    """Draw the figure, or write the reason why this experiment has none."""
    name, artifact = job.params["name"], job.parent("frames")
    names, files = declared(load("figures", name)), artifact.record["files"]
    frames = read_frames(artifact.frame, files, names)
    if GRIDS in names and f"{GRIDS}.safetensors" in files:
        frames[GRIDS] = load_file(artifact.path(f"{GRIDS}.safetensors"))
    write_figure(name, frames, job.folder, job.params["experiment"])
