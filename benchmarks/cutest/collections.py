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
      call: how ours is called.
      gradient: what has to be small.
    """

    title: str
    package: str
    methods: tuple[str, ...]
    least: int
    most: int
    file: str
    call: str = "`minimize(f, x)`"
    gradient: str = "gradient"


PEERS = ("optax-lbfgs", "optimistix-bfgs")  # written in JAX; the others are scipy's
COLLECTIONS = {
    "small": Collection(
        "unconstrained CUTEst problems of at most 100 variables",
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
        "CUTEst problems with bounds, of at most 100 variables",
        "bounded",
        (OURS, "l-bfgs-b", "tnc"),
        1,
        100,
        "cutest_bounds",
        "`minimize(f, x, bounds=b)`",
        "projected gradient",
    ),
}
METHODS = tuple(dict.fromkeys(m for c in COLLECTIONS.values() for m in c.methods))
