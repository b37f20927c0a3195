"""Quasi-Newton preconditioning: curvature from past gradients, without products."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ncg_optax._utils import pytree, validate
from ncg_optax._utils.conditional import compute_if
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

# Largest error of the trapezoidal rule, in units of the contribution of the curvature.
TOLERANCE = 0.5


class SecantPairs(NamedTuple):
    """The curvature along the last steps.

    The oldest pair is the first; missing pairs are zero.

    Attributes:
      steps: directions ``s`` of the steps, of unit length; a tree shaped like the
        parameters, with leaves of shape (memory_size, *leaf.shape).
      changes: changes ``y`` of the gradient per unit of length, in the same shapes.
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
    """The start of a step.

    Attributes:
      params: the parameters, float32 or wider.
      rhs: the negative gradient, float32 or wider.
      loss: the loss, shape=().
      known: whether the loss is finite, bool, shape=(); False before the first step.
    """

    params: PyTree
    rhs: PyTree
    loss: jax.Array
    known: jax.Array


class QuasiNewtonState(NamedTuple):
    """State of :func:`quasi_newton`.

    Attributes:
      solver: state of the inner solver.
      pairs: a :class:`SecantPairs`.
      last: the start of the last step: ``params``, ``rhs`` (the negative gradient),
        ``loss``, and ``known`` (False before the first step).

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
    """``memory_size`` missing pairs."""
    vectors = jax.tree.map(
        lambda x: jnp.stack([x] * memory_size),  # keeps the sharding of the leaf
        pytree.widened_zeros_like(params),
    )
    bends = jnp.zeros((memory_size,), pytree.scalar_dtype(params))
    return SecantPairs(steps=vectors, changes=vectors, bends=bends)


def _unit(x: PyTree) -> tuple[PyTree, jax.Array]:
    """``x / |x|`` and ``|x|``; zero for zero. No square underflows."""
    peak = pytree.max_norm(x)
    x = pytree.scale(x, 1 / jnp.where(peak > 0, peak, 1))
    norm = pytree.norm(x)
    return pytree.scale(x, 1 / jnp.where(norm > 0, norm, 1)), peak * norm


def _with_step(pairs: SecantPairs, old: _Point, new: _Point) -> SecantPairs:
    """``pairs`` with the pair of the step from ``old`` to ``new``, if it is usable.

    The curvature along the step must be positive beyond rounding, and both gradients
    must belong to the same loss. The trapezoidal rule computes the change of a smooth
    loss from the slopes at both ends. Its error is compared with the contribution of
    the curvature to this change. If it is more than ``TOLERANCE`` times that, the loss
    has changed (another batch) or is far from quadratic along the step.
    """
    s, length = _unit(pytree.add_scaled(new.params, -1.0, old.params))
    y = pytree.add_scaled(old.rhs, -1.0, new.rhs)
    y = pytree.scale(y, 1 / jnp.where(length > 0, length, 1))
    bend = pytree.vdot(s, y)
    convex = bend > jnp.finfo(bend.dtype).eps * pytree.norm(y)

    change = length * bend  # from the slope at the start to that at the end
    slopes = change - 2 * pytree.vdot(s, old.rhs)  # the sum of both
    error = jnp.abs(new.loss - old.loss - 0.5 * length * slopes)
    allowed = TOLERANCE * 0.5 * length * change
    same_loss = error <= allowed + rounding_level(new.loss)

    good = old.known & convex & same_loss & jnp.isfinite(bend)

    def appended(memory, x):
        return jnp.where(good, jnp.concatenate([memory[1:], x[None]]), memory)

    return jax.tree.map(appended, pairs, SecantPairs(s, y, bend))


def _improved(
    pairs: SecantPairs, damping: jax.Array | float, precondition: Operator
) -> Operator:
    r"""``r -> H r`` with the limited-memory BFGS matrix that starts from ``M``.

    :math:`H` approximates :math:`(B + \lambda I)^{-1}` and satisfies the newest secant
    equation :math:`H (y + \lambda s) = s` exactly. Two loops over the pairs apply it,
    with :math:`\gamma M` between them (Nocedal and Wright 2006, algorithm 7.4). The
    factor :math:`\gamma` scales :math:`M` to the newest pair (equation 7.20 there, in
    the norm of :math:`M`).
    """
    changes = pytree.add_scaled(pairs.changes, damping, pairs.steps)
    bends = pairs.bends + damping  # because the steps have unit length
    used = pairs.bends > 0
    weights = jnp.where(used, 1 / jnp.where(used, bends, 1), 0)

    y = jax.tree.map(lambda x: x[-1], changes)
    # Without a pair no application is needed. In a loop, as in the inner solver, the
    # program has the application once.
    no_size = jnp.zeros_like(bends[-1])
    size = compute_if(used[-1], lambda: pytree.vdot(y, precondition(y)), no_size)
    known = (size > 0) & jnp.isfinite(size)
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
    r"""Improves the preconditioner of a solver by past gradients, without products.

    A step :math:`s` changes the gradient by :math:`y \approx B s`. The last
    ``memory_size`` of these secant pairs update the preconditioner :math:`M` as in
    limited-memory BFGS, from :math:`H_0 = \gamma M`, and ``solver`` uses :math:`H` as
    its preconditioner:

    .. math::
      H_{k+1} = (I - \rho\, s y^T)\, H_k\, (I - \rho\, y s^T) + \rho\, s s^T,
      \qquad \rho = 1 / y^T s

    (Morales and Nocedal 2000, with pairs from the steps instead of from conjugate
    gradients). So a solve uses the curvature along earlier steps: on a quadratic loss,
    single iterations with the pairs are the iterations of one long solve.
    ``cg(maxiter=1)`` with pairs is preconditioned L-BFGS with the step length that
    minimises the model. The pairs also act as a momentum: do not combine them with a
    warm start of :func:`cg` or with :func:`quadratic_momentum`.

    Use it for deterministic losses, or for batches so large that the loss is nearly
    deterministic. A pair whose two gradients belong to different losses is not used:
    the trapezoidal rule computes from the gradients how the loss should have changed,
    and this is compared with the losses. So the smaller the batches, the fewer pairs
    are usable. Without pairs the preconditioner is :math:`M`. Pairs of negative
    curvature are not used either, so that :math:`H` stays positive definite.

    The step of a pair is the difference of the parameters. So it is correct also after
    a learning rate or other transformations, or if the user changes the parameters.

    Cost: no product; :math:`8\, \text{memory\_size}` operations per parameter in each
    application, and one more application of :math:`M` per step. Memory: :math:`2\,
    \text{memory\_size} + 2` vectors the size of the parameters.

    Attributes:
      solver: the inner solver: :func:`cg`, :func:`minres`, :func:`steihaug` or another
        :class:`KrylovSolver`.
      memory_size: number of pairs, at least 1, as for `optax.lbfgs`.

    Raises:
      TypeError: if ``solver`` is not a :class:`KrylovSolver`, or if ``memory_size`` is
        not an integer.
      ValueError: if ``memory_size`` is less than 1.

    References:
      Morales and Nocedal, Automatic preconditioning by limited memory quasi-Newton
      updating, 2000; Nocedal and Wright, Numerical Optimization, 2006, section 7.2.

    Examples:
      Four steps of one iteration each minimise a quadratic of three variables:

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
        """The value of the inner solver."""
        return self.solver.needs_outcome

    @property
    def may_ascend(self) -> bool:
        """The value of the inner solver."""
        return self.solver.may_ascend

    @property
    def descent_threshold(self) -> float:
        """The value of the inner solver."""
        return self.solver.descent_threshold

    def init(self, params: PyTree) -> QuasiNewtonState:
        """The state before the first step."""
        unknown = _Point(
            params=pytree.widened_zeros_like(params),
            rhs=pytree.widened_zeros_like(params),
            loss=jnp.zeros((), pytree.scalar_dtype(params)),
            known=jnp.zeros((), bool),
        )
        pairs = _no_pairs(params, self.memory_size)
        return QuasiNewtonState(self.solver.init(params), pairs, last=unknown)

    def solve(
        self, model: Model, state: QuasiNewtonState
    ) -> tuple[SolverResult, QuasiNewtonState]:
        """The solution of the inner solver with the improved preconditioner."""
        params, loss = pytree.widen(model.params), jnp.asarray(model.loss)
        here = _Point(params, model.rhs, loss, known=jnp.isfinite(loss))
        pairs = _with_step(state.pairs, state.last, here)
        precondition = model.precondition or (lambda r: r)
        improved = _improved(pairs, model.damping, precondition)
        model = model._replace(precondition=improved)
        result, inner = checked_solve(self.solver, model, state.solver)
        return result, QuasiNewtonState(inner, pairs, last=here)

    def update(self, state: QuasiNewtonState, outcome: Outcome) -> QuasiNewtonState:
        """Updates the state of the inner solver."""
        return state._replace(solver=self.solver.update(state.solver, outcome))
