"""States that are not finite are replaced by first ones.

A run stores finite numbers only, but a damaged checkpoint or memory may not. Then each
later solve would fail.
"""

from typing import Any

import jax
import jax.numpy as jnp

from ncg_optax._utils import pytree
from ncg_optax._utils.status import Status
from ncg_optax.step.settings import Settings
from ncg_optax.step.state import ScaleByNewtonCGState

PyTree = Any


def repaired(part: Any, params: PyTree, state: PyTree) -> PyTree:
    """The state of a solver or a preconditioner, or a first one if it is not finite."""
    reals = [x for x in jax.tree.leaves(state) if jnp.issubdtype(x.dtype, jnp.inexact)]
    if part is None or not reals:
        return state
    first = pytree.cast_like(part.init(params), state)
    # With explicitly sharded arrays a first state may have other shardings.
    if [jax.typeof(x).sharding for x in jax.tree.leaves(first)] != [
        jax.typeof(x).sharding for x in jax.tree.leaves(state)
    ]:
        return state
    return pytree.where(pytree.all_finite(reals), state, first)


def repaired_preconditioner(
    settings: Settings, params: PyTree, state: ScaleByNewtonCGState
) -> ScaleByNewtonCGState:
    """The state, whose preconditioner is looked at if the last step has failed.

    Args:
      settings: the preconditioner among them.
      params: the trained leaves.
      state: before the step, with the measurements of the last one.
    """
    info = state.info
    failed = (
        (info.solver_status == Status.SOLVER_NON_FINITE)
        | (info.solver_status == Status.INDEFINITE_PRECONDITIONER)
        # An infinite factor gives M r = 0, and so d = 0.
        | ((state.count > 0) & (info.predicted_reduction == 0) & (info.residual >= 1))
    )
    own = jax.lax.cond(
        failed,
        lambda own: repaired(settings.preconditioner, params, own),
        lambda own: own,
        state.preconditioner,
    )
    return state._replace(preconditioner=own)
