"""Kind `pages`: all that an experiment says, as one self-contained web page."""

from collections.abc import Iterable

from safetensors.numpy import load_file

from precfm.pipeline.artifact import Artifact
from precfm.pipeline.job import Job
from precfm.report.claims import parse_claims
from precfm.report.frames import FRAMES, GRIDS, read_frames
from precfm.report.page.assembly import Experiment, experiment_page
from precfm.report.verdicts import Verdict

SHOWN = (".md", ".csv", ".png")


def make(job: Job) -> None:
    """Write the page, from the artifacts that tables, figures and verdicts are in."""
    frames, verdicts = job.parent("frames"), job.parent("verdicts")
    files, grids = frames.record["files"], f"{GRIDS}.safetensors"
    page = experiment_page(
        Experiment(
            name=job.params["experiment"],
            frames=read_frames(frames.frame, files, FRAMES),
            grids=load_file(frames.path(grids)) if grids in files else {},
            tables=_contents(job.parents("tables")),
            figures=_contents(job.parents("figures")),
            claims=verdicts.path("claims.md").read_text(encoding="utf-8"),
            verdicts=[Verdict.model_validate(each) for each in verdicts.json("claims.json")["claims"]],
            spec=parse_claims(verdicts.params["claims"]),
            about=frames.params["about"],
            parents=frames.record["parents"],
        )
    )
    (job.folder / "report.html").write_text(page, encoding="utf-8")


def _contents(artifacts: Iterable[Artifact]) -> dict[str, dict[str, bytes]]:
    """By name of the table or figure, and by suffix, what its files hold."""
    return {
        artifact.params["name"]: {
            f".{suffix}": artifact.path(file).read_bytes()
            for file in artifact.record["files"]
            if f".{(suffix := file.rpartition('.')[2])}" in SHOWN
        }
        for artifact in artifacts
    }
