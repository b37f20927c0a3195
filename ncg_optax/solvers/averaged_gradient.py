"""A solver for mini-batches: one preconditioned step for the averaged gradient."""

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
    """The length of the step along ``z``; shapes=()."""

    alpha: jax.Array  # in units of ``z``
    status: jax.Array  # a :class:`Status` code, int32


def _step_length(
    slope: jax.Array, bend: jax.Array, noise: jax.Array, longest: float
) -> _Length:
    """The minimiser ``slope / bend`` of the model along ``z``, at most ``longest``.

    If the curvature is negative its absolute value is used, as in conjugate gradients.
    If the curvature is zero the step is ``longest``.

    Args:
      slope: ``m.z`` with ``m`` the averaged negative gradient, shape=().
      bend: ``z.Az``, shape=().
      noise: a bound on the rounding error of ``bend``, shape=().
      longest: largest step, in units of ``z``.
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
    r"""One preconditioned step for a running mean of the gradients, for mini-batches.

    The gradient of a mini-batch is mostly noise in many directions, and a solve
    amplifies this noise where the curvature is small. So this solver first averages the
    gradients of many batches to :math:`\bar g`, as Adam does. It takes a step along
    :math:`z = -M \bar g`, and the curvature of the present batch defines its length:

    .. math::
      d = \alpha z, \qquad
      \alpha = \min\Bigl(\text{longest},
        \frac{-\bar g^T z}{z^T (B + \lambda I)\, z}\Bigr)

    This is the first iteration of conjugate gradients with :math:`\bar g` instead of
    :math:`g`, with two differences. First, :math:`\alpha` is at most ``longest``: the
    curvature along :math:`z` may be almost zero on the sample of one step, for example
    if a classifier already predicts nearly all examples correctly, and then the
    minimiser is far away. Second, the step is also taken if it increases the loss of
    the present batch, because it is a step for the average over batches. A line search
    that requires a decrease on the batch would reject it, so use :func:`safeguard` or
    ``linesearch=None``, with a learning rate.

    Cost: one product and one application of the preconditioner. Memory: one vector the
    size of the parameters. A gradient that is not finite is not added to the mean, and
    no step is taken.

    Attributes:
      decay: decay of the running mean per step, in [0, 1); 0.9 averages over about ten
        batches. The mean is corrected for its start at zero (Kingma and Ba 2015,
        section 3).
      longest: largest :math:`\alpha`, above 0. 1 is the step of the preconditioner.
        This is a sensible limit if the preconditioner approximates the inverse of
        :math:`B`, as :func:`kronecker` does. Without a preconditioner the limit would
        depend on the scale of the loss: use `math.inf`.

    Raises:
      TypeError: if a setting is not a number.
      ValueError: if a setting is out of range or NaN.

    References:
      Kingma and Ba, Adam: a method for stochastic optimization, 2015; Martens and
      Grosse, Optimizing neural networks with Kronecker-factored approximate curvature,
      2015, section 6.4 (step length from an exact product).

    Examples:
      The noise of the batches, here with alternating signs, averages out:

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

    # A direction for the average over batches may increase the loss of one batch.
    may_ascend = True

    def __post_init__(self):
        who = "averaged_gradient: "
        validate.number(who + "decay", self.decay, low=0.0, high=1.0, high_open=True)
        validate.number(who + "longest", self.longest, low=0.0, low_open=True)

    def init(self, params: PyTree) -> optax.OptState:
        """The state before the first gradient."""
        return optax.ema(self.decay).init(pytree.widened_zeros_like(params))

    def solve(
        self, model: Model, state: optax.EmaState
    ) -> tuple[SolverResult, optax.EmaState]:
        """A step to the minimum of the model along the preconditioned mean."""
        rhs = model.rhs
        mean, new_state = optax.ema(self.decay, debias=False).update(rhs, state)
        # The correction of optax has a float to the power of an integer.
        count = jnp.asarray(optax.safe_increment(state.count))
        count = count.astype(pytree.scalar_dtype(rhs))
        averaged = pytree.scale(mean, 1 / (1 - self.decay**count))
        finite = jnp.isfinite(pytree.max_norm(rhs))
        averaged = pytree.where(finite, averaged, pytree.zeros_like(rhs))

        z = averaged if model.precondition is None else model.precondition(averaged)
        az = model.damped_product(z)
        slope, bend = pytree.vdot(averaged, z), pytree.vdot(z, az)
        noise = jnp.finfo(bend.dtype).eps * pytree.norm(z) * pytree.norm(az)
        alpha, status = _step_length(slope, bend, noise, self.longest)
        finite &= jnp.isfinite(slope + noise)
        # A gradient that makes no step is not averaged.
        new_state = pytree.where(finite, new_state, state)
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
            status=first_match(
                (~finite, Status.SOLVER_NON_FINITE),
                # M r is zero, or its product with r underflows.
                (
                    (slope == 0) & (pytree.max_norm(averaged) > 0),
                    Status.INDEFINITE_PRECONDITIONER,
                ),
                otherwise=status,
            ),
        )
        return result, new_state
