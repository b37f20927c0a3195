"""The damped Gauss-Newton system as a dense system in the smaller of two spaces.

``A`` is the weighted Jacobian (see the module ``weighted_jacobian``), and the
right-hand side is written as ``b = -A^T q + r``::

  (A^T A + damping I) d = b                               in parameter space
  (A A^T + damping I) y = -q - A r / damping,
                      d = A^T y + r / damping             in residual space

The second is Woodbury's identity. ``r`` is the component of ``b`` outside the row space
of ``A``; zero for a squared loss.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from ncg_optax._utils import pytree
from ncg_optax.solvers.residual_space import acceleration
from ncg_optax.solvers.residual_space.jacobian_rows import ravel
from ncg_optax.solvers.residual_space.symmetric_product import symmetric_product
from ncg_optax.solvers.residual_space.weighted_jacobian import WeightedJacobian

PyTree = Any


class System(NamedTuple):
    """The normal equations in one of the two spaces, of dimension ``m``.

    With momentum times the previous direction as ``p``, ``d - p`` solves the damped
    system with the right-hand side ``b - A^T A p``.

    Attributes:
      gram: ``A A^T`` or ``A^T A``, shape=(m, m).
      target: ``target(damping)``, the right-hand side in this space, shape=(m,).
      to_direction: ``to_direction(y, damping)``, the direction ``d`` for a solution
        ``y`` in this space.
      product: ``v -> A^T A v``.
      bend: ``v -> |A v|^2``.
      target_of: ``w -> A^T w`` or ``w``, for ``w`` on this device, a list of
        shape=(examples, width); the right-hand side in this space, shape=(m,).
      lift: a solution in this space to a vector shaped like the parameters.
    """

    gram: jax.Array
    target: Callable[[jax.Array], jax.Array]
    to_direction: Callable[[jax.Array, jax.Array], PyTree]
    product: Callable[[PyTree], PyTree]
    bend: Callable[[PyTree], jax.Array]
    target_of: Callable[[list[jax.Array]], jax.Array]
    lift: Callable[[jax.Array], PyTree]


def normal_equations(
    jac: WeightedJacobian,
    b: PyTree,
    previous: PyTree | None,
    max_size: int,
    chunk: int,
) -> System:
    """The system in the smaller of the two spaces.

    Args:
      jac: the weighted Jacobian.
      b: the right-hand side, a real vector.
      previous: the last direction times the momentum, or None.
      max_size: largest dimension.
      chunk: rows of the Jacobian that are computed at once.

    Raises:
      ValueError: if both spaces are larger than ``max_size``.
    """
    parameters = sum(x.size for x in jax.tree.leaves(b))
    residuals = jac.residuals
    smaller = min(parameters, residuals)
    if smaller > max_size:
        gigabytes = smaller**2 * pytree.scalar_dtype(b).itemsize / 2**30
        raise ValueError(
            f"residual_space: {residuals} residuals and {parameters} parameters are "
            f"too many, the smaller space has a matrix of {smaller} x {smaller} "
            f"numbers, {gigabytes:.1f} GB. Use cg(), a smaller batch, or raise "
            f"max_size={max_size} if there is the memory."
        )
    if residuals <= parameters:
        return _in_residual_space(jac, b, previous, chunk)
    return _in_parameter_space(jac, b, previous, chunk)


def _in_residual_space(
    jac: WeightedJacobian, b: PyTree, previous: PyTree | None, chunk: int
) -> System:
    unravel = ravel_pytree(b)[1]
    a = jac.rows(chunk)
    q = -jac.target
    gram = symmetric_product(a)
    noise = jnp.vdot(jnp.sqrt(jnp.diagonal(gram)), jnp.abs(q))
    factor, rest = _split(b, unravel(q @ a), jac.rest, noise)
    q = factor * q
    if previous is not None:
        q = q - a @ ravel(previous)
    a_rest = a @ ravel(rest)

    def to_direction(y, damping):
        d = pytree.add_scaled(unravel(y @ a), _inverse(damping), rest)
        return d if previous is None else pytree.add_scaled(d, 1.0, previous)

    return System(
        gram=gram,
        target=lambda damping: q - _inverse(damping) * a_rest,
        to_direction=to_direction,
        product=lambda v: unravel((a @ ravel(v)) @ a),
        bend=lambda v: jnp.sum(jnp.square(a @ ravel(v))),
        target_of=functools.partial(acceleration.in_residual_space, jac),
        lift=lambda y: unravel(y @ a),
    )


def _in_parameter_space(
    jac: WeightedJacobian, b: PyTree, previous: PyTree | None, chunk: int
) -> System:
    vector, unravel = ravel_pytree(b)
    size, dtype = vector.size, vector.dtype

    def fold(carry, rows, targets):
        gram, inside, noise = carry
        a, q = jax.vmap(ravel)(rows).astype(dtype), targets.astype(dtype)
        lengths = jnp.linalg.norm(a, axis=1)
        return (
            gram + symmetric_product(a.T),
            inside - a.T @ q,
            noise + lengths @ jnp.abs(q),
        )

    carry = tuple(jnp.zeros(shape, dtype) for shape in ((size, size), size, ()))
    gram, inside, noise = jac.fold_rows(fold, carry, chunk)
    factor, rest = _split(b, unravel(inside), jac.rest, noise)
    target = factor * inside + ravel(rest)

    def damped_target(damping):
        # The unknown is d here, not d - previous.
        return target if previous is None else target + damping * ravel(previous)

    return System(
        gram=gram,
        target=damped_target,
        to_direction=lambda y, damping: unravel(y),
        product=lambda v: unravel(gram @ ravel(v)),
        bend=lambda v: jnp.vdot(ravel(v), gram @ ravel(v)),
        target_of=lambda w: ravel(acceleration.in_parameter_space(jac, w)),
        lift=unravel,
    )


def _inverse(damping: jax.Array) -> jax.Array:
    """``1 / damping``; 0 for no damping, which gives the step of least norm."""
    return jnp.where(damping > 0, 1 / jnp.where(damping > 0, damping, 1), 0)


def _split(
    b: PyTree, inside: PyTree, outside: PyTree, noise: jax.Array
) -> tuple[jax.Array, PyTree]:
    """``(factor, rest)`` with ``b = factor * inside + rest``.

    ``inside - outside`` is the negative gradient, computed from the rows. ``b`` comes
    from the user's gradient, perhaps with bfloat16 or TF32 products, and differs from
    it by rounding. That difference is dropped: its component outside the row space
    would be divided by the damping. The factor allows for a gradient that was scaled
    (clipped) as a whole.

    Args:
      b: the right-hand side.
      inside: ``-A^T q``.
      outside: the component of the gradient outside the row space of ``A``.
      noise: ``sum_i |a_i| |q_i|`` over the rows; times the machine epsilon it is the
        rounding error of ``inside``. (``|A| |q|`` would be too large: an example that
        a classifier assigns confidently to a wrong class has a tiny row and a huge
        residual.)
    """
    eps = jnp.finfo(pytree.scalar_dtype(b)).eps
    own = pytree.add_scaled(inside, -1.0, outside)

    def remainder(factor):
        extra = pytree.add_scaled(b, -factor, own)
        level = eps**0.25 * pytree.norm(own) + 100 * eps * noise
        return extra, pytree.norm(extra) > jnp.abs(factor) * level

    differs = remainder(1.0)[1]
    length2 = pytree.vdot(own, own)
    fitted = pytree.vdot(b, own) / jnp.where(length2 > 0, length2, 1)
    factor = jnp.where(differs & (length2 > 0), fitted, 1)
    extra, differs = remainder(factor)
    extra = pytree.where(differs, extra, pytree.zeros_like(extra))
    return factor, pytree.add_scaled(extra, -factor, outside)
