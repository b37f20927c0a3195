"""A line search for directions that may lead uphill."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from ncg_optax._utils import validate
from ncg_optax.globalization.base import (
    Line,
    LineSearch,
    SearchResult,
    rounding_level,
)


class _Trial(NamedTuple):
    """The state of the search; shapes=()."""

    step: jax.Array
    loss: jax.Array  # there
    k: jax.Array  # trials so far


@dataclasses.dataclass(frozen=True)
class safeguard(LineSearch):
    r"""Shortens a step only if the loss rises by more than the model can explain.

    For directions that average over batches, as :func:`averaged_gradient` makes them:
    these may lead uphill on a batch for a good reason, but not by more than the terms
    of its own quadratic model. The step size :math:`s` shrinks from 1 until

    .. math::
      f_S(\theta + s d) - f_S(\theta) \le
        \text{rise} \cdot \left(s\, |g^T d| + s^2\, |d^T B d|\right)

    up to the rounding of :math:`f`. As that is coarse, it is enough to look at the
    examples :math:`S` of the curvature (:func:`sampling`): with a quarter of the batch
    a trial costs a twelfth of a gradient. A rise grows about with :math:`s^2` and what
    is allowed with :math:`s`, so the next trial is their ratio times the last one, kept
    between a tenth of and half of it.

    Attributes:
      rise: how much of the model's terms the loss may rise by, at least 0.
      maxiter: largest number of trials; after that there is no step.

    Raises:
      TypeError: if ``rise`` is not a number or ``maxiter`` not an integer.
      ValueError: if one is out of range or NaN.

    Examples:
      A step of a hundred times the distance to the minimum is cut, one that goes twice
      as far as it should is not:

      >>> import jax.numpy as jnp
      >>> import ncg_optax as ncg
      >>> def step_size(loss_at, slope, bend):
      ...     line = ncg.globalization.Line(jnp.array(1.0), slope, bend, loss_at)
      ...     return ncg.safeguard().search(line).step_size
      >>> far = step_size(lambda s: (100 * s - 1) ** 2, slope=-200.0, bend=0.0)
      >>> near = step_size(lambda s: (2 * s - 1) ** 2, slope=-4.0, bend=8.0)
      >>> print(f"{far:.4f}, {near:.0f}")
      0.0250, 1
      >>> tx = ncg.stochastic_hessian_free(linesearch=ncg.safeguard(rise=0.5))
    """

    rise: float = 1.0
    maxiter: int = 10

    tolerates_rise = True

    def __post_init__(self):
        validate.number("safeguard: rise", self.rise, low=0.0)
        validate.integer("safeguard: maxiter", self.maxiter, low=1)

    def search(self, line: Line) -> SearchResult:
        """The first step size without too large a rise, at most ``maxiter`` trials."""
        loss = line.loss
        loss_at = line.sample_loss_at or line.loss_at

        def good(now):
            rise = now.loss - loss
            return (rise <= self._allowed(line, now.step)) & jnp.isfinite(now.loss)

        def keep_going(now):
            more = now.k < self.maxiter
            return jnp.isfinite(loss) & more & jnp.logical_not(good(now))

        def body(now):
            factor = self._allowed(line, now.step) / (now.loss - loss)
            factor = jnp.where(jnp.isfinite(now.loss), factor, 0)
            shorter = now.step * jnp.clip(factor, 0.1, 0.5)
            step = jnp.where(now.k == 0, now.step, shorter)
            return _Trial(step, loss_at(step), now.k + 1)

        # The first trial is in the loop as well: a model is compiled once.
        untried = jnp.full_like(loss, jnp.nan)
        first = _Trial(jnp.ones((), loss.dtype), untried, jnp.zeros((), jnp.int32))
        end = jax.lax.while_loop(keep_going, body, first)
        accepted = good(end)
        return SearchResult(
            step_size=jnp.where(accepted, end.step, 0),
            loss=jnp.where(accepted, end.loss, loss),
            evaluations=end.k,
            accepted=accepted,
            share=line.sample_share,
        )

    def _allowed(self, line: Line, step: jax.Array) -> jax.Array:
        """By how much the loss may rise at this step size."""
        model = step * jnp.abs(line.slope) + jnp.square(step) * jnp.abs(line.bend)
        return self.rise * model + rounding_level(line.loss)
