"""What one update measured, and how to find it in a state."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

PyTree = Any


class NewtonCGInfo(NamedTuple):
    """What one update measured; arrays of shape=().

    Reals have the dtype of the state's scalars (float32 or wider). Quantities that
    need the loss at the end of the step are 0 if ``evaluations`` is 0.

    Attributes:
      status: a :class:`Status` code of the step, int32; :func:`explain` it.
      solver_status: a :class:`Status` code of the linear solve, int32.
      loss: at the parameters given to ``update``.
      next_loss: at the parameters after the step, for a learning rate of 1.
      gradient_norm: ``|g|``, the Euclidean norm over the trained leaves.
      damping: lambda of this step.
      cg_iterations: of the linear solver, int32.
      products: all curvature products of the step, int32.
      evaluations: of the loss along the direction, int32.
      batch_products: the products in units of products with the whole batch: those on
        a share of the examples count as this share.
      batch_evaluations: forward passes in units of the whole batch: the evaluations,
        and what it took to linearise the samples.
      gradient_equivalents: what the step cost in gradients, its own gradient
        included: ``1 + batch_products * curvature.cost + batch_evaluations / 3``.
      residual: ``|B d + lambda d + g| / |g|`` as the solver left it.
      predicted_reduction: ``-(g.d + d.Bd / 2)`` for the step as taken.
      actual_reduction: ``loss - next_loss``.
      reduction_ratio: actual over predicted reduction.
      step_size: the line search's factor on the direction; 0 if rejected, above 1 on
        negative curvature.
      curvature: ``d.Bd / d.d`` along the direction; negative if the solver found
        negative curvature.
      curvature_share: of the examples in the curvature of this step, see
        :func:`sampling`.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> import ncg_optax as ncg
      >>> f = lambda w: jnp.sum((w - 3.0) ** 2)
      >>> tx, w = ncg.newton_cg(damping=0.0), jnp.zeros(2)
      >>> step = jax.jit(lambda g, s: tx.update(g, s, w, value_fn=f))
      >>> info = ncg.get_info(step(jax.grad(f)(w), tx.init(w))[1])
      >>> print(info.loss, info.next_loss, info.reduction_ratio, info.products)
      18.0 0.0 1.0 1
    """

    status: jax.Array
    solver_status: jax.Array
    loss: jax.Array
    next_loss: jax.Array
    gradient_norm: jax.Array
    damping: jax.Array
    cg_iterations: jax.Array
    products: jax.Array
    evaluations: jax.Array
    batch_products: jax.Array
    batch_evaluations: jax.Array
    gradient_equivalents: jax.Array
    residual: jax.Array
    predicted_reduction: jax.Array
    actual_reduction: jax.Array
    reduction_ratio: jax.Array
    step_size: jax.Array
    curvature: jax.Array
    curvature_share: jax.Array


class Cost(NamedTuple):
    """What a step has cost; the fields are those of :class:`NewtonCGInfo`."""

    products: jax.Array
    evaluations: jax.Array
    batch_products: jax.Array
    batch_evaluations: jax.Array
    gradient_equivalents: jax.Array


def first_info(dtype: Any) -> NewtonCGInfo:
    """That of a state that has not been updated yet; reals have this dtype."""
    integers = {"status", "solver_status", "cg_iterations", "products", "evaluations"}
    return NewtonCGInfo(
        **{
            name: jnp.zeros((), jnp.int32 if name in integers else dtype)
            for name in NewtonCGInfo._fields
        }
    )


def find_infos(state: PyTree) -> list[NewtonCGInfo]:
    """All that a state contains."""
    leaves = jax.tree.leaves(state, is_leaf=lambda x: isinstance(x, NewtonCGInfo))
    return [x for x in leaves if isinstance(x, NewtonCGInfo)]


def get_info(state: PyTree) -> NewtonCGInfo:
    """The measurements of the last update, from any state that contains them.

    Args:
      state: the optimizer's state: of :func:`newton_cg`, of a chain or of any wrapper
        around it.

    Returns:
      A :class:`NewtonCGInfo`.

    Raises:
      ValueError: if the state holds none, or more than one.

    Examples:
      >>> import jax.numpy as jnp
      >>> import ncg_optax as ncg
      >>> state = ncg.newton_cg().init(jnp.zeros(3))
      >>> ncg.explain(ncg.get_info(state).status)
      'No step has been taken yet.'
    """
    found = find_infos(state)
    if len(found) != 1:
        raise ValueError(
            f"get_info: expected one NewtonCGInfo in the state, found {len(found)}. "
            + (
                "Was the state made by newton_cg, and restored with a target (without "
                "one, orbax returns plain dictionaries)?"
                if not found
                else "Pass the state of one of the optimizers."
            )
        )
    return found[0]
