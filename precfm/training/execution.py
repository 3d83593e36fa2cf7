"""How a module computes while it trains: its precision, its kernels, and what it keeps for the backward pass."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from precfm.core.errors import PrecfmError
from precfm.training.options import TrainingOptions


def inner_network(module: nn.Module) -> nn.Module:
    """What does the heavy work: the network inside of wrappers, which hold it as `network`."""
    while isinstance(inside := getattr(module, "network", None), nn.Module):
        module = inside
    return module


@contextmanager
def executing(
    module: nn.Module, options: TrainingOptions, device: torch.device, name: str
) -> Iterator[Callable[[], None]]:
    """Let a module's inner network compute as the options say, for the time of the block.

    The network's `forward` is replaced and not the network, so that weights keep their names. A copy of the module that
    is made inside the block would call the original's.

    Args:
        module: what is trained.
        options: `precision`, `compile`, `checkpointing` and `deterministic` of them.
        device: where it is trained.
        name: the training's name in messages.

    Yields:
        What refuses a training whose objective has not called `forward`, so that the options had no effect.

    Raises:
        PrecfmError: the network cannot recompute its activations, or torch cannot compile it.
    """
    network = inner_network(module)
    called = False
    with _kernels(options.deterministic), _recomputing(network, options.checkpointing, name):
        if options.precision == "float32" and not options.compile:
            yield lambda: None
            return
        plain = network.forward
        inner: Any = plain
        if options.compile:
            mode = None if options.compile is True else options.compile
            inner = torch.compile(plain, mode=mode, dynamic=False)

        def forward(*args: Any, **kwargs: Any) -> Any:
            nonlocal called
            called = True
            if options.compile == "reduce-overhead":
                torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
            with torch.autocast(device.type, torch.bfloat16, enabled=options.precision == "bfloat16"):
                found = inner(*args, **kwargs)
            return found.float() if isinstance(found, Tensor) and found.dtype == torch.bfloat16 else found

        def require_called() -> None:
            if not called:
                raise PrecfmError(
                    f"{name}: precision, compile: got {options.precision!r} and {options.compile}, which change the "
                    f"forward pass, but the objective does not call {type(network).__name__}; the defaults are needed"
                )

        vars(network)["forward"] = forward
        try:
            yield require_called
        except Exception as error:
            if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
                raise
            reason = " ".join(str(error).split())[:300]
            raise PrecfmError(
                f"{name}: compile: got {options.compile}, but torch cannot compile {type(network).__name__} here "
                f"({reason}); false is needed"
            ) from error
        finally:
            del vars(network)["forward"]


@contextmanager
def _recomputing(network: nn.Module, wanted: bool, name: str) -> Iterator[None]:
    """Have the network, or the one that it adapts, compute activations again in the backward pass."""
    if not wanted:
        yield
        return
    able = next((part for part in network.modules() if hasattr(part, "enable_gradient_checkpointing")), None)
    if able is None:
        raise PrecfmError(
            f"{name}: checkpointing: got true, but {type(network).__name__} has no method "
            "enable_gradient_checkpointing; false is needed"
        )
    part: Any = able
    try:
        part.enable_gradient_checkpointing()
    except ValueError as error:  # diffusers' networks all have the method, and some cannot
        raise PrecfmError(f"{name}: checkpointing: got true, but {error}; false is needed") from None
    try:
        yield
    finally:
        part.disable_gradient_checkpointing()


@contextmanager
def _kernels(deterministic: bool) -> Iterator[None]:
    """No TF32, which torch allows in convolutions; and deterministic kernels alone, where they are asked for."""
    cudnn, products = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.allow_tf32, products.allow_tf32, cudnn.benchmark, cudnn.deterministic
    strict, warning = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    cudnn.allow_tf32 = products.allow_tf32 = False
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it cuBLAS is refused
        cudnn.benchmark = False
        torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        cudnn.allow_tf32, products.allow_tf32, cudnn.benchmark, cudnn.deterministic = before
        torch.use_deterministic_algorithms(strict, warn_only=warning)
