"""Kind `verdicts`: what the experiment says about every claim of the paper."""

from precfm.pipeline.job import Job
from precfm.pipeline.snakemake_entry import run_rule
from precfm.report.claims import parse_claims
from precfm.report.claims_document import write_claims
from precfm.report.verdicts import evaluate_claims


def make(job: Job) -> None:
    """Write the verdicts as JSON and Markdown."""
    frames = job.parent("frames")
    tables = {name: frames.frame(f"{name}.csv") for name in frames.json("names.json")}
    verdicts = evaluate_claims(parse_claims(job.params["claims"]), tables, job.params["experiment"])
    as_json, as_markdown = write_claims(verdicts)
    (job.folder / "claims.json").write_text(as_json, encoding="utf-8")
    (job.folder / "claims.md").write_text(as_markdown, encoding="utf-8")


if "snakemake" in globals():
    run_rule(make, snakemake)
