"""The U-Net of diffusers as velocity network for feature maps."""

from typing import Annotated

from pydantic import Field
from torch import Tensor, nn

from precfm.core.errors import PrecfmError
from precfm.core.options import Count, Natural, checked
from precfm.core.tensors import require_tensor
from precfm.flows.models.base import LabelDropout, VelocityNetwork

GROUPS = 8  # of the group norms; channels of all levels, and wider ones, are multiples of it
HEAD = 8  # channels of an attention head
# Radians per unit of time of the fastest time feature, as in the MLP: diffusers' own range, up to 1,000, makes fields
# that turn faster than the likelihood's quadrature follows.
FASTEST = 100.0


class UNetVelocity(VelocityNetwork):
    """Velocity v(x_t, t, y) by `diffusers.UNet2DModel`: convolutions and attention at several resolutions.

    Time and class enter every residual block by addition. With the defaults a network for maps of 18 x 8 x 8 has 1.6
    million parameters.

    Args:
        shape: (channels, height, width); each level but the last halves height and width.
        num_classes: number of classes of the condition; 0 makes the network unconditional.
        width: channels of the first level, a multiple of 8.
        multipliers: of the width, one for each level.
        layers: residual blocks of a level.
        attention: levels that attend, from 0; where there is one, the middle attends, too.
        label_dropout: see `VelocityNetwork`.

    Raises:
        PrecfmError: diffusers is not installed, an argument is out of its range, or the sizes do not halve.

    References:
        | Denoising Diffusion Probabilistic Models (Ho et al., 2020), appendix B, https://arxiv.org/abs/2006.11239
        | diffusers, https://huggingface.co/docs/diffusers/api/models/unet2d

    Example:
        >>> import torch
        >>> model = UNetVelocity((4, 8, 8), num_classes=5, width=8)
        >>> model(torch.zeros(2, 4, 8, 8), torch.zeros(2), torch.arange(2)).shape
        torch.Size([2, 4, 8, 8])
    """

    width_multiple = GROUPS

    @checked
    def __init__(
        self,
        shape: tuple[Count, Count, Count],
        num_classes: Natural = 0,
        *,
        width: Annotated[int, Field(ge=GROUPS, multiple_of=GROUPS)] = 48,
        multipliers: Annotated[tuple[Count, ...], Field(min_length=1, strict=False)] = (1, 2),
        layers: Count = 1,
        attention: Annotated[tuple[Natural, ...], Field(strict=False)] = (1,),
        label_dropout: LabelDropout = 0.0,
    ) -> None:
        super().__init__()
        self.shape, self.num_classes, self.label_dropout = shape, num_classes, label_dropout
        self.width, self.layers = width, layers
        self.multipliers, self.attention = tuple(multipliers), tuple(attention)
        levels = len(multipliers)
        if any(level >= levels for level in attention):
            raise PrecfmError(f"attention: got {max(attention)}; levels in 0..{levels - 1} are needed")
        if any(size % 2 ** (levels - 1) for size in shape[1:]):
            raise PrecfmError(
                f"multipliers: got {levels} levels for maps of {shape[1]} x {shape[2]}, which do not halve "
                f"{levels - 1} times; fewer levels are needed"
            )
        try:
            from diffusers import UNet2DModel
        except ImportError:
            raise PrecfmError(
                "model: 'unet' needs diffusers, which is not installed; pip install diffusers"
            ) from None
        self.unet = UNet2DModel(
            sample_size=shape[1:],
            in_channels=shape[0],
            out_channels=shape[0],
            block_out_channels=tuple(width * factor for factor in multipliers),
            down_block_types=tuple(_block("Down", level in attention) for level in range(levels)),
            up_block_types=tuple(_block("Up", level in attention) for level in reversed(range(levels))),
            layers_per_block=layers,
            norm_num_groups=GROUPS,
            attention_head_dim=HEAD,
            add_attention=bool(attention),
            num_class_embeds=self.num_labels or None,
        )

    def forward(self, x_t: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        """The velocity at `x_t`, as `VelocityNetwork.forward`."""
        require_tensor(x_t, "x_t")
        if x_t.shape[1:] != self.shape:
            needed = ", ".join(map(str, self.shape))
            raise PrecfmError(f"x_t: got shape {tuple(x_t.shape)}; (batch, {needed}) is needed")
        asked = self.checked_labels(labels, len(x_t)) if self.num_classes else None
        velocity: Tensor = self.unet(x_t, t * FASTEST, class_labels=asked, return_dict=False)[0]
        return velocity

    def zero_output(self) -> None:
        """Set the last convolution to zero."""
        nn.init.zeros_(self.unet.conv_out.weight)
        nn.init.zeros_(self.unet.conv_out.bias)


def _block(direction: str, attends: bool) -> str:
    return f"{'Attn' if attends else ''}{direction}Block2D"
