"""The keyword arguments of ``minimize``: settings, arrays and constants."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax

from ncg_optax._utils import names, validate
from ncg_optax.losses.arguments import unused_names
from ncg_optax.losses.objective import functions_of

# What people try who know scipy.optimize.minimize or curve_fit.
_ELSEWHERE = {
    "args": "pass the arguments of value_fn by name",
    "constraints": "there are bounds only",
    "disp": "that is progress",
    "fun": "that is value_fn",
    "hess": "JAX computes the products with the Hessian",
    "hessp": "JAX computes the products with the Hessian",
    "jac": "JAX computes the gradient",
    "method": "pass an optimizer instead, newton_cg() with settings or one of optax",
    "options": "pass the settings by name, such as maxiter",
    "tol": "there are gtol, gtol_relative, ftol and xtol",
    "x0": "that is params",
}


def require_known_names(
    value_fn: Callable[..., Any], settings: Iterable[str], data: Mapping[str, Any]
) -> None:
    """Raises if ``value_fn`` does not take one of the arguments ``data``.

    Args:
      value_fn: the loss.
      settings: the names of the settings of ``minimize``.
      data: the arguments that are no settings, by name.

    Raises:
      TypeError: naming what was probably meant, and which names there are.
    """
    unused, known = unused_names(functions_of(value_fn), data)
    if unused:
        name = unused[0]
        hint = names.meant(name, [*settings, *known])
        if name in _ELSEWHERE:
            hint = f" ({_ELSEWHERE[name]})"
        raise TypeError(
            f"minimize: neither minimize nor value_fn takes {name}{hint}; minimize "
            f"takes {names.listed(settings)}, and value_fn takes {names.listed(known)}."
        )


def arrays_and_constants(
    data: Mapping[str, Any],
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The arguments that a jitted function takes, and the others (strings, bools)."""

    def is_constant(tree):
        leaves = jax.tree.leaves(tree)
        return any(isinstance(x, bool) or not validate.is_numeric(x) for x in leaves)

    constants = {name: x for name, x in data.items() if is_constant(x)}
    arrays = {name: x for name, x in data.items() if name not in constants}
    return arrays, constants
