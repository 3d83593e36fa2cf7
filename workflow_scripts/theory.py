"""Kind `theory`: one controlled experiment with closed forms, for one seed."""

from precfm.core.registry import build
from precfm.pipeline.job import Job


def make(job: Job) -> None:
    """Write one CSV per table of the experiment."""
    for name, table in build("theory", job.params["run"], seed=job.params["seed"]).items():
        job.write_frame(f"{name}.csv", table)
