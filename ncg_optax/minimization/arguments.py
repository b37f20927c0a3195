"""The keyword arguments of ``minimize``: settings, arrays and constants."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax

from ncg_optax._utils import names, validate
from ncg_optax.losses.arguments import unused_names
from ncg_optax.losses.objective import functions_of


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
        raise TypeError(
            f"minimize: neither minimize nor value_fn takes {unused[0]}"
            f"{names.meant(unused[0], [*settings, *known])}; minimize takes "
            f"{names.listed(settings)}, and value_fn takes {names.listed(known)}."
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
