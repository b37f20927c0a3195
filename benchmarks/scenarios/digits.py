"""Handwritten digits of 8x8 pixels: ten classes, and a deep autoencoder."""

import numpy as np

from benchmarks.scenarios import _networks as networks
from benchmarks.scenarios._base import Scenario, dataset


def digits() -> tuple[np.ndarray, np.ndarray]:
    """Pixels from 0 to 1 and labels."""
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    return pixels / 16.0, labels


SCENARIO = Scenario(
    name="digits",
    description="Digits classification, 64-128-64-10 network, cross-entropy",
    load=lambda: dataset(*digits()),
    init=networks.initialiser(64, 128, 64, 10),
    model=networks.dense,
    loss=networks.softmax_cross_entropy,
    metric=networks.accuracy,
    metric_name="accuracy",
    registration=("softmax_cross_entropy", 1.0),
)
AUTOENCODER = Scenario(
    name="digits_autoencoder",
    description="Digits autoencoder, 64-200-100-50-12-50-100-200-64, cross-entropy",
    load=lambda: dataset(*2 * digits()[:1]),
    init=networks.initialiser(64, 200, 100, 50, 12, 50, 100, 200, 64),
    model=networks.autoencoder,
    loss=networks.pixel_cross_entropy,
    metric=networks.squared_error_of_logits,
    metric_name="squared error",
    budget=600.0,
    registration=("sigmoid_cross_entropy", 1.0),
)
