"""The names that a configuration may use, each with the import string of the class or function that it stands for.

A new preconditioner, network, encoder, data set, table or figure is one new file and one line here;
docs/architecture.md says what else each needs. The table holds strings: a change to one class does not touch the
fingerprint of the others.

Another package registers its own through an entry point of the group `precfm.<group>`, as in
`[project.entry-points."precfm.preconditioners"]`, or a configuration names the class itself, as `my.module:Class`. The
source of such a package is part of the keys (`precfm.pipeline.fingerprints`).
"""

import re
import sys
from collections.abc import Mapping
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any, TypeVar

from precfm.core.errors import PrecfmError
from precfm.core.options import shortened, suggestion

Base = TypeVar("Base")

# What the classes of a group derive from.
BASES = {
    "preconditioners": "precfm.preconditioners.base:Preconditioner",
    "models": "precfm.flows.models.base:VelocityNetwork",
    "wrappers": "precfm.flows.models.base:Wrapper",
    "paths": "precfm.flows.paths:ProbabilityPath",
    "objectives": "precfm.flows.objectives:VelocityObjective",
    "encoders": "precfm.encoders.base:Encoder",
    "extractors": "torch.nn:Module",
}

REGISTRY: dict[str, dict[str, str]] = {
    "preconditioners": {
        "none": "precfm.preconditioners.identity:Identity",
        "scalar": "precfm.preconditioners.scalar:Scalar",
        "per_channel": "precfm.preconditioners.per_channel:PerChannel",
        "whitening": "precfm.preconditioners.whitening:Whitening",
        "channel_whitening": "precfm.preconditioners.channel_whitening:ChannelWhitening",
        "per_frequency": "precfm.preconditioners.per_frequency:PerFrequency",
        "kronecker": "precfm.preconditioners.kronecker:Kronecker",
        "low_rank": "precfm.preconditioners.low_rank:LowRank",
        "per_class": "precfm.preconditioners.per_class:PerClass",
        "class_whitening": "precfm.preconditioners.class_whitening:ClassWhitening",
        "normalizing_flow": "precfm.preconditioners.normalizing_flow:NormalizingFlow",
        "low_capacity_flow": "precfm.preconditioners.low_capacity_flow:LowCapacityFlow",
        "conv_normalizing_flow": "precfm.preconditioners.conv_normalizing_flow:ConvNormalizingFlow",
        "conv_low_capacity_flow": "precfm.preconditioners.conv_low_capacity_flow:ConvLowCapacityFlow",
        "mixture_flow": "precfm.preconditioners.mixture_flow:MixtureFlow",
        "decoder_metric": "precfm.preconditioners.decoder_metric:DecoderMetric",
        "projection": "precfm.preconditioners.projection:Projection",
        "composition": "precfm.preconditioners.composition:Composition",
    },
    "models": {
        "mlp": "precfm.flows.models.mlp:MLPVelocity",
        "unet": "precfm.flows.models.unet:UNetVelocity",
        "dit": "precfm.flows.models.dit:DiTVelocity",
    },
    "wrappers": {
        "gaussian_skip": "precfm.flows.models.gaussian_skip:GaussianSkip",
        "mixture_skip": "precfm.flows.models.mixture_skip:MixtureSkip",
        "mixture_label": "precfm.flows.models.mixture_label:MixtureLabel",
    },
    "paths": {
        "linear": "precfm.flows.paths:LinearPath",
        "variance_preserving": "precfm.flows.paths:VariancePreservingPath",
    },
    "objectives": {
        "flow_matching": "precfm.flows.objectives:FlowMatching",
        "x_prediction": "precfm.flows.objectives:XPrediction",
        "denoising_score": "precfm.flows.objectives:DenoisingScore",
    },
    "encoders": {
        "conv_vae": "precfm.encoders.conv_vae:ConvVAE",
        "pca": "precfm.encoders.pca:PCA",
        "block_dct": "precfm.encoders.block_dct:BlockDCT",
        "pretrained": "precfm.encoders.pretrained:Pretrained",
        "kl_autoencoder": "precfm.encoders.kl_autoencoder:KLAutoencoder",
    },
    "extractors": {
        "digit_classifier": "precfm.metrics.extractors.classifier:DigitClassifier",
    },
    "fixed_extractors": {
        "identity": "precfm.metrics.extractors.identity:Identity",
        "imagenet": "precfm.metrics.extractors.imagenet:ImageNet",
        "inception": "precfm.metrics.extractors.inception:Inception",
        "pixels": "precfm.metrics.extractors.identity:Pixels",
    },
    "datasets": {
        "mnist5k": "precfm.datasets.mnist5k:MNIST5k",
        "mnist": "precfm.datasets.mnist:MNIST",
        "fashion_mnist": "precfm.datasets.fashion_mnist:FashionMNIST",
        "imagefolder": "precfm.datasets.imagefolder:ImageFolder",
        "flowers102": "precfm.datasets.flowers102:Flowers102",
        "lsun": "precfm.datasets.lsun:LSUN",
        "latents": "precfm.datasets.latents:Latents",
        "stand_in": "precfm.datasets.stand_in:StandIn",
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
        "radial": "precfm.report.figures.radial:draw",
        "sample_grids": "precfm.report.figures.sample_grids:draw",
        "training_curves": "precfm.report.figures.training_curves:draw",
        "time_to_quality": "precfm.report.figures.time_to_quality:draw",
        "predictors": "precfm.report.figures.predictors:draw",
        "descent_curves": "precfm.report.figures.descent_curves:draw",
        "steps_against_kappa": "precfm.report.figures.steps_against_kappa:draw",
        "residual_bound": "precfm.report.figures.residual_bound:draw",
        "residual_grid": "precfm.report.figures.residual_grid:draw",
        "mixture_descent": "precfm.report.figures.mixture_descent:draw",
        "mixture_ablations": "precfm.report.figures.mixture_ablations:draw",
        "mixture_methods": "precfm.report.figures.mixture_methods:draw",
        "trained_factors": "precfm.report.figures.trained_factors:draw",
        "trained_budgets": "precfm.report.figures.trained_budgets:draw",
    },
    "tables": {
        "sides": "precfm.report.tables.sides:build",
        "metrics": "precfm.report.tables.metrics:build",
        "paired": "precfm.report.tables.paired:build",
        "latents": "precfm.report.tables.latents:build",
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


def import_string(group: str, name: str) -> str:
    """The import string `module:attribute` behind a name of the registry, of an entry point, or that is one itself.

    Raises:
        PrecfmError: the group has no such name.
    """
    if name in REGISTRY[group]:
        return REGISTRY[group][name]
    if re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", name):
        return name
    added = {entry.name: entry.value for entry in entry_points(group=f"precfm.{group}")}
    if name in added:
        return added[name]
    known = suggestion(name, sorted({*REGISTRY[group], *added}))
    shown = repr(name) if ":" in name else shortened(name)  # of an import string the end matters
    raise PrecfmError(f"{group}: got {shown}{known}, and any `module:Class` that can be imported")


def name_of(group: str, target: Any) -> str:
    """The name under which a class or function can be found again: the registered one, or its import string."""
    string = f"{target.__module__}:{target.__qualname__}"
    return next((name for name, known in REGISTRY[group].items() if known == string), string)


def load(group: str, name: str, *, imported: bool = False) -> Any:
    """The class or function that a name stands for.

    Args:
        group: of the registry, such as `preconditioners`.
        name: a registered name or an import string.
        imported: accept an import string only if its module has been imported already, as for names out of files: a
            file must not choose what code runs.

    Raises:
        PrecfmError: the name is unknown, or cannot be imported.
    """
    module, attribute = import_string(group, name).split(":")
    if imported and name not in REGISTRY[group] and module not in sys.modules:
        raise PrecfmError(f"{group}: '{name}' is of another package; `import {module}` first if you trust it")
    try:
        return getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise PrecfmError(f"{group}: got '{name}', which cannot be imported ({error})") from None


def base_of(group: str) -> type[Any]:
    """The class that everything in a group derives from; `object` where there is none."""
    module, attribute = BASES.get(group, "builtins:object").split(":")
    found: type[Any] = getattr(import_module(module), attribute)
    return found


def load_class(group: str, name: str, base: type[Base], *, imported: bool = False) -> type[Base]:
    """The class that a name stands for, of a given kind.

    Any name out of a file comes through here before it is called: `os:system` has been imported, too.

    Args:
        group: of the registry, such as `preconditioners`.
        name: a registered name or an import string.
        base: what the class must derive from.
        imported: as in `load`.

    Raises:
        PrecfmError: as `load`, or the name stands for something else.
    """
    found = load(group, name, imported=imported)
    if not (isinstance(found, type) and issubclass(found, base)):
        raise PrecfmError(
            f"{group}: got '{name}', which is no {base.__name__}; a class derived from it is needed"
        )
    return found


def build(group: str, spec: Mapping[str, Any], **filled_in: Any) -> Any:
    """An instance of a registered class.

    Args:
        group: of the registry, such as `preconditioners`.
        spec: `name` and options, as a configuration gives them.
        filled_in: arguments that are known from the data.
    """
    options = {name: value for name, value in spec.items() if name != "name"}
    return load(group, spec["name"])(**filled_in, **options)
