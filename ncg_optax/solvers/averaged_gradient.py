"""The direction of mini-batches: one preconditioned step for the averaged gradient."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from ncg_optax._utils import pytree, validate
from ncg_optax._utils.status import Status, first_match
from ncg_optax.solvers.base import KrylovSolver, Model, SolverResult

PyTree = Any


class _Length(NamedTuple):
    """How far to go along ``z``; shapes=()."""

    alpha: jax.Array
    status: jax.Array


def _step_length(
    slope: jax.Array, bend: jax.Array, noise: jax.Array, longest: float
) -> _Length:
    """The minimiser ``slope / bend`` of the model along ``z``, at most ``longest``.

    Negative curvature counts by its size, as in conjugate gradients; where there is
    none (below ``noise``) the step is the longest.
    """
    known = jnp.abs(bend) > noise
    alpha = jnp.where(known, slope / jnp.where(known, jnp.abs(bend), 1), longest)
    status = first_match(
        (slope == 0, Status.ZERO_RIGHT_HAND_SIDE),
        (slope < 0, Status.INDEFINITE_PRECONDITIONER),
        (~known, Status.ZERO_CURVATURE),
        (~(bend > noise), Status.NEGATIVE_CURVATURE),
        (alpha > longest, Status.LONGEST_STEP),
        otherwise=Status.ONE_STEP,
    )
    return _Length(jnp.minimum(alpha, longest), status)


@dataclasses.dataclass(frozen=True)
class averaged_gradient(KrylovSolver):
    r"""One preconditioned step for a running mean of the gradients: for mini-batches.

    What a mini-batch says about a direction is mostly noise, which a solve amplifies
    where the curvature is small. So this averages the gradients of many batches first,
    as Adam does, :math:`\bar g`, and goes along :math:`z = -M \bar g`, as far as the
    curvature of the present batch allows:

    .. math::
      d = \alpha z, \qquad
      \alpha = \min\Bigl(\text{longest},
        \frac{-\bar g^T z}{z^T (B + \lambda I)\, z}\Bigr)

    That is the first iteration of conjugate gradients on :math:`\bar g` in the place of
    :math:`g`, with two differences. The step is never more than ``longest`` times the
    preconditioner's own: if a sample of the curvature happens not to see a direction,
    as happens once a classifier is sure of nearly all examples, the minimiser of its
    model is far out. And it is taken even where it leads uphill on the present batch,
    as an average over batches may. A line search on that batch would reject it: it
    takes :func:`safeguard` or ``linesearch=None``, and a learning rate.

    Cost: one product and one application of the preconditioner. Memory: one vector the
    size of the parameters. A gradient that is not finite is left out of the mean, and
    there is no step.

    Attributes:
      decay: of the running mean, in [0, 1): 0.9 averages over some ten batches.
        The mean is corrected for its start at zero (Kingma and Ba 2015, section 3).
      longest: largest :math:`\alpha`. In units of the preconditioner's step, which
        makes sense if it stands for the inverse of :math:`B`, as :func:`kronecker`
        does, but depends on the scale of the loss without any: `math.inf` there.

    Raises:
      TypeError: if a setting is not a number.
      ValueError: if a setting is out of range or NaN.

    References:
      Kingma and Ba, Adam: a method for stochastic optimization, 2015; Martens and
      Grosse, Optimizing neural networks with Kronecker-factored approximate curvature,
      2015, section 6.4 (the length of a step from the exact product).

    Examples:
      The noise of single batches, here of as many signs, averages out:

      >>> import jax, jax.numpy as jnp, optax
      >>> import ncg_optax as ncg
      >>> loss = lambda w, noise: 2 * (w - 1.0) ** 2 + noise * w
      >>> tx = ncg.newton_cg(
      ...     0.1, solver=ncg.averaged_gradient(0.9), damping=0.0, linesearch=None
      ... )
      >>> @jax.jit
      ... def step(w, state, noise):
      ...     grads = jax.grad(loss)(w, noise)
      ...     updates, state = tx.update(
      ...         grads, state, w, value_fn=loss, noise=noise
      ...     )
      ...     return optax.apply_updates(w, updates), state
      >>> w, state = jnp.zeros(()), tx.init(jnp.zeros(()))
      >>> for i in range(200):
      ...     w, state = step(w, state, 4.0 * (-1.0) ** i)
      >>> print(jnp.round(w, 1))
      1.0
    """

    decay: float = 0.9
    longest: float = 1.0

    # Uphill on one batch is no reason to leave the average.
    may_ascend = True

    def __post_init__(self):
        who = "averaged_gradient: "
        validate.number(who + "decay", self.decay, low=0.0, high=1.0, high_open=True)
        validate.number(who + "longest", self.longest, low=0.0, low_open=True)

    def init(self, params: PyTree) -> optax.OptState:
        """A mean of no gradients."""
        return optax.ema(self.decay).init(pytree.widened_zeros_like(params))

    def solve(
        self, model: Model, state: optax.EmaState
    ) -> tuple[SolverResult, optax.EmaState]:
        """The minimiser of the model along the preconditioned mean."""
        rhs = model.rhs
        averaged, new_state = optax.ema(self.decay).update(rhs, state)
        finite = pytree.all_finite(rhs)
        averaged = pytree.where(finite, averaged, pytree.zeros_like(rhs))
        new_state = pytree.where(finite, new_state, state)

        z = averaged if model.precondition is None else model.precondition(averaged)
        az = model.damped_product(z)
        slope, bend = pytree.vdot(averaged, z), pytree.vdot(z, az)
        noise = jnp.finfo(bend.dtype).eps * pytree.norm(z) * pytree.norm(az)
        alpha, status = _step_length(slope, bend, noise, self.longest)
        finite &= jnp.isfinite(slope + noise)
        alpha = jnp.where(finite, alpha, 0)

        d = pytree.scale(z, alpha)
        length2 = pytree.vdot(z, z)
        result = SolverResult(
            solution=pytree.where(finite, d, pytree.zeros_like(d)),
            iterations=jnp.ones((), jnp.int32),
            products=jnp.ones((), jnp.int32),
            residual=pytree.norm(pytree.add_scaled(rhs, -alpha, az)),
            model_decrease=pytree.vdot(rhs, d) - 0.5 * jnp.square(alpha) * bend,
            length=alpha * jnp.sqrt(jnp.maximum(slope, 0)),
            last_direction=z,
            curvature=bend / jnp.where(length2 > 0, length2, 1) - model.damping,
            status=first_match((~finite, Status.SOLVER_NON_FINITE), otherwise=status),
        )
        return result, new_state
