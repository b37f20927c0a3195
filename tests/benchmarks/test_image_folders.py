"""Folders of images: ImageNet and BreakHis, drawn here, and what stands in for them."""

import sys
import types

import numpy as np
import pytest
from PIL import Image

from benchmarks import datasets
from benchmarks.datasets import histology, photographs


def draw(path, colour=(0, 0, 0), shape=(4, 4)):
    """An image of one colour; returns its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.broadcast_to(np.array(colour, np.uint8), (*shape, len(colour)))
    Image.fromarray(pixels.squeeze(-1) if len(colour) == 1 else pixels).save(path)
    return path


def test_the_short_side_is_resized_and_the_centre_cut_out(tmp_path):
    pixels = np.zeros((40, 80, 3), np.uint8)
    pixels[:, :20, 0] = pixels[:, 20:60, 1] = pixels[:, 60:, 2] = 200
    Image.fromarray(pixels).save(tmp_path / "a.png")
    found = photographs.picture(tmp_path / "a.png", size=20, short_side=20)
    assert found.shape == (20, 20, 3) and found.dtype == np.uint8
    assert (found[:, 2:-2] == [0, 200, 0]).all()  # neither the red nor the blue quarter
    smaller = photographs.picture(tmp_path / "a.png", size=10, short_side=20)
    np.testing.assert_array_equal(smaller, found[5:15, 5:15])
    assert photographs.picture(tmp_path / "a.png", size=7).shape == (7, 7, 3)
    with pytest.raises(ValueError, match="short_side=4 is less than size=8"):
        photographs.picture(tmp_path / "a.png", size=8, short_side=4)


def test_a_folder_has_its_classes_in_order(tmp_path):
    for name, red in [("n02", 20), ("n01", 10), ("n03", 30)]:
        for i in range(3):
            draw(tmp_path / name / f"{i}.png", (red, i, 0), shape=(4, 6))
        (tmp_path / name / "notes.txt").touch()
    draw(tmp_path / "n01" / "grey.JPEG", (9,))
    found = photographs.image_folder(tmp_path, size=4)
    assert found.classes == ("n01", "n02", "n03")
    assert found.images.shape == (10, 4, 4, 3)
    assert found.labels.tolist() == [0, 0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert found.images[:, 0, 0, 0].tolist() == [10] * 3 + [9] + [20] * 3 + [30] * 3
    few = photographs.image_folder(tmp_path, size=4, limit=2, classes=2)
    assert few.labels.tolist() == [0, 0, 1, 1] and few.classes == ("n01", "n02")
    assert few.images[:, 0, 0, 1].tolist() == [0, 1, 0, 1]


def test_a_folder_without_classes_is_an_error(tmp_path):
    draw(tmp_path / "ILSVRC2012_val_00000001.png")
    with pytest.raises(FileNotFoundError, match="must hold one folder of images for"):
        photographs.image_folder(tmp_path)


def store_imagenet(folder, train="ab", val="ab"):
    for part, names in (("train", train), ("val", val)):
        for i, name in enumerate(names):
            for j in range(2):
                path = folder / "data" / "imagenet" / part / name / f"{j}.png"
                draw(path, (i, j, len(part)))


def test_imagenet_is_read_from_its_folders(folder):
    store_imagenet(folder)
    found, note = photographs.imagenet(size=4, limit=None, test_limit=1)
    assert note == "ImageNet from a folder (2 classes, 4 training and 2 test images)"
    assert found.train.shape == (4, 4, 4, 3) and found.test.shape == (2, 4, 4, 3)
    assert found.train[:, 0, 0, :2].tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]
    assert found.train_labels.tolist() == [0, 0, 1, 1]
    assert found.test[:, 0, 0, 2].tolist() == [3, 3] and found.test_labels[1] == 1


def test_imagenet_with_other_classes_for_testing_is_an_error(folder):
    store_imagenet(folder, val="ac")
    with pytest.raises(ValueError, match="have other classes"):
        photographs.imagenet(size=4)


def test_imagenet_is_read_by_tensorflow_datasets(folder, monkeypatch):
    read = []

    def rows(split):
        for i in range(12):
            read.append(split)
            yield np.full((4, 5, 3), i, np.uint8), i % 3

    label = types.SimpleNamespace(names=["a", "b", "c"])
    info = types.SimpleNamespace(features={"label": label})
    module = types.ModuleType("tensorflow_datasets")
    module.builder = lambda name: types.SimpleNamespace(info=info)
    module.load = lambda name, split, as_supervised: rows(split)
    module.as_numpy = iter
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", module)
    found, note = photographs.imagenet(size=4, limit=2, test_limit=1, classes=2)
    assert note.startswith("ImageNet from TensorFlow Datasets (2 classes, 4 training")
    assert found.train[:, 0, 0, 0].tolist() == [0, 1, 3, 4]
    assert found.train_labels.tolist() == [0, 1, 0, 1]
    assert found.test[:, 0, 0, 0].tolist() == [0, 1]
    assert read == 5 * ["train"] + 2 * ["validation"]  # no further than needed


def test_imagenet_missing_says_where_to_put_it(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(FileNotFoundError) as caught:
        photographs.imagenet()
    message = str(caught.value)
    assert "no folder imagenet in $NCG_OPTAX_DATA" in message
    assert "imagenet/train/CLASS/" in message and "not installed" in message


def store_breakhis(root, patients, magnification=40, images=2):
    """The folder as it is distributed: {(B or M, type, number): colour}."""
    kinds = {"B": "benign", "M": "malignant"}
    for (kind, type_, number), colour in patients.items():
        slide = f"SOB_{kind}_{type_}_{number}"
        place = root / "histology_slides" / "breast" / kinds[kind] / "SOB" / "some_type"
        for i in range(images):
            name = f"SOB_{kind}_{type_}-{number}-{magnification}-{i:03}.png"
            draw(place / slide / f"{magnification}X" / name, colour, shape=(4, 6))


def patients(benign, malignant):
    """Patients whose images have the number of the patient as their red."""
    found = {("B", "A", f"14-{i}AB"): (i, 0, 0) for i in range(benign)}
    numbers = range(benign, benign + malignant)
    return found | {("M", "DC", f"14-{i}"): (i, 0, 0) for i in numbers}


def red(images):
    return images[:, 0, 0, 0].tolist()


def test_breakhis_is_split_by_patient(folder):
    root = folder / "data" / "BreaKHis_v1"
    store_breakhis(root, patients(4, 6))
    store_breakhis(root, {("B", "A", "14-99"): (99, 0, 0)}, magnification=400)
    found, note = histology.breakhis(magnification=40, size=4, test_share=0.5)
    assert note == (
        "BreakHis at 40X (10 images of 5 patients; for testing 10 images of 5 patients)"
    )
    train, test = set(red(found.train)), set(red(found.test))
    assert not train & test and train | test == set(range(10))
    assert sum(number < 4 for number in test) == 2  # the same share of both kinds
    for images, labels in (found[:2], found[2:]):
        assert labels.tolist() == [int(number >= 4) for number in red(images)]
    again, _ = histology.breakhis(root, magnification=40, size=4, test_share=0.5)
    assert red(again.test) == red(found.test)
    tests = {
        tuple(red(histology.breakhis(root, 40, 4, 0.5, seed)[0].test))
        for seed in range(4)
    }
    assert len(tests) > 1


@pytest.mark.parametrize("seed", range(4))
def test_a_patient_with_several_slides_stays_together(folder, seed):
    root = folder / "data" / "BreaKHis_v1" / "BreaKHis_v1"  # as some unpack it
    several = {("M", "DC", "14-0"): (0, 0, 0), ("M", "LC", "14-0"): (0, 0, 0)}
    several |= {("B", "A", "14-1AB"): (1, 0, 0), ("B", "A", "14-1CD"): (1, 0, 0)}
    others = {("M", "DC", "14-2"): (2, 0, 0), ("B", "F", "14-3"): (3, 0, 0)}
    store_breakhis(root, several | others)
    found, _ = histology.breakhis(magnification=40, size=4, test_share=0.5, seed=seed)
    assert not set(red(found.train)) & set(red(found.test))
    assert len(found.train) + len(found.test) == 12


def test_breakhis_missing_or_empty_says_what_to_do(folder):
    with pytest.raises(FileNotFoundError) as caught:
        histology.breakhis()
    message = str(caught.value)
    assert "no folder BreaKHis_v1 in $NCG_OPTAX_DATA" in message
    assert "https://web.inf.ufpr.br/" in message and "unpack it there" in message
    with pytest.raises(FileNotFoundError, match=r"no images called SOB_\*-200-\*.png"):
        histology.breakhis(folder)
    with pytest.raises(ValueError, match="magnification=50 is none of"):
        histology.breakhis(magnification=50)


def test_the_stand_in_is_never_called_breakhis(folder, monkeypatch):
    labels = np.array([3, 0, 5, 3, 9, 5], np.uint8)
    pixels = np.arange(6, dtype=np.uint8)[:, None, None, None]
    images = datasets.images.Images(pixels, labels, pixels[::-1], labels[::-1])
    read = datasets.images.Found(images, "a subset of CIFAR-10")
    monkeypatch.setattr(histology, "cifar10", lambda: read)
    found, note = histology.breakhis_or_stand_in()
    assert red(found.train) == [0, 1, 2, 3, 4, 5] == red(found.test)[::-1]
    assert found.train_labels.tolist() == [0, 1, 0, 0, 1, 0]  # animals 0, vehicles 1
    assert found.test_labels.tolist() == [0, 1, 0, 0, 1, 0]
    assert note == (
        "stand-in: CIFAR-10 animals and vehicles, BreakHis not found; of a subset of "
        "CIFAR-10"
    )
    store_breakhis(folder / "data" / "BreaKHis_v1", patients(2, 2), magnification=200)
    found, note = histology.breakhis_or_stand_in(size=4)
    assert note.startswith("BreakHis at 200X") and found.train.shape == (4, 4, 4, 3)
