"""Checks of arguments at trace time; each error is one sentence.

Numbers may be tracers, because `optax.inject_hyperparams` passes settings as arrays.
The range of a tracer is not checked.
"""

import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer


def concrete(x: Any) -> float | None:
    """``x`` as a Python float; None if it is a tracer."""
    if isinstance(x, Tracer):
        return None
    return float(x)


def number(
    name: str,
    x: Any,
    *,
    low: float = -math.inf,
    high: float = math.inf,
    low_open: bool = False,
    high_open: bool = False,
) -> Any:
    """``x`` unchanged if it is a number between ``low`` and ``high``.

    ``low_open`` and ``high_open`` exclude the limits themselves.

    Raises:
      TypeError: if ``x`` is not a real number (but a bool, a string or None, say).
      ValueError: if ``x`` is NaN or out of range.
    """
    interval = f"{'[('[low_open]}{low:g}, {high:g}{'])'[high_open]}"
    is_number = isinstance(x, (int, float)) and not isinstance(x, bool)
    is_array = hasattr(x, "dtype") and getattr(x, "shape", None) == ()
    if not (is_number or is_array):
        raise TypeError(
            f"{name} must be a number in {interval}, got {x!r} of type "
            f"{type(x).__name__}."
        )
    known = concrete(x)
    if known is None:
        return x
    above = known > low if low_open else known >= low
    below = known < high if high_open else known <= high
    if not (above and below):  # also for NaN
        raise ValueError(f"{name} must be a number in {interval}, got {known:g}.")
    return x


def integer(name: str, x: Any, *, low: int, other: str = "") -> Any:
    """``x`` unchanged if it is an integer, of Python or NumPy, of at least ``low``.

    ``other`` names another kind of value that is accepted, for the message.
    """
    wanted = f"{name} must be an integer of at least {low}{other}"
    if isinstance(x, bool) or not isinstance(x, (int, np.integer)):
        raise TypeError(f"{wanted}, got {x!r} of type {type(x).__name__}.")
    if x < low:
        raise ValueError(f"{wanted}, got {x}.")
    return x


def flag(name: str, x: Any) -> Any:
    """``x`` unchanged if it is a bool, of Python or NumPy."""
    if not isinstance(x, (bool, np.bool_)):
        raise TypeError(
            f"{name} must be True or False, got {x!r} of type {type(x).__name__}."
        )
    return x


def function(name: str, x: Any, of: str = "the parameters") -> Any:
    """``x`` unchanged if it can be called; ``of`` says with what."""
    if not callable(x):
        raise TypeError(
            f"{name} must be a function of {of}, got {x!r} of type {type(x).__name__}."
        )
    return x


def integer_or_schedule(name: str, x: Any, *, low: int) -> Any:
    """``x`` unchanged if it is such an integer, or an optax schedule."""
    if callable(x):
        return schedule(name, x)
    return integer(name, x, low=low, other=" or an optax schedule")


def schedule(name: str, x: Callable[..., Any]) -> Any:
    """``x`` unchanged if it can be called with one number."""
    try:
        signature = inspect.signature(x)
    except ValueError:  # Some functions that are not written in Python have none.
        return x
    try:
        signature.bind(0)
    except TypeError:
        shown = getattr(x, "__qualname__", type(x).__qualname__)
        raise TypeError(
            f"{name} must be an optax schedule, a function of the number of steps "
            f"done; got {shown}{signature}."
        ) from None
    return x


def matmul_precision(name: str, x: Any) -> Any:
    """``x`` unchanged if it is a value of `jax.default_matmul_precision`, or None."""
    try:
        jax.default_matmul_precision(x)
    except ValueError:
        raise ValueError(
            f"{name} must be a value of jax.default_matmul_precision, such as "
            f"'highest' or 'float32', or None; got {x!r}."
        ) from None
    return x


def float_dtype(name: str, x: Any, example: str) -> Any:
    """``x`` unchanged if it is a real floating-point dtype."""
    try:
        is_float = jnp.issubdtype(x, jnp.floating)
    except TypeError:
        is_float = False
    if not is_float:
        raise TypeError(
            f"{name} must be a floating-point dtype such as {example}, or None; got "
            f"{x!r}."
        )
    return x


def choice(name: str, x: Any, options: tuple[str | None, ...]) -> Any:
    """``x`` unchanged if it is one of ``options``."""
    if x not in options:
        raise ValueError(
            f"{name} must be one of {', '.join(map(str, options))}, got {x!r}."
        )
    return x


def component(name: str, x: Any, kind: type, examples: str) -> Any:
    """``x`` unchanged if it is a ``kind``; ``examples`` says how to make one."""
    if isinstance(x, kind) and not isinstance(x, type):
        return x
    hint = " (did you forget to call the factory?)" if callable(x) else ""
    got = f"{x!r} of type {type(x).__name__}"
    if isinstance(x, type):
        got = f"the class {x.__name__}"
    expected = f"{'an' if kind.__name__[0] in 'aeio' else 'a'} {kind.__name__}"
    raise TypeError(f"{name} must be {expected}, made by {examples}; got {got}{hint}.")


def type_name(x: Any) -> str:
    """The name of the type of ``x``: of an array the shape, of a tuple the elements."""
    if type(x) is tuple:
        return f"a tuple of {', '.join(map(_type_name, x)) or 'nothing'}"
    return _type_name(x)


def _type_name(x: Any) -> str:
    if hasattr(x, "shape") and hasattr(x, "dtype"):
        return f"array of shape {x.shape}"
    return type(x).__name__


def returned(part: Any, method: str, value: Any, wanted: str, *kinds: type) -> Any:
    """``value`` unchanged if it has the type that a method of a part must return.

    Args:
      part: a part of an optimizer; it may be a class of the user.
      method: name of the method.
      value: the value that the method returned.
      wanted: description of a correct value, for the message.
      *kinds: type of a correct value; several types for a tuple of values.

    Raises:
      TypeError: if ``value`` has another type.
    """
    values = value if len(kinds) > 1 else (value,)
    is_tuple = isinstance(values, (tuple, list)) and len(values) == len(kinds)
    if value is not None and is_tuple and all(map(isinstance, values, kinds)):
        return value
    hint = " (does the class define it?)" if value is None else ""
    raise TypeError(
        f"{part!r}: {method} must return {wanted}, got {type_name(value)}{hint}."
    )


def returned_scalars(part: Any, method: str, results: Mapping[str, Any]) -> None:
    """Raises unless each of the results that ``method`` of ``part`` returned is scalar.

    ``results`` are the numbers by name; None is not checked.

    Raises:
      TypeError: if one has another shape than ().
    """
    for name, x in results.items():
        if x is not None and jnp.shape(x) != ():
            raise TypeError(
                f"{part!r}: {method} must return {name} as a number, of shape (); got "
                f"shape {jnp.shape(x)}."
            )


def returned_tree(part: Any, method: str, tree: Any, like: Any) -> Any:
    """``tree`` unchanged if it has the structure and the shapes of ``like``.

    ``tree`` is a vector that ``method`` of ``part`` returned; ``like`` are the trained
    parameters.
    """
    returned(part, method, tree, "a tree shaped like the parameters", object)
    (ours, structure), (theirs, expected) = map(jax.tree.flatten, (tree, like))
    same_shapes = list(map(jnp.shape, ours)) == list(map(jnp.shape, theirs))
    if structure != expected or not same_shapes:
        name = f"{part!r}: the result of {method}"
        same_structure(name, tree, "the trained parameters", like)
    return tree


def _path(path: Any) -> str:
    return jax.tree_util.keystr(path) or " (the tree itself)"


def _list(paths: Iterable[str]) -> str:
    return ", ".join(path or "(the tree itself)" for path in paths)


def is_numeric(x: Any) -> bool:
    """Whether ``x`` is a number or an array that JAX accepts."""
    if isinstance(x, type):  # numpy.float32 itself has a dtype and a shape
        return False
    if isinstance(x, np.ndarray | np.generic):
        return x.dtype.kind in "biufcV"  # V: bfloat16 and narrower
    return isinstance(x, (bool, int, float, complex, jax.Array)) or (
        hasattr(x, "dtype") and hasattr(x, "shape")
    )


def loss_value(value: Any) -> None:
    """Raises a TypeError unless the given value of the loss is None or a number."""
    if value is not None and (not is_numeric(value) or jnp.shape(value) != ()):
        raise TypeError(
            "value must be the loss at params, a number of shape (); got "
            f"{type_name(value)}."
        )


def numeric_tree(name: str, tree: Any) -> None:
    """Raises a TypeError unless every leaf is a number or an array of numbers."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if not is_numeric(leaf):
            raise TypeError(
                f"{name}{_path(path)} must be an array, got {leaf!r} of type "
                f"{type(leaf).__name__}."
            )


def trainable_tree(name: str, tree: Any, empty_ok: bool = False) -> None:
    """Raises unless every leaf is a floating-point or complex array.

    Args:
      name: name of the tree in the message.
      tree: the parameters.
      empty_ok: whether a tree without leaves is accepted.

    Raises:
      TypeError: if a leaf is not such an array.
      ValueError: if the tree has no leaves and ``empty_ok`` is False.
    """
    leaves = jax.tree_util.tree_leaves_with_path(
        tree, is_leaf=lambda x: isinstance(x, optax.MaskedNode)
    )
    if not leaves and not empty_ok:
        raise ValueError(
            f"{name} has no leaves to train: pass a pytree with at least one array, "
            "and a mask that is True for at least one."
        )
    for path, leaf in leaves:
        if isinstance(leaf, optax.MaskedNode):
            raise TypeError(
                f"{name}{_path(path)} is an optax.MaskedNode: newton_cg evaluates "
                "value_fn on all parameters, so it cannot be used inside "
                "optax.masked or optax.partition. Use newton_cg(..., mask=...) to "
                "train a subset of the leaves."
            )
        if not hasattr(leaf, "dtype") or not hasattr(leaf, "shape"):
            hint = " Pass the arrays alone: params, static = eqx.partition(model, "
            hint += "eqx.is_inexact_array) for an Equinox model."
            raise TypeError(
                f"{name}{_path(path)} must be an array, got {leaf!r} of type "
                f"{type(leaf).__name__}.{hint if callable(leaf) else ''}"
            )
        if not jnp.issubdtype(leaf.dtype, jnp.inexact):
            raise TypeError(
                f"{name}{_path(path)} must be floating-point or complex, got dtype "
                f"{leaf.dtype}. Exclude the leaf from training with mask=."
            )


def same_structure(name: str, tree: Any, other_name: str, other: Any) -> None:
    """Raises unless both trees have the same leaves at the same paths and shapes."""
    ours = {
        jax.tree_util.keystr(p): jnp.shape(x)
        for p, x in jax.tree_util.tree_leaves_with_path(tree)
    }
    theirs = {
        jax.tree_util.keystr(p): jnp.shape(x)
        for p, x in jax.tree_util.tree_leaves_with_path(other)
    }
    if len(ours) != len(theirs):
        raise ValueError(
            f"{name} must have the structure of {other_name}, but it has {len(ours)} "
            f"leaves and {other_name} has {len(theirs)}."
        )
    if ours.keys() != theirs.keys():
        raise ValueError(
            f"{name} must have the structure of {other_name}, but it has the leaves "
            f"{_list(ours)} and {other_name} has {_list(theirs)}."
        )
    for (path, shape), expected in zip(ours.items(), theirs.values(), strict=True):
        if shape != expected:
            raise ValueError(
                f"{name}{path} has shape {shape}, but the leaf of {other_name} has "
                f"shape {expected}."
            )


def state(optimizer: str, x: Any, expected: type, hint: str = "") -> None:
    """Checks that ``x`` is a state of ``optimizer``.

    Raises:
      TypeError: if it is not of the type ``expected``.
    """
    if not isinstance(x, expected):
        raise TypeError(
            f"{optimizer}: state must be the {expected.__name__} that init or the last "
            f"update returned, got {type_name(x)}{hint}."
        )
