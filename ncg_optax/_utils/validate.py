"""Checks of arguments at trace time; each error is one sentence.

Numbers may be tracers, because `optax.inject_hyperparams` passes settings as arrays.
The range of a tracer is not checked.
"""

import math
from collections.abc import Iterable
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
    wanted = f"{name} must be an integer of at least {low}{other and f' or {other}'}"
    if isinstance(x, bool) or not isinstance(x, (int, np.integer)):
        raise TypeError(f"{wanted}, got {x!r} of type {type(x).__name__}.")
    if x < low:
        raise ValueError(f"{wanted}, got {x}.")
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
    raise TypeError(
        f"{name} must be a {kind.__name__}, made by {examples}; got {got}{hint}."
    )


def type_name(x: Any) -> str:
    """The name of the type of ``x``; for a tuple, also those of its elements."""
    if type(x) is tuple:
        return f"a tuple of {', '.join(type(part).__name__ for part in x) or 'nothing'}"
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
            raise TypeError(
                f"{name}{_path(path)} must be an array, got {leaf!r} of type "
                f"{type(leaf).__name__}."
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
