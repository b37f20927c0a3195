"""A line search for directions that may increase the loss."""

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

    step: jax.Array  # the step size tried last
    loss: jax.Array  # at ``step``; NaN before the first trial
    k: jax.Array  # number of trials, int32


@dataclasses.dataclass(frozen=True)
class safeguard(LineSearch):
    r"""Shortens a step only if the loss rises by more than the quadratic model allows.

    This search is for directions that average over batches, as those of
    :func:`averaged_gradient`. A step that reduces the average loss may increase the
    loss of one batch. The search limits this rise by the size of the terms of the
    batch's quadratic model: the step size :math:`s` shrinks from 1 until

    .. math::
      f_S(\theta + s d) - f_S(\theta) \le
        \text{rise} \cdot \left(s\, |g^T d| + s^2\, |d^T B d|\right)

    up to the rounding of :math:`f`. For this coarse test the loss :math:`f_S` on the
    curvature's sample :math:`S` is sufficient (:func:`sampling`): with a quarter of the
    batch a trial costs a twelfth of a gradient. The rise grows approximately as
    :math:`s^2`, and the bound approximately as :math:`s`. So the next trial is the last
    one times bound / rise, where this factor is at least 0.1 and at most 0.5.

    Attributes:
      rise: factor in the bound, at least 0.
      maxiter: largest number of trials, at least 1. If none is accepted, the step is
        rejected.

    Raises:
      TypeError: if ``rise`` is not a number or ``maxiter`` not an integer.
      ValueError: if a setting is out of range or NaN.

    Examples:
      A step of 100 times the distance to the minimum is shortened. A step of twice
      this distance is not:

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
        """A step size with an allowed rise, after at most ``maxiter`` trials."""
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

        # The loop makes the first trial as well, so that the model is compiled once.
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
        """The largest rise of the loss that is allowed at this step size."""
        model = step * jnp.abs(line.slope) + jnp.square(step) * jnp.abs(line.bend)
        return self.rise * model + rounding_level(line.loss)
