"""When a sample does not tell enough about the curvature any more."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ncg_optax._utils import pytree
from ncg_optax.solvers.base import Operator

PyTree = Any

# Steps from one look at the whole batch to the next, which costs a product.
PERIOD = 4


class GrowthState(NamedTuple):
    """Whether the sample is enough still.

    Attributes:
      agreement: curvature of the sample along a step over that of the whole batch, as
        it was measured last; 1 before; shape=().
      grown: whether the curvature is that of the whole batch by now, bool; shape=().

    Examples:
      >>> import jax.numpy as jnp
      >>> import ncg_optax as ncg
      >>> tx = ncg.newton_cg(sampling=ncg.sampling(1 / 4, grow_below=0.5))
      >>> state = tx.init(jnp.zeros(2))
      >>> print(state[0].sample.agreement, state[0].sample.grown)
      1.0 False
    """

    agreement: jax.Array
    grown: jax.Array


def first(below: float | None, dtype: jax.typing.DTypeLike) -> GrowthState | tuple[()]:
    """Before the first step: nothing speaks against the sample."""
    if below is None:
        return ()
    return GrowthState(agreement=jnp.ones((), dtype), grown=jnp.zeros((), jnp.bool_))


def either(state: GrowthState, of_batch: Operator, of_sample: Operator) -> Operator:
    """The product with the curvature of the whole batch once grown, else the other."""
    return lambda v: jax.lax.cond(state.grown, of_batch, of_sample, v)


def look(
    state: GrowthState,
    count: jax.Array,
    d: PyTree,
    bend: jax.Array,
    of_batch: Operator,
    below: float,
) -> tuple[GrowthState, jax.Array]:
    r"""The next state, and how many products with the whole batch it took.

    A solver looks for directions of little curvature, and among those of a sample it
    finds the ones that only *this sample* does not bend. So along the step the
    curvature of the sample is less than that of the batch, and the ratio

    .. math::
      \frac{d^T B_{\text{sample}}\, d}{d^T B\, d}

    says how much of the solution is made for the sample. A reduction ratio would take
    the loss's own nonlinearity for a fault of the sample.

    Args:
      state: the last one.
      count: steps done.
      d: the direction.
      bend: ``d.Bd`` with the curvature of the sample; 0 if that is not known.
      of_batch: product with the curvature of the whole batch.
      below: the ratio below which the sample is not enough.
    """
    due = ~state.grown & (count % PERIOD == 0) & (bend > 0)

    def measured():
        whole = pytree.vdot(d, of_batch(d))
        ratio = bend / jnp.where(whole > 0, whole, bend)
        return jnp.where(jnp.isfinite(ratio), ratio, state.agreement)

    agreement = jax.lax.cond(due, measured, lambda: state.agreement)
    agreement = agreement.astype(state.agreement.dtype)
    # For good: where the whole batch is needed once, it is from there on.
    grown = state.grown | (agreement < below)
    return GrowthState(agreement, grown), due.astype(jnp.int32)
