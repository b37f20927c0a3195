"""Public data sets that no Python package installs: found on disk, or downloaded.

Each is an archive or a folder. It is looked for in the directory that the environment
variable ``NCG_OPTAX_DATA`` names, then in a cache of the user, and downloaded into that
cache if it is in neither and anyone may download it. The archives stay packed, and
their checksums are compared. Where there is more than one source, the result carries a
note that says which one was read.
"""

from benchmarks.datasets.archives import (
    CACHE,
    VARIABLE,
    Archive,
    find,
    locate,
    members,
    place,
    read,
)
from benchmarks.datasets.generated import curves
from benchmarks.datasets.images import (
    CIFAR10,
    CIFAR10_SUBSET,
    FASHION,
    MNIST,
    Found,
    Images,
    cifar10,
    cifar_batch,
    fashion_mnist,
    idx,
    mnist,
)
from benchmarks.datasets.text import SHAKESPEARE, shakespeare
from benchmarks.datasets.translation import (
    HELP_EN,
    HELP_PT,
    Pairs,
    help_pairs,
    split_by_file,
    ted_pairs,
    translation_pairs,
)
from benchmarks.datasets.weights import (
    MOBILENET_V2,
    mobilenet_v2_weights,
    torch_arrays,
)

__all__ = [
    "CACHE",
    "CIFAR10",
    "CIFAR10_SUBSET",
    "FASHION",
    "HELP_EN",
    "HELP_PT",
    "MNIST",
    "MOBILENET_V2",
    "SHAKESPEARE",
    "VARIABLE",
    "Archive",
    "Found",
    "Images",
    "Pairs",
    "cifar10",
    "cifar_batch",
    "curves",
    "fashion_mnist",
    "find",
    "help_pairs",
    "idx",
    "locate",
    "members",
    "mnist",
    "mobilenet_v2_weights",
    "place",
    "read",
    "shakespeare",
    "split_by_file",
    "ted_pairs",
    "torch_arrays",
    "translation_pairs",
]
