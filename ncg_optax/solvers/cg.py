"""Preconditioned conjugate gradients on the damped Newton system.

One loop serves the line-search method (:func:`cg`), the trust-region method
(:func:`ncg_optax.steihaug`) and the check for saddles. There is no absolute epsilon in
it: multiplying the system by 1e-8 or 1e8 changes nothing but rounding.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from ncg_optax._utils import pytree, validate
from ncg_optax._utils.status import Status
from ncg_optax.solvers.base import CGResult, Operator, Solver
from ncg_optax.solvers.tolerance import Forcing, tolerance_rule

PyTree = Any


class _Loop(NamedTuple):
    """What conjugate gradients carry from one iteration to the next.

    The names are those of Nocedal and Wright (2006), algorithm 5.3, with ``z = M r``.
    Lengths for the trust region are in the norm of ``M^-1`` and follow by recurrence.
    """

    x: PyTree
    r: PyTree
    p: PyTree
    rz: jax.Array  # r.z
    rr: jax.Array  # r.r
    xx: jax.Array  # |x|^2 in the norm of M^-1
    xp: jax.Array  # x.p in its inner product
    pp: jax.Array  # |p|^2 in the norm of M^-1
    decrease: jax.Array  # b.x - x.Ax / 2
    history: jax.Array | None  # the decrease by iteration, shape=(maxiter + 1,)
    curvature: jax.Array  # p.Bp / p.p
    k: jax.Array
    status: jax.Array


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
) -> CGResult:
    r"""Minimises ``x.Ax / 2 - b.x``, ``A = B + damping I``, by conjugate gradients.

    Stops at the first of: :math:`|r| \le` ``tolerance``; ``maxiter`` iterations;
    Martens' relative-progress test (2010, section 4.4),

    .. math::
      \frac{\phi_i - \phi_{i-k}}{\phi_i} < k\,\varepsilon, \qquad
      k = \max(10,\, 0.1\, i)

    with :math:`\phi` the model value and :math:`\varepsilon` = ``progress_tol``; the
    boundary of the trust region; a direction ``p`` of non-positive curvature. In the
    last case a last step is made along ``p``, :math:`|r^T z / p^T A p|` long: it leads
    downhill on the model, and to a descent direction. With a ``radius`` that step goes
    on to the boundary instead (Steihaug 1983).

    Args:
      matvec: ``v -> B v``, symmetric.
      rhs: ``b``, a tree of float32 or wider leaves.
      damping: added to the diagonal of ``B``.
      maxiter: largest number of iterations; it may be traced if there is no
        ``progress_tol``.
      tolerance: absolute, on the residual norm.
      x0: where to start, or None for zero (which saves a product).
      precondition: ``r -> M r`` with ``M ~ A^-1`` symmetric positive definite.
      progress_tol: Martens' epsilon, or None for no such test.
      radius: of the trust region, in the norm of ``M^-1``; None for none. Then ``x0``
        must be None.
      ignore_negative_curvature: divide by ``p.Ap`` whatever its sign, as textbook CG
        does; it then stops only where ``p.Ap`` is exactly zero.

    Returns:
      A :class:`CGResult`.

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
    damping = jnp.asarray(damping, dtype)
    # In units of b, squares of small numbers do not underflow.
    peak = pytree.max_norm(rhs)
    unit = jnp.where((peak > 0) & jnp.isfinite(peak), peak, 1).astype(dtype)
    rhs = pytree.scale(rhs, 1 / unit)
    x0 = None if x0 is None else pytree.scale(x0, 1 / unit)
    radius = None if radius is None else radius / unit
    tolerance2 = jnp.square(jnp.asarray(tolerance, dtype) / unit)
    zero = jnp.zeros((), dtype)

    def damped(v):
        bv = matvec(v)
        return bv, pytree.add_scaled(bv, damping, v)

    def preconditioned(r, k):
        """``z = M r``, ``r.z`` and ``r.r``; where nothing comes after, ``z = r``."""
        rr = pytree.vdot(r, r)
        if precondition is None:
            return r, rr, rr
        last = (k >= maxiter) | (rr <= tolerance2)
        z = jax.lax.cond(last, lambda: r, lambda: precondition(r))
        return z, pytree.vdot(r, z), rr

    def residual_status(rz, rr):
        status = jnp.where(rr <= tolerance2, Status.RESIDUAL_CONVERGED, Status.RUNNING)
        bad_m = jnp.logical_and(rr > tolerance2, rz <= 0)
        status = jnp.where(bad_m, Status.INDEFINITE_PRECONDITIONER, status)
        return jnp.where(jnp.isfinite(rz + rr), status, Status.SOLVER_NON_FINITE)

    def first():
        if x0 is None:
            x, r, decrease = pytree.zeros_like(rhs), rhs, zero
        else:
            x, r = x0, pytree.add_scaled(rhs, -1.0, damped(x0)[1])
            decrease = 0.5 * (pytree.vdot(x, rhs) + pytree.vdot(x, r))
        z, rz, rr = preconditioned(r, 0)
        return _Loop(
            x=x,
            r=r,
            p=z,
            rz=rz,
            rr=rr,
            xx=zero,
            xp=zero,
            pp=rz,
            decrease=decrease,
            history=(
                None
                if progress_tol is None
                else jnp.full((maxiter + 1,), decrease, dtype)
            ),
            curvature=zero,
            k=jnp.zeros((), jnp.int32),
            status=residual_status(rz, rr).astype(jnp.int32),
        )

    def keep_going(loop):
        return jnp.logical_and(loop.status == Status.RUNNING, loop.k < maxiter)

    def iterate(loop):
        bp, ap = damped(loop.p)
        pap, length2 = pytree.vdot(loop.p, ap), pytree.vdot(loop.p, loop.p)
        bp_norm = pytree.norm(bp)
        finite = jnp.isfinite(pap + bp_norm)
        # Positive at rounding level is not positive.
        noise = jnp.finfo(dtype).eps * jnp.sqrt(length2) * bp_norm
        positive = pap != 0 if ignore_negative_curvature else pap > noise

        # Where the curvature is negative its size still says how far to go; where it
        # vanishes nothing does, and only the first direction, M b, is worth following.
        known = positive | (jnp.abs(pap) > noise)
        bend = jnp.where(positive, pap, jnp.abs(pap))
        alpha = jnp.where(
            known, loop.rz / jnp.where(known, bend, 1), jnp.where(loop.k == 0, 1, 0)
        )
        if radius is None:
            leaving = jnp.zeros((), bool)
        else:
            boundary = _distance_to_boundary(loop, radius)
            leaving = jnp.logical_not(positive) | (alpha >= boundary)
            alpha = jnp.where(leaving, boundary, alpha)
        alpha = jnp.where(finite, alpha, 0)

        r = pytree.where(finite, pytree.add_scaled(loop.r, -alpha, ap), loop.r)
        gain = jnp.where(finite, alpha * (loop.rz - 0.5 * alpha * pap), 0)
        k = loop.k + 1
        z, rz, rr = preconditioned(r, k)
        beta = rz / loop.rz
        decrease = loop.decrease + gain

        status = residual_status(rz, rr)
        history = None
        if progress_tol is not None:
            history = loop.history.at[k].set(decrease)
            stalled = _progress_stalled(history, decrease, k, progress_tol)
            status = jnp.where(
                (status == Status.RUNNING) & stalled, Status.PROGRESS_STALLED, status
            )
        status = jnp.where(leaving, Status.TRUST_REGION_BOUNDARY, status)
        status = jnp.where(positive, status, Status.NEGATIVE_CURVATURE)
        flat = (loop.k == 0) & (bp_norm == 0)
        status = jnp.where(flat, Status.ZERO_CURVATURE, status)
        status = jnp.where(finite, status, Status.SOLVER_NON_FINITE)

        return _Loop(
            x=pytree.add_scaled(loop.x, alpha, loop.p),
            r=r,
            p=pytree.where(
                (status == Status.RUNNING) & (k < maxiter),
                pytree.add_scaled(z, beta, loop.p),
                loop.p,
            ),
            rz=rz,
            rr=rr,
            xx=loop.xx + alpha * (2 * loop.xp + alpha * loop.pp),
            xp=beta * (loop.xp + alpha * loop.pp),
            pp=rz + beta * beta * loop.pp,
            decrease=decrease,
            history=history,
            curvature=pap / jnp.where(length2 > 0, length2, 1) - damping,
            k=k,
            status=status.astype(jnp.int32),
        )

    end = jax.lax.while_loop(keep_going, iterate, first())
    status = jnp.where(end.status == Status.RUNNING, Status.MAX_ITERATIONS, end.status)
    nothing = (end.k == 0) & (pytree.vdot(rhs, rhs) == 0)
    status = jnp.where(nothing, Status.ZERO_RIGHT_HAND_SIDE, status)
    return CGResult(
        solution=pytree.scale(end.x, unit),
        iterations=end.k,
        products=end.k + (0 if x0 is None else 1),
        residual=unit * jnp.sqrt(end.rr),
        model_decrease=unit**2 * end.decrease,
        length=unit * jnp.sqrt(jnp.maximum(end.xx, 0)),
        last_direction=end.p,
        curvature=end.curvature,
        status=status.astype(jnp.int32),
    )


def _progress_stalled(history, decrease, k, progress_tol):
    """Martens' stopping test; see :func:`conjugate_gradient`."""
    window = jnp.maximum(10, k // 10)
    gain = decrease - history[jnp.maximum(k - window, 0)]
    slow = gain < window * progress_tol * decrease
    return (k > window) & (decrease > 0) & slow


def _distance_to_boundary(loop: _Loop, radius: jax.Array) -> jax.Array:
    """The positive ``t`` with ``|x + t p| = radius`` in the norm of ``M^-1``."""
    room = jnp.maximum(jnp.square(radius) - loop.xx, 0)
    root = jnp.sqrt(jnp.square(loop.xp) + loop.pp * room)
    # The form without cancellation, as xp >= 0 along conjugate gradients.
    return room / jnp.maximum(loop.xp + root, jnp.finfo(root.dtype).tiny)


class CGState(NamedTuple):
    """State of :func:`cg`.

    Attributes:
      previous: the last solution, for the warm start; None without one.
      forcing: a :class:`Forcing`, or None with a fixed tolerance.
      count: solves done, int32, shape=(); None with a fixed ``maxiter``.

    Examples:
      >>> import jax.numpy as jnp
      >>> import ncg_optax as ncg
      >>> ncg.cg(warm_start=0.95, forcing=None).init(jnp.zeros(2))
      CGState(previous=Array([0., 0.], dtype=float32), forcing=None, count=None)
    """

    previous: PyTree | None
    forcing: Forcing | None
    count: jax.Array | None


def cg(
    maxiter: int | optax.Schedule = 200,
    rtol: float = 0.1,
    atol: float = 0.0,
    progress_tol: float | None = None,
    warm_start: float = 0.0,
    forcing: str | None = "eisenstat_walker",
    negative_curvature: str = "truncate",
    descent_threshold: float = 0.0,
) -> Solver:
    r"""Truncated conjugate gradients: the solver of line-search Newton-CG.

    Minimises the damped model

    .. math::
      q(d) = g^T d + \tfrac12 d^T (B + \lambda I)\, d

    (Nocedal and Wright 2006, algorithm 7.1; Martens 2010) until the residual is below
    ``max(rtol |g|, atol)`` or one of the other tests ends it. Memory: 4 vectors the
    size of the parameters, one more with a warm start.

    Args:
      maxiter: largest number of iterations, that is of products (one more with a warm
        start). Many short solves beat few long ones on networks, but less so the
        longer one trains: an optax schedule of the number of solves done, rounded down
        and 1 at least, lets it grow. A schedule cannot be had with ``progress_tol``.
      rtol: relative tolerance on the residual. With ``forcing`` the largest one.
      atol: absolute tolerance on the residual, in units of the gradient. Any value
        but 0 makes the method depend on the scale of the loss.
      progress_tol: stop once an iteration improves the model by less than this share
        of it (Martens' test; 5e-4 in the literature), or None.
      warm_start: factor in [0, 1] on the last solution to start from. About 0.95 acts
        as momentum on networks (Martens 2010); 0 starts from zero. A rejected step
        resets it.
      forcing: ``"eisenstat_walker"`` lowers the relative tolerance as the gradient
        falls, :math:`\eta_k = 0.9\,(|g_k| / |g_{k-1}|)^{1.618}`, for superlinear
        convergence without over-solving (Eisenstat and Walker 1996, choice 2); None
        keeps ``rtol``.
      negative_curvature: ``"truncate"`` ends the solve where ``p.Ap <= 0`` with a
        last step along that ``p``; ``"ignore"`` goes on dividing by it, as the poster's
        method does. Not recommended.
      descent_threshold: the solution is replaced by ``-g`` unless ``g.d < -t``. 0 is
        the descent test; the poster's method uses its damping here.

    Returns:
      A :class:`Solver`.

    Raises:
      TypeError: if a setting is not a number, or ``maxiter`` neither an integer nor a
        schedule.
      ValueError: if a setting is out of range or NaN, an option unknown, or
        ``progress_tol`` given with a schedule.

    Examples:
      >>> import optax
      >>> import ncg_optax as ncg
      >>> solver = ncg.cg(maxiter=10, warm_start=0.95, progress_tol=5e-4)
      >>> growing = ncg.cg(maxiter=optax.linear_schedule(5, 10, 100))
    """
    scheduled = callable(maxiter)
    if not scheduled:
        validate.integer("cg: maxiter", maxiter, low=1, other="an optax schedule")
    elif progress_tol is not None:
        raise ValueError(
            "cg: progress_tol must be None where maxiter is a schedule, got "
            f"{progress_tol!r}: the test looks back over all iterations, whose number "
            "has to be known beforehand. Pass an integer maxiter."
        )
    rule = tolerance_rule("cg", rtol, forcing)
    validate.number("cg: atol", atol, low=0.0)
    if progress_tol is not None:
        validate.number("cg: progress_tol", progress_tol, low=0.0)
    validate.number("cg: warm_start", warm_start, low=0.0, high=1.0)
    options = ("truncate", "ignore")
    validate.choice("cg: negative_curvature", negative_curvature, options)
    validate.number("cg: descent_threshold", descent_threshold, low=0.0)

    def init(params):
        return CGState(
            previous=pytree.widened_zeros_like(params) if warm_start else None,
            forcing=rule.init(pytree.scalar_dtype(params)),
            count=jnp.zeros((), jnp.int32) if scheduled else None,
        )

    def solve(matvec, rhs, damping, precondition, state):
        norm = pytree.norm(rhs)
        eta, new_forcing = rule.next(state.forcing, norm)
        limit, new_count = maxiter, None
        if scheduled:
            limit = jnp.maximum(jnp.asarray(maxiter(state.count)).astype(jnp.int32), 1)
            new_count = optax.safe_increment(state.count)
        result = conjugate_gradient(
            matvec,
            rhs,
            damping,
            maxiter=limit,
            tolerance=jnp.maximum(eta * norm, atol),
            x0=pytree.scale(state.previous, warm_start) if warm_start else None,
            precondition=precondition,
            progress_tol=progress_tol,
            ignore_negative_curvature=negative_curvature == "ignore",
        )
        new_state = CGState(
            previous=result.solution if warm_start else None,
            forcing=new_forcing,
            count=new_count,
        )
        return result, new_state

    def update(state, outcome):
        if not warm_start:
            return state
        kept = pytree.where(
            outcome.accepted, state.previous, pytree.zeros_like(state.previous)
        )
        return state._replace(previous=kept)

    return Solver(init, solve, update, descent_threshold=descent_threshold)
