"""Small archives of the kinds that the data sets come in, written by hand."""

import hashlib
import io
import tarfile
import zipfile


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


def wheel(files):
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return content.getvalue()


def store(monkeypatch, folder, module, which, content):
    """Puts an archive into a folder and makes its checksum the expected one."""
    archive = getattr(module, which)
    folder.mkdir(exist_ok=True)
    (folder / archive.name).write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()
    monkeypatch.setattr(module, which, archive._replace(sha256=digest))
