"""The library's functions, as a notebook calls them: what is no tensor is refused by name, and paths may be text."""

from pathlib import Path
from typing import Any

import pytest
import torch

from precfm.core.errors import PrecfmError
from precfm.core.seeds import seeded_module
from precfm.flows.models.mlp import MLPVelocity
from precfm.flows.objectives import FlowMatching
from precfm.flows.paths import LinearPath
from precfm.flows.sampling import integrate
from precfm.geometry.spectra import class_covariances, condition_number, covariance
from precfm.preconditioned_flow import PreconditionedFlow
from precfm.preconditioners.decoder_metric import DecoderMetric
from precfm.training.options import TrainingOptions
from precfm.training.trainer import train

X = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(20) % 2
OPTIONS = TrainingOptions(steps=2, batch_size=4)


def network(num_classes: int = 0) -> MLPVelocity:
    return seeded_module(lambda: MLPVelocity(3, num_classes, width=8, depth=1), seed=0)


def fit(data: Any, **more: Any) -> Any:
    return train(network(), FlowMatching().prepare(LinearPath(), X), data, OPTIONS, seed=0, **more)


@pytest.mark.parametrize("convert", [lambda x: x.numpy(), lambda x: x.tolist()])
@pytest.mark.parametrize(
    ("name", "call"),
    [
        (r"training: data\[1\]", lambda wrong: fit((X, wrong(X)))),
        ("z1", lambda wrong: FlowMatching().prepare(LinearPath(), wrong(X))),
        ("z0", lambda wrong: integrate(network(), wrong(X))),
        ("labels", lambda wrong: integrate(network(2), X, wrong(LABELS))),
        ("x_t", lambda wrong: network()(wrong(X), torch.zeros(20))),
        ("labels", lambda wrong: network(2)(X, torch.zeros(20), wrong(LABELS))),
        ("x", lambda wrong: covariance(wrong(X))),
        ("labels", lambda wrong: class_covariances(X, wrong(LABELS))),
        ("cov", lambda wrong: condition_number(wrong(X.T @ X))),
        ("metric", lambda wrong: DecoderMetric().fit(X, metric=wrong(X.T @ X))),
        ("x1", lambda wrong: PreconditionedFlow(training=OPTIONS).fit(wrong(X))),
        ("labels", lambda wrong: PreconditionedFlow(training=OPTIONS).fit(X, wrong(LABELS))),
    ],
)
def test_what_is_no_tensor_is_refused_by_name(convert: Any, call: Any, name: str) -> None:
    with pytest.raises(PrecfmError, match=rf"\b{name}: got .*[tT]ensor"):
        call(convert)


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("x_t", lambda: fit((X.double(),))),
        ("x_t", lambda: integrate(network(), X.double())),
        ("labels", lambda: integrate(network(2), X, LABELS.float())),
        ("labels", lambda: integrate(network(2), X)),
    ],
)
def test_what_a_network_cannot_take_is_refused_by_name(name: str, call: Any) -> None:
    with pytest.raises(PrecfmError, match=f"^{name}: "):
        call()


def test_paths_may_be_text(tmp_path: Path) -> None:
    history = fit((X,), scratch=str(tmp_path / "scratch")).history
    assert history.equals(fit((X,)).history)
    assert list((tmp_path / "scratch").iterdir())
