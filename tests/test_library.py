"""The library's entry points, as the README shows them: a user's mistake is one sentence that says what to do."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from precfm.core.errors import PrecfmError
from precfm.core.seeds import seeded_module
from precfm.flows.models.mlp import MLPVelocity
from precfm.flows.objectives import denoising_score_loss, flow_matching_loss
from precfm.flows.paths import LinearPath
from precfm.flows.sampling import integrate
from precfm.geometry.spectra import class_covariances, condition_number, covariance
from precfm.metrics.files import compare
from precfm.preconditioners.decoder_metric import DecoderMetric
from precfm.training.trainer import TrainingOptions, train

X = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(20) % 2
OPTIONS = TrainingOptions(steps=2, batch_size=4)


def network(num_classes: int = 0) -> MLPVelocity:
    return seeded_module(lambda: MLPVelocity(3, num_classes, width=8, depth=1), seed=0)


def loss(module: Any, batch: tuple[Tensor, ...], generator: torch.Generator) -> Tensor:
    return flow_matching_loss(module, LinearPath(), batch[0], None, generator)


def fit(data: Any, options: Any = OPTIONS, **more: Any) -> Any:
    return train(network(), loss, data, options, seed=0, **more)


TENSOR = "torch tensor is needed; torch.as_tensor makes one"


@pytest.mark.parametrize("convert", [lambda x: x.numpy(), lambda x: x.tolist(), lambda x: None])
@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda wrong: fit((X, wrong(X))), r"training: data\[1\]"),
        (lambda wrong: flow_matching_loss(network(), LinearPath(), wrong(X), None, torch.Generator()), "x1"),
        (
            lambda wrong: denoising_score_loss(network(), LinearPath(), wrong(X), None, torch.Generator()),
            "x1",
        ),
        (lambda wrong: integrate(network(), wrong(X)), "z0"),
        (lambda wrong: network()(wrong(X), torch.zeros(20)), "mlp: x_t"),
        (lambda wrong: covariance(wrong(X)), "x"),
        (lambda wrong: class_covariances(X, wrong(LABELS)), "labels"),
        (lambda wrong: condition_number(wrong(X.T @ X)), "cov"),
        (lambda wrong: DecoderMetric().fit(X, metric=wrong(X.T @ X)), "metric"),
    ],
)
def test_what_is_no_tensor_is_refused(convert: Any, call: Any, name: str) -> None:
    with pytest.raises(PrecfmError, match=f"{name}: got .*{TENSOR}"):
        call(convert)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: fit(X), "data is one tensor, but a tuple of tensors is needed"),
        (lambda: fit((X,), {"steps": 2}), "options are of type dict, but TrainingOptions"),
        (lambda: fit((X.long(),)), "x1: has dtype torch.int64, but floating point"),
        (lambda: fit((X.double(),)), "x_t has dtype torch.float64, but the network torch.float32"),
        (lambda: integrate(network(), X.long()), "z0: has dtype torch.int64"),
        (lambda: integrate(network(), X.double()), "x_t has dtype torch.float64"),
        (lambda: integrate(network(2), X, LABELS.numpy()), f"labels: got a ndarray, but a {TENSOR}"),
        (lambda: integrate(network(2), X, LABELS.tolist()), f"labels: got a list, but a {TENSOR}"),
        (lambda: integrate(network(2), X, LABELS.float()), "labels have dtype torch.float32"),
        (lambda: integrate(network(2), X, LABELS[:5]), "labels has 5 rows"),
        (lambda: integrate(network(2), X), "labels are missing"),
        (lambda: network(2)(X, torch.zeros(20), LABELS.tolist()), f"labels: got a list, but a {TENSOR}"),
    ],
)
def test_other_mistakes(call: Any, words: str) -> None:
    with pytest.raises(PrecfmError, match=words):
        call()


def test_paths_may_be_text(tmp_path: Path) -> None:
    history = fit((X,), scratch=str(tmp_path / "scratch")).history
    assert history.equals(fit((X,)).history)
    assert list((tmp_path / "scratch").iterdir())
    for name in ("real", "generated"):
        save_file({"features": torch.randn(30, 4)}, tmp_path / f"{name}.safetensors")
    files = [tmp_path / "real.safetensors", tmp_path / "generated.safetensors"]
    assert compare(*map(str, files)) == compare(*files)


def test_a_network_under_autocast_takes_other_precisions() -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert network()(X.bfloat16(), torch.zeros(20)).dtype == torch.bfloat16
