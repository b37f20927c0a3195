"""Preconditioned conjugate gradients on the damped Newton system.

The solver with a line search (:func:`ncg_optax.cg`), the trust-region solver
(:func:`ncg_optax.steihaug`) and the search for saddle points use the same loop. It has
no absolute tolerance of its own: if the system is multiplied by 1e-8 or 1e8, only
rounding changes.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ncg_optax._utils import pytree
from ncg_optax._utils.status import Status, first_match
from ncg_optax.solvers.base import Operator, SolverResult
from ncg_optax.solvers.tolerance import progress_stalled

PyTree = Any


class _System(NamedTuple):
    """The linear system and the settings, which are the same in all iterations.

    Lengths and the right-hand side are divided by ``unit``, the largest entry of ``b``,
    so that squares of small numbers do not underflow.
    """

    matvec: Operator
    rhs: PyTree
    unit: jax.Array
    damping: jax.Array
    precondition: Operator | None
    maxiter: int | jax.Array
    tolerance2: jax.Array
    progress_tol: float | None
    radius: jax.Array | None
    ignore_negative_curvature: bool

    @property
    def dtype(self) -> jnp.dtype:
        """Dtype of the scalars."""
        return self.damping.dtype

    def damped(self, v: PyTree) -> tuple[PyTree, PyTree]:
        """``B v`` and ``A v``."""
        bv = self.matvec(v)
        return bv, pytree.add_scaled(bv, self.damping, v)

    def residual_status(self, rr: jax.Array) -> jax.Array:
        """The status by the residual alone; RUNNING if the loop may continue."""
        return first_match(
            (~jnp.isfinite(rr), Status.SOLVER_NON_FINITE),
            (rr <= self.tolerance2, Status.RESIDUAL_CONVERGED),
            otherwise=Status.RUNNING,
        )


class _Loop(NamedTuple):
    """The values that one iteration passes to the next.

    The names are those of Nocedal and Wright (2006), algorithm 5.3, with ``z = M r``.
    An iteration begins with ``z``, so that ``M`` is compiled once. Lengths are in the
    norm of ``M^-1`` and are computed by recurrence.
    """

    x: PyTree  # times ``unit``: it is the solution
    r: PyTree
    p: PyTree  # of the last iteration; the residual before the first
    rz: jax.Array  # r.z with the residual that ``p`` was made from
    rr: jax.Array  # r.r
    xx: jax.Array  # |x|^2 in the norm of M^-1
    xp: jax.Array  # x.p in the inner product of M^-1
    pp: jax.Array  # |p|^2 in the norm of M^-1
    decrease: jax.Array  # b.x - x.Ax / 2
    history: jax.Array | None  # ``decrease`` per iteration, shape=(maxiter + 1,)
    curvature: jax.Array  # p.Bp / p.p
    k: jax.Array  # number of iterations, int32
    status: jax.Array  # int32


class _Curvature(NamedTuple):
    """The curvature along the search direction ``p``; shapes=()."""

    pap: jax.Array  # p.Ap
    length2: jax.Array  # p.p
    noise: jax.Array  # a bound on the rounding error of p.Ap
    zero: jax.Array  # whether B p = 0, bool
    finite: jax.Array  # bool
    positive: jax.Array  # p.Ap > noise; p.Ap != 0 if its sign is ignored


def conjugate_gradient(
    matvec: Operator,
    rhs: PyTree,
    damping: jax.Array | float = 0.0,
    *,
    maxiter: int | jax.Array,
    tolerance: jax.Array | float,
    x0: PyTree | None = None,
    precondition: Operator | None = None,
    progress_tol: float | None = None,
    radius: jax.Array | None = None,
    ignore_negative_curvature: bool = False,
) -> SolverResult:
    r"""Minimises ``x.Ax / 2 - b.x``, ``A = B + damping I``, by conjugate gradients.

    Stops at the first of: :math:`|r| \le` ``tolerance``; ``maxiter`` iterations;
    Martens' relative-progress test (2010, section 4.4),

    .. math::
      \frac{\phi_i - \phi_{i-k}}{\phi_i} < k\,\varepsilon, \qquad
      k = \max(10,\, 0.1\, i)

    with :math:`\phi` the model value and :math:`\varepsilon` = ``progress_tol``; the
    boundary of the trust region; a direction ``p`` of non-positive curvature. In the
    last case the solve ends with a step along ``p`` of length
    :math:`|r^T z / p^T A p|`. This step reduces the model, and the result is a descent
    direction. With a ``radius`` the step ends at the boundary instead (Steihaug 1983).

    Args:
      matvec: ``v -> B v``, symmetric.
      rhs: ``b``, a tree of float32 or wider leaves.
      damping: lambda, added to the diagonal of ``B``, shape=().
      maxiter: largest number of iterations; it may be traced if ``progress_tol`` is
        None.
      tolerance: absolute tolerance on the norm of the residual, shape=().
      x0: the start, shaped like ``rhs``. None starts from zero, which saves a product.
      precondition: ``r -> M r`` with ``M ~ A^-1`` symmetric positive definite.
      progress_tol: Martens' epsilon, or None for no such test.
      radius: radius of the trust region, in the norm of ``M^-1``, shape=(); None for no
        trust region. With a radius ``x0`` must be None.
      ignore_negative_curvature: divide by ``p.Ap`` also if it is negative, as textbook
        CG does. Then the solve stops only if ``p.Ap`` is exactly zero.

    Returns:
      A :class:`SolverResult`.

    Examples:
      >>> import jax.numpy as jnp
      >>> import ncg_optax as ncg
      >>> b = jnp.array([[2.0, 1.0], [1.0, 3.0]])
      >>> result = ncg.solvers.conjugate_gradient(
      ...     lambda v: b @ v, jnp.array([5.0, 10.0]), maxiter=10, tolerance=1e-4
      ... )
      >>> print(jnp.round(result.solution), ncg.explain(result.status))
      [1. 3.] The residual of the linear system fell below the solver's tolerance.
    """
    dtype = pytree.scalar_dtype(rhs)
    peak = pytree.max_norm(rhs)
    unit = jnp.where((peak > 0) & jnp.isfinite(peak), peak, 1).astype(dtype)
    system = _System(
        matvec=matvec,
        rhs=pytree.scale(rhs, 1 / unit),
        unit=unit,
        damping=jnp.asarray(damping, dtype),
        precondition=precondition,
        maxiter=maxiter,
        tolerance2=jnp.square(jnp.asarray(tolerance, dtype) / unit),
        progress_tol=progress_tol,
        radius=None if radius is None else radius / unit,
        ignore_negative_curvature=ignore_negative_curvature,
    )

    def keep_going(loop):
        return jnp.logical_and(loop.status == Status.RUNNING, loop.k < maxiter)

    end = jax.lax.while_loop(
        keep_going,
        lambda loop: _iterate(system, loop),
        _first(system, x0),
    )
    decrease = unit**2 * end.decrease
    if x0 is not None:  # the sum over the iterations loses digits after a bad start
        exact = pytree.vdot(end.x, system.rhs) + pytree.vdot(end.x, end.r)
        decrease = jnp.where(jnp.isfinite(exact), 0.5 * unit * exact, decrease)
    zero_rhs = (end.k == 0) & (peak == 0)
    return SolverResult(
        solution=end.x,
        iterations=end.k,
        products=end.k + (0 if x0 is None else 1),
        residual=unit * jnp.sqrt(end.rr),
        model_decrease=decrease,
        length=unit * jnp.sqrt(jnp.maximum(end.xx, 0)),
        last_direction=end.p,
        curvature=end.curvature,
        status=first_match(
            (zero_rhs, Status.ZERO_RIGHT_HAND_SIDE),
            (end.status == Status.RUNNING, Status.MAX_ITERATIONS),
            otherwise=end.status,
        ),
    )


def _first(system: _System, x0: PyTree | None) -> _Loop:
    """The values before the first iteration."""
    zero = jnp.zeros((), system.dtype)
    if x0 is None:
        x, r, decrease = pytree.zeros_like(system.rhs), system.rhs, zero
    else:
        start = pytree.scale(x0, 1 / system.unit)
        r = pytree.add_scaled(system.rhs, -1.0, system.damped(start)[1])
        usable = pytree.all_finite(r)  # if not, it starts from zero
        x = pytree.where(usable, x0, pytree.zeros_like(x0))
        r = pytree.where(usable, r, system.rhs)
        decrease = 0.5 * (pytree.vdot(start, system.rhs) + pytree.vdot(start, r))
        decrease = jnp.where(usable, decrease, 0)
    history = None
    if system.progress_tol is not None:
        history = jnp.full((system.maxiter + 1,), decrease, system.dtype)
    rr = pytree.vdot(r, r)
    return _Loop(
        x=x,
        r=r,
        p=r,
        rz=jnp.ones_like(zero),
        rr=rr,
        xx=zero,
        xp=zero,
        pp=zero,
        decrease=decrease,
        history=history,
        curvature=zero,
        k=jnp.zeros((), jnp.int32),
        status=system.residual_status(rr),
    )


def _with_direction(system: _System, loop: _Loop) -> tuple[_Loop, jax.Array]:
    """The loop with the next search direction, kept if ``M`` fails; status of ``M``."""
    if system.precondition is None:
        z, rz, status = loop.r, loop.rr, jnp.asarray(Status.RUNNING, jnp.int32)
    else:
        z = system.precondition(loop.r)
        rz = pytree.vdot(loop.r, z)
        status = first_match(
            (~jnp.isfinite(rz), Status.SOLVER_NON_FINITE),
            (rz <= 0, Status.INDEFINITE_PRECONDITIONER),
            otherwise=Status.RUNNING,
        )
        rz = jnp.where(status == Status.RUNNING, rz, 0)
    beta = jnp.where(loop.k == 0, 0, rz / loop.rz)
    p = pytree.add_scaled(z, beta, loop.p)
    if system.precondition is not None:
        p = pytree.where(status == Status.RUNNING, p, loop.p)
    xp, pp = beta * loop.xp, rz + beta * beta * loop.pp
    return loop._replace(p=p, rz=rz, xp=xp, pp=pp), status


def _iterate(system: _System, loop: _Loop) -> _Loop:
    """One iteration and product; not counted if ``M`` is not positive definite."""
    loop, status_of_m = _with_direction(system, loop)
    definite = status_of_m == Status.RUNNING
    bp, ap = system.damped(loop.p)
    along = _curvature_along(system, loop.p, bp, ap)
    alpha, at_boundary = _step_length(system, loop, along)
    alpha = jnp.where(definite, alpha, 0)

    r = pytree.add_scaled(loop.r, -alpha, ap)
    gain = alpha * (loop.rz - 0.5 * alpha * along.pap)
    decrease = loop.decrease + gain
    k = loop.k + definite.astype(jnp.int32)
    rr = jnp.where(along.finite, pytree.vdot(r, r), loop.rr)

    history, stalled = None, False
    if system.progress_tol is not None and loop.history is not None:
        history = loop.history.at[k].set(decrease)
        stalled = progress_stalled(history, decrease, k, system.progress_tol)
    residual_status = system.residual_status(rr)
    status = first_match(
        (~definite, status_of_m),
        (~along.finite, Status.SOLVER_NON_FINITE),
        ((loop.k == 0) & along.zero, Status.ZERO_CURVATURE),
        (~along.positive, Status.NEGATIVE_CURVATURE),
        (at_boundary, Status.TRUST_REGION_BOUNDARY),
        ((residual_status == Status.RUNNING) & stalled, Status.PROGRESS_STALLED),
        otherwise=residual_status,
    )
    length2 = jnp.where(along.length2 > 0, along.length2, 1)
    curvature = along.pap / length2 - system.damping
    return loop._replace(
        x=pytree.add_scaled(loop.x, system.unit * alpha, loop.p),
        r=r,
        rr=rr,
        xx=loop.xx + alpha * (2 * loop.xp + alpha * loop.pp),
        xp=loop.xp + alpha * loop.pp,
        decrease=decrease,
        history=history,
        curvature=jnp.where(definite, curvature, loop.curvature),
        k=k,
        status=status,
    )


def _curvature_along(system: _System, p: PyTree, bp: PyTree, ap: PyTree) -> _Curvature:
    """The curvature along ``p``, with a bound on its rounding error."""
    pap, length2 = pytree.vdot(p, ap), pytree.vdot(p, p)
    bp_norm = pytree.scaled_norm(bp)
    finite = jnp.isfinite(pap + bp_norm)
    # Without a finite product the curvature is unknown. B = 0 stands for it.
    pap = jnp.where(finite, pap, system.damping * length2)
    noise = jnp.finfo(system.dtype).eps * jnp.sqrt(length2) * bp_norm
    positive = pap != 0 if system.ignore_negative_curvature else pap > noise
    return _Curvature(
        pap=pap,
        length2=length2,
        noise=noise,
        zero=bp_norm == 0,
        finite=finite,
        positive=positive & finite,
    )


def _step_length(
    system: _System, loop: _Loop, along: _Curvature
) -> tuple[jax.Array, jax.Array]:
    """The step length along ``p``, and whether the step ends at the boundary.

    If the curvature is negative its absolute value is used. If the curvature is zero
    or not finite the model defines no length: it is at most 1, or to the boundary, for
    the first direction, ``M b``, else 0.
    """
    known = along.finite & (along.positive | (jnp.abs(along.pap) > along.noise))
    pap = jnp.where(along.positive, along.pap, jnp.abs(along.pap))
    # Damping shortens a step whose curvature is not known.
    is_damped = jnp.logical_not(along.finite) & (along.pap > 0)
    damped = loop.rz / jnp.where(is_damped, along.pap, 1)
    first = jnp.where(is_damped, jnp.minimum(damped, 1), 1)
    alpha = jnp.where(
        known,
        loop.rz / jnp.where(known, pap, 1),
        jnp.where(loop.k == 0, first, 0),
    )
    at_boundary = jnp.zeros((), bool)
    if system.radius is not None:
        boundary = _distance_to_boundary(loop, system.radius)
        at_boundary = jnp.logical_not(along.positive) | (alpha >= boundary)
        alpha = jnp.where(at_boundary, boundary, alpha)
    return jnp.where(along.finite | (loop.k == 0), alpha, 0), at_boundary


def _distance_to_boundary(loop: _Loop, radius: jax.Array) -> jax.Array:
    """The positive ``t`` with ``|x + t p| = radius`` in the norm of ``M^-1``."""
    rest = jnp.maximum(jnp.square(radius) - loop.xx, 0)
    root = jnp.sqrt(jnp.square(loop.xp) + loop.pp * rest)
    # This form has no cancellation, because xp >= 0 in conjugate gradients.
    return rest / jnp.maximum(loop.xp + root, jnp.finfo(root.dtype).tiny)
