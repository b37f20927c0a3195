"""Step size and momentum from the quadratic model: the 2 x 2 solve of K-FAC."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ncg_optax._utils import pytree, validate
from ncg_optax.globalization.base import Outcome
from ncg_optax.solvers.base import (
    KrylovSolver,
    Model,
    SolverResult,
    checked_solve,
)
from ncg_optax.solvers.cg import cg

PyTree = Any


class QuadraticMomentumState(NamedTuple):
    """State of :func:`quadratic_momentum`.

    Attributes:
      solver: state of the solver inside.
      step: the last step taken, shaped like the parameters; zero before the first and
        after a rejected one.

    Examples:
      >>> import jax.numpy as jnp
      >>> import ncg_optax as ncg
      >>> state = ncg.quadratic_momentum(ncg.cg(maxiter=5)).init(jnp.zeros(2))
      >>> print(state.step)
      [0. 0.]
    """

    solver: Any
    step: PyTree


class _Plane(NamedTuple):
    """The damped quadratic model over the plane of ``d`` and ``v``; shapes=().

    Attributes:
      bd: ``b.d``.
      bv: ``b.v``.
      dd: ``d.Ad``.
      dv: ``d.Av``.
      vv: ``v.Av``.
      noise: of the cosine between ``d`` and ``v`` in the inner product of ``A``,
        through rounding.
    """

    bd: jax.Array
    bv: jax.Array
    dd: jax.Array
    dv: jax.Array
    vv: jax.Array
    noise: jax.Array


class _Minimum(NamedTuple):
    """The minimiser ``alpha d + mu v`` over a plane; shapes=().

    Attributes:
      alpha: the factor on the direction.
      mu: the factor on the last step.
      decrease: of the model, from 0.
      trusted: whether the plane is convex and its two directions distinct, bool; the
        others mean nothing where it is False.
    """

    alpha: jax.Array
    mu: jax.Array
    decrease: jax.Array
    trusted: jax.Array


def _restrict(
    model: Model, d: PyTree, decrease: jax.Array, v: PyTree
) -> tuple[_Plane, jax.Array]:
    """The model over the plane, and how many products that took.

    ``d.Ad`` follows from the decrease of the model at ``d``. The one product is not
    made where the plane would be of no use: without ``v``, or without positive
    curvature along ``d``.
    """
    rhs = model.rhs
    bd = pytree.vdot(rhs, d)
    dd = 2 * (bd - decrease)
    wanted = (pytree.max_norm(v) > 0) & (dd > 0)

    def along():
        av = model.damped_product(v)
        return pytree.vdot(d, av), pytree.vdot(v, av), pytree.norm(av)

    zero = jnp.zeros((), bd.dtype)
    dv, vv, av_norm = jax.lax.cond(wanted, along, lambda: (zero, zero, zero))
    # By how much the terms of each sum are larger than what is left of them.
    safe_dd, safe_vv = jnp.where(dd > 0, dd, 1), jnp.where(vv > 0, vv, 1)
    cancelled = (
        jnp.abs(bd) / safe_dd
        + pytree.norm(v) * av_norm / safe_vv
        + pytree.norm(d) * av_norm / safe_dd * jnp.sqrt(safe_dd / safe_vv)
    )
    noise = 10 * jnp.finfo(bd.dtype).eps * cancelled
    plane = _Plane(bd=bd, bv=pytree.vdot(rhs, v), dd=dd, dv=dv, vv=vv, noise=noise)
    return plane, wanted.astype(jnp.int32)


def _minimise(plane: _Plane) -> _Minimum:
    """The minimiser over the plane, from ratios in which the scale cancels.

    With each row divided by its diagonal entry the determinant is ``1 - cosine^2``. An
    error ``e`` in the cosine can feign a decrease of ``e^2 / determinant`` times that
    along ``d``: with a determinant above ``sqrt(e)`` no more than ``e^1.5``.
    Comparisons with NaN are False: what is not finite is not trusted.
    """
    convex = (plane.dd > 0) & (plane.vv > 0)
    dd, vv = jnp.where(convex, plane.dd, 1), jnp.where(convex, plane.vv, 1)
    upper, lower = plane.dv / dd, plane.dv / vv
    determinant = 1 - upper * lower
    trusted = convex & (determinant > jnp.sqrt(plane.noise))
    safe = jnp.where(trusted, determinant, 1)
    d_alone, v_alone = plane.bd / dd, plane.bv / vv
    alpha = (d_alone - upper * v_alone) / safe
    mu = (v_alone - lower * d_alone) / safe
    return _Minimum(
        alpha=alpha,
        mu=mu,
        # Along d alone, and along the part of v that is conjugate to it.
        decrease=0.5 * (d_alone * plane.bd + safe * mu * mu * vv),
        trusted=trusted & jnp.isfinite(alpha + mu),
    )


def _with_last_step(model: Model, result: SolverResult, step: PyTree) -> SolverResult:
    """``result`` with the minimiser over the plane of its solution and ``step``."""
    # The length of the step does not matter, and its square must not underflow.
    peak = pytree.max_norm(step)
    v = pytree.scale(step, 1 / jnp.where(peak > 0, peak, 1))
    d, decrease = result.solution, result.model_decrease
    plane, products = _restrict(model, d, decrease, v)
    best = _minimise(plane)
    combined = pytree.add_scaled(pytree.scale(d, best.alpha), best.mu, v)
    return result._replace(
        solution=pytree.where(best.trusted, combined, d),
        products=result.products + products,
        model_decrease=jnp.where(best.trusted, best.decrease, decrease),
    )


@dataclasses.dataclass(frozen=True)
class quadratic_momentum(KrylovSolver):
    r"""Step size and momentum that minimise the quadratic model, as K-FAC has them.

    After ``solver`` has found a direction :math:`d`, the step is the best combination
    :math:`\alpha d + \mu \delta` of it with the last step taken :math:`\delta`,

    .. math::
      \begin{pmatrix} d^T A d & d^T A \delta \\ d^T A \delta & \delta^T A \delta
      \end{pmatrix}
      \begin{pmatrix} \alpha \\ \mu \end{pmatrix}
      = - \begin{pmatrix} g^T d \\ g^T \delta \end{pmatrix},
      \qquad A = B + \lambda I

    (Martens and Grosse 2015, section 7). It is an alternative to a line search: use it
    with ``linesearch=None``, or let :func:`armijo` check the step. Directions from one
    iteration with a preconditioner, ``cg(maxiter=1)`` and :func:`kronecker`, make it
    K-FAC's update. On a quadratic these steps are those of preconditioned conjugate
    gradients, spread over the updates. The better ``solver`` solves, the less there is
    to gain, and an exact solution leaves :math:`\mu = 0`. A warm start of ``cg`` is
    momentum already: have one or the other.

    For deterministic losses, or batches so large that they nearly are. On small ones it
    is the wrong tool: :math:`\alpha` and :math:`\mu` fit the plane to the noise of this
    mini-batch, and nothing averages over the batches, which is what a momentum is for.
    kfac-jax does not recommend its adaptive learning rate and momentum for stochastic
    optimisation either. There a fixed momentum (``cg(warm_start=0.9)``) and a learning
    rate that decays are the safer choice: they do not listen to a single batch.

    Where the plane is not convex or :math:`d` and :math:`\delta` are parallel, to
    rounding, and where the product is not finite, the step is :math:`d`, as it is at
    the first update and after a rejected one. So the model falls at least as far as
    with :math:`d` alone. Only the direction of :math:`\delta` matters: a learning rate
    after it does not disturb. A rejected step is forgotten.

    Cost: one product, :math:`B \delta`, which is not made without a :math:`\delta` or
    without positive curvature along :math:`d` (under `jax.vmap` it is made all the
    same, but not counted). :math:`d^T A d` follows from what the solver reports.
    Memory: one vector the size of the parameters.

    Of the result the solution, its model decrease and the products are those of the
    combination. The residual is still that of :math:`d`: the one of the combination
    takes :math:`A d`, a second product.

    Attributes:
      solver: what finds :math:`d`: :func:`cg`, :func:`minres` or one of your own.

    Raises:
      TypeError: if ``solver`` is not a :class:`KrylovSolver`. :func:`residual_space` is
        none and has a damping and a momentum of its own; :func:`quasi_newton` is none
        and acts as a momentum already.
      ValueError: if it learns from the outcome of its steps (``needs_outcome``), as
        :func:`steihaug` does, whose trust region the combination would leave.

    Examples:
      Three gradients and five products minimise a quadratic of three variables:

      >>> import jax, jax.numpy as jnp, optax
      >>> import ncg_optax as ncg
      >>> loss = lambda w: jnp.sum(jnp.array([1.0, 3.0, 9.0]) * (w - 1.0) ** 2)
      >>> tx = ncg.newton_cg(
      ...     damping=0.0,
      ...     solver=ncg.quadratic_momentum(ncg.cg(maxiter=1)),
      ...     linesearch=None,
      ... )
      >>> @jax.jit
      ... def step(w, state):
      ...     updates, state = tx.update(jax.grad(loss)(w), state, w, value_fn=loss)
      ...     return optax.apply_updates(w, updates), state
      >>> w = jnp.zeros(3)
      >>> state = tx.init(w)
      >>> for _ in range(3):
      ...     w, state = step(w, state)
      >>> print(jnp.round(w, 4))
      [1. 1. 1.]
    """

    solver: KrylovSolver = cg()

    def __post_init__(self):
        who = "quadratic_momentum: solver"
        validate.component(who, self.solver, KrylovSolver, "cg(), minres()")
        if self.solver.needs_outcome:
            raise ValueError(
                f"{who} must be one that leaves the length of the step to others, made "
                "by cg(), minres(); got one with needs_outcome=True, as steihaug() is, "
                "whose trust region the step would leave."
            )

    @property
    def may_ascend(self) -> bool:
        """As that of the solver inside."""
        return self.solver.may_ascend

    @property
    def descent_threshold(self) -> float:
        """As that of the solver inside."""
        return self.solver.descent_threshold

    def init(self, params: PyTree) -> QuadraticMomentumState:
        """No step so far."""
        return QuadraticMomentumState(
            solver=self.solver.init(params), step=pytree.widened_zeros_like(params)
        )

    def solve(
        self, model: Model, state: QuadraticMomentumState
    ) -> tuple[SolverResult, QuadraticMomentumState]:
        """The best combination of the solver's direction and the last step."""
        found, inner = checked_solve(self.solver, model, state.solver)
        if found.damping is not None:
            model = model._replace(damping=found.damping)
        result = _with_last_step(model, found, state.step)
        # What the step will be: a direction that does not descend is replaced by -g.
        rhs = model.rhs
        descends = pytree.vdot(rhs, result.solution) > self.descent_threshold
        taken = jnp.logical_or(self.may_ascend, descends)
        step = pytree.where(taken, result.solution, rhs)
        return result, QuadraticMomentumState(inner, step)

    def update(
        self, state: QuadraticMomentumState, outcome: Outcome
    ) -> QuadraticMomentumState:
        """Keeps the step as it was taken; forgets a rejected one."""
        taken = pytree.scale(state.step, outcome.step_size)
        zeros = pytree.zeros_like(taken)
        return QuadraticMomentumState(
            solver=self.solver.update(state.solver, outcome),
            step=pytree.where(outcome.accepted, taken, zeros),
        )
