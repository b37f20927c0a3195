"""Public data sets that no Python package installs: found on disk, or downloaded.

Each is an archive or a folder. It is looked for in the directory that the environment
variable ``NCG_OPTAX_DATA`` names, then in a cache of the user, and downloaded into that
cache if it is in neither and anyone may download it. The archives stay packed, and
their checksums are compared. Where there is more than one source, the result carries a
note that says which one was read.
"""

from benchmarks.datasets import (  # isort: skip
    archives, generated, histology, images, photographs, text, translation, weights,
)  # fmt: skip
from benchmarks.datasets.archives import VARIABLE

__all__ = [
    "VARIABLE", "archives", "generated", "histology", "images", "photographs", "text",
    "translation", "weights",
]  # fmt: skip
