"""Kind `diagnostics`: what a preconditioner does to the spectrum, to the path, and how well it closes."""

from precfm.core.registry import build
from precfm.flows.compute import flops_of
from precfm.geometry.large_spectra import known_condition
from precfm.geometry.summaries import path_frame, spectrum_frame
from precfm.pipeline.job import Job
from precfm.preconditioners.round_trip import round_trip_error, tail_round_trip_error
from precfm.preconditioners.saving import load


def make(job: Job) -> None:
    """Measure on the held-out split; the residual condition number also on validation, for selection."""
    latents = job.parent("latents")
    preconditioner = load(job.parent("preconditioner").verified())
    path = build("paths", job.params["path"])
    x, labels, z = {}, {}, {}
    for split in ("validation", "heldout"):
        tensors = latents.tensors(f"{split}.safetensors")
        x[split], labels[split] = tensors["latents"], tensors["labels"]
        z[split] = preconditioner.forward(x[split], labels[split])
    job.write_frame("spectrum.csv", spectrum_frame(z["heldout"], labels["heldout"], "flow"))
    job.write_frame("path_conditioning.csv", path_frame(z["heldout"], labels["heldout"], path))
    residual = known_condition(z["heldout"])
    job.write_json(
        "preconditioner.json",
        {
            "num_parameters": preconditioner.num_parameters,
            "flops_per_fit": preconditioner.flops_per_fit,
            "residual_condition_number": residual.value,
            "validation_condition_number": known_condition(z["validation"]).value,
            "round_trip_error": round_trip_error(preconditioner, x["heldout"], labels["heldout"]),
            "tail_round_trip_error": tail_round_trip_error(preconditioner, x["heldout"], labels["heldout"]),
            "inverse_flops_per_sample": flops_of(
                lambda: preconditioner.inverse(z["heldout"][:1], labels["heldout"][:1])
            ),
            "notes": " ".join([*preconditioner.notes, *([residual.note] if residual.note else [])]),
        },
    )
