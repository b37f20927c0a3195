"""Quasi-Newton preconditioning: curvature from past gradients, without a product."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ncg_optax._utils import pytree, validate
from ncg_optax.globalization.base import Outcome, rounding_level
from ncg_optax.solvers.base import (
    KrylovSolver,
    Model,
    Operator,
    Solver,
    SolverResult,
    checked_solve,
)
from ncg_optax.solvers.cg import cg

PyTree = Any

# How far the loss may be from what its gradients say, in units of the curvature's part.
TOLERANCE = 0.5


class SecantPairs(NamedTuple):
    """The curvature that was met along the last steps.

    Oldest first; those that are not there yet are all zero.

    Attributes:
      steps: the directions ``s`` of the steps, of unit length; leaves of shape
        (memory_size, *leaf.shape).
      changes: the change ``y`` of the gradient per unit of length, likewise.
      bends: ``s.y``, shape (memory_size,).

    Examples:
      >>> import jax.numpy as jnp
      >>> import ncg_optax as ncg
      >>> solver = ncg.quasi_newton(ncg.cg(maxiter=3), memory_size=4)
      >>> solver.init(jnp.zeros(2)).pairs.steps.shape
      (4, 2)
    """

    steps: PyTree
    changes: PyTree
    bends: jax.Array


class _Point(NamedTuple):
    """Where a step begins.

    Attributes:
      params: float32 or wider.
      rhs: the negative gradient.
      loss: shape=().
      known: False before the first step, bool, shape=().
    """

    params: PyTree
    rhs: PyTree
    loss: jax.Array
    known: jax.Array


class QuasiNewtonState(NamedTuple):
    """State of :func:`quasi_newton`.

    Attributes:
      solver: state of the solver inside.
      pairs: a :class:`SecantPairs`.
      last: where the last step began: its ``params``, ``rhs``, ``loss``.

    Examples:
      >>> import jax.numpy as jnp
      >>> import ncg_optax as ncg
      >>> state = ncg.quasi_newton(ncg.cg(maxiter=3)).init(jnp.zeros(2))
      >>> print(state.last.params, state.last.known)
      [0. 0.] False
    """

    solver: Any
    pairs: SecantPairs
    last: _Point


def _no_pairs(params: PyTree, memory_size: int) -> SecantPairs:
    vectors = jax.tree.map(
        lambda x: jnp.stack([x] * memory_size),  # sharded as the parameters are
        pytree.widened_zeros_like(params),
    )
    bends = jnp.zeros((memory_size,), pytree.scalar_dtype(params))
    return SecantPairs(steps=vectors, changes=vectors, bends=bends)


def _unit(x: PyTree) -> tuple[PyTree, jax.Array]:
    """``x / |x|`` and ``|x|``; zeros stay zeros, and no square underflows."""
    peak = pytree.max_norm(x)
    x = pytree.scale(x, 1 / jnp.where(peak > 0, peak, 1))
    norm = pytree.norm(x)
    return pytree.scale(x, 1 / jnp.where(norm > 0, norm, 1)), peak * norm


def _with_step(pairs: SecantPairs, old: _Point, new: _Point) -> SecantPairs:
    """The pairs with that of the step from ``old`` to ``new``, if it is a good one.

    The curvature along it must be positive beyond rounding, and the loss one and the
    same: the trapezoidal rule tells the change of a smooth loss from its two gradients,
    and where that is as wrong as the half of the curvature's own part, the loss is
    another one by now (of another batch) or too far from a parabola.
    """
    s, length = _unit(pytree.add_scaled(new.params, -1.0, old.params))
    y = pytree.add_scaled(old.rhs, -1.0, new.rhs)
    y = pytree.scale(y, 1 / jnp.where(length > 0, length, 1))
    bend = pytree.vdot(s, y)
    convex = bend > jnp.finfo(bend.dtype).eps * pytree.norm(y)

    slopes = -pytree.vdot(s, old.rhs), -pytree.vdot(s, new.rhs)
    error = jnp.abs(new.loss - old.loss - 0.5 * length * sum(slopes))
    allowed = TOLERANCE * 0.5 * length * (slopes[1] - slopes[0])
    same_loss = error <= allowed + rounding_level(new.loss)

    good = old.known & convex & same_loss & jnp.isfinite(bend)

    def pushed(memory, x):
        return jnp.where(good, jnp.concatenate([memory[1:], x[None]]), memory)

    return jax.tree.map(pushed, pairs, SecantPairs(s, y, bend))


def _improved(
    pairs: SecantPairs, damping: jax.Array | float, precondition: Operator
) -> Operator:
    r"""``r -> H r`` with the limited-memory BFGS matrix that starts from ``M``.

    :math:`H` is near :math:`(B + \lambda I)^{-1}` and meets the newest secant equation
    :math:`H (y + \lambda s) = s` exactly. Two loops over the pairs apply it, with
    :math:`\gamma M` between them (Nocedal and Wright 2006, algorithm 7.4), and
    :math:`\gamma` gives this the size of the newest pair (equation 7.20 there, in the
    norm of :math:`M`).
    """
    changes = pytree.add_scaled(pairs.changes, damping, pairs.steps)
    bends = pairs.bends + damping  # as the steps have unit length
    used = pairs.bends > 0
    weights = jnp.where(used, 1 / jnp.where(used, bends, 1), 0)

    y = jax.tree.map(lambda x: x[-1], changes)
    size = pytree.vdot(y, precondition(y))
    known = used[-1] & (size > 0) & jnp.isfinite(size)
    gamma = jnp.where(known, bends[-1] / jnp.where(known, size, 1), 1)

    def to_older(q, pair):
        s, y, weight = pair
        alpha = weight * pytree.vdot(s, q)
        return pytree.add_scaled(q, -alpha, y), alpha

    def to_newer(z, pair):
        (s, y, weight), alpha = pair
        beta = weight * pytree.vdot(y, z)
        return pytree.add_scaled(z, alpha - beta, s), None

    def apply(r):
        memory = (pairs.steps, changes, weights)
        q, alphas = jax.lax.scan(to_older, r, memory, reverse=True)
        z = pytree.scale(precondition(q), gamma)
        return jax.lax.scan(to_newer, z, (memory, alphas))[0]

    return apply


@dataclasses.dataclass(frozen=True)
class quasi_newton(Solver):
    r"""A solver whose preconditioner learns from the steps taken, at no product.

    From a step :math:`s` and the change :math:`y` of the gradient along it,
    :math:`B s \approx y` is known. The last ``memory_size`` of these secant pairs
    improve the preconditioner :math:`M` by limited-memory BFGS updates, with
    :math:`H_0 = \gamma M`, and ``solver`` works with

    .. math::
      H_{k+1} = (I - \rho\, s y^T)\, H_k\, (I - \rho\, y s^T) + \rho\, s s^T,
      \qquad \rho = 1 / y^T s

    (Morales and Nocedal 2000, with pairs from the steps instead of from conjugate
    gradients). What a short solve has found out about the curvature is not lost with
    it: on a quadratic, single iterations with a memory are those of one long solve. So
    ``cg(maxiter=1)`` is preconditioned L-BFGS with the step that is best for the model.
    It is a momentum as well: have this, a warm start of :func:`cg` or
    :func:`quadratic_momentum`, not two of them.

    For deterministic losses, or batches so large that they nearly are. Pairs of two
    different losses are found out and dropped: the trapezoidal rule tells from the two
    gradients how the loss must have changed. So the smaller the mini-batches, the fewer
    pairs are left, and without any ``solver`` works as it does alone. Pairs of negative
    curvature are dropped as well, so that :math:`H` stays positive definite.

    A learning rate, other transforms in the chain or parameters that are set by hand
    do no harm: a step is the difference of the parameters.

    Cost: no product, :math:`8\, \text{memory\_size}` operations a parameter in each
    application, and one more application of ``M`` a step. Memory: :math:`2\,
    \text{memory\_size} + 2` vectors the size of the parameters.

    Attributes:
      solver: what solves: :func:`cg`, :func:`minres`, :func:`steihaug` or your own.
      memory_size: number of pairs, as for `optax.lbfgs`.

    Raises:
      TypeError: if ``solver`` is not a :class:`KrylovSolver`, which works with a
        preconditioner, or ``memory_size`` is no integer.
      ValueError: if ``memory_size`` is less than 1.

    References:
      Morales and Nocedal, Automatic preconditioning by limited memory quasi-Newton
      updating, 2000; Nocedal and Wright, Numerical Optimization, 2006, section 7.2.

    Examples:
      Single iterations with a memory minimise a quadratic of three variables in four
      steps:

      >>> import jax, jax.numpy as jnp, optax
      >>> import ncg_optax as ncg
      >>> loss = lambda w: jnp.sum(jnp.array([1.0, 3.0, 9.0]) * (w - 1.0) ** 2)
      >>> tx = ncg.newton_cg(damping=0.0, solver=ncg.quasi_newton(ncg.cg(maxiter=1)))
      >>> @jax.jit
      ... def step(w, state):
      ...     updates, state = tx.update(jax.grad(loss)(w), state, w, value_fn=loss)
      ...     return optax.apply_updates(w, updates), state
      >>> w = jnp.zeros(3)
      >>> state = tx.init(w)
      >>> for _ in range(4):
      ...     w, state = step(w, state)
      >>> print(jnp.round(w, 3))
      [1. 1. 1.]
    """

    solver: KrylovSolver = cg()
    memory_size: int = 5

    def __post_init__(self):
        who = "quasi_newton: solver"
        examples = "cg(), minres(), steihaug()"
        validate.component(who, self.solver, KrylovSolver, examples)
        validate.integer("quasi_newton: memory_size", self.memory_size, low=1)

    @property
    def needs_outcome(self) -> bool:
        """As that of the solver inside."""
        return self.solver.needs_outcome

    @property
    def may_ascend(self) -> bool:
        """As that of the solver inside."""
        return self.solver.may_ascend

    @property
    def descent_threshold(self) -> float:
        """As that of the solver inside."""
        return self.solver.descent_threshold

    def init(self, params: PyTree) -> QuasiNewtonState:
        """No step so far."""
        nowhere = _Point(
            params=pytree.widened_zeros_like(params),
            rhs=pytree.widened_zeros_like(params),
            loss=jnp.zeros((), pytree.scalar_dtype(params)),
            known=jnp.zeros((), bool),
        )
        pairs = _no_pairs(params, self.memory_size)
        return QuasiNewtonState(self.solver.init(params), pairs, last=nowhere)

    def solve(
        self, model: Model, state: QuasiNewtonState
    ) -> tuple[SolverResult, QuasiNewtonState]:
        """The solution of the solver inside, with the improved preconditioner."""
        params, loss = pytree.widen(model.params), jnp.asarray(model.loss)
        here = _Point(params, model.rhs, loss, known=jnp.isfinite(loss))
        pairs = _with_step(state.pairs, state.last, here)
        precondition = model.precondition or (lambda r: r)
        improved = _improved(pairs, model.damping, precondition)
        model = model._replace(precondition=improved)
        result, inner = checked_solve(self.solver, model, state.solver)
        return result, QuasiNewtonState(inner, pairs, last=here)

    def update(self, state: QuasiNewtonState, outcome: Outcome) -> QuasiNewtonState:
        """Passes the outcome on to the solver inside."""
        return state._replace(solver=self.solver.update(state.solver, outcome))
