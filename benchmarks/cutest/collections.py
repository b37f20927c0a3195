"""Which problems are run with which methods, and where the results go."""

from typing import NamedTuple

OURS = "ours"


class Collection(NamedTuple):
    """Problems of one kind and size.

    Attributes:
      title: of the figure.
      package: where sif2jax keeps them.
      methods: ours and those that it is compared with.
      least: smallest number of variables.
      most: largest number of variables.
      file: name of the results, without its ending.
    """

    title: str
    package: str
    methods: tuple[str, ...]
    least: int
    most: int
    file: str


COLLECTIONS = {
    "small": Collection(
        "unconstrained CUTEst problems",
        "unconstrained",
        (OURS, "newton-cg", "trust-ncg", "trust-krylov", "l-bfgs-b"),
        1,
        100,
        "cutest",
    ),
    "large": Collection(
        "unconstrained CUTEst problems of 101 to 5,000 variables",
        "unconstrained",
        (OURS, "trust-krylov", "optax-lbfgs", "optimistix-bfgs"),
        101,
        5000,
        "cutest_large",
    ),
    "bounds": Collection(
        "CUTEst problems with bounds",
        "bounded",
        (OURS, "l-bfgs-b", "tnc"),
        1,
        100,
        "cutest_bounds",
    ),
}
METHODS = tuple(dict.fromkeys(m for c in COLLECTIONS.values() for m in c.methods))
