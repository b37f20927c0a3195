"""Public data sets that no Python package installs: found on disk, or downloaded.

Each is one archive. It is looked for in the directory that the environment variable
``NCG_OPTAX_DATA`` names, then in a cache of the user, and downloaded into that cache
if it is in neither. The archives stay packed, and their checksums are compared.
"""

from benchmarks.datasets.archives import CACHE, VARIABLE, Archive, find, read
from benchmarks.datasets.generated import curves
from benchmarks.datasets.images import FASHION, MNIST, Images, fashion_mnist, idx, mnist
from benchmarks.datasets.text import SHAKESPEARE, shakespeare

__all__ = [
    "CACHE",
    "FASHION",
    "MNIST",
    "SHAKESPEARE",
    "VARIABLE",
    "Archive",
    "Images",
    "curves",
    "fashion_mnist",
    "find",
    "idx",
    "mnist",
    "read",
    "shakespeare",
]
