"""How a training computes: parts of a mini-batch, precision, compiled forward, memory format, data on disk."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from precfm.core.errors import PrecfmError
from precfm.core.seeds import seeded_module
from precfm.flows.models.adapted import AdaptedNetwork
from precfm.flows.models.mlp import MLPVelocity
from precfm.flows.objectives import FlowMatching
from precfm.flows.paths import LinearPath
from precfm.preconditioned_flow import PreconditionedFlow
from precfm.training.batches import TensorRows
from precfm.training.draws import NotRandom
from precfm.training.options import TrainingOptions
from precfm.training.shards import ShardedRows
from precfm.training.trainer import train
from tests.test_training import Killed, Outcome, assert_same, changed, clusters

MAPS = torch.randn(40, 3, 8, 8, generator=torch.Generator().manual_seed(0))
STEPS = {"steps": 8, "batch_size": 12, "learning_rate": 3e-3, "ema_decay": 0.9, "save_every": 3}


class Convolutions(nn.Module):
    """A small network for feature maps that can recompute its activations, as diffusers' networks say it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = (
            nn.Conv2d(3, 8, 3, padding=1),
            nn.GroupNorm(2, 8),
            nn.Conv2d(8, 3, 3, padding=1),
        )
        self.recomputes, self.forwards = False, 0

    def enable_gradient_checkpointing(self) -> None:
        self.recomputes = True

    def disable_gradient_checkpointing(self) -> None:
        self.recomputes = False

    def inside(self, x: Tensor) -> Tensor:
        self.forwards += 1
        return self.last(nn.functional.silu(self.norm(self.first(x))))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        x = x + t[:, None, None, None]
        if self.recomputes and torch.is_grad_enabled():
            return torch.utils.checkpoint.checkpoint(self.inside, x, use_reentrant=False)
        return self.inside(x)


def on_maps(scratch: Path | None = None, dies_after: int = -1, **options: Any) -> tuple[Tensor, nn.Module]:
    """The losses of a training of `Convolutions`, and the network."""
    module = seeded_module(lambda: AdaptedNetwork(Convolutions(), (3, 8, 8)), 0)
    objective = FlowMatching().prepare(LinearPath(), MAPS)
    asked = [0]

    def loss(*given: Any) -> Tensor:
        asked[0] += 1
        if asked[0] == dies_after:
            raise Killed
        return FlowMatching.loss(objective, *given)

    objective.loss = loss  # type: ignore[method-assign]
    how = TrainingOptions(**{**STEPS, **options})
    result = train(module, objective, (MAPS,), how, seed=0, scratch=scratch)
    return torch.tensor(result.history.loss), module


@pytest.mark.parametrize(
    ("options", "tolerance"),
    [
        ({"accumulate": 3}, 1e-5),
        ({"channels_last": True}, 1e-5),
        ({"checkpointing": True}, 1e-6),
        ({"deterministic": True}, 0.0),
        ({"precision": "bfloat16"}, 3e-2),
        ({"compile": True, "precision": "bfloat16", "accumulate": 2, "channels_last": True}, 3e-2),
    ],
    ids=str,
)
def test_options_of_execution_change_rounding_alone_and_resume_to_the_same_bytes(
    options: dict[str, Any], tolerance: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        torch, "compile", partial(torch.compile, backend="aot_eager")
    )  # without a C++ compiler
    usual, plain = on_maps()
    losses, module = on_maps(**options)
    torch.testing.assert_close(losses, usual, rtol=tolerance, atol=tolerance / 10)
    assert module.state_dict().keys() == plain.state_dict().keys()
    assert all(each.is_contiguous() and each.dtype == torch.float32 for each in module.state_dict().values())
    assert not vars(module).keys() & {"forward"}
    with pytest.raises(Killed):
        on_maps(tmp_path, dies_after=5 * options.get("accumulate", 1), **options)
    again, resumed = on_maps(tmp_path, **options)
    assert torch.equal(again, losses)
    assert_same(resumed.state_dict(), module.state_dict())


def test_what_is_asked_for_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    """Recomputed forward passes, bfloat16 activations and channels in the innermost place, seen by the network."""
    seen = list[tuple[torch.dtype, bool]]()

    def see(module: nn.Module, given: Any, found: Tensor) -> None:
        seen.append((found.dtype, found.is_contiguous(memory_format=torch.channels_last)))

    init = Convolutions.__init__

    def hooked(self: Any) -> None:
        init(self)
        self.first.register_forward_hook(see)

    monkeypatch.setattr(Convolutions, "__init__", hooked)
    counts = {wanted: on_maps(checkpointing=wanted)[1].module.forwards for wanted in (False, True)}  # type: ignore[union-attr]
    assert counts[True] - 1 == 2 * (counts[False] - 1) == 2 * STEPS["steps"]  # one when it was adapted
    assert set(seen) == {(torch.float32, False)}
    seen.clear()
    on_maps(precision="bfloat16", channels_last=True)
    assert (torch.bfloat16, True) in seen


def test_skips_stay_in_float32_around_a_network_in_bfloat16() -> None:
    data = clusters()[0]
    flow = PreconditionedFlow(
        "none", wrappers=["gaussian_skip"], training=TrainingOptions(**STEPS, precision="bfloat16")
    )
    flow.preconditioner.fit(data)
    flow.prepare(data)
    seen = []
    flow.network.register_forward_hook(
        lambda module, given, found: seen.append((given[0].dtype, found.dtype))
    )
    flow.network.network.head.register_forward_hook(lambda module, given, found: seen.append(found.dtype))
    flow.train()
    assert set(seen) == {torch.bfloat16, (torch.float32, torch.float32)}


def test_dropout_of_parts_and_couplings_of_rows() -> None:
    whole, cut = (Outcome(changed(accumulate=parts, validate_every=0, checkpoints=())) for parts in (1, 2))
    assert not torch.equal(torch.tensor(whole.result.history.loss), torch.tensor(cut.result.history.loss))
    coupled = FlowMatching(coupling="optimal_transport").prepare(LinearPath(), clusters()[0])
    with pytest.raises(PrecfmError, match="accumulate"):
        train(nn.Linear(4, 4), coupled, clusters()[:1], TrainingOptions(accumulate=2), seed=0)


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"accumulate": 5}, "accumulate"),
        ({"checkpointing": True}, "checkpointing"),
        ({"precision": "bfloat16"}, "precision"),
        ({"precision": "float16"}, "precision"),
    ],
)
def test_options_that_cannot_be_met_are_refused(options: dict[str, Any], field: str) -> None:
    objective = NotRandom(lambda module, batch: module.weight.square().sum())  # type: ignore[union-attr]
    with pytest.raises(PrecfmError, match=field):
        train(nn.Linear(1, 1), objective, (torch.ones(4, 1),), TrainingOptions(steps=2, **options), seed=0)


def test_neutral_options_are_not_written() -> None:
    new = {"precision", "accumulate", "compile", "channels_last", "checkpointing", "deterministic"}
    assert not new & TrainingOptions().model_dump().keys()
    assert TrainingOptions(accumulate=2).model_dump(mode="json")["accumulate"] == 2


# ---- data on disk


def sharded(folder: Path, lengths: tuple[int, ...] = (90, 1, 109)) -> list[Path]:
    x1, labels = clusters()
    paths, start = [], 0
    for position, length in enumerate(lengths):
        paths.append(folder / f"train-{position:05d}-of-{len(lengths):05d}.safetensors")
        rows = slice(start, start + length)
        save_file({"latents": x1[rows].contiguous(), "labels": labels[rows].contiguous()}, paths[-1])
        start += length
    return paths


def test_shards_train_to_the_bytes_of_tensors(tmp_path: Path) -> None:
    rows = ShardedRows(sharded(tmp_path))
    assert (len(rows), rows.shapes) == (200, {"latents": (4,), "labels": ()})
    chosen = torch.randint(200, (64,), generator=torch.Generator().manual_seed(1))
    for found, wanted in zip(rows.gather(chosen), TensorRows(clusters()).gather(chosen), strict=True):
        assert torch.equal(found, wanted)
    trained = []
    for data in (clusters(), rows):
        module = seeded_module(lambda: MLPVelocity(4, 3, width=16, depth=2), 0)
        objective = FlowMatching().prepare(LinearPath(), clusters()[0])
        train(module, objective, data, TrainingOptions(**STEPS), seed=0, scratch=tmp_path / f"{len(trained)}")
        trained.append(module.state_dict())
    assert_same(*trained)


@pytest.mark.parametrize("wrong", ["none", "missing", "damaged", "other shape", "lengths"])
def test_shards_that_do_not_fit_are_refused(tmp_path: Path, wrong: str) -> None:
    paths = sharded(tmp_path)
    if wrong == "none":
        paths = []
    elif wrong == "missing":
        paths[1].unlink()
    elif wrong == "damaged":
        paths[1].write_bytes(b"no safetensors")
    elif wrong == "other shape":
        save_file({"latents": torch.ones(3, 5), "labels": torch.ones(3, dtype=torch.int64)}, paths[1])
    else:
        save_file({"latents": torch.ones(3, 4), "labels": torch.ones(2, dtype=torch.int64)}, paths[1])
    with pytest.raises(PrecfmError, match="paths" if wrong == "none" else paths[1].name):
        ShardedRows(paths)
