"""Kind `verdicts`: what the experiment says about every claim of the paper."""

from precfm.pipeline.job import Job
from precfm.report.claims import parse_claims
from precfm.report.claims_document import write_claims
from precfm.report.frames import read_frames
from precfm.report.verdicts import evaluate_claims, frames_read


def make(job: Job) -> None:
    """Write the verdicts as JSON and Markdown."""
    claims, artifact = parse_claims(job.params["claims"]), job.parent("frames")
    frames = read_frames(artifact.frame, artifact.record["files"], frames_read(claims))
    as_json, as_markdown = write_claims(evaluate_claims(claims, frames, job.params["experiment"]))
    (job.folder / "claims.json").write_text(as_json, encoding="utf-8")
    (job.folder / "claims.md").write_text(as_markdown, encoding="utf-8")
