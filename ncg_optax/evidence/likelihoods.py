"""What the outputs of a model say of the targets: negative log-likelihoods."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.core import Tracer


class Likelihood(NamedTuple):
    """A distribution of the targets, given the outputs.

    Attributes:
      loss: ``loss(outputs, y, precision)``, the negative log-likelihood without its
        terms that do not depend on the outputs, summed over the examples.
      has_noise: whether there is a noise level to find. Without one the precision is 1.
    """

    loss: Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
    has_noise: bool = False


def _normal(outputs: jax.Array, y: jax.Array, precision: jax.Array) -> jax.Array:
    return 0.5 * jnp.sum(precision * jnp.square(outputs - y))


def _bernoulli(outputs: jax.Array, y: jax.Array, precision: jax.Array) -> jax.Array:
    del precision
    return jnp.sum(optax.sigmoid_binary_cross_entropy(outputs, y))


def _categorical(outputs: jax.Array, y: jax.Array, precision: jax.Array) -> jax.Array:
    del precision
    return jnp.sum(optax.softmax_cross_entropy_with_integer_labels(outputs, y))


LIKELIHOODS = {
    "normal": Likelihood(_normal, has_noise=True),
    "bernoulli": Likelihood(_bernoulli),
    "categorical": Likelihood(_categorical),
}


def check_values(name: str, y: jax.Array) -> None:
    """Raises unless the targets can be those of the likelihood.

    The values of targets that are traced are not known.

    Raises:
      TypeError: if the targets are complex, or class labels are not integers.
      ValueError: if there are none, or if one is not the label of a class.
    """
    if jnp.iscomplexobj(y):
        raise TypeError(f"bayesian_fit: y must be real, got dtype {y.dtype}.")
    if not y.size:
        raise ValueError(f"bayesian_fit: y has no examples, its shape is {y.shape}.")
    if name == "categorical" and not jnp.issubdtype(y.dtype, jnp.integer):
        raise TypeError(
            "bayesian_fit: with likelihood='categorical' y must hold the numbers "
            f"of the classes, integers; got dtype {y.dtype}."
        )
    if name == "normal" or isinstance(y, Tracer):
        return
    # NaN passes: the fit ends with the status DIVERGED.
    if jnp.any(y < 0) or (name == "bernoulli" and jnp.any(y > 1)):
        expected = "between 0 and 1" if name == "bernoulli" else "the classes 0, 1, ..."
        raise ValueError(
            f"bayesian_fit: with likelihood={name!r} y must be {expected}, got values "
            f"from {jnp.min(y)} to {jnp.max(y)}."
        )


def check_targets(name: str, outputs: jax.ShapeDtypeStruct, y: jax.Array) -> None:
    """Raises unless targets and outputs fit the likelihood.

    Raises:
      TypeError: if the outputs are not one real array.
      ValueError: if the shapes do not fit.
    """
    if not hasattr(outputs, "shape") or not jnp.issubdtype(outputs.dtype, jnp.floating):
        raise TypeError(
            "bayesian_fit: model_fn must return one array of real floating-point "
            f"numbers, got {outputs}."
        )
    expected = outputs.shape
    if name == "categorical":
        expected = expected[:-1]
    if not expected:
        logits = " and the logits along the last" if name == "categorical" else ""
        raise ValueError(
            "bayesian_fit: model_fn must return the outputs with the examples along "
            f"the first axis{logits}, got the shape {outputs.shape}."
        )
    if y.shape != expected:
        raise ValueError(
            f"bayesian_fit: with likelihood={name!r} and outputs of shape "
            f"{outputs.shape} y must have the shape {expected}, got {y.shape}."
        )
