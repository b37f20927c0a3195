"""Derivatives of a minimum, by the implicit function theorem."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import zero_from_primal

from ncg_optax._utils import pytree
from ncg_optax.losses.objective import Objective
from ncg_optax.minimization.box import Box, only
from ncg_optax.minimization.symmetric_solve import symmetric_solve

PyTree = Any


def differentiable(
    solve: Callable[..., Any],
    objective_of: Callable[[Mapping[str, Any]], Objective],
) -> Callable[..., Any]:
    r"""``solve`` with derivatives of its minimum with respect to the data.

    At a minimum :math:`x(\phi)` of :math:`f(x, \phi)`

    .. math::
      \frac{\partial^2 f}{\partial x^2} \, dx
        = - \frac{\partial^2 f}{\partial x\, \partial \phi} \, d\phi

    on the parameters that are not at a bound; those at a bound move with it.

    Args:
      solve: ``solve(params, limits, box, data)`` returns ``(params, state, result)``.
      objective_of: the objective with this data.

    Returns:
      ``solve`` with a rule for the derivatives of parameters and value. The derivatives
      of all else, and those with respect to the start, are zero.
    """

    @jax.custom_jvp
    def solved(params, limits, box, data):
        return solve(params, limits, box, data)

    @solved.defjvp
    def _(primals, tangents):
        _, _, box, data = primals
        _, _, box_dot, data_dot = tangents
        out = solved(*primals)
        x, state, result = out

        def value(x, data):
            return objective_of(data).value(x)

        def gradient(x, data):
            return pytree.conj(jax.grad(value)(x, data))

        # The derivative of the gradient with the parameters fixed.
        _, change = jax.jvp(functools.partial(gradient, x), (data,), (data_dot,))
        _, product = jax.linearize(lambda x: gradient(x, data), x)
        dx = _moved_minimum(product, change, x, gradient(x, data), box, box_dot)
        _, value_dot = jax.jvp(value, (x, data), (dx, data_dot))
        zeros = jax.tree.map(zero_from_primal, (state, result))
        value_dot = jnp.asarray(value_dot, result.value.dtype)
        return out, (dx, zeros[0], zeros[1]._replace(value=value_dot))

    return solved


def _moved_minimum(
    product: Callable[[PyTree], PyTree],
    change: PyTree,
    x: PyTree,
    grads: PyTree,
    box: Box | None,
    box_dot: Box | None,
) -> PyTree:
    """How the minimum moves if the gradient at a fixed point changes by ``change``."""
    if box is None:
        return symmetric_solve(product, pytree.negative(change))
    assert box_dot is not None
    free = box.free(x, grads)
    held = jax.tree.map(
        lambda f, x, low, a, b: jnp.where(f, 0, jnp.where(x <= low, a, b)),
        free,
        x,
        box.low,
        box_dot.low,
        box_dot.high,
    )
    change = jax.tree.map(jnp.add, change, product(held))

    def on_the_face(v):
        # The identity elsewhere.
        inner = only(free, product(only(free, v)))
        return jax.tree.map(lambda f, a, b: jnp.where(f, a, b), free, inner, v)

    dx = symmetric_solve(on_the_face, only(free, pytree.negative(change)))
    return jax.tree.map(jnp.add, dx, held)
