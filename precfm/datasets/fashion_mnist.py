"""Fashion-MNIST: 70,000 pictures of clothes, published in the format of MNIST."""

from precfm.datasets.mnist import MNIST


class FashionMNIST(MNIST):
    """The Fashion-MNIST data set, read from its four idx files.

    Args:
        resolution: 28, or 32 for a black margin of two pixels.

    References:
        Xiao, Rasul, Vollgraf, "Fashion-MNIST: a novel image dataset for benchmarking machine learning
        algorithms", https://arxiv.org/abs/1708.07747
    """

    class_names = (
        "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
    )  # fmt: skip
