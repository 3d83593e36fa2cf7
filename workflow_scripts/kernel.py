"""Kind `kernels`: what the tangent kernel of the untrained flow predicts of its training (C11)."""

import pandas as pd

from precfm.flows.tangent_kernel import kernel_report
from precfm.geometry.decoder import metric_of
from precfm.pipeline.job import Job
from precfm.pipeline.snakemake_entry import run_rule
from precfm.preconditioned_flow import bind
from precfm.preconditioners.base import load


def make(job: Job) -> None:
    """Predict the number of steps to an absolute residual, from the initial weights and the train split."""
    split, seed = job.parent("latents").tensors("train.safetensors"), job.params["seed"]
    preconditioner = load(job.parent("preconditioner").verified())
    flow = bind(
        job.params["flow"],
        preconditioner,
        split["latents"],
        split["labels"],
        seed,
        metric_of(job.parents("decoder_metric")),
    )
    z1, labels = flow.data
    report = kernel_report(
        flow.model,
        flow.path,
        z1,
        labels,
        points=job.params["points"],
        threshold=job.params["threshold"] * float(split["latents"].var(0).mean()),
        learning_rate=flow.training.learning_rate,
        seed=seed,
        inverse=preconditioner.inverse,
    )
    job.write_frame("predictors.csv", pd.DataFrame([report]))  # not JSON: a number of steps may be infinite


if "snakemake" in globals():
    run_rule(make, snakemake)
