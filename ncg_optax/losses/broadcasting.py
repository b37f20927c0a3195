"""Finds labels that broadcast against the outputs, so that a loss is one of pairs.

With outputs of shape (n, 1) and labels of shape (n,) the difference has shape (n, n),
and its mean is not the loss that was meant. Nothing else shows it.
"""

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

PyTree = Any


def warn_of_pairs(
    loss_fn: Callable[..., Any], outputs: PyTree, data: Mapping[str, PyTree]
) -> None:
    """Warns if ``loss_fn`` makes an (n, n) array of n outputs and n labels.

    Args:
      loss_fn: the loss as a function of the outputs.
      outputs: the outputs of the model.
      data: the arguments of ``loss_fn``.
    """
    for name, found in _suspects(outputs, data):
        n = found[0][0]
        if n in _square_sizes(loss_fn, outputs, data):
            warnings.warn(
                f"ncg_optax: loss_fn broadcasts outputs of shape {found[0]} and "
                f"{name} of shape {found[1]} to shape {(n, n)}, so the loss is one of "
                "all pairs: give both the same shape. To silence this: "
                "warnings.filterwarnings('ignore', 'ncg_optax: loss_fn broadcasts').",
                stacklevel=1,
            )
            return


def _suspects(outputs: PyTree, data: Mapping[str, PyTree]):
    """Name of an argument, and the shapes (n,) and (n, 1) of an output and of it."""
    shapes = {jnp.shape(x) for x in jax.tree.leaves(outputs)}
    for name, tree in data.items():
        for x in jax.tree.leaves(tree):
            theirs = getattr(x, "shape", ())
            for ours in shapes:
                pair = sorted((ours, theirs), key=len)
                if pair[1] == (*pair[0], 1) and len(pair[0]) == 1 and pair[0][0] > 1:
                    yield name, (ours, theirs)


def _square_sizes(
    loss_fn: Callable[..., Any], outputs: PyTree, data: Mapping[str, PyTree]
) -> set[int]:
    """The n of all arrays of shape (n, n) that ``loss_fn`` computes."""
    try:
        program = jax.make_jaxpr(lambda out: loss_fn(out, **data))(outputs).jaxpr
    except Exception:  # The user's function may raise anything, and will again.
        return set()
    found: set[int] = set()
    programs = [program]
    while programs:
        for equation in programs.pop().eqns:
            for x in equation.outvars:
                shape = getattr(x.aval, "shape", ())
                if len(shape) == 2 and shape[0] == shape[1]:
                    found.add(shape[0])
            for inner in jax.tree.leaves(list(equation.params.values())):
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    programs.append(inner)
    return found
