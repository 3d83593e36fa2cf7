"""Kind `table_files`: one table as CSV, Markdown and LaTeX."""

from precfm.pipeline.job import Job
from precfm.pipeline.snakemake_entry import run_rule
from precfm.report.products import write_table


def make(job: Job) -> None:
    """Write the table, or the reason why this experiment has none."""
    frames = job.parent("frames")
    tables = {name: frames.frame(f"{name}.csv") for name in frames.json("names.json")}
    write_table(job.params["name"], tables, job.folder, job.params["experiment"])


if "snakemake" in globals():
    run_rule(make, snakemake)
