"""How to train: the options of every training, checked by pydantic alone."""

from itertools import pairwise
from typing import Annotated, Literal

from pydantic import Field, model_validator

from precfm.core.errors import PrecfmError
from precfm.core.options import Count, Natural, NotNegative, Positive, Strict


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

    Raises:
        PrecfmError: a value is out of its range.

    References:
        | Muon: An optimizer for hidden layers in neural networks (Jordan et al., 2024)
        | https://kellerjordan.github.io/posts/muon/
        | Muon is Scalable for LLM Training (Liu et al., 2025), section 2.2 for the scale of the updates
        | https://arxiv.org/abs/2502.16982
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
        return self
