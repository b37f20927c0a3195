"""The training problems, by name, in the order in which they are listed."""

from benchmarks.scenarios import boston, digits, digits_autoencoder, life, wisconsin
from benchmarks.scenarios._base import Dataset, Scenario

SCENARIOS: dict[str, Scenario] = {
    module.SCENARIO.name: module.SCENARIO
    for module in (wisconsin, boston, life, digits, digits_autoencoder)
}

__all__ = ["SCENARIOS", "Dataset", "Scenario"]
