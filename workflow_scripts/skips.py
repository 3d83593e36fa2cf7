"""Kind `skips`: the wrappers around a velocity network, fitted; and the flow that they are without one."""

from precfm.core.options import validated
from precfm.core.seeds import derived_seed
from precfm.flows.settings import FlowSettings
from precfm.pipeline.job import Job
from precfm.preconditioned_flow import PreconditionedFlow, save_weights
from precfm.preconditioners.saving import load

UNTRAINED = {"name": "mlp", "width": 8}  # a skip's network starts at zero, and then does not matter


def make(job: Job) -> None:
    """Fit on the train split behind the map; what has to be chosen is chosen on the validation split.

    Written as an untrained flow: where a wrapper adds a velocity of its own, that is the skip alone.
    """
    latents = job.parent("latents")
    train, validation = (latents.tensors(f"{split}.safetensors") for split in ("train", "validation"))
    model = {**UNTRAINED, "label_dropout": job.params.get("label_dropout", 0.0)}
    wrapped = {"model": model, "wrappers": job.params["wrappers"], "path": job.params["path"]}
    settings = validated(FlowSettings, wrapped)
    flow = PreconditionedFlow.from_settings(settings, load(job.parent("preconditioner").verified()))
    flow.prepare(
        train["latents"],
        train["labels"],
        seed=derived_seed(job.params["seed"], "skip"),
        validation=(validation["latents"], validation["labels"]),
    )
    job.write_tensors("wrappers.safetensors", flow.wrapper_state())
    facts = flow.wrapper_facts()
    job.write_json(
        "cost.json",
        {
            "fit_flops": facts["flops_per_fit"],
            "fitted_numbers": facts["num_fitted_numbers"],
            "notes": " ".join(facts["notes"]),
        },
    )
    save_weights(flow.network, job.folder / "step-000000.safetensors")
    job.write_json("flow.json", flow.description())
