"""Networks of other libraries inside a flow: called by the names of their arguments, or refused in a sentence."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from precfm.core.errors import PrecfmError
from precfm.flows.models.adapted import AdaptedNetwork
from precfm.preconditioned_flow import PreconditionedFlow
from precfm.training.options import TrainingOptions

DIM = 3
X = torch.randn(200, DIM, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 0.1, 3.0])
LABELS = torch.arange(200) % 4
SHORT = TrainingOptions(steps=5, batch_size=16)


class Plain(nn.Module):
    """(x, t), as flow_matching's."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(DIM + 1, DIM)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        out: Tensor = self.layer(torch.cat([x, t[:, None]], dim=1))
        return out


class TimeFirst(Plain):
    """(t, x, y), as torchcfm's U-Net."""

    def __init__(self) -> None:
        super().__init__()
        self.classes = nn.Embedding(4, DIM)

    def forward(self, t: Tensor, x: Tensor, y: Any = None, *args: Any, **kwargs: Any) -> Tensor:  # type: ignore[override]
        return super().forward(x if y is None else x + self.classes(y), t)


class WithSample(Plain):
    """(sample, timestep, class_labels), as diffusers' U-Net, which answers with an object."""

    def forward(
        self, sample: Tensor, timestep: Tensor, class_labels: Any = None, return_dict: bool = True
    ) -> Any:  # type: ignore[override]
        return SimpleNamespace(sample=super().forward(sample, timestep))


class Joined(Plain):
    """One argument that has the time in it, as torchcfm's MLP."""

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        out: Tensor = self.layer(x)
        return out


@pytest.mark.parametrize("network", [Plain, TimeFirst, WithSample, Joined])
@pytest.mark.parametrize("wrappers", [(), ("gaussian_skip",)])
def test_networks_of_others_train_sample_and_come_back(
    network: type[nn.Module], wrappers: tuple[str, ...], tmp_path: Path
) -> None:
    given = network()
    before = [weight.clone() for weight in given.parameters()]
    flow = PreconditionedFlow("whitening", model=given, wrappers=wrappers, training=SHORT).fit(X)
    assert all(torch.equal(a, b) for a, b in zip(before, given.parameters(), strict=True))
    samples = flow.sample(7)
    assert samples.shape == (7, DIM)
    assert flow.log_prob(X[:2]).shape == (2,)
    flow.save(tmp_path)
    again = PreconditionedFlow.load(tmp_path, model=network())
    assert torch.equal(again.sample(7), samples)
    with pytest.raises(PrecfmError, match=r"load\(folder, model"):
        PreconditionedFlow.load(tmp_path)


def test_labels_go_where_the_network_has_a_place_for_them() -> None:
    flow = PreconditionedFlow("scalar", model=TimeFirst(), training=SHORT).fit(X, LABELS)
    assert flow.network.num_classes == 4
    one, other = (flow.transport(X[:5], torch.full((5,), label)) for label in (0, 1))
    assert not torch.equal(one, other)
    with pytest.raises(PrecfmError, match="labels"):
        PreconditionedFlow("scalar", model=Plain(), training=SHORT).fit(X, LABELS)


def test_a_skip_starts_from_a_network_that_says_nothing() -> None:
    network = AdaptedNetwork(Plain(), (DIM,))
    network.zero_output()
    assert not network(X, torch.rand(200)).any()


class Unclear(Plain):
    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return a + b


class NeedsMore(Plain):
    def forward(self, x: Tensor, t: Tensor, context: Tensor) -> Tensor:  # type: ignore[override]
        return x + context


class Narrow(Plain):
    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return x[:, :1]


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (Unclear(), r"Unclear.forward takes \(a, b\).*\(x, t\)"),
        (NeedsMore(), r"NeedsMore.forward takes \(x, t, context\)"),
        (Narrow(), r"Narrow answers .*\(2, 1\)"),
        (nn.Linear(7, 7), r"Linear refuses points of shape \(2, 3\)"),
        (nn.Identity(), r"Identity has no parameters"),
    ],
)
def test_networks_that_do_not_fit_are_refused_in_a_sentence(network: nn.Module, message: str) -> None:
    with pytest.raises(PrecfmError, match=f"model: .*{message}|model: {message}"):
        PreconditionedFlow("scalar", model=network, training=SHORT).fit(X)
