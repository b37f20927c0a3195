"""A warning of series with time first, which a sample would thin out in time."""

import warnings
from typing import Any

import jax

from ncg_optax.losses.objective import Objective

PyTree = Any


def warn_of_time_first(objective: Objective, params: PyTree, n: int) -> None:
    """Warns if the axis of the examples seems to be the second one of the longest data.

    That is so if the outputs of the model (or, with a plain loss, the other data) have
    as first axis what is the second axis of the arrays whose first axis is ``n``, and
    nothing else has ``n``.

    Args:
      objective: the loss on the whole batch.
      params: the parameters.
      n: the longest first axis of the data, which is taken for the examples.
    """
    longest = {
        name: x.shape
        for name, tree in objective.data.items()
        for x in jax.tree.leaves(tree)
        if getattr(x, "shape", ())[:1] == (n,)
    }
    if objective.model is not None:
        try:
            others = jax.tree.leaves(jax.eval_shape(objective.model, params))
        except Exception:  # The user's function may raise anything, and will again.
            return
    else:
        # Labels with the same first axis belong to these examples.
        others = jax.tree.leaves(dict(objective.data)) if len(longest) == 1 else []
        others = [x for x in others if getattr(x, "shape", ())[:1] != (n,)]
    firsts = {x.shape[0] for x in others if getattr(x, "shape", ())}
    for name, shape in longest.items():
        second = shape[1] if len(shape) > 1 else 1
        if n not in firsts and second > 1 and second in firsts:
            kind = "other data" if objective.model is None else "outputs"
            warnings.warn(
                f"ncg_optax: the first axis of {name}, of shape {shape}, is taken for "
                f"the examples of the curvature's sample, because it is the longest; "
                f"the {kind} have the first axis {second}. If it is time, let "
                "the examples be the first axis of all data, or pass "
                "sampling=ncg_optax.sampling() to compute the curvature on the whole "
                "batch. To silence this: warnings.filterwarnings('ignore', "
                "'ncg_optax: the first axis of').",
                stacklevel=1,
            )
            return
