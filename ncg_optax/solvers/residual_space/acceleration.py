r"""The second-order correction of a Gauss-Newton step, its geodesic acceleration.

With the model's outputs ``z`` and the step ``d``, the outputs along it are

.. math::
  z(\theta + d + a) \approx z + J d + J a + \tfrac12 z''

where ``z''`` is the second derivative of the outputs along ``d``. The acceleration
``a`` makes up for the last term (Transtrum and Sethna 2012)::

  (A^T A + damping I) a = -A^T w / 2,    w = S z''
  (A A^T + damping I) y = -w / 2,        a = A^T y     in residual space

It needs no further factorisation.
"""

from typing import Any

import jax
import jax.numpy as jnp

from ncg_optax._utils import pytree, reductions
from ncg_optax.solvers.residual_space.damping_search import moved
from ncg_optax.solvers.residual_space.weighted_jacobian import WeightedJacobian

PyTree = Any


def weighted_second_derivative(
    jac: WeightedJacobian, params: PyTree, d: PyTree, like: PyTree
) -> list[jax.Array]:
    """``w`` on this device, for each group of outputs, shape=(examples, width).

    By a central difference, so that the model needs no second derivative. In float64
    its points are about a tenth of the step away, and further in float32, where the
    outputs have fewer digits.

    Args:
      jac: the weighted Jacobian at ``params``.
      params: where the step starts.
      d: the step, a real vector.
      like: a vector that defines which leaves of the step are complex.
    """
    h = float(jnp.finfo(pytree.scalar_dtype(like)).eps) ** (1 / 16)

    def outputs(factor):
        # The points are mapped over, so that the model is compiled once.
        return jac.outputs_at(moved(jac.objective, params, factor, d, like))

    points = reductions.to_varying(jnp.array([h, -h, 0.0]), jac.objective.axes)
    ahead_behind_here = jax.lax.map(outputs, points)

    def weighted(z, block):
        second = (z[0] + z[1] - 2 * z[2]) / h**2
        return jnp.einsum("nkc,nc->nk", block.root, second.astype(block.root.dtype))

    return [weighted(*x) for x in zip(ahead_behind_here, jac.blocks, strict=True)]


def in_parameter_space(jac: WeightedJacobian, w: list[jax.Array]) -> PyTree:
    """``A^T w`` over all devices, a real vector."""
    cotangents = [
        jnp.einsum("nkc,nk->nc", block.root, x)
        for block, x in zip(jac.blocks, w, strict=True)
    ]
    return reductions.total(jac.pull(cotangents), jac.objective.axes)


def in_residual_space(jac: WeightedJacobian, w: list[jax.Array]) -> jax.Array:
    """``w`` of all devices, shape=(residuals,)."""
    flat = jnp.concatenate([x.reshape(-1) for x in w])
    return reductions.gather(flat, jac.objective.axes)


def is_small(a: PyTree, d: PyTree, limit: float, b: PyTree) -> jax.Array:
    """Whether ``2 |a| <= limit |d|`` and ``d + a`` is a descent direction, bool.

    Where it is not the series in the length of the step says nothing.
    """
    short = 2 * pytree.norm(a) <= limit * pytree.norm(d)  # False for NaN
    return short & (pytree.vdot(b, pytree.add_scaled(d, 1.0, a)) > 0)
