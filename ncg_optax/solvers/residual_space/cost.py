"""The cost of matrix algebra, in gradients of the loss.

Counted are floating-point operations, those of the gradient in its traced program. So
the cost is known before anything runs, and the same on every machine. Operations in
matrix algebra and in a network take about the same time each, on a CPU.
"""

import math
from collections.abc import Callable
from typing import Any

import jax

from ncg_optax.losses.objective import Objective

PyTree = Any


def gradient_operations(objective: Objective, params: PyTree) -> float:
    """Operations of one gradient of the loss on this device, at least 1."""
    grad = jax.grad(objective.value, allow_int=True)
    return max(operations(grad, params), 1.0)


def matrix_operations(residuals: int, parameters: int) -> float:
    """Operations for the matrix of one step: ``m^2 n`` for a symmetric product."""
    smaller, larger = sorted((residuals, parameters))
    return float(smaller) ** 2 * larger


def factorisation_operations(residuals: int, parameters: int) -> float:
    """Operations for one damping: a factorisation, ``m^3 / 3``."""
    return float(min(residuals, parameters)) ** 3 / 3


def operations(function: Callable[..., Any], *args: Any) -> float:
    """Floating-point operations of ``function``, counted in its jaxpr.

    A product of matrices counts two operations for each multiplication; any other
    primitive counts one for each number that it returns. The body of a loop whose
    length is not known is counted once, and of several branches the largest.

    Args:
      function: any function that JAX can trace.
      *args: its arguments; arrays or `jax.ShapeDtypeStruct`.
    """
    return _of_program(jax.make_jaxpr(function)(*args).jaxpr)


def _of_program(jaxpr: Any) -> float:
    return sum(_of_equation(equation) for equation in jaxpr.eqns)


def _of_equation(equation: Any) -> float:
    name, params = equation.primitive.name, equation.params
    size = sum(math.prod(x.aval.shape) for x in equation.outvars)
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        shape = equation.invars[0].aval.shape
        return 2.0 * size * math.prod(shape[k] for k in contracted)
    if name == "conv_general_dilated":
        kernel = equation.invars[1].aval.shape
        features = kernel[params["dimension_numbers"].rhs_spec[0]]
        return 2.0 * size * math.prod(kernel) / max(features, 1)
    inner = [_of_program(x) for x in _programs(params)]
    if not inner:
        return float(size)
    if name == "cond":
        return max(inner)
    return params["length"] * sum(inner) if name == "scan" else sum(inner)


def _programs(params: dict[str, Any]) -> list[Any]:
    """The jaxprs among the parameters of an equation."""
    found = []
    for value in params.values():
        for x in value if isinstance(value, tuple | list) else (value,):
            inner = getattr(x, "jaxpr", x)  # a closed jaxpr has one inside
            if hasattr(inner, "eqns"):
                found.append(inner)
    return found
