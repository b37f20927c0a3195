"""Which arrays run over the examples, and whether a loss works on fewer of them.

Examples are the rows of the data arguments of the loss (those of ``update`` and
``CompositeLoss.bind``): of all arrays among them, the ones with the longest first axis.
All other arguments (class weights, random keys, numbers) are passed on unchanged.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax

from ncg_optax.losses.objective import Objective

PyTree = Any


def _length(x: Any) -> int:
    """The length of the first axis; 0 for scalars and for what is not an array."""
    shape = () if isinstance(x, type) else getattr(x, "shape", ())
    return shape[0] if shape else 0


def number_of_examples(data: Mapping[str, PyTree]) -> int:
    """The longest first axis among the arrays of ``data``; 0 if there is none."""
    return max(map(_length, jax.tree.leaves(dict(data))), default=0)


def map_examples(
    take: Callable[[jax.Array], jax.Array], data: Mapping[str, PyTree]
) -> dict[str, PyTree]:
    """``data`` with ``take`` applied to the arrays that run over the examples."""
    n = number_of_examples(data)
    return jax.tree.map(lambda x: take(x) if _length(x) == n else x, dict(data))


def works_on_fewer(
    fewer: Objective, rows: int, whole: Objective, params: PyTree
) -> bool:
    """Whether ``fewer``, the loss on ``rows`` examples, is what it should be.

    It must be a loss, and its outputs must be fewer in proportion. That fails where
    there are several kinds of examples in arrays of several lengths: a physics-informed
    network has points of several kinds, and may have one target for all of them. With
    the longest array alone cut, such a loss raises an error or broadcasts to another
    value.

    Args:
      fewer: the loss on some of the examples.
      rows: how many these are.
      whole: the loss on all of them.
      params: the parameters.
    """
    try:
        if whole.model is None or fewer.model is None or fewer.loss is None:
            jax.eval_shape(fewer.value, params)
            return True
        cut = jax.eval_shape(fewer.model, params)
        jax.eval_shape(fewer.loss, cut)
    except Exception:  # The user's function may raise anything on such data.
        return False
    n = number_of_examples(whole.data)

    def shortened(shape):
        runs_over_examples = bool(shape) and shape[0] % n == 0
        return (shape[0] // n * rows, *shape[1:]) if runs_over_examples else shape

    full = jax.eval_shape(whole.model, params)
    pairs = [
        (x.shape, y.shape)
        for x, y in zip(jax.tree.leaves(cut), jax.tree.leaves(full), strict=True)
    ]
    # Outputs that are not shorter may be parameters for a penalty. Next to a single
    # example they may also be meant for all examples, and broadcast.
    fits = all(x == shortened(y) or (x == y and rows > 1) for x, y in pairs)
    # No output is shorter if the longest array is not data but a table to look up.
    return fits and any(x != y for x, y in pairs)
