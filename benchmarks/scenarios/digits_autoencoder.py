"""The deep autoencoder of the Hessian-free literature, on 8x8 digits."""

from benchmarks.scenarios import _networks as networks
from benchmarks.scenarios._base import Dataset, Scenario, dataset


def load() -> Dataset:
    from sklearn.datasets import load_digits

    pixels, _ = load_digits(return_X_y=True)
    return dataset(pixels / 16.0, pixels / 16.0)


SCENARIO = Scenario(
    name="digits_autoencoder",
    description="Digits autoencoder, 64-200-100-50-12-50-100-200-64, cross-entropy",
    load=load,
    init=networks.initialiser(64, 200, 100, 50, 12, 50, 100, 200, 64),
    model=networks.autoencoder,
    loss=networks.pixel_cross_entropy,
    metric=networks.squared_error_of_logits,
    metric_name="squared error",
    budget=600.0,
    registration=("sigmoid_cross_entropy", 1.0),
)
