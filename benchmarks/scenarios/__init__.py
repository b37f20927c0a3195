"""The training problems, by name, in the order in which they are listed."""

from benchmarks.scenarios import (  # isort: skip
    boston, breakhis, convection_pinn, curves_autoencoder, digits, life, mnist,
    mnist_autoencoder, mnist_bayesian, mobilenet, mobilenet_last_layer, resnet50,
    shakespeare, translation, vae, wisconsin, wisconsin_bayesian,
)  # fmt: skip
from benchmarks.scenarios._base import Dataset, Scenario

# Every scenario that one of these defines can be run.
_MODULES = (
    wisconsin, boston, life, digits, curves_autoencoder, mnist_autoencoder, mnist, vae,
    mnist_bayesian, wisconsin_bayesian, shakespeare, breakhis, resnet50, mobilenet,
    mobilenet_last_layer, translation, convection_pinn,
)  # fmt: skip
_DEFINED = [x for m in _MODULES for x in vars(m).values() if isinstance(x, Scenario)]
_DOUBLE = [module.SCENARIO.in_float64() for module in (boston, life)]
SCENARIOS = {scenario.name: scenario for scenario in (*_DEFINED, *_DOUBLE)}

__all__ = ["SCENARIOS", "Dataset", "Scenario"]
