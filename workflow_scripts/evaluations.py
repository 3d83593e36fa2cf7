"""Kind `evaluations`: every metric of every checkpoint's samples against the held-out split."""

import pandas as pd
import torch

from precfm.core.serialization import load_network
from precfm.encoders.base import load
from precfm.flows.sampling import rows_with_labels
from precfm.geometry.recovery import EigenvalueRecovery, eigenvalue_recovery
from precfm.geometry.spectra import covariance, eigen_spectrum
from precfm.metrics.evaluate import METRICS, evaluate_features
from precfm.metrics.extractors.base import extract
from precfm.metrics.extractors.identity import whitened
from precfm.metrics.values import records
from precfm.pipeline.job import Job

GRID = 40  # decoded samples that are kept to be looked at


def make(job: Job) -> None:
    """Write the metric records, the recovery of each eigendirection, and a grid of decoded samples."""
    samples = job.parent("samples").tensors("samples.safetensors")
    labels = samples.pop("labels")
    decode = load(job.parent("encoder").verified(), job.node.device).decode
    classifiers = {
        f"classifier-{index}": (load_network(artifact.verified(), job.node.device), artifact.key)
        for index, artifact in enumerate(job.parents("classifiers"))
    }
    reference = job.parent("features").tensors("features.safetensors")
    train = job.parent("latents").tensors("train.safetensors")["latents"].flatten(1)
    directions = eigen_spectrum(covariance(train)).eigenvectors
    reference["latent-whitened"] = whitened(reference["latent"], train)

    options, tables, recovered = job.params["evaluation"], [], []
    last = max(samples, key=step_number)
    for step, latents in samples.items():
        images, vectors = decode(latents), latents.flatten(1)
        generated = {
            name: (extract(network, images), name, key) for name, (network, key) in classifiers.items()
        }
        generated["latent"] = (vectors, "identity", "")
        generated["latent-whitened"] = (whitened(vectors, train), "identity", "")
        full = options["precision_recall"] == "all" or step == last
        number = step_number(step)
        for space, (features, extractor, extractor_hash) in generated.items():
            values = evaluate_features(
                features,
                reference[space],
                metrics=METRICS if full else METRICS[:1],
                k=options["neighbours"],
                seed=options["seed"],
                extractor=f"{extractor}@{extractor_hash}" if extractor_hash else extractor,
                extractor_hash=extractor_hash,
            )
            tables.append(records(values).assign(step=number, space=space))
        recovery = eigenvalue_recovery(vectors, reference["latent"], directions)
        recovered.append(
            pd.DataFrame(
                {
                    "step": number,
                    "index": range(len(recovery.ratios)),
                    "eigenvalue": recovery.eigenvalues.tolist(),
                    "ratio": recovery.ratios.tolist(),
                }
            )
        )
        tables.append(recovery_records(recovery, tables[-1].iloc[0]))
    heldout = job.parent("data").tensors("heldout.safetensors")
    matched = heldout["images"][rows_with_labels(labels[:GRID], heldout["labels"])]
    generated_images = (decode(samples[last][:GRID]) * 255).round().to(torch.uint8)
    job.write_tensors(
        "grid.safetensors", {"images": generated_images, "held-out": matched, "labels": labels[:GRID]}
    )
    job.write_frame("records.csv", pd.concat(tables, ignore_index=True))
    job.write_frame("recovery.csv", pd.concat(recovered, ignore_index=True))


def step_number(name: str) -> int:
    """The training step that a checkpoint's name stands for."""
    return int(name.removeprefix("step-"))


def recovery_records(recovery: EigenvalueRecovery, protocol: pd.Series) -> pd.DataFrame:
    """The summaries of eigenvalue recovery as records, under the protocol of the other latent metrics."""
    values = {
        "eigenvalue_ratio_low": recovery.ratio_low,
        "eigenvalue_log_error": recovery.log_error,
        "eigenvalue_log_error_low": recovery.log_error_low,
    }
    same = protocol[["step", "n_real", "n_generated", "reference", "evaluation_seed"]].to_dict()
    return pd.DataFrame(
        [
            {"metric": name, "value": value, "space": "latent", "extractor": "identity", **same}
            for name, value in values.items()
        ]
    )
