"""What the zoo has: which optimizer on which scenario, and with which settings."""

import math
import pathlib
from typing import NamedTuple

from benchmarks.peers import COMPETITORS, Setting
from benchmarks.reports import records

# Folders of stored results, the first one that has a result is taken.
FOLDERS = ("poster", "minibatch", "")


class Entry(NamedTuple):
    """One checkpoint of the zoo, and how to make it."""

    scenario: str
    optimizer: str
    budget: float | None = None  # ``None`` for that of the stored result

    @property
    def arguments(self) -> str:
        """What follows ``python -m benchmarks train``."""
        budget = "" if self.budget is None else f" --budget {self.budget:g}"
        return f"{self.scenario} --optimizer {self.optimizer}{budget}"


ENTRIES = (
    # About where held-out examples would stop it: at the budget of the stored result
    # it fits the training examples better and new ones worse (70 % instead of 72 %).
    Entry("mobilenet_last_layer", "hessian_free", 31.0),
    Entry("mobilenet_last_layer", "adam"),
    Entry("mobilenet_last_layer", "sgd"),
    Entry("mnist_cnn", "stochastic_hessian_free"),
)


def stored_result(
    scenario: str, optimizer: str, directory: pathlib.Path
) -> records.Record | None:
    """The stored result of an optimizer on a scenario, if there is one."""
    for folder in FOLDERS:
        path = directory / folder / scenario / f"{optimizer}.json"
        if path.exists():
            return records.load(path)
    return None


def setting_of(
    scenario: str, optimizer: str, directory: pathlib.Path
) -> Setting | None:
    """The winner of the stored tuning, ``None`` for an optimizer that is not tuned.

    Raises:
        ValueError: if the optimizer has to be tuned and there is no stored result.
    """
    if not COMPETITORS[optimizer].exponents:
        return None
    stored = stored_result(scenario, optimizer, directory) or {"grid": []}
    for cell in stored["grid"]:
        if cell["winner"]:
            exponent = round(2 * math.log10(cell["learning_rate"]))
            return Setting(cell["batch"], cell["schedule"], exponent)
    raise ValueError(
        f"{optimizer} has to be tuned on {scenario}, and no tuning is stored: "
        f"python -m benchmarks run {scenario} --optimizers {optimizer} --output "
        "benchmarks/results"
    )
