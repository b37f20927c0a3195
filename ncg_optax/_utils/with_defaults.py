"""A function with other defaults, and a signature and docstring that show them."""

import functools
import inspect
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from ncg_optax._utils import names

P = ParamSpec("P")
R = TypeVar("R")


def defaults_of(function: Callable[..., Any]) -> dict[str, Any]:
    """The defaults of ``function``, by parameter name."""
    parameters = inspect.signature(function).parameters
    return {name: parameter.default for name, parameter in parameters.items()}


def with_defaults(
    name: str, base: Callable[P, R], defaults: dict[str, Any], summary: str
) -> Callable[P, R]:
    """``base`` with other defaults and a docstring of its own.

    Args:
      name: name of the new function.
      base: a function whose docstring explains the parameters.
      defaults: defaults of all parameters, by name.
      summary: the docstring. A line ``---`` marks where the parameters are inserted.
    """
    signature = inspect.signature(base)
    parameters = signature.parameters.values()

    @functools.wraps(base)
    def derived(*args, **kwargs):
        try:
            given = signature.bind(*args, **kwargs).arguments
        except TypeError as error:  # Python's message would name ``base``.
            known = ", ".join(defaults)
            wrong = [key for key in kwargs if key not in defaults]
            hint = names.meant(wrong[0], defaults) if wrong else ""
            raise TypeError(f"{name}() {error}{hint}; it takes {known}.") from None
        return base(**defaults | given)  # pyright: ignore[reportCallIssue]

    derived.__name__ = derived.__qualname__ = name
    if base.__doc__ is not None:  # `python -OO` removes docstrings.
        derived.__doc__ = _docstring(base, summary, defaults)
    derived.__signature__ = signature.replace(  # pyright: ignore[reportAttributeAccessIssue]
        parameters=[p.replace(default=defaults[p.name]) for p in parameters]
    )
    return derived


def _docstring(base: Callable[..., Any], summary: str, defaults: dict[str, Any]) -> str:
    """``summary`` with the changed defaults and the sections about the parameters."""
    described = inspect.cleandoc(base.__doc__ or "")
    settings = described[described.index("Args:") : described.index("References:")]
    before, after = inspect.cleandoc(summary).split("---")
    old = defaults_of(base)
    changed = [f"  {k}={v!r}" for k, v in defaults.items() if v != old[k]]
    differ = f"The defaults that differ from those of :func:`{base.__name__}`::\n"
    table = "\n".join([differ, *changed])
    return f"{before.strip()}\n\n{table}\n\n{settings}{after.strip()}\n"
