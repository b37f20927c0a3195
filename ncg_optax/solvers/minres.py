"""MINRES on the damped Newton system, for indefinite Hessians (Newton-MR)."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ncg_optax._utils import pytree, validate
from ncg_optax._utils.status import Status, first_match
from ncg_optax.solvers.base import KrylovSolver, Model, Operator, SolverResult

PyTree = Any


class _Loop(NamedTuple):
    """The values that one iteration passes to the next.

    The names are those of the published code of Paige and Saunders (1975): ``y = M u``,
    ``beta`` is the norm of the new Lanczos vector, ``(cs, sn)`` the last rotation, and
    ``phibar = |r|``.
    """

    x: PyTree
    r: PyTree  # b - A x
    u: PyTree  # Lanczos vector k, not normalised
    u_old: PyTree  # Lanczos vector k - 1, not normalised
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
    noise: jax.Array  # a bound on the rounding error of ``curvature``
    k: jax.Array  # number of iterations, int32
    status: jax.Array  # int32


class _Lanczos(NamedTuple):
    """The result of one Lanczos step; scalars of shape=()."""

    v: PyTree  # M times Lanczos vector k, normalised
    u: PyTree  # Lanczos vector k + 1, not normalised
    y: PyTree  # M u
    alpha: jax.Array
    beta: jax.Array
    bv_norm: jax.Array  # |B v|
    finite: jax.Array  # bool
    definite: jax.Array  # False if u.Mu < 0, so that M is not positive definite


class _Rotation(NamedTuple):
    """The next Givens rotation, and the column of the matrix that it transforms."""

    cs: jax.Array
    sn: jax.Array
    gamma: jax.Array
    delta: jax.Array
    phi: jax.Array
    phibar: jax.Array
    curvature: jax.Array  # r.Ar / r.r, in the inner product of M
    positive: jax.Array  # whether ``curvature`` is above ``noise``, bool
    noise: jax.Array  # a bound on the rounding error of ``curvature``


def minimum_residual(
    matvec: Operator,
    rhs: PyTree,
    damping: jax.Array | float = 0.0,
    *,
    maxiter: int,
    tolerance: jax.Array | float,
    precondition: Operator | None = None,
) -> SolverResult:
    r"""Minimises :math:`|b - A x|`, ``A = B + damping I``, over growing Krylov spaces.

    ``A`` may be indefinite or singular, and the residual never grows. Each iteration
    tests the residual ``r`` for non-positive curvature, ``r.Ar <= 0``; MINRES computes
    this number anyway (Liu and Roosta 2022). All iterates before it occurs are descent
    directions. If it occurs the solve ends with the last iterate, or, in the first
    iteration, with a step along ``M b``.

    Args:
      matvec: ``v -> B v``, symmetric.
      rhs: ``b``, a tree of float32 or wider leaves.
      damping: lambda, added to the diagonal of ``B``, shape=().
      maxiter: largest number of iterations.
      tolerance: absolute tolerance on the norm of the residual, shape=(). With a
        preconditioner this is the norm of ``M``.
      precondition: ``r -> M r``, symmetric positive definite, ``M ~ |A|^-1``.

    Returns:
      A :class:`SolverResult`. Its ``last_direction`` is ``M r``, and its ``curvature``
      is ``p.Ap / p.r`` with ``p = M r``, for the last ``r`` that was tested.

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
    damping, tolerance = jnp.asarray(damping, dtype), jnp.asarray(tolerance, dtype)
    apply_m = precondition or (lambda r: r)

    def keep_going(loop):
        return jnp.logical_and(loop.status == Status.RUNNING, loop.k < maxiter)

    def iterate(loop):
        lanczos = _lanczos(loop, matvec, damping, apply_m)
        return _iterate(loop, lanczos, _rotate(loop, lanczos), tolerance)

    end = jax.lax.while_loop(keep_going, iterate, _first(rhs, apply_m(rhs)))
    decrease = 0.5 * (pytree.vdot(end.x, rhs) + pytree.vdot(end.x, end.r))
    solution, decrease = _or_first_direction(end, rhs, apply_m, decrease)
    zero_rhs = (end.k == 0) & (pytree.vdot(rhs, rhs) == 0)
    return SolverResult(
        solution=solution,
        iterations=end.k,
        products=end.k,
        residual=end.phibar,
        model_decrease=decrease,
        length=pytree.norm(solution),
        last_direction=apply_m(end.r),
        curvature=end.curvature,
        status=first_match(
            (zero_rhs, Status.ZERO_RIGHT_HAND_SIDE),
            (end.status == Status.RUNNING, Status.MAX_ITERATIONS),
            otherwise=end.status,
        ),
    )


def _m_norm(u: PyTree, y: PyTree) -> jax.Array:
    """``|u|`` in the norm of ``M``, with ``y = M u``; negative if ``u.Mu < 0``."""
    square = pytree.vdot(u, y)
    return jnp.sign(square) * jnp.sqrt(jnp.abs(square))


def _first(rhs: PyTree, y: PyTree) -> _Loop:
    """The values before the first iteration; ``y = M b``."""
    dtype = pytree.scalar_dtype(rhs)
    zero, zeros = jnp.zeros((), dtype), pytree.zeros_like(rhs)
    beta = _m_norm(rhs, y)
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
        status=first_match(
            (~jnp.isfinite(beta), Status.SOLVER_NON_FINITE),
            (beta <= 0, Status.INDEFINITE_PRECONDITIONER),
            otherwise=Status.RUNNING,
        ),
    )


def _lanczos(
    loop: _Loop, matvec: Operator, damping: jax.Array, apply_m: Operator
) -> _Lanczos:
    """One step of the preconditioned Lanczos process, which makes one product."""
    v = pytree.scale(loop.y, 1 / loop.beta)
    bv = matvec(v)
    av = pytree.add_scaled(bv, damping, v)
    alpha = pytree.vdot(v, av)
    u = pytree.add_scaled(av, -alpha / loop.beta, loop.u)
    u = pytree.add_scaled(u, -loop.beta / loop.beta_old, loop.u_old)
    y = apply_m(u)
    signed = _m_norm(u, y)
    beta, bv_norm = jnp.maximum(signed, 0), pytree.norm(bv)
    eps = jnp.finfo(alpha.dtype).eps
    return _Lanczos(
        v=v,
        u=u,
        y=y,
        alpha=alpha,
        beta=beta,
        bv_norm=bv_norm,
        finite=jnp.isfinite(alpha + beta + bv_norm),
        definite=jnp.logical_not(signed < -eps * jnp.abs(alpha)),
    )


def _rotate(loop: _Loop, lanczos: _Lanczos) -> _Rotation:
    """The Givens rotation that eliminates ``beta``."""
    alpha, beta = lanczos.alpha, lanczos.beta
    gbar = loop.sn * loop.dbar - loop.cs * alpha
    gamma = jnp.hypot(gbar, beta)
    gamma = jnp.where(gamma > 0, gamma, 1)
    cs, sn = gbar / gamma, beta / gamma
    curvature = -loop.cs * gbar
    noise = jnp.finfo(alpha.dtype).eps * jnp.hypot(alpha, beta)
    return _Rotation(
        cs=cs,
        sn=sn,
        gamma=gamma,
        delta=loop.cs * loop.dbar + loop.sn * alpha,
        phi=cs * loop.phibar,
        phibar=sn * loop.phibar,
        curvature=curvature,
        positive=curvature > noise,
        noise=noise,
    )


def _iterate(
    loop: _Loop, lanczos: _Lanczos, rotation: _Rotation, tolerance: jax.Array
) -> _Loop:
    """The next iterate; the last one if the curvature is not positive."""
    cs, sn, u, beta = rotation.cs, rotation.sn, lanczos.u, lanczos.beta
    w = pytree.add_scaled(lanczos.v, -loop.epsilon, loop.w_old)
    w = pytree.add_scaled(w, -rotation.delta, loop.w)
    w = pytree.scale(w, 1 / rotation.gamma)

    usable = rotation.positive & lanczos.finite
    step = jnp.where(usable, rotation.phi, 0)
    x = pytree.where(lanczos.finite, pytree.add_scaled(loop.x, step, w), loop.x)
    # r_k = sn^2 r_{k-1} - phibar_k cs u_{k+1} / beta_{k+1}
    r = pytree.scale(loop.r, sn * sn)
    r = pytree.add_scaled(r, -rotation.phibar * cs / jnp.where(beta > 0, beta, 1), u)
    phibar = jnp.where(usable, rotation.phibar, loop.phibar)

    eps = jnp.finfo(beta.dtype).eps
    exhausted = beta <= eps * jnp.abs(lanczos.alpha)
    return _Loop(
        x=x,
        r=pytree.where(usable, r, loop.r),
        u=u,
        u_old=loop.u,
        y=lanczos.y,
        w=w,
        w_old=loop.w,
        beta=beta,
        beta_old=loop.beta,
        cs=cs,
        sn=sn,
        dbar=-loop.cs * beta,
        epsilon=loop.sn * beta,
        phibar=phibar,
        curvature=rotation.curvature,
        noise=rotation.noise,
        k=loop.k + 1,
        status=first_match(
            (~lanczos.finite, Status.SOLVER_NON_FINITE),
            ((loop.k == 0) & (lanczos.bv_norm == 0), Status.ZERO_CURVATURE),
            (~rotation.positive, Status.NEGATIVE_CURVATURE),
            (~lanczos.definite, Status.INDEFINITE_PRECONDITIONER),
            ((phibar <= tolerance) | exhausted, Status.RESIDUAL_CONVERGED),
            otherwise=Status.RUNNING,
        ),
    )


def _or_first_direction(
    end: _Loop, rhs: PyTree, apply_m: Operator, decrease: jax.Array
) -> tuple[PyTree, jax.Array]:
    """The solution and the decrease of the model.

    The solution is a step along ``M b`` if the first iteration found non-positive
    curvature, and else the last iterate.
    """
    not_positive = (end.status == Status.NEGATIVE_CURVATURE) | (
        end.status == Status.ZERO_CURVATURE
    )
    at_first = (end.k == 1) & not_positive
    curved = jnp.abs(end.curvature) > end.noise
    length = jnp.where(curved, 1 / jnp.where(curved, jnp.abs(end.curvature), 1), 1)
    direction = pytree.scale(apply_m(rhs), length)
    slope = pytree.vdot(direction, rhs)
    gain = slope * (1 - 0.5 * length * end.curvature)
    return (
        pytree.where(at_first, direction, end.x),
        jnp.where(at_first, gain, decrease),
    )


@dataclasses.dataclass(frozen=True)
class minres(KrylovSolver):
    r"""MINRES, the solver of Newton-MR, for an exact Hessian that may be indefinite.

    The solver minimises :math:`|(B + \lambda I) d + g|`. The residual never grows, so
    an early stop does less harm than in conjugate gradients. The Hessian may be
    singular or indefinite: the solve ends if the residual has non-positive curvature
    (Roosta et al. 2022; Liu and Roosta 2022). Memory: 7 vectors the size of the
    parameters.

    Attributes:
      maxiter: largest number of iterations, at least 1; each costs one product.
      rtol: relative tolerance on the residual, at least 0.
      atol: absolute tolerance on the residual, in units of the gradient, at least 0.

    Raises:
      TypeError: if a setting is not a number, or if ``maxiter`` is not an integer.
      ValueError: if a setting is out of range or NaN.

    Examples:
      >>> import ncg_optax as ncg
      >>> tx = ncg.newton_cg(solver=ncg.minres(maxiter=20))
    """

    maxiter: int = 50
    rtol: float = 0.1
    atol: float = 0.0

    def __post_init__(self):
        validate.integer("minres: maxiter", self.maxiter, low=1)
        validate.number("minres: rtol", self.rtol, low=0.0, high=1.0)
        validate.number("minres: atol", self.atol, low=0.0)

    def solve(self, model: Model, state: Any) -> tuple[SolverResult, Any]:
        """The iterate with the smallest residual."""
        norm = pytree.norm(model.gradient)
        if model.precondition is not None:
            square = pytree.vdot(model.gradient, model.precondition(model.gradient))
            norm = jnp.sqrt(jnp.maximum(square, 0))
        result = minimum_residual(
            model.product,
            model.rhs,
            model.damping,
            maxiter=self.maxiter,
            tolerance=jnp.maximum(self.rtol * norm, self.atol / model.unit),
            precondition=model.precondition,
        )
        return result, state
