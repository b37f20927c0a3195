"""Exact damped Gauss-Newton steps in the smaller of parameter and residual space.

One solve, from top to bottom::

  params, loss -> weighted_jacobian -> loss Hessian, how to compute the rows
  rows, -g -> normal_equations -> a dense system in the smaller space
  dampings -> solve_for_dampings -> a step for each
  steps -> choose_step -> the largest step whose reduction ratio passes
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ncg_optax._utils import pytree, reductions, validate
from ncg_optax._utils.status import Status, first_match
from ncg_optax.globalization.base import Outcome
from ncg_optax.solvers.base import DirectSolver, Model, SolverResult
from ncg_optax.solvers.residual_space.candidates import (
    Steps,
    choose_step,
    geometric_dampings,
    loss_after_step,
)
from ncg_optax.solvers.residual_space.dense_solve import (
    solve_for_dampings,
    solve_shifted,
)
from ncg_optax.solvers.residual_space.normal_equations import System, normal_equations
from ncg_optax.solvers.residual_space.weighted_jacobian import (
    UNKNOWN,
    weighted_jacobian,
)

PyTree = Any


class ResidualSpaceState(NamedTuple):
    """State of :func:`residual_space`.

    Attributes:
      damping: the last lambda of the ladder, 0 before the first; shape=().
      direction: the last direction, for the momentum; None without.
      jacobian_mode: how the rows of the Jacobian are computed, determined at the first
        step: 0 not known yet, 1 example by example, 2 over the whole batch; int32,
        shape=().

    Examples:
      >>> import jax.numpy as jnp
      >>> import ncg_optax as ncg
      >>> state = ncg.residual_space().init(jnp.zeros(2))
      >>> print(state.damping, state.direction, state.jacobian_mode)
      0.0 None 0
    """

    damping: jax.Array
    direction: PyTree | None
    jacobian_mode: jax.Array


OPTIONS = ("auto", "per_example", "whole_batch")


@dataclasses.dataclass(frozen=True)
class residual_space(DirectSolver):
    r"""Direct solution of the damped Gauss-Newton system, by Cholesky factorisation.

    With :math:`J` the Jacobian of the model's outputs, :math:`H_\ell = S^T S` the
    Hessian of the loss in them and :math:`A = S J`, it solves

    .. math::
      (A^T A + \lambda I)\, d = -g = -A^T q
      \qquad\Longleftrightarrow\qquad
      d = -A^T (A A^T + \lambda I)^{-1} q

    on the left if there are fewer parameters than residuals (rows of ``A``: examples
    times outputs), else on the right (Schraudolph 2002; Chen and Heyl 2024). Exact
    steps do not mind the conditioning that conjugate gradients stall on: this is the
    solver for regression and physics-informed networks with up to some thousand
    residuals or parameters. A part of the gradient outside of the range of
    :math:`S^T`, where the loss is not curved, is treated by Woodbury's identity.

    Instead of adapting one damping it prices a geometric ladder of them at every step,
    around the last: the *largest step whose reduction ratio passes* is taken, that is
    the smallest :math:`\lambda` with

    .. math::
      f(\theta) - f(\theta + d_\lambda) \ge
      -\text{ratio}\, (g^T d_\lambda + \tfrac12 d_\lambda^T B\, d_\lambda),

    or else the best of them that descends (Webb, Jerad and Cartis 2026, who choose a
    radius so). The best loss would be too greedy a choice. ``damping`` of the optimizer
    then only says where the first ladder is centred, and its line search starts from
    the step that passed. A ladder so low that rounding leaves no matrix definite is
    raised; where no residual is curved the first one is centred on a step of length
    one.

    With ``momentum`` :math:`\mu > 0` the step is SPRING's (Goldshlager, Abrahamsen and
    Lin 2024),

    .. math::
      d_k = \mu\, d_{k-1} - A^T (A A^T + \lambda I)^{-1} (q + \mu A\, d_{k-1}).

    Needs a :class:`CompositeLoss` as ``value_fn`` and ``curvature=gauss_newton()``. It
    takes for granted, and cannot check, that in the *loss* no example's outputs are
    coupled with those of another one (sums and means over examples are fine). Outputs
    with a first axis of the same length belong to the same examples; a
    physics-informed network returns a dictionary with a leaf for each kind of points.
    Preconditioners are not used.

    Cost: the rows of ``A`` are backward passes. If the data is bound to the loss or
    given to ``update``, with the examples first, a row is a pass through its example:
    as much as one gradient for each output of an example, all in all. If the model
    mixes examples (batch statistics) or hides its data in a closure a row is a pass
    through the *whole batch*, which is slow. Then with ``m`` the smaller and ``n`` the
    larger number of residuals and parameters ``m^2 n`` operations for the matrix and
    ``m^3 / 3`` for each factorisation. Memory: ``m^2`` and, in residual space, the
    ``m n`` of ``A``. The products in :func:`get_info` are the outputs per example, or
    the rows if each goes through the whole batch; evaluations are those of the ladder.

    On several devices each computes the rows of its examples; they are gathered, or in
    parameter space ``A^T A`` is summed.

    Attributes:
      ladder: number of dampings to price at a step; None takes the optimizer's
        ``damping`` as it is.
      spread: the largest damping of a ladder over its middle one.
      ratio: actual over predicted reduction that a step must reach.
      momentum: :math:`\mu` in [0, 1). SPRING's is about 0.9, with fixed damping.
      jacobian: ``"per_example"`` or ``"whole_batch"`` as above; ``"auto"`` compares the
        two at the first step, at the cost of two gradients, and compiles both. (Under
        `jax.vmap` it may run both: choose there.)
      chunk: rows that are computed at once: less needs less memory.
      max_size: largest ``m`` before an error rather than the memory stops it.

    Raises:
      TypeError: if a setting is not a number, or not an integer where it has to be. In
        ``update``: if ``value_fn`` is no :class:`CompositeLoss`, or if an output is not
        real.
      ValueError: if a setting is out of range or NaN, or an option unknown. In
        ``update``: if an output has no axis of examples, if there are more than
        ``max_size`` residuals and parameters, or if ``jacobian="per_example"`` does
        not fit the data.

    Examples:
      >>> import jax, jax.numpy as jnp, optax
      >>> import ncg_optax as ncg
      >>> loss = ncg.CompositeLoss(
      ...     lambda w, x: jnp.tanh(x @ w), lambda z, y: jnp.mean((z - y) ** 2)
      ... ).bind(x=jnp.array([[1.0, 2.0], [3.0, -1.0]]), y=jnp.array([0.5, -0.5]))
      >>> tx = ncg.newton_cg(
      ...     curvature=ncg.gauss_newton(), solver=ncg.residual_space()
      ... )
      >>> @jax.jit
      ... def step(w, state):
      ...     grads = jax.grad(loss)(w)
      ...     updates, state = tx.update(grads, state, w, value_fn=loss)
      ...     return optax.apply_updates(w, updates), state
      >>> w = jnp.zeros(2)
      >>> state = tx.init(w)
      >>> for _ in range(6):
      ...     w, state = step(w, state)
      >>> print(bool(loss(w) < 1e-10))
      True
    """

    ladder: int | None = 5
    spread: float = 10.0
    ratio: float = 0.1
    momentum: float = 0.0
    jacobian: str = "auto"
    chunk: int = 256
    max_size: int = 10_000

    def __post_init__(self):
        who = "residual_space: "
        if self.ladder is not None:
            validate.integer(who + "ladder", self.ladder, low=2)
        validate.number(who + "spread", self.spread, low=1.0, low_open=True)
        validate.number(who + "ratio", self.ratio, low=0.0, high=1.0)
        validate.number(
            who + "momentum", self.momentum, low=0.0, high=1.0, high_open=True
        )
        validate.choice(who + "jacobian", self.jacobian, OPTIONS)
        validate.integer(who + "chunk", self.chunk, low=1)
        validate.integer(who + "max_size", self.max_size, low=1)

    @property
    def needs_outcome(self) -> bool:
        """A ladder is checked by the loss at the end of the step."""
        return self.ladder is not None

    def init(self, params: PyTree) -> ResidualSpaceState:
        """No step so far."""
        return ResidualSpaceState(
            damping=jnp.zeros((), pytree.scalar_dtype(params)),
            direction=pytree.widened_zeros_like(params) if self.momentum else None,
            jacobian_mode=jnp.asarray(UNKNOWN, jnp.int32),
        )

    def solve(
        self, model: Model, state: ResidualSpaceState
    ) -> tuple[SolverResult, ResidualSpaceState]:
        """The exact step for the damping, or for the best one of the ladder."""
        with jax.default_matmul_precision("highest"):
            return self._solve(model, state)

    def _solve(self, model, state):
        rhs, objective = model.rhs, model.objective
        b, previous = pytree.as_real(rhs), None
        if self.momentum:
            previous = pytree.scale(pytree.as_real(state.direction), self.momentum)
        params = reductions.to_varying(model.params, objective.axes)
        jac = weighted_jacobian(
            objective, params, state.jacobian_mode, self.jacobian, self.chunk
        )
        system = normal_equations(jac, b, previous, self.max_size, self.chunk)

        if self.ladder is None:
            lam = jnp.asarray(model.damping, pytree.scalar_dtype(rhs))
            y = solve_shifted(system.gram, lam, system.target(lam))
            step, passed = _step(system, b, y, lam), True
        else:
            centre = _centre(system.gram, b, state.damping, model.damping)
            lams = geometric_dampings(centre, self.ladder, self.spread)
            lams, ys = solve_for_dampings(
                system.gram,
                lams.astype(state.damping.dtype),
                system.target,
                self.spread**2,
            )
            steps = jax.vmap(lambda y, lam: _step(system, b, y, lam))(ys, lams)
            loss_at = loss_after_step(objective, params, like=rhs)
            step, passed = choose_step(steps, loss_at, self.ratio)

        result = _result(system, step, rhs)._replace(products=jac.products)
        direction = None
        if self.momentum:
            # A direction along which the loss rises, or none of whose dampings passed,
            # is not kept: such a step is not taken.
            kept = passed & (step.slope > 0)
            direction = pytree.scale(result.solution, jnp.where(kept, 1, 0))
        new_state = ResidualSpaceState(state.damping, direction, jac.mode)
        if self.ladder is None:
            return result, new_state
        # Without a gradient all steps pass, which says nothing about the damping.
        nothing = result.status == Status.ZERO_RIGHT_HAND_SIDE
        last = jnp.where(nothing, state.damping, step.damping)
        result = result._replace(damping=step.damping, evaluations=self.ladder + 1)
        return result, new_state._replace(damping=last)

    def update(self, state: ResidualSpaceState, outcome: Outcome) -> ResidualSpaceState:
        """Forgets the direction of a rejected step."""
        if not self.momentum:
            return state
        zeros = pytree.zeros_like(state.direction)
        kept = pytree.where(outcome.accepted, state.direction, zeros)
        return state._replace(direction=kept)


def _centre(gram: jax.Array, b: PyTree, last: jax.Array, given: jax.Array) -> jax.Array:
    """Of the ladder: the last damping, kept within what rounding can tell apart.

    The first one is ``given``, or else a small share of the mean eigenvalue, or else,
    where nothing is curved, the one that makes a step of length one.
    """
    top, eps = jnp.trace(gram), jnp.finfo(gram.dtype).eps
    top = jnp.where(jnp.isfinite(top), top, 0)
    mean = 1e-4 * top / len(gram)
    first = jnp.where(given > 0, given, jnp.where(mean > 0, mean, pytree.norm(b)))
    centre = jnp.where((last > 0) & jnp.isfinite(last), last, first)
    highest = jnp.where(top > 0, top / eps, jnp.inf)
    return jnp.clip(centre, 1e-3 * eps * top, highest)


def _step(system: System, b: PyTree, y: jax.Array, damping: jax.Array) -> Steps:
    """The step that the solution ``y`` of the dense system stands for."""
    d = system.to_direction(y, damping)
    return Steps(d, damping, slope=pytree.vdot(b, d), bend=system.bend(d))


def _result(system: System, step: Steps, rhs: PyTree) -> SolverResult:
    """The solve as the transform wants it; no step if that is not finite."""
    b, dtype = pytree.as_real(rhs), pytree.scalar_dtype(rhs)
    finite = pytree.all_finite(step.direction) & jnp.isfinite(step.bend)
    d = pytree.where(finite, step.direction, pytree.zeros_like(step.direction))
    direction = pytree.cast_like(pytree.from_real(d, rhs), rhs)
    nothing = pytree.vdot(rhs, rhs) == 0
    residual = pytree.add_scaled(b, -1.0, system.product(d))
    residual = pytree.add_scaled(residual, -step.damping, d)
    length2 = pytree.vdot(d, d)
    decrease = step.reduction - 0.5 * step.damping * length2
    return SolverResult(
        solution=direction,
        iterations=jnp.ones((), jnp.int32),
        products=jnp.zeros((), jnp.int32),
        residual=pytree.norm(residual),
        model_decrease=jnp.where(finite, decrease, 0).astype(dtype),
        length=jnp.sqrt(length2),
        last_direction=direction,
        curvature=step.bend / jnp.where(length2 > 0, length2, 1),
        status=first_match(
            (nothing, Status.ZERO_RIGHT_HAND_SIDE),
            (finite, Status.RESIDUAL_CONVERGED),
            otherwise=Status.SOLVER_NON_FINITE,
        ),
    )
