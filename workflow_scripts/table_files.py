"""Kind `table_files`: one table as CSV, Markdown and LaTeX."""

from precfm.core.registry import load
from precfm.pipeline.job import Job
from precfm.report.frames import read_frames
from precfm.report.products import write_table
from precfm.report.reads import declared


def make(job: Job) -> None:
    """Write the table, or the reason why this experiment has none."""
    name, artifact = job.params["name"], job.parent("frames")
    frames = read_frames(artifact.frame, artifact.record["files"], declared(load("tables", name)))
    write_table(name, frames, job.folder, job.params["experiment"])
