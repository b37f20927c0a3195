"""The keyword arguments of ``minimize``: settings, arrays and constants."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
from jax.core import Tracer

from ncg_optax._utils import names, validate
from ncg_optax.losses.arguments import named_parameters, unused_names
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
      TypeError: naming what was probably meant, and which names there are; or if
        ``value_fn`` needs an argument with the name of a setting.
    """
    for fn in functions_of(value_fn):
        for p in named_parameters(fn):
            if p.name in settings and p.default is p.empty:
                raise TypeError(
                    f"minimize: value_fn takes {p.name}, which is a setting of "
                    "minimize: give this argument of value_fn another name."
                )
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


class Constants(NamedTuple):
    """What is constant in the data, and where it stands; hashable if its values are.

    Attributes:
      treedef: the structure of the data.
      leaves: position, type and value of each constant.
    """

    treedef: Any
    leaves: tuple[tuple[int, type, Any], ...]


def without_constants(data: Mapping[str, Any]) -> tuple[list[Any], Constants]:
    """The leaves that a jitted function takes; the others: strings, bools."""

    def is_constant(x):
        return isinstance(x, bool) or not validate.is_numeric(x)

    leaves, treedef = jax.tree.flatten(dict(data))
    constants = tuple((i, type(x), x) for i, x in enumerate(leaves) if is_constant(x))
    return [x for x in leaves if not is_constant(x)], Constants(treedef, constants)


def with_constants(arrays: list[Any], constants: Constants) -> dict[str, Any]:
    """The data of which these are the parts."""
    leaves = list(arrays)
    for i, _, x in constants.leaves:
        leaves.insert(i, x)
    return jax.tree.unflatten(constants.treedef, leaves)


def from_cache(cached: Any, settings: NamedTuple, function: Callable[..., Any]) -> Any:
    """``cached(settings)``, made anew if the settings cannot be the key of a cache.

    Args:
      cached: a function with `functools.lru_cache`.
      settings: its argument.
      function: that one of the settings which may close over tracers.
    """
    if _holds_tracers(function):
        return cached.__wrapped__(settings)
    try:
        return cached(settings)
    except TypeError:  # something is not hashable
        return cached.__wrapped__(settings)


def _holds_tracers(value_fn: Callable[..., Any]) -> bool:
    """Whether the loss closes over values of a function that is being traced."""
    cells = [
        cell.cell_contents
        for fn in functions_of(value_fn)
        for cell in getattr(fn, "__closure__", None) or ()
    ]
    bound = [getattr(value_fn, "data", {}), cells]
    return any(isinstance(x, Tracer) for x in jax.tree.leaves(bound))
