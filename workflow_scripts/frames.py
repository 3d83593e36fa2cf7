"""Kind `frames`: what all artifacts of an experiment say, as long tables with one row per number."""

from precfm.pipeline.job import Job
from precfm.report.frames import (
    GRIDS,
    NEIGHBOURS,
    RADIAL,
    STATISTICS,
    Pairs,
    first_of_each_method,
    gathered,
    theory_tables,
)
from precfm.theory.claim_statistics import theory_statistics


def make(job: Job) -> None:
    """Write one CSV per frame, and the sample grids of every method's first seed."""
    about = job.params["about"]

    def pairs(role: str, file: str) -> Pairs:
        artifacts = zip(about.get(role, ()), job.parents(role), strict=True)
        if file == RADIAL:
            artifacts = [(each, found) for each, found in artifacts if file in found.record["files"]]
        read = "frame" if file.endswith(".csv") else "json"
        return [({**each, "artifact": found.key}, getattr(found, read)(file)) for each, found in artifacts]

    runs = zip(about.get("theory", ()), job.parents("theory"), strict=True)
    tables = theory_tables(
        (each, {file.removesuffix(".csv"): artifact.frame(file) for file in artifact.record["files"]})
        for each, artifact in runs
    )
    frames = gathered(pairs) | tables | ({STATISTICS: theory_statistics(tables)} if tables else {})
    for name, frame in frames.items():
        job.write_frame(f"{name}.csv", frame)
    if evaluations := job.parents("evaluations"):
        entries, grids = about["evaluations"], {}
        for position in first_of_each_method(entries):
            artifact, method = evaluations[position], entries[position]["method"]
            if "grid.safetensors" not in artifact.record["files"]:  # latents without images
                continue
            tensors = artifact.tensors("grid.safetensors")
            grids[method] = tensors["images"]
            grids |= {name: tensors[name] for name in ("held-out", "held-out, decoded") if name in tensors}
            if "neighbours" in tensors:
                grids[f"{NEIGHBOURS}{method}"] = tensors["neighbours"]
        if grids:
            job.write_tensors(f"{GRIDS}.safetensors", grids)
