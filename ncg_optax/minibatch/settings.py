"""The settings of the mini-batch optimizer, checked."""

from collections.abc import Callable
from typing import Any, NamedTuple

import optax

from ncg_optax._utils import reductions, validate
from ncg_optax.curvature.base import Curvature
from ncg_optax.minibatch.eigenbasis import eigenbases

PyTree = Any


class Settings(NamedTuple):
    """The settings of :func:`kronecker_adam`, checked."""

    learning_rate: optax.ScalarOrSchedule | None
    curvature: Curvature | None
    mask: PyTree | Callable[[PyTree], PyTree] | None
    axes: tuple[str, ...]
    seed: int


def complete(
    learning_rate: optax.ScalarOrSchedule | None,
    curvature: Curvature | None,
    bases: eigenbases,
    mask: PyTree | Callable[[PyTree], PyTree] | None,
    axis_name: str | tuple[str, ...] | None,
    seed: int,
) -> Settings:
    """Checks the settings."""
    if learning_rate is not None and not callable(learning_rate):
        name = "kronecker_adam: learning_rate"
        validate.number(name, learning_rate, low=0.0, high_open=True)
    if curvature is not None:
        made_by = "gauss_newton(), or None"
        validate.component("curvature", curvature, Curvature, made_by)
    validate.component("bases", bases, eigenbases, "minibatch.eigenbases()")
    if not hasattr(seed, "dtype"):  # under optax.inject_hyperparams it is an array
        validate.integer("seed", seed, low=-(2**31))
    axes = reductions.as_axes(axis_name)
    return Settings(learning_rate, curvature, mask, axes, seed)
