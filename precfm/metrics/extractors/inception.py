"""The Inception-v3 of the published FID, as torch-fidelity carries it over from TensorFlow."""

import io
from pathlib import Path

import torch
from torch import Tensor, nn

from precfm.core.errors import PrecfmError
from precfm.metrics.extractors.weights import Weights, find_weights, load_state

WEIGHTS = Weights(
    file="weights-inception-2015-12-05-6726825d.pth",
    sha256="6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
    url=(
        "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/"
        "weights-inception-2015-12-05-6726825d.pth"
    ),
)


class Inception(nn.Module):
    """Pooled Inception-v3 features, width 2048, with TensorFlow's resizing: those of the published FID.

    Args:
        path: file of the published weights; searched for where None, see `find_weights`.

    Raises:
        PrecfmError: torch-fidelity is not installed, or the weights cannot be had.

    References:
        Heusel et al., https://arxiv.org/abs/1706.08500; Obukhov et al., torch-fidelity,
        https://github.com/toshas/torch-fidelity
    """

    name = "inception-v3-2048"
    weights = WEIGHTS
    batch_size = 50

    def __init__(self, path: Path | None = None) -> None:
        super().__init__()
        try:
            from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
        except ImportError as error:
            raise PrecfmError(
                "extractor: 'inception' needs the package torch-fidelity; install it"
            ) from error
        # torch-fidelity would unpickle the file; it gets a copy of the tensors, read without running code.
        copy = io.BytesIO()
        torch.save(load_state(find_weights(WEIGHTS, path)), copy)
        copy.seek(0)
        self.network = FeatureExtractorInceptionV3(
            "inception-v3-compat", ["2048"], feature_extractor_weights_path=copy
        )

    def features(self, images: Tensor) -> Tensor:
        """Features, (batch, 2048), of images in [0, 1], (batch, 1 or 3, height, width), rounded to 8 bits."""
        if images.shape[1] not in (1, 3):
            raise PrecfmError(f"images: {images.shape[1]} channels; the Inception network takes 1 or 3")
        levels = (images * 255).round().clamp(0, 255).to(torch.uint8).expand(-1, 3, -1, -1)
        features: Tensor = self.network(levels)[0]
        return features
