"""Exact damped Gauss-Newton steps in the smaller of parameter and residual space.

The stages of one solve::

  params, loss -> weighted_jacobian -> loss Hessian, how to compute the rows
  rows, -g -> normal_equations -> a dense system in the smaller space
  damping -> factorised -> a step, and its acceleration
  loss after the step -> find_step -> the damping: usually that of the first trial
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ncg_optax._utils import pytree, reductions, validate
from ncg_optax._utils.status import Status
from ncg_optax.globalization.base import Outcome
from ncg_optax.losses.objective import Objective
from ncg_optax.solvers.base import DirectSolver, Model, SolverResult
from ncg_optax.solvers.residual_space import cost
from ncg_optax.solvers.residual_space.acceleration import (
    is_small,
    weighted_second_derivative,
)
from ncg_optax.solvers.residual_space.damping_search import (
    Step,
    find_step,
    first_damping,
    loss_after_step,
)
from ncg_optax.solvers.residual_space.dense_solve import factorised, solve_shifted
from ncg_optax.solvers.residual_space.normal_equations import System, normal_equations
from ncg_optax.solvers.residual_space.result import solver_result
from ncg_optax.solvers.residual_space.weighted_jacobian import (
    UNKNOWN,
    WeightedJacobian,
    weighted_jacobian,
)

PyTree = Any


class ResidualSpaceState(NamedTuple):
    """State of :func:`residual_space`.

    Attributes:
      damping: lambda of the first trial of the next step; 0 before the first step, and
        always with ``trials=None``; shape=().
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

    The step has a second-order correction, its *geodesic acceleration* (Transtrum and
    Sethna 2012). With :math:`z''` the second derivative of the outputs along ``d``, the
    step is :math:`d + a` where

    .. math::
      (A^T A + \lambda I)\, a = -\tfrac12 A^T S z'',

    if :math:`2 |a| \le \text{acceleration} \cdot |d|`; else it is ``d``. It takes three
    evaluations of the model and no further factorisation, allows much smaller dampings,
    and gains several digits of the loss on physics-informed networks.

    The damping is found by trials. The first is that of the last step, or a third of it
    if the first trial there was enough; usually it is the only one. A step is taken if

    .. math::
      f(\theta) - f(\theta + d + a) \ge
      -\text{ratio}\, (g^T d + \tfrac12 d^T B\, d).

    Else :math:`\lambda` is multiplied by 4, then by 8, 16, ..., and the system is
    factorised again; after three trials any step that reduces the loss is taken. The
    ``damping`` of the optimizer is then only that of the first trial of all; with 0 it
    is 1e-4 of the mean eigenvalue, or, if the loss has no curvature, the damping of a
    step of length one. The line search of the optimizer starts from the step found.

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
    (half of a general product) and each factorisation ``m^3 / 3``. Memory: ``m^2``
    numbers and, in residual space, the ``m n`` numbers of ``A``. :func:`get_info`
    counts as products the outputs per example, or the rows if each is a pass through
    the whole batch; it counts as evaluations also those of the trials. The dense
    algebra is in ``gradient_equivalents``, by its number of operations.

    Each of several devices computes the rows of its examples. The rows are gathered, or
    in parameter space ``A^T A`` is summed.

    Attributes:
      trials: largest number of dampings to try at a step, at least 1; None uses the
        optimizer's ``damping``, without acceleration.
      ratio: actual over predicted reduction that a step must reach, in [0, 1].
      acceleration: largest :math:`2 |a| / |d|`, at least 0; 0 for no acceleration.
      momentum: :math:`\mu` in [0, 1). SPRING's is about 0.9, with
        fixed damping; together with the acceleration it did not help.
      jacobian: whether a row is a pass through its example, ``"per_example"``, or
        through the whole batch, ``"whole_batch"``. ``"auto"`` compares the two at the
        first step, which costs two gradients, and compiles both. Under `jax.vmap`
        ``"auto"`` may run both, so choose one.
      chunk: largest number of rows that are computed at once, at least 1; fewer need
        less memory. If each row is a pass through the whole batch they are 256 at most.
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

    trials: int | None = 8
    ratio: float = 0.1
    acceleration: float = 0.75
    momentum: float = 0.0
    jacobian: str = "auto"
    chunk: int = 1024
    max_size: int = 10_000

    def __post_init__(self):
        who = "residual_space: "
        if self.trials is not None:
            validate.integer(who + "trials", self.trials, low=1)
        validate.number(who + "ratio", self.ratio, low=0.0, high=1.0)
        validate.number(who + "acceleration", self.acceleration, low=0.0)
        validate.number(
            who + "momentum", self.momentum, low=0.0, high=1.0, high_open=True
        )
        validate.choice(who + "jacobian", self.jacobian, OPTIONS)
        validate.integer(who + "chunk", self.chunk, low=1)
        validate.integer(who + "max_size", self.max_size, low=1)

    @property
    def needs_outcome(self) -> bool:
        """True with trials, whose step is checked by the loss at its end."""
        return self.trials is not None

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
        """The exact step for the given damping, or for one that is found."""
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
        loss_at = loss_after_step(objective, params, like=rhs)

        def attempt(lam):
            solve = factorised(system.gram, lam)
            d = system.to_direction(solve(system.target(lam)), lam)
            promised = pytree.vdot(b, d) - 0.5 * system.bend(d)
            if self.acceleration:
                w = weighted_second_derivative(jac, params, d, rhs)
                a = system.lift(solve(-0.5 * system.target_of(w)))
                used = is_small(a, d, self.acceleration, b)
                d = pytree.where(used, pytree.add_scaled(d, 1.0, a), d)
            bend, loss = system.bend(d), loss_at(d)
            finite = jnp.isfinite(bend) & jnp.isfinite(loss)
            return Step(
                direction=d,
                damping=lam,
                slope=pytree.vdot(b, d),
                bend=bend,
                promised=promised,
                loss=jnp.where(finite, loss, jnp.inf),
            )

        if self.trials is None:
            lam = jnp.asarray(model.damping, pytree.scalar_dtype(rhs))
            d = system.to_direction(
                solve_shifted(system.gram, lam, system.target(lam)), lam
            )
            slope, bend = pytree.vdot(b, d), system.bend(d)
            step = Step(d, lam, slope, bend, slope - 0.5 * bend, jnp.zeros_like(lam))
            passed, trials, following, evaluations = True, 1, state.damping, 0
        else:
            first = first_damping(system.gram, b, state.damping, model.damping)
            step, passed, following, trials = find_step(
                attempt,
                loss_at(pytree.zeros_like(b)),
                first.astype(state.damping.dtype),
                self.ratio,
                self.trials,
                _is_finite(system, first),
                large=jnp.trace(system.gram),
            )
            evaluations = 1 + trials * (4 if self.acceleration else 1)

        result = solver_result(system, step, rhs)._replace(
            products=jac.products,
            evaluations=evaluations,
            gradients=_algebra(objective, params, jac, system, trials),
        )
        direction = None
        if self.momentum:
            # A direction is not stored if the loss rises along it, or if no damping
            # reached the ratio: the optimizer does not take such a step.
            kept = passed & (step.slope > 0)
            direction = pytree.scale(result.solution, jnp.where(kept, 1, 0))
        if self.trials is not None:
            result = result._replace(damping=step.damping)
            # If the gradient is zero all steps pass. Then the damping is kept.
            zero_rhs = result.status == Status.ZERO_RIGHT_HAND_SIDE
            following = jnp.where(zero_rhs, state.damping, following)
        return result, ResidualSpaceState(following, direction, jac.mode)

    def update(self, state: ResidualSpaceState, outcome: Outcome) -> ResidualSpaceState:
        """Resets the direction to zero after a rejected step."""
        if not self.momentum:
            return state
        zeros = pytree.zeros_like(state.direction)
        kept = pytree.where(outcome.accepted, state.direction, zeros)
        return state._replace(direction=kept)


def _is_finite(system: System, damping: jax.Array) -> jax.Array:
    """Whether matrix and right-hand side are finite."""
    target = jnp.all(jnp.isfinite(system.target(damping)))
    return target & jnp.isfinite(jnp.trace(system.gram))


def _algebra(
    objective: Objective,
    params: PyTree,
    jac: WeightedJacobian,
    system: System,
    trials: jax.Array | int,
) -> jax.Array:
    """The cost of the matrix and of its factorisations, in gradients."""
    sizes = jac.residuals, sum(x.size for x in jax.tree.leaves(params))
    unit = cost.gradient_operations(objective, params)
    matrix = cost.matrix_operations(*sizes) / unit
    each = cost.factorisation_operations(*sizes) / unit
    trials = jnp.asarray(trials, system.gram.dtype)
    return matrix + each * trials
