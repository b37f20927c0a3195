"""What the parts of an optimizer have in common, which are frozen dataclasses.

That is a short repr, and a message for a setting that they do not have.
"""

import dataclasses
import functools
import inspect
from typing import Any, Protocol, Self

import jax

from ncg_optax._utils import names


class Part(Protocol):
    """A base class of dataclasses whose repr omits settings that have their defaults.

    Functions are shown by name, and arrays by dtype and shape.

    Raises:
      TypeError: if a part is made with a setting that it does not have.

    Examples:
      >>> import dataclasses, optax
      >>> @dataclasses.dataclass(frozen=True)
      ... class solver(Part):
      ...     maxiter: int = 100
      ...     rtol: float | optax.Schedule = 0.1
      >>> solver(), solver(maxiter=5), solver(rtol=optax.constant_schedule(0.2))
      (solver(), solver(maxiter=5), solver(rtol=constant_schedule(...)))
    """

    def __new__(cls, *args: Any, **settings: Any) -> Self:
        # Python's message would not say which settings there are.
        parameters = inspect.signature(cls).parameters if settings else {}
        takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        for name in settings:
            if name not in parameters and not takes_any:
                raise TypeError(
                    f"{cls.__name__} has no setting {name}"
                    f"{names.meant(name, parameters)}; it has "
                    f"{names.listed(parameters)}."
                )
        return super().__new__(cls)

    def __init_subclass__(cls, **kwargs: Any):
        super().__init_subclass__(**kwargs)
        # `dataclass` would add its own repr to a class that does not define one.
        if "__repr__" not in cls.__dict__:
            cls.__repr__ = Part.__repr__

    def __repr__(self) -> str:
        fields = dataclasses.fields(self) if dataclasses.is_dataclass(self) else ()
        shown = [
            _short(value) if _is_required(field) else f"{field.name}={_short(value)}"
            for field in fields
            if not _is_default(field, value := getattr(self, field.name))
        ]
        return f"{type(self).__name__}({', '.join(shown)})"


def _is_required(field: dataclasses.Field) -> bool:
    missing = dataclasses.MISSING
    return field.default is missing and field.default_factory is missing


def _is_default(field: dataclasses.Field, value: Any) -> bool:
    default = field.default
    if field.default_factory is not dataclasses.MISSING:
        default = field.default_factory()
    try:
        return value is default or bool(value == default)
    except Exception:  # Arrays and tracers have no truth value.
        return False


class _Text(str):
    """A string that is shown without quotes inside a container."""

    __repr__ = str.__str__


def _short(value: Any) -> str:
    """The short form of a setting, which may be a pytree."""
    return repr(jax.tree.map(lambda leaf: _Text(_short_leaf(leaf)), value))


def _short_leaf(value: Any) -> str:
    if isinstance(value, functools.partial):
        return f"partial({_short_leaf(value.func)}, ...)"
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"{value.dtype}{list(value.shape)}"
    name = getattr(value, "__qualname__", None)
    if name is None:
        return repr(value)
    # A schedule is a function that is defined inside of another one.
    outer, nested, _ = name.partition(".<locals>")
    return f"{outer}(...)" if nested else name
