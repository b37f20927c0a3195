"""The measurements of one update, and how to find them in a state."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

PyTree = Any


class NewtonCGInfo(NamedTuple):
    """The measurements of one update; arrays of shape=().

    Reals have the dtype of the state's scalars (float32 or wider). Quantities that
    need the loss at the end of the step are 0 if ``evaluations`` is 0.

    Attributes:
      status: a :class:`Status` code of the step, int32; see :func:`explain`.
      solver_status: a :class:`Status` code of the linear solve, int32.
      loss: loss of the batch at the parameters given to ``update``.
      next_loss: loss of the batch after the step, for a learning rate of 1; an estimate
        if the line search evaluates the curvature's sample.
      gradient_norm: ``|g|``, the Euclidean norm over the trained leaves.
      damping: lambda of this step, in units of the curvature.
      cg_iterations: number of iterations of the linear solver, int32.
      products: number of all curvature products of the step, int32.
      evaluations: number of evaluations of the loss by line search and solver, int32.
      batch_products: cost of the products, in products with the whole batch: a product
        on a share of the examples counts as this share.
      batch_evaluations: number of forward passes, in passes of the whole batch: the
        evaluations, and the linearisations on a share of the examples.
      gradient_equivalents: cost of the step in gradients, with its own gradient:
        ``1 + batch_products * curvature.cost + batch_evaluations / 3``, and the dense
        linear algebra of :func:`residual_space`.
      residual: ``|B d + lambda d + g| / |g|`` at the end of the linear solve.
      predicted_reduction: ``-(g.d + d.Bd / 2)``, with ``d`` the step that is taken.
      actual_reduction: ``loss - next_loss``; 0 for a rejected step.
      reduction_ratio: actual over predicted reduction.
      step_size: factor of the line search on the direction; 0 for a rejected step. It
        is above 1 only along negative curvature.
      curvature: ``d.Bd / d.d`` with ``d`` the direction. Negative means negative
        curvature along it; 0 if the step follows the negative gradient instead.
      curvature_share: share of the examples that the curvature of this step is computed
        on, in (0, 1]; see :func:`sampling`.

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

    # By this `get_info` knows it; no annotation, so it is no field.
    measures_a_step = True

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
    """The cost of a step; :class:`NewtonCGInfo` explains the fields."""

    products: jax.Array
    evaluations: jax.Array
    batch_products: jax.Array
    batch_evaluations: jax.Array
    gradient_equivalents: jax.Array


def first_info(dtype: Any) -> NewtonCGInfo:
    """The measurements before the first update, all 0; reals have this dtype."""
    integers = {"status", "solver_status", "cg_iterations", "products", "evaluations"}
    return NewtonCGInfo(
        **{
            name: jnp.zeros((), jnp.int32 if name in integers else dtype)
            for name in NewtonCGInfo._fields
        }
    )


def find_measurements(state: PyTree) -> list[Any]:
    """The infos of all optimizers that a state contains, of any type."""

    def is_info(x):
        return getattr(type(x), "measures_a_step", False)

    return [x for x in jax.tree.leaves(state, is_leaf=is_info) if is_info(x)]


def find_infos(state: PyTree) -> list[NewtonCGInfo]:
    """All :class:`NewtonCGInfo` that a state contains."""
    return [x for x in find_measurements(state) if isinstance(x, NewtonCGInfo)]


def get_info(state: PyTree) -> Any:
    """The measurements of the last update, from any state that contains them.

    Args:
      state: the state of :func:`newton_cg`, of a chain, or of a wrapper around it.

    Returns:
      A :class:`NewtonCGInfo`; of :func:`kronecker_adam` a
      :class:`ncg_optax.minibatch.KroneckerAdamInfo`.

    Raises:
      ValueError: if the state contains no measurements, or those of several
        optimizers.

    Examples:
      >>> import jax.numpy as jnp
      >>> import ncg_optax as ncg
      >>> state = ncg.newton_cg().init(jnp.zeros(3))
      >>> ncg.explain(ncg.get_info(state).status)
      'No step has been taken yet.'
    """
    found = find_measurements(state)
    if len(found) != 1:
        raise ValueError(
            f"get_info: expected the measurements of one optimizer in the state, found "
            f"{len(found)}. "
            + (
                "Was the state made by newton_cg, and restored with a target? "
                "(Without a target orbax returns dictionaries.)"
                if not found
                else "Pass the state of one of the optimizers."
            )
        )
    return found[0]
