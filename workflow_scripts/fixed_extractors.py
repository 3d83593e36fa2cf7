"""Kind `classifiers`, of fixed extractors: find the published weights, and record which they are."""

from precfm.metrics.extractors.judges import save_fixed
from precfm.pipeline.job import Job


def make(job: Job) -> None:
    """Write name and checksum; the weights stay where they are."""
    save_fixed(**job.params["extractor"], folder=job.folder)
