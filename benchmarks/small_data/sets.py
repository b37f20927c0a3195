"""The data sets, as standardised splits, and a network for each."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from benchmarks.scenarios import _base as base
from benchmarks.scenarios import _networks as networks
from benchmarks.scenarios import life

Table = tuple[np.ndarray, np.ndarray]


class SmallSet(NamedTuple):
    """A table of inputs and one target.

    Attributes:
      load: returns inputs and targets.
      sizes: of the network's layers after the inputs.
      classes: whether the targets are two classes, 0 and 1.
    """

    load: Callable[[], Table]
    sizes: tuple[int, ...] = (32, 1)
    classes: bool = False

    def split(self, seed: int) -> base.Dataset:
        """Training and held-out examples, a fifth, both standardised by the first."""
        x, y = (np.asarray(a, np.float64) for a in self.load())
        order = np.random.default_rng(seed).permutation(len(x))
        test, train = np.split(order, [round(0.2 * len(x))])
        data = base.split(x[train], y[train], x[test], y[test])
        return base.standardise(data, keys=("x",) if self.classes else ("x", "y"))

    def init(self, seed: int, inputs: int) -> networks.Layers:
        """Random weights."""
        return networks.init_dense((inputs, *self.sizes), seed)


def _boston() -> Table:
    from mlxtend.data import boston_housing_data

    return boston_housing_data()


def _autompg() -> Table:
    from mlxtend.data import autompg_data

    x, y = autompg_data()
    return x[:, :7], y  # the last column has the names of the cars


def _life() -> Table:
    data = life.load()
    parts = data.train, data.held_out
    return tuple(np.concatenate([part[key] for part in parts]) for key in ("x", "y"))


def _diabetes() -> Table:
    from sklearn.datasets import load_diabetes

    return load_diabetes(return_X_y=True)


def _wisconsin() -> Table:
    from sklearn.datasets import load_breast_cancer

    return load_breast_cancer(return_X_y=True)


def _friedman() -> Table:
    from sklearn.datasets import make_friedman1

    return make_friedman1(n_samples=400, noise=1.0, random_state=0)


SETS = {
    "boston": SmallSet(_boston, (64, 32, 1)),
    "life": SmallSet(_life, (32, 32, 1)),
    "wisconsin": SmallSet(_wisconsin, classes=True),
    "diabetes": SmallSet(_diabetes),
    "autompg": SmallSet(_autompg),
    "friedman": SmallSet(_friedman),
}
