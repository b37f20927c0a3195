"""Handwritten digits: 1,797 images of 8x8 pixels, ten classes."""

from benchmarks.scenarios import _networks as networks
from benchmarks.scenarios._base import Dataset, Scenario, dataset


def load() -> Dataset:
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    return dataset(pixels / 16.0, labels)


SCENARIO = Scenario(
    name="digits",
    description="Digits classification, 64-128-64-10 network, cross-entropy",
    load=load,
    init=networks.initialiser(64, 128, 64, 10),
    model=networks.dense,
    loss=networks.softmax_cross_entropy,
    metric=networks.accuracy,
    metric_name="accuracy",
    registration=("softmax_cross_entropy", 1.0),
)
