"""Kind `frames`: collect what all artifacts of an experiment say into long tables, one row per number."""

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import pandas as pd

from precfm.pipeline.artifact import Artifact
from precfm.pipeline.job import Job
from precfm.pipeline.snakemake_entry import run_rule
from precfm.theory.claim_statistics import theory_statistics

if TYPE_CHECKING:
    from torch import Tensor

HISTORY_POINTS = 200


def make(job: Job) -> None:
    """Write one CSV per frame, and one file with the sample grids of every method's first seed."""
    told = {
        role: list(zip(job.parents(role), about, strict=True)) for role, about in job.params["about"].items()
    }
    evaluations, diagnostics = told.get("evaluations", []), told.get("diagnostics", [])
    frames = {
        "records": gather(evaluations, lambda artifact: artifact.frame("records.csv")),
        "recovery": gather(evaluations, lambda artifact: artifact.frame("recovery.csv")),
        "spectra": gather(
            [
                (artifact, {**about, "method": "none", "seed": 0})
                for artifact, about in told.get("latents", [])
            ],
            lambda artifact: artifact.frame("spectrum.csv"),
        ),
        "path_conditioning": gather_marked(
            diagnostics, lambda artifact: artifact.frame("path_conditioning.csv")
        ),
        "preconditioners": gather_marked(
            diagnostics, lambda artifact: pd.DataFrame([artifact.json("preconditioner.json")])
        ),
        "budgets": budgets(told.get("flows", []), diagnostics, told.get("budgets", [])),
        "predictors": gather(told.get("kernels", []), lambda artifact: artifact.frame("predictors.csv")),
        "history": gather(told.get("flows", []), lambda artifact: thinned(artifact.frame("history.csv"))),
    }
    frames |= theory_frames(told.get("theory", []))
    flow_spectra = gather_marked(diagnostics, lambda artifact: artifact.frame("spectrum.csv"))
    frames["spectra"] = pd.concat([frames["spectra"], flow_spectra], ignore_index=True)
    for name, frame in frames.items():
        if not frame.empty:
            job.write_frame(f"{name}.csv", frame)
    if evaluations:
        job.write_tensors("grids.safetensors", sample_grids(evaluations))
    job.write_json("names.json", sorted(name for name, frame in frames.items() if not frame.empty))


def theory_frames(told: Iterable[tuple[Artifact, dict]]) -> dict[str, pd.DataFrame]:
    """The tables of the controlled experiments, as `<experiment>.<table>`, and what they say about the claims."""
    parts: dict[str, list[pd.DataFrame]] = {}
    for artifact, about in told:
        for file in artifact.record["files"]:
            frame = artifact.frame(file)
            if "seed" not in frame:
                frame.insert(0, "seed", about["seed"])
            parts.setdefault(f"{about['run']}.{file.removesuffix('.csv')}", []).append(frame)
    frames = {name: pd.concat(several, ignore_index=True) for name, several in parts.items()}
    return {**frames, "theory_statistics": theory_statistics(frames)} if frames else {}


def budgets(
    flows: Iterable[tuple[Artifact, dict]],
    diagnostics: Iterable[tuple[Artifact, dict]],
    matches: Iterable[tuple[Artifact, dict]],
) -> pd.DataFrame:
    """What every flow cost, its preconditioner included, and what would match it; what a map costs that only fixes
    the scale of a matched baseline counts as nothing."""
    own = {tuple(about.values()): artifact.json("preconditioner.json") for artifact, about in diagnostics}
    matched = {tuple(about.values()): artifact.json("budget.json") for artifact, about in matches}
    rows = []
    for artifact, about in flows:
        cost, before = artifact.json("cost.json"), own.get(tuple(about.values()), {})
        match = matched.get(tuple(about.values()), {})
        rows.append(
            {
                **about,
                "flow_parameters": cost["flow_parameters"],
                "preconditioner_parameters": before.get("num_parameters", 0),
                "flops_per_step": cost["flops_per_step"],
                "fit_flops": before.get("flops_per_fit", 0),
                "inverse_flops_per_sample": before.get("inverse_flops_per_sample", 0),
                "steps": cost["steps"],
                "matched_width": match.get("matched_width"),
                "matched_steps": match.get("matched_steps"),
                "notes": cost["notes"],
            }
        )
    return pd.DataFrame(rows)


def sample_grids(evaluations: Iterable[tuple[Artifact, dict]]) -> dict[str, "Tensor"]:
    """Decoded samples of each method's first seed on the first dataset, beside held-out images of the same labels."""
    grids: dict[str, Tensor] = {}
    datasets = []
    for artifact, about in evaluations:
        datasets.append(about["dataset"])
        if about["dataset"] == datasets[0] and about["method"] not in grids:
            tensors = artifact.tensors("grid.safetensors")
            grids[about["method"]] = tensors["images"]
            grids["held-out"] = tensors["held-out"]
    return grids


def gather(told: Iterable[tuple[Artifact, dict]], read: Callable[[Artifact], pd.DataFrame]) -> pd.DataFrame:
    """One table from many artifacts; what each stands for comes first."""
    parts = []
    for artifact, about in told:
        frame = read(artifact)
        for position, (column, value) in enumerate(about.items()):
            frame.insert(position, column, value)
        parts.append(frame)
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def gather_marked(
    told: Iterable[tuple[Artifact, dict]], read: Callable[[Artifact], pd.DataFrame]
) -> pd.DataFrame:
    """As `gather`, with the artifact's key: one without randomness stands for every seed, but counts once."""
    return gather(told, lambda artifact: read(artifact).assign(artifact=artifact.key))


def thinned(history: pd.DataFrame) -> pd.DataFrame:
    """The loss in at most `HISTORY_POINTS` rows, each the mean over its steps."""
    block = (history["step"] - 1) * HISTORY_POINTS // len(history)
    return history.groupby(block).agg({"step": "last", "loss": "mean"}).reset_index(drop=True)


if "snakemake" in globals():
    run_rule(make, snakemake)
