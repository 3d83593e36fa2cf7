"""A diffusion transformer as velocity network for feature maps.

diffusers' own, `DiTTransformer2DModel`, needs labels, and drops them by random numbers of the device.
"""

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm, scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint

from precfm.core.errors import PrecfmError
from precfm.core.options import Count, Natural, checked
from precfm.core.tensors import require_tensor
from precfm.flows.models.base import LabelDropout, VelocityNetwork

SIZES = {"S": (384, 12, 6), "B": (768, 12, 12)}  # width, depth, heads: table 1 of the paper
TIME_FEATURES = 256
FASTEST = 100.0  # radians per unit of time of the fastest time feature, as in the MLP


class DiTVelocity(VelocityNetwork):
    """Velocity v(x_t, t, y) by a transformer over patches, with adaptive layer norms that start at zero (adaLN-Zero).

    Time and class shift, scale and gate every block; positions are fixed sines and cosines. Untrained it says zero.

    Args:
        shape: (channels, height, width).
        num_classes: number of classes of the condition; 0 makes the network unconditional.
        size: width, depth and heads of `DiT-S` or `DiT-B`, where they are not given.
        patch: height and width of a patch.
        width: numbers of a token, a multiple of 4 and of the heads.
        depth: number of blocks.
        heads: of the attention.
        label_dropout: see `VelocityNetwork`.

    Raises:
        PrecfmError: an argument is out of its range, or does not divide what it should.

    References:
        Scalable Diffusion Models with Transformers (Peebles and Xie, 2022), https://arxiv.org/abs/2212.09748

    Example:
        >>> model = DiTVelocity((4, 8, 6), num_classes=5, width=16, depth=1, heads=2)
        >>> model(torch.zeros(2, 4, 8, 6), torch.zeros(2), torch.arange(2)).shape
        torch.Size([2, 4, 8, 6])
    """

    positions: Tensor
    angular_frequencies: Tensor

    @checked
    def __init__(
        self,
        shape: tuple[Count, Count, Count],
        num_classes: Natural = 0,
        *,
        size: Literal["S", "B"] = "S",
        patch: Count = 2,
        width: Count | None = None,
        depth: Count | None = None,
        heads: Count | None = None,
        label_dropout: LabelDropout = 0.0,
    ) -> None:
        super().__init__()
        self.shape, self.num_classes, self.label_dropout = shape, num_classes, label_dropout
        preset = SIZES[size]
        self.size, self.patch = size, patch
        self.width, self.depth, self.heads = width or preset[0], depth or preset[1], heads or preset[2]
        channels, *sides = shape
        if any(side % patch for side in sides):
            raise PrecfmError(
                f"patch: got {patch} for maps of {sides[0]} x {sides[1]}; a divisor of both is needed"
            )
        self.width_multiple = math.lcm(4, self.heads)
        if self.width % self.width_multiple:
            raise PrecfmError(
                f"width: got {self.width} with {self.heads} heads; a multiple of {self.width_multiple} is needed"
            )
        self._grid = sides[0] // patch, sides[1] // patch
        self.register_buffer("positions", _position_features(self._grid, self.width), persistent=False)
        frequencies = torch.logspace(0, 1, TIME_FEATURES // 2, base=FASTEST)
        self.register_buffer("angular_frequencies", frequencies, persistent=False)
        self.embed_x = nn.Linear(channels * patch**2, self.width)
        self.embed_time = nn.Sequential(
            nn.Linear(TIME_FEATURES, self.width), nn.SiLU(), nn.Linear(self.width, self.width)
        )
        if num_classes:
            self.embed_label = nn.Embedding(self.num_labels, self.width)
        self.hidden = nn.ModuleList(_Block(self.width, self.heads) for _ in range(self.depth))
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(self.width, 2 * self.width))
        self.head = nn.Linear(self.width, channels * patch**2)
        self.checkpointing = False
        self._initialise()

    def forward(self, x_t: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        """The velocity at `x_t`, as `VelocityNetwork.forward`."""
        require_tensor(x_t, "x_t")
        if x_t.shape[1:] != self.shape:
            needed = ", ".join(map(str, self.shape))
            raise PrecfmError(f"x_t: got shape {tuple(x_t.shape)}; (batch, {needed}) is needed")
        angles = t.to(x_t.dtype)[:, None] * self.angular_frequencies
        condition = self.embed_time(torch.cat([angles.cos(), angles.sin()], dim=1))
        if self.num_classes:
            condition = condition + self.embed_label(self.checked_labels(labels, len(x_t)))
        (rows, columns), patch = self._grid, self.patch
        patches = x_t.reshape(-1, self.shape[0], rows, patch, columns, patch).permute(0, 2, 4, 1, 3, 5)
        tokens = self.embed_x(patches.reshape(len(x_t), rows * columns, -1)) + self.positions
        for block in self.hidden:
            if self.checkpointing and torch.is_grad_enabled():
                tokens = checkpoint(block, tokens, condition, use_reentrant=False)
            else:
                tokens = block(tokens, condition)
        shift, scale = self.modulation(condition)[:, None].chunk(2, dim=2)
        found = self.head(_modulated(tokens, shift, scale))
        found = found.reshape(-1, rows, columns, self.shape[0], patch, patch).permute(0, 3, 1, 4, 2, 5)
        velocity: Tensor = found.reshape(x_t.shape)
        return velocity

    def zero_output(self) -> None:
        """Set the last layer to zero."""
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def enable_gradient_checkpointing(self) -> None:
        """Compute activations of blocks again in the backward pass instead of keeping them."""
        self.checkpointing = True

    def disable_gradient_checkpointing(self) -> None:
        """Keep the activations."""
        self.checkpointing = False

    def _initialise(self) -> None:
        """As the authors do, https://github.com/facebookresearch/DiT/blob/main/models.py."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
        for name, weight in self.named_parameters():
            if name.startswith("embed_time") and name.endswith("weight"):
                nn.init.normal_(weight, std=0.02)
            elif "modulation" in name:
                nn.init.zeros_(weight)
        self.zero_output()


class _Block(nn.Module):
    """Attention and a perceptron, each behind a layer norm that the condition shifts and scales, and gated by it."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query_key_value, self.project = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.perceptron = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(approximate="tanh"), nn.Linear(4 * width, width)
        )
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(self, tokens: Tensor, condition: Tensor) -> Tensor:
        """Tokens of shape (batch, tokens, width), with a condition of shape (batch, width)."""
        shift, scale, gate, shift2, scale2, gate2 = self.modulation(condition)[:, None].chunk(6, dim=2)
        mixed = self.query_key_value(_modulated(tokens, shift, scale))
        query, key, value = mixed.unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        attended = scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        tokens = tokens + gate * self.project(attended)
        perceived: Tensor = gate2 * self.perceptron(_modulated(tokens, shift2, scale2))
        return tokens + perceived


def _modulated(tokens: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return layer_norm(tokens, tokens.shape[-1:], eps=1e-6) * (1 + scale) + shift


def _position_features(grid: tuple[int, int], width: int) -> Tensor:
    """Sines and cosines of row and column, half of the features each, shape (rows * columns, width)."""
    frequencies = 1e4 ** -(torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    places = torch.cartesian_prod(*(torch.arange(size, dtype=torch.float64) for size in grid))
    angles = places[:, :, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=2).flatten(1).float()
