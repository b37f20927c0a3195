"""When a sample does not tell enough about the curvature any more."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from ncg_optax._solver import Operator, Outcome

# Weight of the past in the running mean: about the last five steps.
MEMORY = 0.8


class GrowthState(NamedTuple):
    """How well the quadratic model of the sample has described the loss lately.

    Attributes:
      agreement: running mean over the steps, in [0, 1]; shape=().
      grown: whether the curvature is that of the whole batch by now, bool; shape=().

    Examples:
      >>> import jax.numpy as jnp
      >>> import ncg_optax as ncg
      >>> tx = ncg.newton_cg(sampling=ncg.sampling(1 / 4, grow_below=0.5))
      >>> print(tx.init(jnp.zeros(2))[0].sample)
      GrowthState(agreement=Array(1., dtype=float32), grown=Array(False, dtype=bool))
    """

    agreement: jax.Array
    grown: jax.Array


def first(below: float | None, dtype: jax.typing.DTypeLike) -> GrowthState | tuple[()]:
    """Before the first step: nothing speaks against the sample."""
    if below is None:
        return ()
    return GrowthState(agreement=jnp.ones((), dtype), grown=jnp.zeros((), jnp.bool_))


def after_step(
    state: GrowthState | tuple[()], outcome: Outcome, below: float | None
) -> GrowthState | tuple[()]:
    r"""The state after a step, grown once the mean agreement is less than ``below``.

    The agreement of a step is :math:`\min(\rho, s)`, between 0 and 1, with
    :math:`\rho` the ratio of actual to predicted reduction and :math:`s` the factor of
    the line search: a model that fits its sample and not the loss promises too much
    and points too far, and a step that is short enough keeps any promise.
    """
    if below is None:
        return ()
    promised = outcome.predicted_reduction
    kept = outcome.actual_reduction + outcome.rounding
    ratio = kept / jnp.where(promised > 0, promised, 1)
    agreement = jnp.clip(jnp.minimum(ratio, outcome.step_size), 0, 1)
    agreement = jnp.where(outcome.accepted, agreement, 0)
    mean = MEMORY * state.agreement + (1 - MEMORY) * agreement
    return GrowthState(
        agreement=mean.astype(state.agreement.dtype),
        # For good: where the whole batch is needed once, it is from there on.
        grown=state.grown | (mean < below),
    )


def either(state: GrowthState, of_batch: Operator, of_sample: Operator) -> Operator:
    """The product with the curvature of the whole batch once grown, else the other."""
    return lambda v: jax.lax.cond(state.grown, of_batch, of_sample, v)
