"""The loss on every k-th example of the batch, or on examples that the user chose."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax

from ncg_optax._utils import reductions
from ncg_optax.curvature.sampling.examples import (
    map_examples,
    number_of_examples,
    works_on_fewer,
)
from ncg_optax.curvature.sampling.settings import Sampling
from ncg_optax.curvature.sampling.time_first import warn_of_time_first
from ncg_optax.losses.objective import Objective

PyTree = Any


class Sample(NamedTuple):
    """A loss on a part of the data.

    Attributes:
      objective: the loss on it.
      share: of the examples, in (0, 1].
    """

    objective: Objective
    share: float


def every_kth(
    objective: Objective,
    params: PyTree,
    fraction: float,
    min_examples: int,
    offset: jax.Array,
    microbatch_size: int | None = None,
) -> Sample:
    """The loss on the examples ``offset, offset + k, ...`` with ``k = 1/fraction``.

    A stride takes its share of every class if the data is sorted by class. It also
    leaves examples on their device if the data is distributed.

    The objective is returned as it is if its data is not visible (a closure) or if it
    does not work on fewer examples (see :func:`works_on_fewer`).

    Args:
      objective: the loss on the whole batch.
      params: the parameters.
      fraction: share of the examples, in (0, 1].
      min_examples: least number of examples, over all devices, so that the sample does
        not depend on the number of devices; ``k`` is smaller if fewer would remain.
      offset: the first example, int32, shape=(). Examples left out because the sample
        must have a whole number of rows are others after ``k`` steps.
      microbatch_size: if given, a sample larger than that is made of whole
        microbatches.
    """
    n = number_of_examples(objective.data)
    on_all_devices = n * reductions.size(objective.axes)
    k = max(1, min(round(1 / fraction), on_all_devices // min_examples, n))
    if k == 1:
        return Sample(objective, 1.0)
    warn_of_time_first(objective, params, n)
    rows = n // k
    if microbatch_size is not None and rows > microbatch_size:
        rows -= rows % microbatch_size

    def take(x):
        first = offset // k % (n - rows * k + 1)
        grid = jax.lax.dynamic_slice_in_dim(x, first, rows * k)
        grid = grid.reshape(rows, k, *x.shape[1:])
        return jax.lax.dynamic_index_in_dim(grid, offset % k, axis=1, keepdims=False)

    fewer = objective.with_data(map_examples(take, objective.data))
    if not works_on_fewer(fewer, rows, objective, params):
        return Sample(objective, 1.0)
    return Sample(fewer, rows / n)


def curvature_sample(
    objective: Objective,
    params: PyTree,
    batch: Mapping[str, PyTree] | None,
    sampling: Sampling,
    count: jax.Array,
) -> Sample:
    """The loss of which step number ``count`` takes the curvature.

    Args:
      objective: the loss on the whole batch.
      params: the parameters.
      batch: data to use instead, by name; None for a part of the whole batch.
      sampling: the share of the batch, and the least number of examples.
      count: steps done; selects which examples are in the sample.

    Raises:
      TypeError: if ``batch`` is not a mapping.
      ValueError: if it has a name that the loss does not know, or a value of another
        structure or example shape than the data.
    """
    if batch is None:
        return every_kth(
            objective,
            params,
            sampling.curvature_fraction,
            sampling.min_examples,
            count,
            sampling.microbatch_size,
        )
    _check_curvature_batch(batch, objective.data)
    whole = number_of_examples(objective.data)
    return Sample(objective.with_data(batch), number_of_examples(batch) / max(whole, 1))


def _check_curvature_batch(batch: Any, data: Mapping[str, PyTree]) -> None:
    if not isinstance(batch, Mapping):
        raise TypeError(
            "curvature_batch must be a dict of data arguments of the loss, such as "
            f"dict(x=..., y=...), got {type(batch).__name__}."
        )
    for name, given in batch.items():
        if name not in data:
            raise ValueError(
                f"curvature_batch: the loss has no data argument {name!r}; it has "
                f"{', '.join(sorted(data)) or 'none (a closure)'}."
            )
        if _example_shapes(given) != _example_shapes(data[name]):
            raise ValueError(
                f"curvature_batch: {name!r} must have the structure of the batch's, "
                f"with any number of rows: got {_shapes(given)}, expected "
                f"{_shapes(data[name])}."
            )
    _check_lengths({**data, **batch}, data)


def _check_lengths(new: Mapping[str, PyTree], old: Mapping[str, PyTree]) -> None:
    """Raises unless all arrays over the examples have a common length again."""
    n = number_of_examples(old)
    pairs = zip(jax.tree.leaves(dict(new)), jax.tree.leaves(dict(old)), strict=True)
    lengths = {
        x.shape[0] for x, y in pairs if n and getattr(y, "shape", ())[:1] == (n,)
    }
    if len(lengths) > 1:
        raise ValueError(
            "curvature_batch must have the same number of rows in all arrays that run "
            f"over the examples, got {', '.join(map(str, sorted(lengths)))}. Pass all "
            "of these arrays."
        )


def _shapes(tree: PyTree) -> PyTree:
    return jax.tree.map(lambda x: getattr(x, "shape", ()), tree)


def _example_shapes(tree: PyTree) -> tuple[Any, list[tuple[int, ...]]]:
    leaves, treedef = jax.tree.flatten(tree)
    return treedef, [getattr(x, "shape", ())[1:] for x in leaves]
