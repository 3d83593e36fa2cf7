"""How to train: the options of every training, checked by pydantic alone."""

from itertools import pairwise
from typing import Annotated, Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from precfm.core.errors import PrecfmError
from precfm.core.options import Count, Natural, Neutral, NotNegative, Positive, Strict


class TrainingOptions(Strict):
    """How to train.

    Args:
        steps: optimizer steps.
        batch_size: rows per step, drawn with replacement.
        learning_rate: peak learning rate.
        schedule: what the learning rate does after the warm-up; `cosine` falls towards zero.
        warmup_steps: steps over which the learning rate rises linearly to its peak.
        optimizer: `adam` (with betas 0.9 and 0.999, weight decay decoupled as in AdamW), plain `sgd`, or `muon`:
            steps of orthogonalised momentum for the matrices in parts of the module called `hidden`, `adam` for
            all else (biases, embeddings, first and last layers), as its author advises. Its updates are scaled
            to the size of Adam's, so that one learning rate and schedule serves both.
        weight_decay: strength of the weight decay.
        ema_decay: decay of the exponential moving average of the weights; None keeps none. At step k it is at
            most (1 + k) / (10 + k), so that the average forgets the initial weights early.
        clip_norm: largest norm of the gradient; None does not clip.
        checkpoints: steps whose weights are handed out, increasing.
        validate_every: steps between validations (the last step is validated too); 0 never validates.
        patience: stop after this many validations in a row without a new best; 0 never stops early.
        save_every: steps between saves to the scratch folder; 0 saves only at the end.
        precision: of the network's forward and backward pass: `float32` without TF32, or `bfloat16` by autocast, with
            weights, optimizer, average and loss in float32. What stands around the network (skips) stays in float32.
        accumulate: parts into which a mini-batch is cut; their gradients are added up before the optimizer's step, so
            that the memory of one part suffices. The losses are those of the whole batch up to rounding, unless rows
            depend on each other, as in batch normalisation.
        compile: whether `torch.compile` makes kernels of the network's forward pass; `reduce-overhead` also records
            CUDA graphs, which pays where the host is the bottleneck.
        channels_last: whether images lie in memory with their channels innermost, as convolutions on GPUs like it.
        checkpointing: whether the network keeps few activations and computes the others again in the backward pass;
            for networks with diffusers' method `enable_gradient_checkpointing`.
        deterministic: whether only deterministic kernels are used, so that a resumed training on a GPU ends in the
            same bytes, too; slower.

    Raises:
        PrecfmError: a value is out of its range.

    References:
        | Muon: An optimizer for hidden layers in neural networks (Jordan et al., 2024)
        | https://kellerjordan.github.io/posts/muon/
        | Muon is Scalable for LLM Training (Liu et al., 2025), section 2.2 for the scale of the updates
        | https://arxiv.org/abs/2502.16982
        | Training Deep Nets with Sublinear Memory Cost (Chen et al., 2016), for `checkpointing`
        | https://arxiv.org/abs/1604.06174
    """

    steps: Count = 5000
    batch_size: Count = 256
    learning_rate: Positive = 1e-3
    schedule: Literal["constant", "cosine"] = "constant"
    warmup_steps: Natural = 0
    optimizer: Literal["adam", "sgd", "muon"] = "adam"
    weight_decay: NotNegative = 0.0
    ema_decay: Annotated[float, Field(ge=0, lt=1)] | None = 0.999
    clip_norm: Positive | None = None
    checkpoints: Annotated[tuple[Count, ...], Field(strict=False)] = ()
    validate_every: Natural = 0
    patience: Natural = 0
    save_every: Natural = 1000
    precision: Annotated[Literal["float32", "bfloat16"], Neutral("float32")] = "float32"
    accumulate: Annotated[Count, Neutral(1)] = 1
    compile: Annotated[bool | Literal["reduce-overhead"], Neutral(False)] = False
    channels_last: Annotated[bool, Neutral(False)] = False
    checkpointing: Annotated[bool, Neutral(False)] = False
    deterministic: Annotated[bool, Neutral(False)] = False

    @model_serializer(mode="wrap")
    def _without_neutral(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Neutral options are left out, so that what is written of a training does not change with new options."""
        fields = type(self).model_fields
        return {
            name: value
            for name, value in serialize(self).items()
            if Neutral(value) not in fields[name].metadata
        }

    @model_validator(mode="after")
    def _consistent(self) -> "TrainingOptions":
        if self.warmup_steps >= self.steps:
            raise PrecfmError(
                f"warmup_steps: got {self.warmup_steps}; fewer than steps ({self.steps}) are needed"
            )
        increasing = all(before < after for before, after in pairwise(self.checkpoints))
        if not increasing or any(step > self.steps for step in self.checkpoints):
            raise PrecfmError(
                f"checkpoints: got {list(self.checkpoints)}; increasing steps in 1..{self.steps} are needed"
            )
        if self.patience and not self.validate_every:
            raise PrecfmError(f"patience: got {self.patience}; validate_every above 0 is needed with it")
        if self.batch_size % self.accumulate:
            raise PrecfmError(
                f"accumulate: got {self.accumulate}; a divisor of batch_size ({self.batch_size}) is needed"
            )
        return self
