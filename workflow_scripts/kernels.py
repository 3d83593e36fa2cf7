"""Kind `kernels`: what the tangent kernel of the untrained flow predicts of its training (C11)."""

import pandas as pd

from precfm.core.options import validated
from precfm.flows.settings import FlowSettings
from precfm.flows.tangent_kernel import kernel_report
from precfm.pipeline.job import Job
from precfm.preconditioned_flow import PreconditionedFlow
from precfm.preconditioners.saving import load


def make(job: Job) -> None:
    """Predict the number of steps to an absolute residual, from the initial weights and the train split."""
    split, seed = job.parent("latents").tensors("train.safetensors"), job.params["seed"]
    preconditioner = load(job.parent("preconditioner").verified())
    settings = validated(FlowSettings, job.params["flow"])
    flow = PreconditionedFlow.from_settings(settings, preconditioner)
    metric = job.tensor("decoder_metric", "metric.safetensors", "metric")
    flow.prepare(split["latents"], split["labels"], seed=seed, decoder_metric=metric)
    report = kernel_report(
        flow.network,
        flow.path,
        *flow.data,
        points=job.params["points"],
        threshold=job.params["threshold"] * float(split["latents"].var(0).mean()),
        learning_rate=settings.training.learning_rate,
        seed=seed,
        inverse=preconditioner.inverse,
    )
    job.write_frame("predictors.csv", pd.DataFrame([report]))  # not JSON: a number of steps may be infinite
