"""The measurements of one mini-batch step."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class KroneckerAdamInfo(NamedTuple):
    """The measurements of one update of :func:`kronecker_adam`; shape=() each.

    Attributes:
      status: a :class:`Status` code, int32; see :func:`explain`. ``NOT_EVALUATED``
        after a step, whose loss no part of the optimizer needs; ``CLIPPED_GRADIENT``
        after a step with a reduced gradient; ``REJECTED_NON_FINITE``;
        ``ZERO_GRADIENT``.
      loss: the ``value`` given to ``update``, the mean over the devices; 0 without it.
      gradient_norm: ``|g|``, the Euclidean norm over the trained leaves.
      usual_norm: the running level of that norm before this step.
      clipping: factor on the gradient: 1, less for an outlier, 0 for a rejected batch.
      learning_rate: about the largest length of the step along an axis of the
        eigenbases.
      products: number of curvature products of the step, int32.
      gradient_equivalents: cost of the step in gradients, with its own gradient.

    Examples:
      >>> import jax.numpy as jnp
      >>> import ncg_optax as ncg
      >>> tx, w = ncg.kronecker_adam(0.1), jnp.ones(2)
      >>> _, state = tx.update(2 * w, tx.init(w), w)
      >>> info = ncg.get_info(state)
      >>> print(ncg.Status(int(info.status)).name, info.clipping)
      NOT_EVALUATED 1.0
    """

    measures_a_step = True  # by this `get_info` knows it

    status: jax.Array
    loss: jax.Array
    gradient_norm: jax.Array
    usual_norm: jax.Array
    clipping: jax.Array
    learning_rate: jax.Array
    products: jax.Array
    gradient_equivalents: jax.Array


def first_info(dtype: Any) -> KroneckerAdamInfo:
    """The measurements before the first update, all 0; reals have this dtype."""
    return KroneckerAdamInfo(
        **{
            name: jnp.zeros((), jnp.int32 if name in ("status", "products") else dtype)
            for name in KroneckerAdamInfo._fields
        }
    )
