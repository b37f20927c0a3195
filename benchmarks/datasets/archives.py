"""Archives: found on disk, or downloaded, checked, and read without unpacking."""

import gzip
import hashlib
import io
import os
import pathlib
import re
import tarfile
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

VARIABLE = "NCG_OPTAX_DATA"
CACHE = pathlib.Path("~/.cache/ncg_optax")
LIMIT = 2**30  # bytes of an archive, and of what is read of one


class Archive(NamedTuple):
    """A file that is served somewhere."""

    name: str  # what the file is called, there and here
    url: str  # where it is served
    sha256: str  # its checksum
    # the command that downloads the same file, for those behind a mirror
    client: str = ""
    # what other versions of it are called, as a pattern with ``*``. They are taken too,
    # for where the version that is named here is no longer served; their checksums are
    # unknown.
    others: str = ""


def place(name: str) -> pathlib.Path | None:
    """A file or folder in the data directory, or in the cache, or nothing."""
    return next(iter(_places(name)), None)


def locate(archive: Archive) -> pathlib.Path | None:
    """The archive on disk, or nothing.

    Raises:
        ValueError: if the file is not the one that was meant.
    """
    path = place(archive.name)
    if path is None:
        others = _places(archive.others) if archive.others else []
        return max(others, key=lambda path: version(path.name), default=None)
    if hashlib.sha256(path.read_bytes()).hexdigest() != archive.sha256:
        raise ValueError(f"{path} has another checksum than expected: {_how(archive)}")
    return path


def find(archive: Archive) -> pathlib.Path:
    """The archive on disk, downloaded if need be.

    Raises:
        FileNotFoundError: if it is nowhere and cannot be downloaded.
        ValueError: if the file is not the one that was meant.
    """
    return locate(archive) or _download(archive, CACHE.expanduser())


def members(archive: Archive, pattern: str) -> dict[str, bytes]:
    """The files of an archive (tar, Debian package, wheel) whose names match.

    Nothing is written: a name is no more than the key of its content. Links and devices
    are left out.

    Raises:
        ValueError: if the files of the archive have more than ``LIMIT`` bytes.
    """
    content = find(archive).read_bytes()
    kind = _zip if archive.name.endswith(".whl") else _tar
    if archive.name.endswith(".deb"):
        content = _ar_member(content, "data.tar")
    return dict(kind(io.BytesIO(content), pattern))


def read(archive: Archive, pattern: str) -> dict[str, bytes]:
    """The files of an archive whose names match, without their folders, unzipped."""
    found = {}
    for path, data in members(archive, pattern).items():
        name = path.rpartition("/")[2]
        if name.endswith(".gz"):
            with gzip.GzipFile(fileobj=io.BytesIO(data)) as file:
                data = file.read(LIMIT + 1)
            _require_small(len(data), path)
        found[name.removesuffix(".gz")] = data
    return found


def version(name: str) -> list[int]:
    """The numbers in a name, by which later versions are told from earlier ones."""
    return [int(digits) for digits in re.findall(r"\d+", name)]


def _places(pattern: str) -> list[pathlib.Path]:
    named = os.environ.get(VARIABLE)
    cache = CACHE.expanduser()
    folders = [pathlib.Path(named).expanduser(), cache] if named else [cache]
    return [path for folder in folders for path in sorted(folder.glob(pattern))]


def _tar(file: io.BytesIO, pattern: str) -> Iterator[tuple[str, bytes]]:
    unpacked = 0
    with tarfile.open(fileobj=file) as tar:
        for member in tar:
            unpacked += member.size
            _require_small(unpacked, member.name)
            if member.isfile() and re.search(pattern, member.name):
                yield member.name, tar.extractfile(member).read()


def _zip(file: io.BytesIO, pattern: str) -> Iterator[tuple[str, bytes]]:
    with zipfile.ZipFile(file) as archive:
        _require_small(sum(info.file_size for info in archive.infolist()), "its files")
        for name in archive.namelist():
            if re.search(pattern, name):
                yield name, archive.read(name)


def _require_small(size: int, what: str) -> None:
    if size > LIMIT:
        raise ValueError(f"this archive is not read: {what} exceeds {LIMIT:,} bytes.")


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


def keep(path: pathlib.Path, write: Callable[[pathlib.Path], Any]) -> pathlib.Path:
    """Writes a file of the cache at once: nobody can read a part of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.stem}.{os.getpid()}{path.suffix}")
    write(part)
    return part.replace(path)


def _download(archive: Archive, cache: pathlib.Path) -> pathlib.Path:
    try:
        with urllib.request.urlopen(archive.url, timeout=60) as response:
            content = response.read(LIMIT + 1)
    except OSError as error:
        raise FileNotFoundError(
            f"{archive.name} is neither in ${VARIABLE} nor in {CACHE}, and downloading "
            f"it failed ({error}): {_how(archive)}"
        ) from error
    if hashlib.sha256(content).hexdigest() != archive.sha256:
        raise ValueError(
            f"{archive.url} serves a file with another checksum than expected: "
            f"{_how(archive)}"
        )
    return keep(cache / archive.name, lambda part: part.write_bytes(content))


def _how(archive: Archive) -> str:
    client = f" (or run `{archive.client}`)" if archive.client else ""
    return (
        f"download {archive.url}{client} and put {archive.others or archive.name} "
        f"into the directory that ${VARIABLE} names, or into {CACHE}."
    )
