"""The settings of the mini-batch optimizer, checked."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import optax

from ncg_optax._utils import reductions, validate
from ncg_optax.curvature.base import Curvature

PyTree = Any


class Settings(NamedTuple):
    """The settings of :func:`kronecker_adam`, checked."""

    learning_rate: optax.ScalarOrSchedule | None
    curvature: Curvature | None
    max_size: int
    mask: PyTree | Callable[[PyTree], PyTree] | None
    axes: tuple[str, ...]
    seed: int


def complete(learning_rate, curvature, max_size, mask, axis_name, seed) -> Settings:
    """Checks the settings."""
    if learning_rate is not None and not callable(learning_rate):
        name = "kronecker_adam: learning_rate"
        validate.number(name, learning_rate, low=0.0, high_open=True)
        if isinstance(learning_rate, np.generic):
            learning_rate = float(learning_rate)
    if curvature is not None:
        made_by = "gauss_newton(), or None"
        validate.component("curvature", curvature, Curvature, made_by)
    validate.integer("kronecker_adam: max_size", max_size, low=1)
    if not hasattr(seed, "dtype"):  # under optax.inject_hyperparams it is an array
        validate.integer("seed", seed, low=-(2**31))
    axes = reductions.as_axes(axis_name)
    return Settings(learning_rate, curvature, max_size, mask, axes, seed)
