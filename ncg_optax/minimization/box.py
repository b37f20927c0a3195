"""Bounds on the parameters: projections, and what is at a bound."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.core import Tracer

from ncg_optax._utils import validate

PyTree = Any


class Box(NamedTuple):
    """Lower and upper bounds, trees with the structure and shapes of the parameters."""

    low: PyTree
    high: PyTree

    def project(self, params: PyTree) -> PyTree:
        """The nearest parameters within the bounds."""
        return jax.tree.map(jnp.clip, params, self.low, self.high)

    def projected_gradient(self, params: PyTree, grads: PyTree) -> PyTree:
        """``params - P(params - grads)``, which is zero at a stationary point."""

        # Without a difference that would round small gradients away.
        def leaf(x, g, low, high):
            return jnp.clip(g, x - high, x - low)

        return jax.tree.map(leaf, params, grads, self.low, self.high)

    def free(self, params: PyTree, grads: PyTree) -> PyTree:
        """Where the parameters are not held at a bound by the gradient, bool."""

        def free(x, g, low, high):
            return ~((x <= low) & (g >= 0) | (x >= high) & (g <= 0))

        return jax.tree.map(free, params, grads, self.low, self.high)

    def movable(self, params: PyTree, grads: PyTree) -> PyTree:
        """As :meth:`free`, and where the gradient at a bound is zero, bool."""

        def movable(x, g, low, high):
            held = (x <= low) & (g > 0) | (x >= high) & (g < 0)
            return (low < high) & ~held

        return jax.tree.map(movable, params, grads, self.low, self.high)

    def inward(self, params: PyTree, step: PyTree) -> PyTree:
        """``step``, its sign changed where it leads from a bound out of the box."""

        def inward(x, d, low, high):
            d = jnp.where(x <= low, jnp.abs(d), d)
            return jnp.where(x >= high, -jnp.abs(d), d)

        return jax.tree.map(inward, params, step, self.low, self.high)

    def inside(self, params: PyTree) -> PyTree:
        """Where the parameters are at no bound, bool."""

        def inside(x, low, high):
            return (x > low) & (x < high)

        return jax.tree.map(inside, params, self.low, self.high)

    def first_bound(self, params: PyTree, step: PyTree) -> PyTree:
        """The parameters where a line from within the box meets its first bound.

        The line ends at ``params + step``. A parameter that reaches its bound is equal
        to it, not only up to rounding.
        """

        def bound(d, low, high):
            return jnp.where(d > 0, high, low)

        def reach(x, d, low, high):
            room = (bound(d, low, high) - x) / jnp.where(d == 0, 1, d)
            return jnp.where(d == 0, jnp.inf, room)

        reaches = jax.tree.map(reach, params, step, self.low, self.high)
        leaves = [jnp.min(r, initial=1) for r in jax.tree.leaves(reaches)]
        t = jnp.min(jnp.stack(leaves))

        def end(x, d, r, low, high):
            return jnp.where(r <= t, bound(d, low, high), x + t * d)

        return self.project(
            jax.tree.map(end, params, step, reaches, self.low, self.high)
        )


def only(free: PyTree, tree: PyTree) -> PyTree:
    """``tree`` where ``free``, zero elsewhere."""
    return jax.tree.map(lambda f, x: jnp.where(f, x, 0), free, tree)


def as_box(bounds: Any, params: PyTree) -> Box:
    """The bounds that were passed to ``minimize``, as trees like the parameters.

    Raises:
      TypeError: if they are no pair, or the parameters are complex.
      ValueError: if a bound has another structure or shape than the parameters, is NaN,
        or if a lower bound is above the upper one.
    """
    if not isinstance(bounds, (tuple, list)) or len(bounds) != 2:
        raise TypeError(
            "minimize: bounds must be a pair (low, high) of numbers, None, or trees "
            f"like the parameters; got {validate.type_name(bounds)}."
        )
    if any(jnp.iscomplexobj(x) for x in jax.tree.leaves(params)):
        raise TypeError("minimize: bounds need real parameters, got complex ones.")
    low = _like("low", bounds[0], -jnp.inf, params)
    high = _like("high", bounds[1], jnp.inf, params)
    for a, b in zip(jax.tree.leaves(low), jax.tree.leaves(high), strict=True):
        traced = isinstance(a, Tracer) or isinstance(b, Tracer)
        if not traced and not jnp.all(a <= b):  # also if one is NaN
            raise ValueError(
                "minimize: bounds must have low <= high everywhere, and no NaN."
            )
    return Box(low, high)


def _like(name: str, bound: Any, default: float, params: PyTree) -> PyTree:
    """A bound as a tree like the parameters; a number holds for all of them."""
    bound = default if bound is None else bound
    if jax.tree.structure(bound) != jax.tree.structure(params):
        if not validate.is_numeric(bound) or jnp.ndim(bound) != 0:
            validate.same_structure(
                f"minimize: bounds[{name}]", bound, "params", params
            )
        bound = jax.tree.map(lambda _: bound, params)

    def spread(b, x):
        b = jnp.asarray(b, x.dtype)
        try:
            return jnp.broadcast_to(b, x.shape)
        except ValueError:
            raise ValueError(
                f"minimize: bounds: {name} has shape {b.shape} for parameters of shape "
                f"{x.shape}."
            ) from None

    return jax.tree.map(spread, bound, params)
