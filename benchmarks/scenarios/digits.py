"""Handwritten digits of 8x8 pixels: ten classes, and a deep autoencoder."""

import numpy as np

from benchmarks.scenarios import _networks as networks
from benchmarks.scenarios._base import Dataset, Scenario, dataset


def load() -> Dataset:
    pixels, labels = _digits()
    return dataset(pixels, labels)


def load_pixels() -> Dataset:
    """The images as inputs and targets."""
    pixels, _ = _digits()
    return dataset(pixels, pixels)


def _digits() -> tuple[np.ndarray, np.ndarray]:
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    return pixels / 16.0, labels


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
AUTOENCODER = Scenario(
    name="digits_autoencoder",
    description="Digits autoencoder, 64-200-100-50-12-50-100-200-64, cross-entropy",
    load=load_pixels,
    init=networks.initialiser(64, 200, 100, 50, 12, 50, 100, 200, 64),
    model=networks.autoencoder,
    loss=networks.pixel_cross_entropy,
    metric=networks.squared_error_of_logits,
    metric_name="squared error",
    budget=600.0,
    registration=("sigmoid_cross_entropy", 1.0),
)
