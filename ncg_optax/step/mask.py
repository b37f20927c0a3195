"""Training a subset of the leaves: splits a tree by a mask, and merges the parts.

The trained part is the tree with ``None`` in place of every frozen leaf. ``None`` is
an empty pytree, so all later stages, and above all the curvature products, compute
only the trained leaves.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

PyTree = Any


def resolve(mask: PyTree | Callable[[PyTree], PyTree] | None, tree: PyTree) -> PyTree:
    """``mask`` (a prefix tree of bools, a callable, or None) as a full tree of bools.

    Raises:
      TypeError: if a leaf of the mask is not a Python bool.
      ValueError: if the mask has neither the structure of the tree nor that of a
        prefix, or if it is False everywhere.
    """
    if mask is None or not jax.tree.leaves(tree):
        return jax.tree.map(lambda _: True, tree)
    given = mask(tree) if callable(mask) else mask
    for leaf in jax.tree.leaves(given):
        if not isinstance(leaf, (bool, np.bool_)):
            raise TypeError(
                "mask must be a pytree of bools (or a function of the parameters that "
                f"returns one) that are known while tracing, got {leaf!r} of type "
                f"{type(leaf).__name__}."
            )
    try:
        full = jax.tree.broadcast(given, tree)
    except ValueError:
        ours, theirs = (
            ", ".join(
                jax.tree_util.keystr(path) or "(the tree itself)"
                for path, _ in jax.tree_util.tree_leaves_with_path(t)
            )
            for t in (given, tree)
        )
        raise ValueError(
            "mask must have the structure of the parameters or a prefix of it, but it "
            f"has the leaves {ours} and the parameters have {theirs}."
        ) from None
    if jax.tree.leaves(tree) and not any(jax.tree.leaves(full)):
        raise ValueError("mask must train at least one leaf; it is False everywhere.")
    return full


def select(mask: PyTree, tree: PyTree) -> PyTree:
    """The trained leaves of ``tree``, None elsewhere."""
    return jax.tree.map(lambda m, x: x if m else None, mask, tree)


def merge(mask: PyTree, trained: PyTree, frozen: PyTree) -> PyTree:
    """The leaves of ``trained`` where the mask is True, of ``frozen`` elsewhere."""
    leaves = iter(jax.tree.leaves(trained))
    return jax.tree.map(lambda m, x: next(leaves) if m else x, mask, frozen)


def frozen_updates(grads: PyTree, params: PyTree) -> PyTree:
    """Zero updates for every leaf; with a float0 gradient in the parameter's dtype."""
    return jax.tree.map(
        lambda g, p: jnp.zeros_like(p if g.dtype == jax.dtypes.float0 else g),
        grads,
        params,
    )
