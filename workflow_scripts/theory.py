"""Kind `theory`: one controlled experiment with closed forms, for one seed."""

from precfm.core.registry import load
from precfm.pipeline.job import Job
from precfm.pipeline.snakemake_entry import run_rule


def make(job: Job) -> None:
    """Write one CSV per frame of the experiment."""
    spec = job.params["run"]
    options = {name: value for name, value in spec.items() if name != "name"}
    frames = load("theory", spec["name"])(**options, seed=job.params["seed"])
    for name, frame in frames.items():
        job.write_frame(f"{name}.csv", frame)


if "snakemake" in globals():
    run_rule(make, snakemake)
