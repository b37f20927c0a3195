"""MINRES on the damped Newton system, for indefinite Hessians (Newton-MR)."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ncg_optax._utils import pytree, validate
from ncg_optax._utils.status import Status
from ncg_optax.solvers.base import CGResult, Operator, Solver

PyTree = Any


class _Loop(NamedTuple):
    """What MINRES carries along: Lanczos vectors, rotations and the iterate.

    The names are those of Paige and Saunders (1975) as in their published code:
    ``y = M u_k``, ``beta`` the norm of the new Lanczos vector, ``(cs, sn)`` the last
    rotation, ``phibar = |r|``.
    """

    x: PyTree
    r: PyTree  # b - A x
    u: PyTree  # unnormalised Lanczos vector k
    u_old: PyTree  # and k - 1
    y: PyTree  # M u
    w: PyTree
    w_old: PyTree
    beta: jax.Array
    beta_old: jax.Array
    cs: jax.Array
    sn: jax.Array
    dbar: jax.Array
    epsilon: jax.Array
    phibar: jax.Array
    curvature: jax.Array
    noise: jax.Array  # rounding of the curvature
    k: jax.Array
    status: jax.Array


def minimum_residual(
    matvec: Operator,
    rhs: PyTree,
    damping: jax.Array | float = 0.0,
    *,
    maxiter: int,
    tolerance: jax.Array | float,
    precondition: Operator | None = None,
) -> CGResult:
    r"""Minimises :math:`|b - A x|`, ``A = B + damping I``, over growing Krylov spaces.

    ``A`` may be indefinite or singular, and the residual never grows. The residual
    ``r`` of each iterate is watched for non-positive curvature, ``r.Ar <= 0``, which
    MINRES gives for free (Liu and Roosta 2022). Until it occurs every iterate is a
    descent direction; where it occurs the solve ends with the iterate so far, or, in
    the first iteration, with a step along ``M b``.

    Args:
      matvec: ``v -> B v``, symmetric.
      rhs: ``b``, a tree of float32 or wider leaves.
      damping: added to the diagonal of ``B``.
      maxiter: largest number of iterations.
      tolerance: absolute, on the residual norm (that of ``M`` if preconditioned).
      precondition: ``r -> M r``, symmetric positive definite, ``M ~ |A|^-1``.

    Returns:
      A :class:`CGResult`; its last direction is ``M r``, its curvature that of ``A``
      along it.

    Examples:
      >>> import jax.numpy as jnp
      >>> import ncg_optax as ncg
      >>> b = jnp.array([[2.0, 1.0], [1.0, 3.0]])
      >>> result = ncg.solvers.minimum_residual(
      ...     lambda v: b @ v, jnp.array([5.0, 10.0]), maxiter=10, tolerance=1e-4
      ... )
      >>> print(jnp.round(result.solution), result.iterations)
      [1. 3.] 2
    """
    dtype = pytree.scalar_dtype(rhs)
    damping = jnp.asarray(damping, dtype)
    tolerance = jnp.asarray(tolerance, dtype)
    eps = jnp.finfo(dtype).eps
    zero, zeros = jnp.zeros((), dtype), pytree.zeros_like(rhs)
    apply_m = precondition or (lambda r: r)

    def m_norm(u, y):
        """``|u|`` in the norm of ``M``; negative if ``M`` is."""
        square = pytree.vdot(u, y)
        return jnp.sign(square) * jnp.sqrt(jnp.abs(square))

    def first():
        y = apply_m(rhs)
        beta = m_norm(rhs, y)
        nothing = jnp.where(beta <= 0, Status.INDEFINITE_PRECONDITIONER, Status.RUNNING)
        return _Loop(
            x=zeros,
            r=rhs,
            u=rhs,
            u_old=zeros,
            y=y,
            w=zeros,
            w_old=zeros,
            beta=beta,
            beta_old=jnp.ones((), dtype),
            cs=-jnp.ones((), dtype),
            sn=zero,
            dbar=zero,
            epsilon=zero,
            phibar=beta,
            curvature=zero,
            noise=zero,
            k=jnp.zeros((), jnp.int32),
            status=jnp.where(
                jnp.isfinite(beta), nothing, Status.SOLVER_NON_FINITE
            ).astype(jnp.int32),
        )

    def keep_going(loop):
        return jnp.logical_and(loop.status == Status.RUNNING, loop.k < maxiter)

    def iterate(loop):
        v = pytree.scale(loop.y, 1 / loop.beta)
        bv = matvec(v)
        av = pytree.add_scaled(bv, damping, v)
        alpha = pytree.vdot(v, av)
        u = pytree.add_scaled(av, -alpha / loop.beta, loop.u)
        u = pytree.add_scaled(u, -loop.beta / loop.beta_old, loop.u_old)
        y = apply_m(u)
        signed = m_norm(u, y)
        beta = jnp.maximum(signed, 0)

        delta = loop.cs * loop.dbar + loop.sn * alpha
        gbar = loop.sn * loop.dbar - loop.cs * alpha
        gamma = jnp.hypot(gbar, beta)
        safe_gamma = jnp.where(gamma > 0, gamma, 1)
        cs, sn = gbar / safe_gamma, beta / safe_gamma
        phi, phibar = cs * loop.phibar, sn * loop.phibar

        w = pytree.add_scaled(v, -loop.epsilon, loop.w_old)
        w = pytree.scale(pytree.add_scaled(w, -delta, loop.w), 1 / safe_gamma)

        # r.Ar / r.r of the residual so far, in the inner product of M.
        curvature = -loop.cs * gbar
        bv_norm = pytree.norm(bv)
        finite = jnp.isfinite(alpha + beta + bv_norm)
        noise = eps * jnp.hypot(alpha, beta)
        positive = curvature > noise
        step = jnp.where(positive & finite, phi, 0)
        x = pytree.where(finite, pytree.add_scaled(loop.x, step, w), loop.x)
        # r_k = sn^2 r_{k-1} - phibar_k cs u_{k+1} / beta_{k+1}
        r = pytree.scale(loop.r, sn * sn)
        r = pytree.add_scaled(r, -phibar * cs / jnp.where(beta > 0, beta, 1), u)
        r = pytree.where(positive & finite, r, loop.r)
        phibar = jnp.where(positive & finite, phibar, loop.phibar)

        status = jnp.where(
            (phibar <= tolerance) | (beta <= eps * jnp.abs(alpha)),
            Status.RESIDUAL_CONVERGED,
            Status.RUNNING,
        )
        bad_m = signed < -eps * jnp.abs(alpha)
        status = jnp.where(bad_m, Status.INDEFINITE_PRECONDITIONER, status)
        status = jnp.where(positive, status, Status.NEGATIVE_CURVATURE)
        flat = (loop.k == 0) & (bv_norm == 0)
        status = jnp.where(flat, Status.ZERO_CURVATURE, status)
        status = jnp.where(finite, status, Status.SOLVER_NON_FINITE)
        return _Loop(
            x=x,
            r=r,
            u=u,
            u_old=loop.u,
            y=y,
            w=w,
            w_old=loop.w,
            beta=beta,
            beta_old=loop.beta,
            cs=cs,
            sn=sn,
            dbar=-loop.cs * beta,
            epsilon=loop.sn * beta,
            phibar=phibar,
            curvature=curvature,
            noise=noise,
            k=loop.k + 1,
            status=status.astype(jnp.int32),
        )

    end = jax.lax.while_loop(keep_going, iterate, first())
    decrease = 0.5 * (pytree.vdot(end.x, rhs) + pytree.vdot(end.x, end.r))
    solution, decrease = _or_first_direction(end, rhs, apply_m, decrease)
    status = jnp.where(end.status == Status.RUNNING, Status.MAX_ITERATIONS, end.status)
    nothing = (end.k == 0) & (pytree.vdot(rhs, rhs) == 0)
    status = jnp.where(nothing, Status.ZERO_RIGHT_HAND_SIDE, status)
    return CGResult(
        solution=solution,
        iterations=end.k,
        products=end.k,
        residual=end.phibar,
        model_decrease=decrease,
        length=pytree.norm(solution),
        last_direction=apply_m(end.r),
        curvature=end.curvature,
        status=status.astype(jnp.int32),
    )


def _or_first_direction(end, rhs, apply_m, decrease):
    """A step along ``M b`` if the first iteration met non-positive curvature."""
    stopped = (end.status == Status.NEGATIVE_CURVATURE) | (
        end.status == Status.ZERO_CURVATURE
    )
    stuck = (end.k == 1) & stopped
    curved = jnp.abs(end.curvature) > end.noise
    length = jnp.where(curved, 1 / jnp.where(curved, jnp.abs(end.curvature), 1), 1)
    direction = pytree.scale(apply_m(rhs), length)
    slope = pytree.vdot(direction, rhs)
    gain = slope * (1 - 0.5 * length * end.curvature)
    return (
        pytree.where(stuck, direction, end.x),
        jnp.where(stuck, gain, decrease),
    )


def minres(maxiter: int = 50, rtol: float = 0.1, atol: float = 0.0) -> Solver:
    r"""MINRES: the solver of Newton-MR, for the indefinite exact Hessian.

    Minimises :math:`|(B + \lambda I) d + g|`. Safer to stop early than conjugate
    gradients, as its residual never grows, and at home with singular and indefinite
    Hessians; the solve ends where the residual has non-positive curvature (Roosta et
    al. 2022; Liu and Roosta 2022). Memory: 7 vectors the size of the parameters.

    Args:
      maxiter: largest number of iterations, that is of products.
      rtol: relative tolerance on the residual.
      atol: absolute tolerance on it, in units of the gradient.

    Returns:
      A :class:`Solver`.

    Raises:
      TypeError: if a setting is not a number, or ``maxiter`` not an integer.
      ValueError: if a setting is out of range or NaN.

    Examples:
      >>> import ncg_optax as ncg
      >>> tx = ncg.newton_cg(solver=ncg.minres(maxiter=20))
    """
    validate.integer("minres: maxiter", maxiter, low=1)
    validate.number("minres: rtol", rtol, low=0.0)
    validate.number("minres: atol", atol, low=0.0)

    def solve(matvec, rhs, damping, precondition, state):
        norm = pytree.norm(rhs)
        if precondition is not None:
            norm = jnp.sqrt(jnp.maximum(pytree.vdot(rhs, precondition(rhs)), 0))
        result = minimum_residual(
            matvec,
            rhs,
            damping,
            maxiter=maxiter,
            tolerance=jnp.maximum(rtol * norm, atol),
            precondition=precondition,
        )
        return result, state

    return Solver(
        init=lambda params: (),
        solve=solve,
        update=lambda state, outcome: state,
    )
