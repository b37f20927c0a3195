"""Exact damped Gauss-Newton steps in the smaller of parameter and residual space.

The stages of one solve::

  params, loss -> weighted_jacobian -> loss Hessian, how to compute the rows
  rows, -g -> normal_equations -> a dense system in the smaller space
  dampings -> solve_for_dampings -> a step for each damping
  steps -> choose_step -> the largest step whose reduction ratio is at least ``ratio``
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
      damping: lambda of the last step; 0 before the first step, and always with
        ``ladder=None``; shape=().
      direction: the last direction, shaped like the parameters; None without momentum.
      jacobian_mode: how the rows of the Jacobian are computed, which is determined at
        the first step: 0 not known yet, 1 example by example, 2 over the whole batch;
        int32, shape=().

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

    Let :math:`J` be the Jacobian of the model's outputs, :math:`H_\ell = S^T S` the
    Hessian of the loss with respect to them, and :math:`A = S J`. The solver computes

    .. math::
      (A^T A + \lambda I)\, d = -g = -A^T q
      \qquad\Longleftrightarrow\qquad
      d = -A^T (A A^T + \lambda I)^{-1} q

    by the left equation if there are fewer parameters than residuals (rows of ``A``:
    examples times outputs), else by the right one (Schraudolph 2002; Chen and Heyl
    2024). Conjugate gradients need many iterations if the system is ill conditioned; an
    exact solve does not. So this solver is for regression and physics-informed networks
    with up to some thousand residuals or parameters. The component of the gradient
    outside the range of :math:`S^T`, where the loss has no curvature, is handled by
    Woodbury's identity.

    The damping is chosen at every step from a *ladder*, a geometric sequence around the
    last damping. The step is the *largest one whose reduction ratio is at least*
    ``ratio``, so its :math:`\lambda` is the smallest with

    .. math::
      f(\theta) - f(\theta + d_\lambda) \ge
      -\text{ratio}\, (g^T d_\lambda + \tfrac12 d_\lambda^T B\, d_\lambda),

    (Webb, Jerad and Cartis 2026 choose a radius in this way). If no ratio is large
    enough the step is the one with the lowest loss, or with the largest :math:`\lambda`
    if none reduces the loss. To take the lowest loss always would reduce the loss more
    in one step, but less over many steps. The ``damping`` of the optimizer is then only
    the centre of the first ladder, and its line search starts from the chosen step. If
    rounding makes all matrices of a ladder indefinite, the ladder is moved to larger
    dampings. If the loss has no curvature the centre of the first ladder is the damping
    of a step of length one.

    With ``momentum`` :math:`\mu > 0` the step is that of SPRING (Goldshlager,
    Abrahamsen and Lin 2024),

    .. math::
      d_k = \mu\, d_{k-1} - A^T (A A^T + \lambda I)^{-1} (q + \mu A\, d_{k-1}).

    The solver needs a :class:`CompositeLoss` as ``value_fn`` and
    ``curvature=gauss_newton()``. The *loss* must not couple the outputs of different
    examples, except by sums and means over examples; this is not checked. Outputs with
    a first axis of the same length belong to the same examples. A physics-informed
    network returns a dictionary with a leaf for each kind of points. Preconditioners
    are not used.

    Cost: each row of ``A`` is a backward pass. If the data is bound to the loss or
    given to ``update``, with the examples along the first axis, it is a pass through
    one example; all rows together cost one gradient per output of an example. If the
    model mixes examples (batch statistics) or hides its data in a closure, each row is
    a pass through the *whole batch*, which is slow. With ``m`` the smaller and ``n``
    the larger number of residuals and parameters, the matrix takes ``m^2 n`` operations
    and each factorisation ``m^3 / 3``. Memory: ``m^2`` numbers and, in residual space,
    the ``m n`` numbers of ``A``. :func:`get_info` counts as products the outputs per
    example, or the rows if each is a pass through the whole batch; it counts as
    evaluations also the losses of the ladder.

    Each of several devices computes the rows of its examples. The rows are gathered, or
    in parameter space ``A^T A`` is summed.

    Attributes:
      ladder: number of dampings to try at each step, at least 2; None uses the
        optimizer's ``damping``.
      spread: largest damping of a ladder over its centre, above 1.
      ratio: actual over predicted reduction that a step must reach, in [0, 1].
      momentum: :math:`\mu` in [0, 1). SPRING's is about 0.9, with fixed damping.
      jacobian: whether a row is a pass through its example, ``"per_example"``, or
        through the whole batch, ``"whole_batch"``. ``"auto"`` compares the two at the
        first step, which costs two gradients, and compiles both. Under `jax.vmap`
        ``"auto"`` may run both, so choose one.
      chunk: number of rows that are computed at once, at least 1; fewer need less
        memory.
      max_size: largest ``m``, at least 1. A larger system raises an error.

    Raises:
      TypeError: if a setting is not a number, or not an integer where one is needed. In
        ``update``: if ``value_fn`` is not a :class:`CompositeLoss`, or if an output is
        not real.
      ValueError: if a setting is out of range or NaN, or if an option is unknown. In
        ``update``: if an output has no axis of examples, if both the residuals and the
        parameters are more than ``max_size``, or if ``jacobian="per_example"`` does not
        fit the data.

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
        """True with a ladder, whose step is checked by the loss at its end."""
        return self.ladder is not None

    def init(self, params: PyTree) -> ResidualSpaceState:
        """The state before the first step."""
        return ResidualSpaceState(
            damping=jnp.zeros((), pytree.scalar_dtype(params)),
            direction=pytree.widened_zeros_like(params) if self.momentum else None,
            jacobian_mode=jnp.asarray(UNKNOWN, jnp.int32),
        )

    def solve(
        self, model: Model, state: ResidualSpaceState
    ) -> tuple[SolverResult, ResidualSpaceState]:
        """The exact step for the given damping, or for one of the ladder."""
        with jax.default_matmul_precision("highest"):
            return self._solve(model, state)

    def _solve(self, model, state):
        """:meth:`solve`, within the context of the matrix precision."""
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
            # A direction is not stored if the loss rises along it, or if no damping
            # reached the ratio: the optimizer does not take such a step.
            kept = passed & (step.slope > 0)
            direction = pytree.scale(result.solution, jnp.where(kept, 1, 0))
        new_state = ResidualSpaceState(state.damping, direction, jac.mode)
        if self.ladder is None:
            return result, new_state
        # If the gradient is zero all steps reach the ratio. Then the damping is kept.
        zero_rhs = result.status == Status.ZERO_RIGHT_HAND_SIDE
        last = jnp.where(zero_rhs, state.damping, step.damping)
        result = result._replace(damping=step.damping, evaluations=self.ladder + 1)
        return result, new_state._replace(damping=last)

    def update(self, state: ResidualSpaceState, outcome: Outcome) -> ResidualSpaceState:
        """Resets the direction to zero after a rejected step."""
        if not self.momentum:
            return state
        zeros = pytree.zeros_like(state.direction)
        kept = pytree.where(outcome.accepted, state.direction, zeros)
        return state._replace(direction=kept)


def _centre(gram: jax.Array, b: PyTree, last: jax.Array, given: jax.Array) -> jax.Array:
    """The centre of the ladder: the last damping.

    The first centre is ``given``. If that is 0 it is 1e-4 of the mean eigenvalue, and
    if there is no curvature it is the damping of a step of length one. The centre is
    limited to the range in which rounding does not hide the damping or the matrix.
    """
    top, eps = jnp.trace(gram), jnp.finfo(gram.dtype).eps
    top = jnp.where(jnp.isfinite(top), top, 0)
    mean = 1e-4 * top / len(gram)
    first = jnp.where(given > 0, given, jnp.where(mean > 0, mean, pytree.norm(b)))
    centre = jnp.where((last > 0) & jnp.isfinite(last), last, first)
    highest = jnp.where(top > 0, top / eps, jnp.inf)
    return jnp.clip(centre, 1e-3 * eps * top, highest)


def _step(system: System, b: PyTree, y: jax.Array, damping: jax.Array) -> Steps:
    """The step that belongs to the solution ``y`` of the dense system."""
    d = system.to_direction(y, damping)
    return Steps(d, damping, slope=pytree.vdot(b, d), bend=system.bend(d))


def _result(system: System, step: Steps, rhs: PyTree) -> SolverResult:
    """The step as a :class:`SolverResult`; its solution is 0 if it is not finite."""
    b, dtype = pytree.as_real(rhs), pytree.scalar_dtype(rhs)
    finite = pytree.all_finite(step.direction) & jnp.isfinite(step.bend)
    d = pytree.where(finite, step.direction, pytree.zeros_like(step.direction))
    direction = pytree.cast_like(pytree.from_real(d, rhs), rhs)
    zero_rhs = pytree.max_norm(rhs) == 0  # squares may underflow
    residual = pytree.add_scaled(b, -1.0, system.product(d))
    residual = pytree.add_scaled(residual, -step.damping, d)
    length2 = pytree.vdot(d, d)
    decrease = step.reduction - 0.5 * step.damping * length2
    return SolverResult(
        solution=direction,
        iterations=jnp.ones((), jnp.int32),
        products=jnp.zeros((), jnp.int32),
        residual=pytree.scaled_norm(residual),
        model_decrease=jnp.where(finite, decrease, 0).astype(dtype),
        length=jnp.sqrt(length2),
        last_direction=direction,
        curvature=step.bend / jnp.where(length2 > 0, length2, 1),
        status=first_match(
            (zero_rhs, Status.ZERO_RIGHT_HAND_SIDE),
            (finite, Status.RESIDUAL_CONVERGED),
            otherwise=Status.SOLVER_NON_FINITE,
        ),
    )
