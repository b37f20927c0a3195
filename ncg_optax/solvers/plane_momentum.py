"""Step size and momentum from the quadratic model: the 2 x 2 solve of K-FAC."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ncg_optax._utils import pytree, validate
from ncg_optax._utils.conditional import compute_if
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
      solver: state of the inner solver.
      step: the last step taken, shaped like the parameters; zero before the first step
        and after a rejected step.

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
    """The damped quadratic model on the plane of ``d`` and ``v``; shapes=().

    ``b`` is the negative gradient.

    Attributes:
      bd: ``b.d``.
      bv: ``b.v``.
      dd: ``d.Ad``.
      dv: ``d.Av``.
      vv: ``v.Av``.
      noise: a bound on the rounding error of the cosine between ``d`` and ``v`` in the
        inner product of ``A``.
    """

    bd: jax.Array
    bv: jax.Array
    dd: jax.Array
    dv: jax.Array
    vv: jax.Array
    noise: jax.Array


class _Minimum(NamedTuple):
    """The minimiser ``alpha d + mu v`` of the model on a plane; shapes=().

    Attributes:
      alpha: factor on the direction.
      mu: factor on the last step.
      decrease: decrease of the model from 0 to the minimiser.
      valid: whether the model is convex on the plane and its two directions are not
        parallel, bool. If it is False do not use the other fields.
    """

    alpha: jax.Array
    mu: jax.Array
    decrease: jax.Array
    valid: jax.Array


def _restrict(
    model: Model, d: PyTree, decrease: jax.Array, v: PyTree
) -> tuple[_Plane, jax.Array]:
    """The model on the plane, and the number of products it needed.

    ``d.Ad`` follows from the decrease of the model at ``d``. The product ``A v`` is
    omitted if ``v`` is zero or if the curvature along ``d`` is not positive, because
    then the step is ``d``.
    """
    rhs = model.rhs
    bd = pytree.vdot(rhs, d)
    dd = 2 * (bd - decrease)
    needed = (pytree.max_norm(v) > 0) & (dd > 0)

    def products_with_av():
        av = model.damped_product(v)
        return jnp.stack([pytree.vdot(d, av), pytree.vdot(v, av), pytree.norm(av)])

    dv, vv, av_norm = compute_if(needed, products_with_av, jnp.zeros((3,), bd.dtype))
    # Cancellation: the terms of each sum relative to the sum.
    safe_dd, safe_vv = jnp.where(dd > 0, dd, 1), jnp.where(vv > 0, vv, 1)
    cancelled = (
        jnp.abs(bd) / safe_dd
        + pytree.norm(v) * av_norm / safe_vv
        + pytree.norm(d) * av_norm / safe_dd * jnp.sqrt(safe_dd / safe_vv)
    )
    noise = 10 * jnp.finfo(bd.dtype).eps * cancelled
    plane = _Plane(bd=bd, bv=pytree.vdot(rhs, v), dd=dd, dv=dv, vv=vv, noise=noise)
    return plane, needed.astype(jnp.int32)


def _minimise(plane: _Plane) -> _Minimum:
    """The minimiser on the plane, from ratios that do not depend on the scale.

    Each row is divided by its diagonal entry, so the determinant is ``1 - cosine^2``.
    An error ``e`` of the cosine changes the decrease by up to ``e^2 / determinant``
    times the decrease along ``d``. If the determinant is above ``sqrt(e)`` this is at
    most ``e^1.5``. Comparisons with NaN are False, so non-finite numbers are not valid.
    """
    convex = (plane.dd > 0) & (plane.vv > 0)
    dd, vv = jnp.where(convex, plane.dd, 1), jnp.where(convex, plane.vv, 1)
    upper, lower = plane.dv / dd, plane.dv / vv
    determinant = 1 - upper * lower
    valid = convex & (determinant > jnp.sqrt(plane.noise))
    safe = jnp.where(valid, determinant, 1)
    d_alone, v_alone = plane.bd / dd, plane.bv / vv
    alpha = (d_alone - upper * v_alone) / safe
    mu = (v_alone - lower * d_alone) / safe
    return _Minimum(
        alpha=alpha,
        mu=mu,
        # Along d, and along the component of v that is conjugate to d.
        decrease=0.5 * (d_alone * plane.bd + safe * mu * mu * vv),
        valid=valid & jnp.isfinite(alpha + mu),
    )


def _with_last_step(model: Model, result: SolverResult, step: PyTree) -> SolverResult:
    """``result`` with the minimiser on the plane of its solution and ``step``."""
    # Only the direction of the step matters, and its square must not underflow.
    peak = pytree.max_norm(step)
    v = pytree.scale(step, 1 / jnp.where(peak > 0, peak, 1))
    d, decrease = result.solution, result.model_decrease
    plane, products = _restrict(model, d, decrease, v)
    best = _minimise(plane)
    combined = pytree.add_scaled(pytree.scale(d, best.alpha), best.mu, v)
    return result._replace(
        solution=pytree.where(best.valid, combined, d),
        products=result.products + products,
        model_decrease=jnp.where(best.valid, best.decrease, decrease),
    )


@dataclasses.dataclass(frozen=True)
class quadratic_momentum(KrylovSolver):
    r"""The step size and the momentum that minimise the quadratic model, as in K-FAC.

    ``solver`` finds a direction :math:`d`. The step is the combination
    :math:`\alpha d + \mu \delta` with the last step taken, :math:`\delta`, that
    minimises the damped model,

    .. math::
      \begin{pmatrix} d^T A d & d^T A \delta \\ d^T A \delta & \delta^T A \delta
      \end{pmatrix}
      \begin{pmatrix} \alpha \\ \mu \end{pmatrix}
      = - \begin{pmatrix} g^T d \\ g^T \delta \end{pmatrix},
      \qquad A = B + \lambda I

    (Martens and Grosse 2015, section 7). This replaces a line search: use it with
    ``linesearch=None``, or with :func:`armijo` as a check of the step. With
    ``cg(maxiter=1)`` and the preconditioner :func:`kronecker` it is the update of
    K-FAC. On a quadratic loss each update is then one iteration of preconditioned
    conjugate gradients. The more accurate ``solver`` is, the smaller is the gain; after
    an exact solve :math:`\mu = 0`. A warm start of ``cg`` is also a momentum: do not
    use both.

    Use it for deterministic losses, or for batches so large that the loss is nearly
    deterministic. On small batches :math:`\alpha` and :math:`\mu` fit the noise of one
    batch, but a momentum should average over batches. kfac-jax does not recommend its
    adaptive learning rate and momentum for stochastic optimisation either. For small
    batches a fixed momentum (``cg(warm_start=0.9)``) and a decaying learning rate are
    safer, because they do not depend on a single batch.

    The step is :math:`d` alone if the model is not convex on the plane, if :math:`d`
    and :math:`\delta` are parallel up to rounding, if the product is not finite, at the
    first update, and after a rejected step. So the model decreases at least as much as
    with :math:`d`. Only the direction of :math:`\delta` is used, so a learning rate
    after this transformation does no harm.

    Cost: one product, :math:`B \delta`. It is omitted if there is no :math:`\delta` or
    if the curvature along :math:`d` is not positive. :math:`d^T A d` follows from the
    result of ``solver``. Memory: one vector the size of the parameters.

    In the result the fields ``solution``, ``model_decrease`` and ``products`` are those
    of the combination. ``residual`` is that of :math:`d`: the residual of the
    combination would need :math:`A d`, a second product.

    Attributes:
      solver: the solver that finds :math:`d`: :func:`cg`, :func:`minres` or another
        :class:`KrylovSolver`.

    Raises:
      TypeError: if ``solver`` is not a :class:`KrylovSolver`, as :func:`residual_space`
        and :func:`quasi_newton`; both have a momentum of their own.
      ValueError: if ``solver`` has ``needs_outcome``, as :func:`steihaug`: the
        combination would leave its trust region.

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
                f"{who} must be a solver without needs_outcome, made by cg(), "
                f"minres(); got {self.solver!r} with needs_outcome=True: the combined "
                "step would leave its trust region."
            )

    @property
    def may_ascend(self) -> bool:
        """The value of the inner solver."""
        return self.solver.may_ascend

    @property
    def descent_threshold(self) -> float:
        """The value of the inner solver."""
        return self.solver.descent_threshold

    def init(self, params: PyTree) -> QuadraticMomentumState:
        """The state before the first step."""
        return QuadraticMomentumState(
            solver=self.solver.init(params), step=pytree.widened_zeros_like(params)
        )

    def solve(
        self, model: Model, state: QuadraticMomentumState
    ) -> tuple[SolverResult, QuadraticMomentumState]:
        """The combination of the solver's direction and the last step."""
        found, inner = checked_solve(self.solver, model, state.solver)
        if found.damping is not None:
            model = model._replace(damping=found.damping)
        result = _with_last_step(model, found, state.step)
        # The step that will be taken: the optimizer replaces a direction that is not a
        # descent direction by -g.
        rhs = model.rhs
        threshold = self.descent_threshold / model.unit
        descends = pytree.vdot(rhs, result.solution) > threshold
        kept = jnp.logical_or(self.may_ascend, descends)
        back = pytree.scale(rhs, model.unit)
        step = pytree.where(kept, result.solution, back)
        return result, QuadraticMomentumState(inner, step)

    def update(
        self, state: QuadraticMomentumState, outcome: Outcome
    ) -> QuadraticMomentumState:
        """Stores the step as it was taken; zero if it was rejected."""
        taken = pytree.scale(state.step, outcome.step_size)
        zeros = pytree.zeros_like(taken)
        return QuadraticMomentumState(
            solver=self.solver.update(state.solver, outcome),
            step=pytree.where(outcome.accepted, taken, zeros),
        )
