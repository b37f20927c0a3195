"""Stained tissue under the microscope: BreakHis, and what stands in for it."""

import pathlib
import re
from collections.abc import Mapping

import numpy as np

from benchmarks.datasets.archives import CACHE, VARIABLE, place
from benchmarks.datasets.images import Found, Images, cifar10
from benchmarks.datasets.photographs import picture

BREAKHIS = "BreaKHis_v1"
MAGNIFICATIONS = (40, 100, 200, 400)
SLIDE = re.compile(r"SOB_([BM])_[A-Z]+-(\d+-\d+)[A-Z]*-(\d+)-\d+\.png")
VEHICLES = (0, 1, 8, 9)  # labels of CIFAR-10


def breakhis(
    path: pathlib.Path | str | None = None,
    magnification: int = 200,
    size: int = 64,
    test_share: float = 0.3,
    seed: int = 0,
) -> Found:
    """BreakHis: tissue of breast tumours, benign (0) or malignant (1).

    Patients are split, not images: none has images in both parts. The share of the
    patients that are for testing is the same among the benign and the malignant cases.
    Numbers that differ in letters only, as 14-22549AB and 14-22549CD, count as one
    patient, to be on the safe side; the authors count them apart and get 82.

    There are about 2,000 images of each magnification. Of each, 700x460, the square in
    the centre is kept and resized. ``path`` is the folder as it is distributed, by
    default ``BreaKHis_v1`` in the data directory or the cache.

    Raises:
        FileNotFoundError: if there is no such folder, or no such images in it.
        ValueError: if there is no such magnification.
    """
    if magnification not in MAGNIFICATIONS:
        raise ValueError(f"magnification={magnification} is none of {MAGNIFICATIONS}.")
    path = place(BREAKHIS) if path is None else pathlib.Path(path)
    if path is None:
        raise FileNotFoundError(
            f"there is no folder {BREAKHIS} in ${VARIABLE} or {CACHE}: download the "
            "BreakHis data set (Spanhol et al. 2016; "
            "https://web.inf.ufpr.br/vri/databases/"
            "breast-cancer-histopathological-database-breakhis/) and unpack it there."
        )
    slides = [
        (file, parts[2], int(parts[1] == "M"))
        for file in sorted(path.rglob("*.png"))
        if (parts := SLIDE.fullmatch(file.name)) and int(parts[3]) == magnification
    ]
    if not slides:
        raise FileNotFoundError(
            f"{path} holds no images called SOB_*-{magnification}-*.png, as BreakHis "
            "has them in histology_slides/breast/."
        )
    held_out = held_out_patients(
        {patient: label for _, patient, label in slides}, test_share, seed
    )
    train, test = (
        [slide for slide in slides if (slide[1] in held_out) == is_test]
        for is_test in (False, True)
    )
    counts = f"{_counts(train)}; for testing {_counts(test)}"
    images = Images(*_read(train, size), *_read(test, size))
    return Found(images, f"BreakHis at {magnification}X ({counts})")


def breakhis_or_stand_in(size: int = 32) -> Found:
    """BreakHis where its folder is on disk, else `breakhis_stand_in` with 32x32."""
    return breakhis_stand_in() if place(BREAKHIS) is None else breakhis(size=size)


def held_out_patients(
    labels: Mapping[str, int], share: float = 0.3, seed: int = 0
) -> set[str]:
    """Draws patients for testing, the same share of every label."""
    rng = np.random.default_rng(seed)
    drawn = set()
    for kind in sorted(set(labels.values())):
        patients = sorted(name for name, label in labels.items() if label == kind)
        count = max(1, round(share * len(patients)))
        drawn.update(rng.permutation(patients)[:count].tolist())
    return drawn


def breakhis_stand_in() -> Found:
    """Animals (0) and vehicles (1) of CIFAR-10: the shape of the task alone.

    Measurements on these images say nothing about tissue.
    """
    images, origin = cifar10()
    train, test = (
        (part, np.isin(labels, VEHICLES).astype(np.uint8))
        for part, labels in (images[:2], images[2:])
    )
    note = f"stand-in: CIFAR-10 animals and vehicles, BreakHis not found; of {origin}"
    return Found(Images(*train, *test), note)


def _read(slides: list[tuple], size: int) -> tuple[np.ndarray, np.ndarray]:
    images = [picture(file, size, short_side=size) for file, *_ in slides]
    return np.stack(images), np.array([label for *_, label in slides])


def _counts(slides: list[tuple[pathlib.Path, str, int]]) -> str:
    patients = {patient for _, patient, _ in slides}
    return f"{len(slides):,} images of {len(patients)} patients"
