"""A check that an operator is linear and symmetric, for debugging."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.core import Tracer

from ncg_optax._utils import pytree, validate
from ncg_optax.curvature.base import Curvature
from ncg_optax.solvers.base import Operator
from ncg_optax.solvers.linear_cg import conjugate_gradient

PyTree = Any

# In each search for negative curvature.
_CG_ITERATIONS = 20


class OperatorReport(NamedTuple):
    """What :func:`check_operator` measured: floats without a unit.

    Attributes:
      asymmetry: ``|B - B^T| / |B|`` in Frobenius norms, estimated.
      nonlinearity: ``|B(u + a v) - B u - a B v| / (|B u| + |a B v|)``, the largest.
      lowest_curvature: the smallest ``p.Bp / p.p`` that was found, in units of the
        largest eigenvalue (estimated); clearly negative if ``B`` is indefinite.

    Examples:
      >>> import jax.numpy as jnp
      >>> import ncg_optax as ncg
      >>> report = ncg.check_operator(lambda v: 3.0 * v, jnp.zeros(4), positive=True)
      >>> report.asymmetry < 1e-6, round(report.lowest_curvature, 3)
      (True, 1.0)
    """

    asymmetry: float
    nonlinearity: float
    lowest_curvature: float


def _safe_ratio(a: jax.Array, b: jax.Array) -> jax.Array:
    """``a / b``, or 0 where ``b`` is 0."""
    return jnp.where(b == 0, 0, a / jnp.where(b == 0, 1, b))


def _trial(matvec: Operator, params: PyTree, key: jax.Array) -> dict[str, jax.Array]:
    """Measurements with one pair of random vectors."""
    product = pytree.in_dtypes_of(params, matvec)
    draw = lambda k: pytree.widen(pytree.random_normal(k, params))  # noqa: E731
    u, v = map(draw, jax.random.split(key))
    a = 0.7
    # Rounded to the dtypes of the parameters, which the operator needs.
    both = pytree.widen(pytree.cast_like(pytree.add_scaled(u, a, v), params))
    bu, bv = product(u), product(v)
    excess = pytree.add_scaled(pytree.add_scaled(product(both), -1.0, bu), -a, bv)
    search = conjugate_gradient(product, u, maxiter=_CG_ITERATIONS, tolerance=0.0)
    largest = _safe_ratio(pytree.norm(product(bu)), pytree.norm(bu))
    return {
        # E (u.Bv - v.Bu)^2 = |B - B^T|^2 and E |Bu|^2 = |B|^2.
        "skew2": jnp.square(pytree.vdot(u, bv) - pytree.vdot(v, bu)),
        "size2": (pytree.vdot(bu, bu) + pytree.vdot(bv, bv)) / 2,
        "nonlinearity": _safe_ratio(
            pytree.norm(excess), pytree.norm(bu) + a * pytree.norm(bv)
        ),
        "curvature": _safe_ratio(search.curvature, largest),
        "finite": pytree.all_finite((bu, bv)),
    }


def check_operator(
    matvec: Operator,
    params: PyTree,
    *,
    positive: bool = False,
    trials: int = 5,
    tolerance: float | None = None,
    seed: int = 0,
) -> OperatorReport:
    """Checks on random vectors that a product is linear and symmetric.

    Conjugate gradients need both, and fail silently without them. Causes are a mistake
    in a ``custom_vjp``, dropout with new random numbers in each product, a curvature
    with a missing conjugate or transpose, or a GPU that multiplies in TF32. Run the
    check once on a new curvature, outside of jit.

    The antisymmetric part is measured by its Frobenius norm. Negative curvature is
    searched for with 20 iterations of conjugate gradients, which find a negative
    eigenvalue much sooner than a random vector would.

    Cost: about 25 products a trial.

    Args:
      matvec: ``v -> B v`` of trees with the structure, shapes and dtypes of
        ``params``, such as :func:`curvature_product` returns.
      params: a tree like the vectors; only its shapes and dtypes are used.
      positive: whether ``B`` must be positive semidefinite, as a Gauss-Newton matrix
        of a convex loss is.
      trials: pairs of random vectors.
      tolerance: largest defect, in the units of :class:`OperatorReport`; None for the
        square root of the coarsest precision in ``params`` (3e-4 in float32, 1.5e-8
        in float64).
      seed: of the random vectors.

    Returns:
      An :class:`OperatorReport`.

    Raises:
      TypeError: if ``matvec`` is not a function, a setting not a number, or a leaf not
        a floating-point or complex array; if it runs under jit.
      ValueError: if the products are not finite or not shaped like ``params``, or a
        defect is above the tolerance; if a setting is out of range.

    Examples:
      >>> import jax.numpy as jnp
      >>> import ncg_optax as ncg
      >>> f = lambda w: w[0] ** 2 - 3.0 * w[1] ** 2
      >>> product = ncg.curvature.curvature_product(ncg.hessian(), f, jnp.ones(2))
      >>> report = ncg.check_operator(product, jnp.ones(2))
      >>> report.asymmetry < 1e-6, report.lowest_curvature < 0
      (True, True)
      >>> ncg.check_operator(lambda v: v[::-1] * jnp.array([1.0, 2.0]), jnp.ones(2))
      Traceback (most recent call last):
        ...
      ValueError: check_operator: B is not symmetric: |B - B^T| / |B| is about ...
    """
    if isinstance(matvec, Curvature) or not callable(matvec):
        raise TypeError(
            "check_operator: matvec must be a function v -> B v, such as "
            "curvature_product(hessian(), value_fn, params); got "
            f"{type(matvec).__name__}."
        )
    validate.trainable_tree("params", params)
    validate.integer("check_operator: trials", trials, low=1)
    dtypes = [x.dtype for x in jax.tree.leaves(params)]
    if tolerance is None:
        tolerance = math.sqrt(max(float(jnp.finfo(d).eps) for d in dtypes))
    validate.number("check_operator: tolerance", tolerance, low=0.0)
    if any(isinstance(x, Tracer) for x in jax.tree.leaves(params)):
        raise TypeError("check_operator compares numbers: call it outside of jit.")
    image = jax.eval_shape(matvec, params)
    validate.same_structure("matvec(params)", image, "params", params)

    keys = jax.random.split(jax.random.key(seed), trials)
    found = jax.jit(lambda ks: jax.lax.map(lambda k: _trial(matvec, params, k), ks))(
        keys
    )
    if not found["finite"].all():
        raise ValueError("check_operator: B v is not finite for a random vector v.")
    skew, size = jnp.sqrt(found["skew2"].sum()), jnp.sqrt(found["size2"].sum())
    report = OperatorReport(
        asymmetry=float(_safe_ratio(skew, size)),
        nonlinearity=float(found["nonlinearity"].max()),
        lowest_curvature=float(found["curvature"].min()),
    )
    allowed = f"with a tolerance of {tolerance:.1e}."
    # For a nonlinear B the other numbers mean nothing.
    if not report.nonlinearity <= tolerance:
        raise ValueError(
            "check_operator: B is not linear: B(u + a v) differs from B u + a B v by "
            f"{report.nonlinearity:.1e} of its size, {allowed}"
        )
    if not report.asymmetry <= tolerance:
        raise ValueError(
            "check_operator: B is not symmetric: |B - B^T| / |B| is about "
            f"{report.asymmetry:.1e}, {allowed}"
        )
    if positive and not report.lowest_curvature >= -tolerance:
        raise ValueError(
            "check_operator: B is not positive semidefinite: it has a curvature of "
            f"{report.lowest_curvature:.1e} times its largest eigenvalue, {allowed}"
        )
    return report
