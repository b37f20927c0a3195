"""Photographs in folders of classes, ImageNet above all."""

import importlib
import pathlib
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from benchmarks.datasets.archives import CACHE, VARIABLE, place
from benchmarks.datasets.images import Found, Images

SUFFIXES = {".jpeg", ".jpg", ".png", ".bmp", ".webp"}
IMAGENET, TFDS = "imagenet", "imagenet2012"  # a folder, a set of TensorFlow Datasets


class Labelled(NamedTuple):
    """Images of one size from 0 to 255, their labels, and what the labels stand for."""

    images: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]


def image_folder(
    path: pathlib.Path | str,
    size: int = 224,
    limit: int | None = None,
    classes: int | None = None,
) -> Labelled:
    """Reads a folder that holds a folder of images for each class.

    All images are held in memory, ``3 * size**2`` bytes each. The first ``classes`` by
    name are read, the first ``limit`` images of each; ``None`` stands for all.

    Raises:
        FileNotFoundError: if there are no folders of images.
    """
    path = pathlib.Path(path)
    names = sorted(entry.name for entry in path.glob("*") if entry.is_dir())[:classes]
    files = [_pictures(path / name)[:limit] for name in names]
    if not any(files):
        raise FileNotFoundError(
            f"{path} must hold one folder of images for each class, and holds none."
        )
    labels = np.repeat(np.arange(len(names)), [len(part) for part in files])
    images = [picture(file, size) for part in files for file in part]
    return Labelled(np.stack(images), labels, tuple(names))


def picture(file: Any, size: int, short_side: int | None = None) -> np.ndarray:
    """The centre of an image, shape=(size, size, 3), after its short side is resized.

    The short side becomes 8/7 of ``size`` (256 for 224) if it is not given.

    Raises:
        ValueError: if the short side would be smaller than the centre.
    """
    with Image.open(file) as image:
        return _centre(image, size, short_side)


def imagenet(
    size: int = 224,
    limit: int | None = 20,
    test_limit: int | None = 5,
    classes: int | None = None,
) -> Found:
    """ImageNet (ILSVRC 2012) from the folder ``imagenet``, or by TensorFlow Datasets.

    The folder holds ``train`` and ``val``, each with a folder for each class; sorted by
    name they have the labels of torchvision. The test images are those of ``val``.
    ``limit`` and ``test_limit`` are numbers of images of each class, the first ones.

    Raises:
        FileNotFoundError: if there is neither such a folder nor that package.
        ValueError: if the classes of ``train`` are not those of ``val``.
    """
    folder = place(IMAGENET)
    if folder is None:
        train, test = _imagenet_tfds(size, (limit, test_limit), classes)
        origin = "TensorFlow Datasets"
    else:
        train = image_folder(folder / "train", size, limit, classes)
        test = image_folder(folder / "val", size, test_limit, classes)
        origin = "a folder"
    if train.classes != test.classes:
        raise ValueError(f"{folder / 'train'} and {folder / 'val'} have other classes.")
    note = (
        f"ImageNet from {origin} ({len(train.classes):,} classes, "
        f"{len(train.images):,} training and {len(test.images):,} test images)"
    )
    return Found(Images(*train[:2], *test[:2]), note)


def _pictures(folder: pathlib.Path) -> list[pathlib.Path]:
    return sorted(file for file in folder.iterdir() if file.suffix.lower() in SUFFIXES)


def _centre(image: Image.Image, size: int, short_side: int | None = None) -> np.ndarray:
    short_side = size * 8 // 7 if short_side is None else short_side
    if short_side < size:
        raise ValueError(f"short_side={short_side} is less than size={size}.")
    sides = [short_side * side // min(image.size) for side in image.size]
    image = image.convert("RGB").resize(sides, Image.Resampling.BILINEAR)
    left, top = (round((side - size) / 2) for side in sides)
    return np.asarray(image.crop((left, top, left + size, top + size)))


def _imagenet_tfds(
    size: int,
    limits: tuple[int | None, int | None],
    classes: int | None,
) -> list[Labelled]:
    try:
        tfds = importlib.import_module("tensorflow_datasets")
    except ImportError as error:
        raise FileNotFoundError(
            f"there is no folder {IMAGENET} in ${VARIABLE} or {CACHE}, and "
            "tensorflow_datasets is not installed: download ILSVRC 2012 from "
            f"https://image-net.org and put its images into {IMAGENET}/train/CLASS/ "
            f"and {IMAGENET}/val/CLASS/ there."
        ) from error
    names = tuple(tfds.builder(TFDS).info.features["label"].names[:classes])
    parts = []
    for split, limit in zip(("train", "validation"), limits, strict=True):
        rows = tfds.as_numpy(tfds.load(TFDS, split=split, as_supervised=True))
        kept = list(_first_of_each(rows, len(names), limit))
        images = [_centre(Image.fromarray(x), size) for x, _ in kept]
        labels = np.array([label for _, label in kept])
        parts.append(Labelled(np.stack(images), labels, names))
    return parts


def _first_of_each(
    rows: Iterable[tuple[np.ndarray, int]], classes: int, limit: int | None
) -> Iterator[tuple[np.ndarray, int]]:
    """The rows of the first classes, at most so many of each; reads no further."""
    count = Counter()
    for image, label in rows:
        if label < classes and (limit is None or count[label] < limit):
            count[label] += 1
            yield image, label
        if limit is not None and sum(count.values()) == classes * limit:
            return
