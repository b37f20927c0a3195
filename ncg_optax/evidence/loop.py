"""The loop of a Bayesian fit: Levenberg-Marquardt steps and new precisions after each.

Foresee and Hagan (1997) update the precisions of weights and noise after every step of
the minimisation instead of after its end.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ncg_optax._utils import pytree
from ncg_optax._utils.status import Status, first_match
from ncg_optax.evidence.likelihoods import Likelihood
from ncg_optax.evidence.posterior import Posterior, posterior, prior_only
from ncg_optax.losses.composite import CompositeLoss
from ncg_optax.losses.objective import Objective, as_objective
from ncg_optax.solvers.residual_space.weighted_jacobian import (
    UNKNOWN,
    WeightedJacobian,
    weighted_jacobian,
)

PyTree = Any

CHUNK = 256  # rows of the Jacobian that are computed at once
FASTEST = 10.0  # the largest factor by which a precision changes in one step
WIDEST = 1e10  # the largest factor by which it changes at all
LARGEST_SHIFT = 1e10  # in units of the prior's precision
# It ends after so many steps without a rise of the logarithm of the evidence, which has
# no unit, by this much.
PATIENCE, RISE = 40, 1e-2


class Problem(NamedTuple):
    """What stays the same during a fit of n parameters.

    Attributes:
      model: ``model(theta, **data)``, of the parameters as a vector.
      likelihood: of the targets.
      data: further arguments of the model, by name.
      y: the targets.
      maxiter: largest number of steps.
    """

    model: Callable[..., jax.Array]
    likelihood: Likelihood
    data: PyTree
    y: jax.Array
    maxiter: Any

    def objective(self, noise: jax.Array) -> Objective:
        """The negative log-likelihood for precisions of the noise."""

        def loss_fn(outputs):
            return self.likelihood.loss(outputs, self.y, noise)

        return as_objective(CompositeLoss(self.model, loss_fn), self.data)

    def squared_errors(self, theta: jax.Array) -> jax.Array:
        """Sums over the examples for each output, in the shape of the precision."""
        outputs = self.model(theta, **self.data)
        return jnp.sum(jnp.square(outputs - self.y), axis=0).astype(theta.dtype)

    def energy(self, now: "Precisions", theta: jax.Array) -> jax.Array:
        """The negative logarithm of the posterior, up to a constant, shape=()."""
        fit = self.objective(now.noise).value(theta).astype(theta.dtype)
        return fit + now.prior * (theta @ theta) / 2


class Precisions(NamedTuple):
    """Reciprocal variances.

    Attributes:
      prior: of the parameters, shape=().
      noise: of each output; ones if the likelihood has no noise.
    """

    prior: jax.Array
    noise: jax.Array


class Estimate(NamedTuple):
    """Parameters with the precisions that they were found with.

    Attributes:
      theta: the parameters, shape=(n,).
      precisions: of them and of the noise.
      log_evidence: shape=().
      posterior: around the parameters, with these precisions.
    """

    theta: jax.Array
    precisions: Precisions
    log_evidence: jax.Array
    posterior: Posterior


class Loop(NamedTuple):
    """What changes from one step to the next; numbers of shape=().

    Attributes:
      theta: the parameters, shape=(n,).
      precisions: the present ones.
      first: the ones at the start, which bound the present ones.
      best: what had the largest evidence.
      shift: the damping of the next step, in units of the prior's precision.
      idle: number of steps since the evidence has risen.
      k: number of steps from the start to ``theta``; at the end, to the last point
        whose evidence is known.
      mode: how rows of the Jacobian are computed.
      status: a :class:`Status`.
    """

    theta: jax.Array
    precisions: Precisions
    first: Precisions
    best: Estimate
    shift: jax.Array
    idle: jax.Array
    k: jax.Array
    mode: jax.Array
    status: jax.Array


def start(problem: Problem, theta: jax.Array) -> Loop:
    """A prior as wide as the parameters are large, and noise as large as the errors."""
    square = theta @ theta
    prior = jnp.where(square > 0, theta.size / square, 1.0).astype(theta.dtype)
    noise = jnp.ones(problem.y.shape[1:], theta.dtype)
    if problem.likelihood.has_noise:
        errors = problem.squared_errors(theta)
        noise = jnp.where(errors > 0, len(problem.y) / errors, noise)
    precisions = Precisions(prior, noise.astype(theta.dtype))
    finite = jnp.isfinite(problem.energy(precisions, theta))
    outputs = jax.eval_shape(lambda: problem.model(theta, **problem.data))
    nothing = prior_only(outputs.size, theta)
    zero = jnp.zeros((), jnp.int32)
    return Loop(
        theta=theta,
        precisions=precisions,
        first=precisions,
        best=Estimate(theta, precisions, jnp.asarray(-jnp.inf, theta.dtype), nothing),
        shift=jnp.ones((), theta.dtype),
        idle=zero,
        k=zero,
        mode=jnp.asarray(UNKNOWN, jnp.int32),
        status=first_match((~finite, Status.DIVERGED), otherwise=Status.RUNNING),
    )


class Point(NamedTuple):
    """The posterior at a point, and what it is computed from.

    Attributes:
      jacobian: of the residuals.
      posterior: with the precisions of the estimate.
      scale: one over the root of the prior's precision.
      energy: of the point.
      gradient: of the energy.
      log_evidence: with the precisions.
    """

    jacobian: WeightedJacobian
    posterior: Posterior
    scale: jax.Array
    energy: jax.Array
    gradient: jax.Array
    log_evidence: jax.Array


def look(problem: Problem, loop: Loop) -> Point:
    r"""The posterior around the parameters and the evidence by Laplace's approximation.

    .. math::
      \log p(y) = -F(\theta) - \tfrac12 \log\det(R^T R + I)
      + \tfrac12 \sum \log \frac{\beta}{2\pi}
    """
    theta, now = loop.theta, loop.precisions
    energy, gradient = jax.value_and_grad(lambda t: problem.energy(now, t))(theta)
    objective = problem.objective(now.noise)
    jacobian = weighted_jacobian(objective, theta, loop.mode, "auto", CHUNK)
    scale = jax.lax.rsqrt(now.prior)
    found = posterior(jacobian.rows(CHUNK).astype(theta.dtype) * scale)
    log_evidence = -energy - found.log_determinant / 2
    if problem.likelihood.has_noise:
        log_noise = jnp.log(now.noise) - jnp.log(2 * jnp.pi)
        log_evidence += len(problem.y) * jnp.sum(log_noise) / 2
    log_evidence = log_evidence.astype(theta.dtype)
    return Point(jacobian, found, scale, energy, gradient, log_evidence)


def advance(problem: Problem, loop: Loop) -> Loop:
    """Iterates until it stops."""
    return jax.lax.while_loop(
        lambda loop: loop.status == Status.RUNNING,
        lambda loop: _iterate(problem, loop),
        loop,
    )


def _iterate(problem: Problem, loop: Loop) -> Loop:
    """One step, and new precisions."""
    point = look(problem, loop)
    evidence = point.log_evidence
    finite = jnp.isfinite(evidence)
    risen = evidence > loop.best.log_evidence + RISE
    better = evidence > loop.best.log_evidence
    present = Estimate(loop.theta, loop.precisions, evidence, point.posterior)
    best = pytree.where(better, present, loop.best)
    idle = jnp.where(risen, 0, loop.idle + 1).astype(jnp.int32)
    theta, shift = _step(problem, loop, point)
    status = first_match(
        (~finite, Status.DIVERGED),
        (idle >= PATIENCE, Status.CONVERGED_EVIDENCE),
        (loop.k >= problem.maxiter, Status.MAX_STEPS),
        otherwise=Status.RUNNING,
    )
    return Loop(
        theta=theta,
        precisions=_updated(problem, loop, point, theta),
        first=loop.first,
        best=best,
        shift=shift,
        idle=idle,
        k=loop.k + (status == Status.RUNNING).astype(jnp.int32),
        mode=point.jacobian.mode,
        status=status,
    )


def _step(problem: Problem, loop: Loop, point: Point) -> tuple[jax.Array, jax.Array]:
    """The parameters after a step that lowers the energy, and the next shift."""
    rhs = -point.gradient * point.scale

    def attempt(now):
        shift = now[0]
        direction = point.posterior.solve(rhs, 1 + shift)
        moved = loop.theta + point.scale * direction
        energy = problem.energy(loop.precisions, moved)
        # The reduction that the model without the shift predicts.
        predicted = (rhs @ direction + shift * (direction @ direction)) / 2
        good = point.energy - energy >= 0.25 * predicted
        very_good = point.energy - energy >= 0.75 * predicted
        factor = jnp.where(very_good, 0.1, jnp.where(good, 1.0, 4.0))
        lower = (energy <= point.energy) & jnp.isfinite(energy)
        following = shift * jnp.where(lower, factor, 10.0)
        return following.astype(shift.dtype), moved, lower

    def goes_on(now):
        shift, _, lower = now
        return ~lower & (shift < LARGEST_SHIFT)

    begin = (loop.shift, loop.theta, jnp.asarray(False))
    shift, moved, lower = jax.lax.while_loop(goes_on, attempt, begin)
    shift = jnp.where(lower, jnp.clip(shift, 1e-6, LARGEST_SHIFT / 10), 1.0)
    return jnp.where(lower, moved, loop.theta), shift.astype(loop.shift.dtype)


def _updated(
    problem: Problem, loop: Loop, point: Point, theta: jax.Array
) -> Precisions:
    """The precisions of MacKay (1992), from the posterior before the step."""
    now, first = loop.precisions, loop.first
    effective = jnp.sum(point.posterior.determined())
    prior = _quotient(effective, theta @ theta, now.prior)
    prior = jnp.clip(prior, first.prior / WIDEST, first.prior * WIDEST)
    if not problem.likelihood.has_noise:
        return Precisions(prior, now.noise)
    root = point.jacobian.blocks[0].root  # (examples, rows, outputs)
    freedom = point.posterior.freedom().reshape(root.shape[:2])
    freedom = jnp.einsum("nrk,nr->k", jnp.square(root), freedom)
    freedom = freedom.reshape(now.noise.shape) / now.noise
    noise = _quotient(freedom, problem.squared_errors(theta), now.noise)
    # Errors below rounding are no noise.
    most = jnp.minimum(WIDEST, 1 / jnp.finfo(theta.dtype).eps)
    noise = jnp.clip(noise, first.noise / WIDEST, first.noise * most)
    return Precisions(prior, noise.astype(theta.dtype))


def _quotient(count: jax.Array, squares: jax.Array, now: jax.Array) -> jax.Array:
    """``count / squares``, at most the factor ``FASTEST`` away from ``now``."""
    new = count / jnp.maximum(squares, jnp.finfo(now.dtype).tiny)
    new = jnp.where(jnp.isfinite(new), new, now)
    return jnp.clip(new, now / FASTEST, now * FASTEST)
