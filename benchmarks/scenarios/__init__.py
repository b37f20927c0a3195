"""The training problems, by name, in the order in which they are listed."""

from benchmarks.scenarios import (  # isort: skip
    boston, breakhis, convection_pinn, curves_autoencoder, digits, life, mnist,
    mnist_autoencoder, mnist_bayesian, mobilenet, mobilenet_last_layer, resnet50,
    shakespeare, translation, vae, wisconsin, wisconsin_bayesian,
)  # fmt: skip
from benchmarks.scenarios._base import Dataset, Scenario

SCENARIOS: dict[str, Scenario] = {
    scenario.name: scenario
    for scenario in (
        wisconsin.SCENARIO,
        boston.SCENARIO,
        boston.LINEAR,
        life.SCENARIO,
        digits.SCENARIO,
        digits.AUTOENCODER,
        curves_autoencoder.SCENARIO,
        mnist_autoencoder.SMALL,
        mnist_autoencoder.SCENARIO,
        mnist_autoencoder.FULL,
        mnist.CLASSIFIER,
        mnist.FASHION,
        mnist.CNN,
        vae.SCENARIO,
        mnist_bayesian.SCENARIO,
        wisconsin_bayesian.SCENARIO,
        shakespeare.SCENARIO,
        breakhis.SCENARIO,
        resnet50.SCENARIO,
        resnet50.NARROW,
        resnet50.IMAGENET,
        mobilenet.SCENARIO,
        mobilenet.IMAGENET,
        mobilenet_last_layer.SCENARIO,
        translation.SCENARIO,
        translation.CONTINUED,
        translation.TED,
        convection_pinn.SCENARIO,
        convection_pinn.UNSCALED,
        boston.SCENARIO.in_float64(),
        life.SCENARIO.in_float64(),
    )
}

__all__ = ["SCENARIOS", "Dataset", "Scenario"]
