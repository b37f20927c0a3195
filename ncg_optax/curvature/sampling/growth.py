"""The change from the curvature of a sample to that of the whole batch."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ncg_optax._utils import pytree
from ncg_optax._utils.conditional import compute_if

PyTree = Any
Product = Callable[[PyTree], PyTree]

# Steps from one measurement to the next, which costs a product with the whole batch.
PERIOD = 4


class GrowthState(NamedTuple):
    """Whether the curvature of the sample is still used.

    Attributes:
      agreement: curvature of the sample along a step over that of the whole batch, as
        it was measured last; 1 before the first measurement; shape=().
      grown: whether the curvature of the whole batch is used from now on, bool,
        shape=().

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


def first_state(
    below: float | None, dtype: jax.typing.DTypeLike
) -> GrowthState | tuple[()]:
    """The state before the first step; () if the sample is always used."""
    if below is None:
        return ()
    return GrowthState(agreement=jnp.ones((), dtype), grown=jnp.zeros((), jnp.bool_))


def sample_or_batch_product(
    state: GrowthState, of_sample: Product, of_batch: Product
) -> Product:
    """The product with the curvature that is used: of the sample until it is grown."""
    return lambda v: jax.lax.cond(state.grown, of_batch, of_sample, v)


def measure_agreement(
    state: GrowthState,
    count: jax.Array,
    d: PyTree,
    bend: jax.Array,
    of_batch: Product,
    below: float,
) -> tuple[GrowthState, jax.Array]:
    r"""Compares the two curvatures along a step, at every fourth step.

    A solver finds directions of small curvature. Some of these are of small curvature
    in *this sample* only. So along the step the curvature of the sample is less than
    that of the whole batch, and the ratio

    .. math::
      \frac{d^T B_{\text{sample}}\, d}{d^T B\, d}

    measures how far the step fits the sample rather than the batch. A reduction ratio
    would not do: it is also small if the loss is far from quadratic.

    Args:
      state: the last one.
      count: steps done.
      d: the direction.
      bend: ``d.Bd`` with the curvature of the sample; 0 if that is not known.
      of_batch: product with the curvature of the whole batch.
      below: the ratio below which the whole batch is used from then on.

    Returns:
      The next state, and the number of products with the whole batch, int32.
    """
    due = ~state.grown & (count % PERIOD == 0) & (bend > 0)

    def measured():
        whole = pytree.vdot(d, of_batch(d))
        ratio = bend / jnp.where(whole > 0, whole, bend)
        return jnp.where(jnp.isfinite(ratio), ratio, state.agreement)

    agreement = compute_if(due, measured, state.agreement)
    grown = state.grown | (agreement < below)
    return GrowthState(agreement, grown), due.astype(jnp.int32)
