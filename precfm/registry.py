"""The names that a configuration may use, each with the import string of the class that it stands for.

A new preconditioner, model, path, autoencoder or dataset is one new file, one line here and one entry in a
configuration. The table holds strings, so the plan can read it (and a class's options) without importing torch,
and a change to one class does not touch the fingerprint of the others.
"""

from collections.abc import Mapping
from importlib import import_module
from typing import Any

from precfm.errors import PrecfmError

REGISTRY: dict[str, dict[str, str]] = {
    "preconditioners": {
        "none": "precfm.preconditioners.identity:Identity",
        "scalar": "precfm.preconditioners.scalar:Scalar",
        "per_channel": "precfm.preconditioners.per_channel:PerChannel",
        "whitening": "precfm.preconditioners.whitening:Whitening",
        "class_whitening": "precfm.preconditioners.class_whitening:ClassWhitening",
        "normalizing_flow": "precfm.preconditioners.normalizing_flow:NormalizingFlow",
        "low_capacity_flow": "precfm.preconditioners.low_capacity_flow:LowCapacityFlow",
        "decoder_metric": "precfm.preconditioners.decoder_metric:DecoderMetric",
        "projection": "precfm.preconditioners.projection:Projection",
        "composition": "precfm.preconditioners.composition:Composition",
        "auto": "precfm.preconditioners.auto:Auto",
    },
    "models": {
        "mlp": "precfm.models.mlp:MLPVelocity",
        "gaussian_skip": "precfm.models.gaussian_skip:GaussianSkip",
    },
    "paths": {
        "linear": "precfm.paths:LinearPath",
        "variance_preserving": "precfm.paths:VariancePreservingPath",
    },
    "objectives": {
        "flow_matching": "precfm.objectives:FlowMatching",
        "denoising_score": "precfm.objectives:DenoisingScore",
    },
    "autoencoders": {
        "conv_vae": "precfm.autoencoders.conv_vae:ConvVAE",
    },
    "extractors": {
        "digit_classifier": "precfm.metrics.extractors.classifier:DigitClassifier",
    },
    "datasets": {
        "mnist5k": "precfm.datasets.mnist5k:MNIST5k",
        "mnist": "precfm.datasets.mnist:MNIST",
        "fashion_mnist": "precfm.datasets.fashion_mnist:FashionMNIST",
        "imagefolder": "precfm.datasets.imagefolder:ImageFolder",
    },
    "theory": {
        "linear_grid": "precfm.theory.experiments.linear_grid:run",
        "steps_to_accuracy": "precfm.theory.experiments.steps_to_accuracy:run",
        "residual_linear": "precfm.theory.experiments.residual_linear:run",
        "residual_networks": "precfm.theory.experiments.residual_networks:run",
        "mixture_linear": "precfm.theory.experiments.mixture_linear:run",
        "mixture_networks": "precfm.theory.experiments.mixture_networks:run",
        "mixture_ablations": "precfm.theory.experiments.mixture_ablations:run",
        "trained_factors": "precfm.theory.experiments.trained_factors:run",
        "trained_budgets": "precfm.theory.experiments.trained_budgets:run",
    },
    "figures": {
        "spectra": "precfm.report.figures.spectra:draw",
        "path_conditioning": "precfm.report.figures.path_conditioning:draw",
        "metrics_vs_steps": "precfm.report.figures.metrics_vs_steps:draw",
        "recovery": "precfm.report.figures.recovery:draw",
        "sample_grids": "precfm.report.figures.sample_grids:draw",
        "time_to_quality": "precfm.report.figures.time_to_quality:draw",
        "predictors": "precfm.report.figures.predictors:draw",
        "descent_curves": "precfm.theory.figures:descent_curves",
        "steps_against_kappa": "precfm.theory.figures:steps_against_kappa",
        "residual_bound": "precfm.theory.figures:residual_bound",
        "residual_grid": "precfm.theory.figures:residual_grid",
        "mixture_descent": "precfm.theory.figures:mixture_descent",
        "mixture_ablations": "precfm.theory.figures:mixture_ablations",
        "mixture_methods": "precfm.theory.figures:mixture_methods",
        "trained_factors": "precfm.theory.figures:trained_factors",
        "trained_budgets": "precfm.theory.figures:trained_budgets",
    },
    "tables": {
        "metrics": "precfm.report.tables.metrics:build",
        "paired": "precfm.report.tables.paired:build",
        "conditioning": "precfm.report.tables.conditioning:build",
        "recovery": "precfm.report.tables.recovery:build",
        "training": "precfm.report.tables.training:build",
        "methods": "precfm.report.tables.methods:build",
        "time_to_quality": "precfm.report.tables.time_to_quality:build",
        "plateaus": "precfm.report.tables.plateaus:build",
        "predictors": "precfm.report.tables.predictors:build",
        "theory": "precfm.report.tables.theory:build",
    },
}

# How many images the published data sets have: all of them, or the official training and test images.
IMAGES: dict[str, tuple[int, ...]] = {
    "mnist5k": (5_000,),
    "mnist": (60_000, 10_000),
    "fashion_mnist": (60_000, 10_000),
}

# The figure that shows a theory experiment; all other figures show data sets.
THEORY_FIGURES = {
    "linear_grid": "descent_curves",
    "steps_to_accuracy": "steps_against_kappa",
    "residual_linear": "residual_bound",
    "residual_networks": "residual_grid",
    "mixture_linear": "mixture_descent",
    "mixture_networks": "mixture_methods",
    "mixture_ablations": "mixture_ablations",
    "trained_factors": "trained_factors",
    "trained_budgets": "trained_budgets",
}
THEORY_TABLES = ("theory",)


def import_string(room: str, name: str) -> str:
    """The import string `module:attribute` behind a registered name.

    Raises:
        PrecfmError: the room has no such name.
    """
    try:
        return REGISTRY[room][name]
    except KeyError:
        known = ", ".join(sorted(REGISTRY[room]))
        raise PrecfmError(f"{room}: '{name}' is not registered; known are {known}") from None


def build(room: str, spec: Mapping[str, Any], **filled_in: Any) -> Any:
    """An instance of a registered class.

    Args:
        room: the registry's room, such as `preconditioners`.
        spec: `name` and options, as a configuration gives them.
        filled_in: arguments that are known from the data.
    """
    return load(room, spec["name"])(
        **filled_in, **{name: value for name, value in spec.items() if name != "name"}
    )


def load(room: str, name: str) -> Any:
    """The class or function that a registered name stands for."""
    module, attribute = import_string(room, name).split(":")
    return getattr(import_module(module), attribute)
