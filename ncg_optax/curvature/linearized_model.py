"""Linearises the model of a composite loss in the parameters."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ncg_optax.curvature.base import Operator

PyTree = Any

MODES = ("auto", "forward", "double_vjp")


def _jvp_by_double_vjp(model: Callable, params: PyTree) -> tuple[PyTree, Operator]:
    """Outputs and ``v -> J v``, the transpose of the pullback, which is linear."""
    outputs, pullback = jax.vjp(model, params)
    zeros = jax.tree.map(jnp.zeros_like, outputs)
    _, push = jax.vjp(lambda u: pullback(u)[0], zeros)
    return outputs, lambda v: push(v)[0]


def linearize_model(
    model: Callable, params: PyTree, mode: str
) -> tuple[PyTree, Operator, Operator]:
    """The outputs, ``v -> J v`` and ``u -> J^T u``; ``mode`` is one of ``MODES``."""
    if mode == "double_vjp":
        outputs, push = _jvp_by_double_vjp(model, params)
    else:
        outputs, push = jax.linearize(model, params)
        # A custom_vjp raises only when the product is compiled, where it cannot be
        # caught. So its primitive is searched for in the program.
        if mode == "auto" and _has_custom_vjp(jax.make_jaxpr(push)(params).jaxpr):
            outputs, push = _jvp_by_double_vjp(model, params)
    # The model is traced once: the pullback is the transpose of its linearisation.
    pullback = jax.linear_transpose(push, params)
    return outputs, push, lambda u: pullback(u)[0]


def _has_custom_vjp(jaxpr: Any) -> bool:
    """Whether a program contains the derivative of a layer with a ``custom_vjp``."""

    def within(value):
        if isinstance(value, (tuple, list)):
            return any(map(within, value))
        inner = getattr(value, "jaxpr", value)  # of a program with its constants
        return hasattr(inner, "eqns") and _has_custom_vjp(inner)

    return any(
        eqn.primitive.name == "custom_lin" or within(tuple(eqn.params.values()))
        for eqn in jaxpr.eqns
    )
