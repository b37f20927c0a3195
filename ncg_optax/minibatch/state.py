"""The state of the mini-batch optimizer between two steps."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from ncg_optax._utils import pytree, validate
from ncg_optax.minibatch.distance import Distance, first_distance
from ncg_optax.minibatch.eigenbasis import EigenbasesState, eigenbases
from ncg_optax.minibatch.info import KroneckerAdamInfo, first_info
from ncg_optax.minibatch.moments import Moments, first_moments

PyTree = Any


class KroneckerAdamState(NamedTuple):
    """State of :func:`kronecker_adam`.

    Trees shaped like the parameters have None in place of the leaves that are not
    trained.

    Attributes:
      count: number of updates, int32, shape=().
      steps: number of updates that were not rejected, int32, shape=().
      bases: the eigenbases of each leaf.
      moments: Adam's moments in these.
      distance: the :class:`Distance` that gives the learning rate; () if it is given.
      usual_norm: running level of the norm of the gradient, shape=().
      average: running average of the parameters given to ``update``, a tree shaped like
        them, float32 or wider; :func:`averaged_params` adds the last ones.
      info: the :class:`KroneckerAdamInfo` of the last update.

    Examples:
      >>> import jax.numpy as jnp
      >>> import ncg_optax as ncg
      >>> state = ncg.kronecker_adam().init(jnp.ones((3, 2)))
      >>> print(state.steps, state.bases.left.gram.shape)
      0 (3, 3)
    """

    # Tuples have a method of this name; the field hides it.
    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride]
    steps: jax.Array
    bases: EigenbasesState
    moments: Moments
    distance: Distance | tuple[()]
    usual_norm: jax.Array
    average: PyTree
    info: KroneckerAdamInfo


def first_state(
    params: PyTree, finds_rate: bool, bases: eigenbases
) -> KroneckerAdamState:
    """The state before the first step, which does not depend on values.

    Args:
      params: the trained leaves; they may be `jax.ShapeDtypeStruct`.
      finds_rate: whether the learning rate is found.
      bases: which leaves are rotated.
    """
    dtype = pytree.scalar_dtype(params)
    state = KroneckerAdamState(
        count=jnp.zeros((), jnp.int32),
        steps=jnp.zeros((), jnp.int32),
        bases=bases.init(params),
        moments=first_moments(params),
        distance=first_distance(params) if finds_rate else (),
        usual_norm=jnp.zeros((), dtype),
        average=pytree.widened_zeros_like(params),
        info=first_info(dtype),
    )
    # Each leaf needs its own memory, so that a jitted step can donate the state.
    return jax.tree.map(lambda x: jnp.array(x, copy=True), state)


def without_masked_nodes(tree: PyTree) -> PyTree:
    """``tree`` with None for the leaves that `optax.masked` has taken out."""

    def is_masked(x):
        return isinstance(x, optax.MaskedNode)

    return jax.tree.map(lambda x: None if is_masked(x) else x, tree, is_leaf=is_masked)


def require_own(state: Any, expected: KroneckerAdamState) -> None:
    """Raises unless ``state`` has the leaves that ``init`` gives it.

    Raises:
      TypeError: if ``state`` is that of another optimizer.
      ValueError: if it was made with other settings or for other parameters.
    """
    validate.state("kronecker_adam", state, KroneckerAdamState)
    for name in KroneckerAdamState._fields:
        shapes = [
            {
                jax.tree_util.keystr(path): jnp.shape(x)
                for path, x in jax.tree_util.tree_leaves_with_path(part)
            }
            for part in (getattr(state, name), getattr(expected, name))
        ]
        if shapes[0] != shapes[1]:
            given, wanted = (
                dict(sorted(s.items() - t.items())[:4])
                for s, t in (shapes, shapes[::-1])
            )
            raise ValueError(
                f"kronecker_adam: state.{name} does not fit this optimizer and these "
                f"parameters: got {given}, expected {wanted}. Was it made with other "
                "settings, or for other parameters?"
            )
