"""The running average of the iterates, at which the model is evaluated."""

from typing import Any

import jax
import jax.numpy as jnp

from ncg_optax.minibatch.state import KroneckerAdamState

PyTree = Any

# The average is over about a share of 1 / POWER of the steps, the last ones.
POWER = 9.0


def next_average(average: PyTree, params: PyTree, steps: jax.Array) -> PyTree:
    r"""The average with the parameters :math:`x_t` after :math:`t` steps added.

    .. math::
      a \leftarrow a + \frac{p}{t - 1 + p} (x_t - a), \qquad p = 9

    so that :math:`x_t` has a weight near :math:`(t / T)^{p - 1}` after :math:`T` steps
    (polynomial-decay averaging, Shamir and Zhang 2013). The start :math:`x_0` has none.

    Args:
      average: the average, a tree shaped like the parameters.
      params: the parameters, likewise.
      steps: :math:`t`, int32, shape=(), or of the first axes of the leaves.
    """
    weight = POWER / (jnp.maximum(steps - 1, 0).astype(float) + POWER)

    def leaf(a, x):
        w = weight.reshape(weight.shape + (1,) * (jnp.ndim(a) - weight.ndim))
        return (a + w * (x - a)).astype(a.dtype)

    return jax.tree.map(leaf, average, params)


def averaged_params(state: PyTree, params: PyTree) -> PyTree:
    """The average of the iterates: evaluate, checkpoint and deploy the model there.

    :func:`kronecker_adam` keeps the average in its state. The last parameters, which
    its ``update`` has not seen yet, are added here. So the result is right whatever
    changes the updates after the optimizer: a chain, a wrapper, a projection.

    Args:
      state: the state of :func:`kronecker_adam`, or one that contains it: of a chain,
        a wrapper or an `nnx.Optimizer`.
      params: the parameters after the last update, a pytree.

    Returns:
      A tree shaped like ``params``, in its dtypes. Leaves that the optimizer does not
      train are those of ``params``.

    Raises:
      ValueError: if the state contains no average or several, or if it is of other
        parameters.

    Examples:
      >>> import jax, jax.numpy as jnp, optax
      >>> import ncg_optax as ncg
      >>> tx, w = ncg.kronecker_adam(0.1), jnp.ones(2)
      >>> state = tx.init(w)
      >>> for sign in (1, -1, 1, -1):
      ...     updates, state = tx.update(w + sign, state, w)
      ...     w = optax.apply_updates(w, updates)
      >>> average = ncg.averaged_params(state, w)
    """

    def is_own(x):
        return isinstance(x, KroneckerAdamState)

    found = [x for x in jax.tree.leaves(state, is_leaf=is_own) if is_own(x)]
    if len(found) != 1:
        raise ValueError(
            f"averaged_params: expected one KroneckerAdamState in the state, found "
            f"{len(found)}. Was the state made by kronecker_adam, and restored with a "
            "target?"
        )
    path_and_leaf = jax.tree_util.tree_leaves_with_path(found[0].average)
    averages = {jax.tree_util.keystr(path): x for path, x in path_and_leaf}
    steps = jnp.asarray(jax.tree.leaves(found[0].steps)[0])

    def leaf(path, x):
        average = averages.pop(jax.tree_util.keystr(path), None)
        if average is None:
            return x
        if average.shape != jnp.shape(x):
            raise ValueError(
                f"averaged_params: params{jax.tree_util.keystr(path)} has shape "
                f"{jnp.shape(x)}, but its average has shape {average.shape}."
            )
        return next_average(average, x, steps).astype(jnp.result_type(x))

    result = jax.tree_util.tree_map_with_path(leaf, params)
    if averages:
        raise ValueError(
            "averaged_params: params must be those that the optimizer trains, but "
            f"they have no leaf {', '.join(averages)}."
        )
    return result
