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
from benchmarks.datasets.histology import (
    BREAKHIS,
    breakhis,
    breakhis_or_stand_in,
    breakhis_stand_in,
    held_out_patients,
)
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
from benchmarks.datasets.photographs import (
    SAMPLES,
    Labelled,
    image_folder,
    imagenet,
    imagenet_samples,
    picture,
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
from benchmarks.datasets.weights import MOBILENET_V2, mobilenet_v2_weights, torch_arrays

__all__ = [
    "BREAKHIS",
    "CACHE",
    "CIFAR10",
    "CIFAR10_SUBSET",
    "FASHION",
    "HELP_EN",
    "HELP_PT",
    "MNIST",
    "MOBILENET_V2",
    "SAMPLES",
    "SHAKESPEARE",
    "VARIABLE",
    "Archive",
    "Found",
    "Images",
    "Labelled",
    "Pairs",
    "breakhis",
    "breakhis_or_stand_in",
    "breakhis_stand_in",
    "cifar10",
    "cifar_batch",
    "curves",
    "fashion_mnist",
    "find",
    "held_out_patients",
    "help_pairs",
    "idx",
    "image_folder",
    "imagenet",
    "imagenet_samples",
    "locate",
    "members",
    "mnist",
    "mobilenet_v2_weights",
    "picture",
    "place",
    "read",
    "shakespeare",
    "split_by_file",
    "ted_pairs",
    "torch_arrays",
    "translation_pairs",
]
