"""Line searches; their trial values are the damping rule's as well."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from ncg_optax._utils import validate


class SearchResult(NamedTuple):
    """The outcome of a line search; scalars of shape=().

    Attributes:
      step_size: the factor on the direction; 0 if no step was good enough.
      loss: the loss there (at the start if there was none).
      evaluations: of the loss, int32.
      accepted: whether a step was found, bool.

    Examples:
      >>> import jax.numpy as jnp
      >>> import ncg_optax as ncg
      >>> loss_at = lambda step: (3 * step - 1) ** 2  # the full step goes too far
      >>> result = ncg.armijo().search(loss_at, jnp.array(1.0), slope=-6.0, bend=18.0)
      >>> print(f"{result.step_size:.3f} after {result.evaluations} trials")
      0.333 after 2 trials
    """

    step_size: jax.Array
    loss: jax.Array
    evaluations: jax.Array
    accepted: jax.Array


class LineSearch(NamedTuple):
    """A line search.

    Attributes:
      search: ``search(loss_at, loss, slope, bend) -> SearchResult``, with
        ``loss_at(step_size)`` the loss along the direction, ``loss`` that at 0,
        ``slope = g.d < 0`` and ``bend = d.Bd``.
      on_sample: whether ``loss_at`` looks only at the examples of the curvature's
        sample, and adds by how much their loss rises to that of the batch. Such a
        search has to put up with a small rise, and so it may be given ``slope >= 0``.

    Examples:
      Half of the step, without looking where it leads:

      >>> import jax.numpy as jnp
      >>> import ncg_optax as ncg
      >>> def search(loss_at, loss, slope, bend):
      ...     half, yes = jnp.asarray(0.5, loss.dtype), jnp.array(True)
      ...     return ncg.globalization.SearchResult(half, loss_at(half), jnp.array(1), yes)
      >>> tx = ncg.newton_cg(linesearch=ncg.globalization.LineSearch(search))
    """

    search: Callable[..., SearchResult]
    on_sample: bool = False


def rounding_level(loss: jax.Array) -> jax.Array:
    """The error that rounding leaves in ``loss``: ten units in its last place."""
    return 10 * jnp.finfo(loss.dtype).eps * jnp.abs(loss)


def full_step() -> LineSearch:
    """The full step, without looking where it leads."""

    def search(loss_at, loss, slope, bend):
        return SearchResult(
            step_size=jnp.ones((), loss.dtype),
            loss=loss,
            evaluations=jnp.zeros((), jnp.int32),
            accepted=jnp.ones((), bool),
        )

    return LineSearch(search)


def single_trial() -> LineSearch:
    """The full step unless the loss rises, then none."""

    def search(loss_at, loss, slope, bend):
        trial = loss_at(jnp.ones((), loss.dtype))
        accepted = trial <= loss + rounding_level(loss)  # False for NaN
        return SearchResult(
            step_size=accepted.astype(loss.dtype),
            loss=jnp.where(accepted, trial, loss),
            evaluations=jnp.ones((), jnp.int32),
            accepted=accepted,
        )

    return LineSearch(search)


class _Search(NamedTuple):
    step: jax.Array  # the best so far
    loss: jax.Array  # there
    accepted: jax.Array
    trial: jax.Array  # the step to try next
    done: jax.Array
    k: jax.Array


def armijo(c: float = 1e-4, shrink: float = 0.5, maxiter: int = 20) -> LineSearch:
    r"""Backtracking to sufficient decrease, from the full step.

    The step size :math:`s` shrinks from 1 until

    .. math::
      f(\theta + s d) \le f(\theta) + c\, s\, g^T d

    up to the rounding of :math:`f` (Armijo 1966; Nocedal and Wright 2006, algorithm
    3.1). The next trial is the minimiser of the parabola through the three numbers
    known, kept between a tenth of and ``shrink`` times the last one (section 3.5
    there). Along a direction of negative curvature, where the quadratic model sets no
    length, a good full step is doubled as long as the loss falls. Costs one evaluation
    of the loss if the full step is good and the curvature positive.

    Args:
      c: share of the decrease promised by the slope, in [0, 1).
      shrink: largest factor from one trial to the next, in [0.1, 1).
      maxiter: largest number of trials.

    Returns:
      A :class:`LineSearch`.

    Raises:
      TypeError: if a setting is not a number, or ``maxiter`` not an integer.
      ValueError: if one is out of range or NaN.

    Examples:
      >>> import ncg_optax as ncg
      >>> tx = ncg.newton_cg(linesearch=ncg.armijo(c=1e-2, shrink=0.8))
    """
    validate.number("armijo: c", c, low=0.0, high=1.0, high_open=True)
    validate.number("armijo: shrink", shrink, low=0.1, high=1.0, high_open=True)
    validate.integer("armijo: maxiter", maxiter, low=1)

    def search(loss_at, loss, slope, bend):
        enough = loss + rounding_level(loss)

        def shorter(step, value):
            excess = value - loss - slope * step
            known = jnp.isfinite(excess) & (excess > 0)
            parabola = -0.5 * slope * step**2 / jnp.where(known, excess, 1)
            guess = jnp.where(known, parabola, 0.1 * step)
            return jnp.clip(guess, 0.1 * step, shrink * step)

        def keep_going(now):
            return jnp.logical_not(now.done) & (now.k < maxiter)

        def body(now):
            value = loss_at(now.trial)
            low = value <= enough + c * now.trial * slope
            good = low & jnp.isfinite(value)
            better = good & (jnp.logical_not(now.accepted) | (value < now.loss))
            longer = (now.trial >= 1) & (bend < 0)
            return _Search(
                step=jnp.where(better, now.trial, now.step),
                loss=jnp.where(better, value, now.loss),
                accepted=now.accepted | better,
                trial=jnp.where(better, 2 * now.trial, shorter(now.trial, value)),
                done=jnp.where(better, jnp.logical_not(longer), now.accepted),
                k=now.k + 1,
            )

        end = jax.lax.while_loop(
            keep_going,
            body,
            _Search(
                step=jnp.zeros((), loss.dtype),
                loss=loss,
                accepted=jnp.zeros((), bool),
                trial=jnp.ones((), loss.dtype),
                done=jnp.logical_not(jnp.isfinite(loss)),
                k=jnp.zeros((), jnp.int32),
            ),
        )
        return SearchResult(end.step, end.loss, end.k, end.accepted)

    return LineSearch(search)


class _Trial(NamedTuple):
    step: jax.Array
    loss: jax.Array  # there
    k: jax.Array  # trials so far


def safeguard(rise: float = 1.0, maxiter: int = 10) -> LineSearch:
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

    Args:
      rise: how much of the model's terms the loss may rise by, at least 0.
      maxiter: largest number of trials; after that there is no step.

    Returns:
      A :class:`LineSearch`.

    Raises:
      TypeError: if ``rise`` is not a number or ``maxiter`` not an integer.
      ValueError: if one is out of range or NaN.

    Examples:
      A step of a hundred times the distance to the minimum is cut, one that goes twice
      as far as it should is not:

      >>> import jax.numpy as jnp
      >>> import ncg_optax as ncg
      >>> search = ncg.safeguard().search
      >>> far = search(lambda s: (100 * s - 1) ** 2, jnp.array(1.0), -200.0, 0.0)
      >>> near = search(lambda s: (2 * s - 1) ** 2, jnp.array(1.0), -4.0, 8.0)
      >>> print(f"{far.step_size:.4f}, {near.step_size:.0f}")
      0.0250, 1
      >>> tx = ncg.stochastic_hessian_free(linesearch=ncg.safeguard(rise=0.5))
    """
    validate.number("safeguard: rise", rise, low=0.0)
    validate.integer("safeguard: maxiter", maxiter, low=1)

    def search(loss_at, loss, slope, bend):
        def allowed(step):
            model = step * jnp.abs(slope) + jnp.square(step) * jnp.abs(bend)
            return rise * model + rounding_level(loss)

        def good(now):
            return (now.loss - loss <= allowed(now.step)) & jnp.isfinite(now.loss)

        def keep_going(now):
            return jnp.isfinite(loss) & (now.k < maxiter) & jnp.logical_not(good(now))

        def body(now):
            factor = allowed(now.step) / (now.loss - loss)
            factor = jnp.where(jnp.isfinite(now.loss), factor, 0)
            shorter = now.step * jnp.clip(factor, 0.1, 0.5)
            step = jnp.where(now.k == 0, now.step, shorter)
            return _Trial(step, loss_at(step), now.k + 1)

        # The first trial is in the loop as well: a model is compiled once.
        untried = jnp.full_like(loss, jnp.nan)
        end = jax.lax.while_loop(
            keep_going,
            body,
            _Trial(jnp.ones((), loss.dtype), untried, jnp.zeros((), jnp.int32)),
        )
        accepted = good(end)
        return SearchResult(
            step_size=jnp.where(accepted, end.step, 0),
            loss=jnp.where(accepted, end.loss, loss),
            evaluations=end.k,
            accepted=accepted,
        )

    return LineSearch(search, on_sample=True)
