"""Curvature on a part of the data, and the whole batch in pieces.

Examples are the rows of the data arguments of the loss (those of ``update`` and
``CompositeLoss.bind``): of all arrays among them, the ones whose first axis is the
longest. Everything else (class weights, random keys, numbers) goes along unchanged.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ncg_optax._utils import reductions, validate
from ncg_optax.curvature.gauss_newton import Curvature
from ncg_optax.losses.composite import Objective

PyTree = Any


def _length(x: Any) -> int:
    """Of the first axis; 0 for scalars and for what is not an array."""
    shape = getattr(x, "shape", ())
    return shape[0] if shape else 0


def number_of_examples(data: Mapping[str, PyTree]) -> int:
    """The longest first axis among the arrays of ``data``; 0 if there is none."""
    return max(map(_length, jax.tree.leaves(dict(data))), default=0)


def _map_examples(take: Callable[[jax.Array], jax.Array], data: Mapping[str, PyTree]):
    """``data`` with ``take`` applied to the arrays that run over the examples."""
    n = number_of_examples(data)
    return jax.tree.map(lambda x: take(x) if _length(x) == n else x, dict(data))


class Sampling(NamedTuple):
    """How many examples the parts of a step see; see :func:`sampling`.

    Attributes:
      curvature_fraction: share of the examples in the curvature, in (0, 1].
      microbatch_size: examples at a time in products and trial values, or None.
      min_examples: how many examples the curvature sees at least.
      grow_below: sample's over batch's curvature below which it sees all, or None.

    Examples:
      >>> import ncg_optax as ncg
      >>> ncg.sampling(microbatch_size=64).microbatch_size
      64
    """

    curvature_fraction: float = 1.0
    microbatch_size: int | None = None
    min_examples: int = 512
    grow_below: float | None = None


def sampling(
    curvature_fraction: float = 1.0,
    microbatch_size: int | None = None,
    min_examples: int = 512,
    grow_below: float | None = None,
) -> Sampling:
    r"""Which examples the curvature sees, and how many go through memory at a time.

    The gradient is the user's and the loss is that of the whole batch. Of the curvature
    a sample is enough: it only shapes the step (Byrd, Chin, Neveitt and Nocedal 2011).
    A product on a quarter of the examples costs a quarter. The sample is every fourth
    example (for 1/4), beginning with another one at each step, and never fewer than
    ``min_examples``: the noise of a curvature depends on how many examples it sees, and
    below some number a fraction costs more steps than it saves products, unless the
    gradient is as noisy (mini-batches). It needs to see the data: arguments of
    ``update`` or of ``CompositeLoss.bind``, of which the arrays with the longest first
    axis run over the examples. The whole batch is taken where that does not split it:
    if it is hidden in a closure, or if there are several kinds of examples (the points
    of a physics-informed network).
    Pass ``curvature_batch=dict(x=..., y=...)`` to ``update`` to choose the examples
    yourself.

    Far from the minimum any sample shows the way. Near it a solver finds the directions
    that only the examples of this sample do not bend, and the loss does not keep what
    their model promises. With ``grow_below`` the curvature is that of the whole batch
    (for good) as soon as the ratio of the two along a step,

    .. math::
      \frac{d^T B_{\text{sample}}\, d}{d^T B\, d},

    is less than that, which is looked at in every fourth step, for a product. (Byrd,
    Chin, Nocedal and Wu 2012 let the samples of gradients grow, by their variance.)
    Linearising the whole batch costs nothing where the gradient is taken in the same
    jitted function and at the same matrix precision, else a forward pass a step. Under
    `jax.vmap` all products are computed.

    With ``microbatch_size`` products and trial values go over so many examples after
    the other, for a loss that is the mean over the examples:

    .. math::
      B v = \frac1m \sum_{i=1}^m B_i v

    Memory is that of one microbatch; a product costs a forward pass more.

    Args:
      curvature_fraction: share of the examples in the curvature, in (0, 1], rounded to
        one over a whole number.
      microbatch_size: examples at a time, a divisor of their number; None for all.
      min_examples: so many examples in the curvature at least, or the whole batch if
        it has fewer; those of all devices count.
      grow_below: curvature of the sample over that of the whole batch, in [0, 1],
        below which the sample is not enough any more; None keeps it for good, as do
        solvers that work on the loss itself (:func:`residual_space`).

    Returns:
      A :class:`Sampling`.

    Raises:
      TypeError: if a setting is not a number, or ``microbatch_size`` or
        ``min_examples`` not an integer.
      ValueError: if a setting is out of range; in ``update``, if ``microbatch_size``
        does not divide the number of examples or no data can be seen.

    Examples:
      >>> import ncg_optax as ncg
      >>> tx = ncg.newton_cg(
      ...     curvature=ncg.gauss_newton(),
      ...     sampling=ncg.sampling(curvature_fraction=1 / 8, microbatch_size=512),
      ... )
    """
    who = "sampling: "
    validate.number(
        who + "curvature_fraction", curvature_fraction, low=0.0, high=1.0, low_open=True
    )
    if microbatch_size is not None:
        validate.integer(who + "microbatch_size", microbatch_size, low=1)
    validate.integer(who + "min_examples", min_examples, low=1)
    if grow_below is not None:
        validate.number(who + "grow_below", grow_below, low=0.0, high=1.0)
    return Sampling(curvature_fraction, microbatch_size, min_examples, grow_below)


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
    at_least: int,
    offset: jax.Array,
    piece: int | None = None,
) -> Sample:
    """The loss on the examples ``offset, offset + k, ...`` with ``k = 1/fraction``.

    A stride takes its share of every class from data that is sorted by class, and stays
    on the device where the data is spread over several: there ``at_least`` counts the
    examples of all devices, so that their number does not change the sample. If they go
    through memory a ``piece`` at a time, the sample is made of whole ones. Examples
    that do not fit in are left out, others after ``k`` steps. The objective is returned
    as it is if
    its data cannot be seen (a closure) or the loss cannot do with less of it (see
    :func:`_can_do_with`), and ``k`` is smaller if fewer than ``at_least`` examples
    would remain.
    """
    n = number_of_examples(objective.data)
    everywhere = n * reductions.size(objective.axes)
    k = max(1, min(round(1 / fraction), everywhere // at_least, n))
    if k == 1:
        return Sample(objective, 1.0)
    rows = n // k
    if piece is not None and rows > piece:
        rows -= rows % piece

    def take(x):
        first = offset // k % (n - rows * k + 1)
        grid = jax.lax.dynamic_slice_in_dim(x, first, rows * k)
        grid = grid.reshape(rows, k, *x.shape[1:])
        return jax.lax.dynamic_index_in_dim(grid, offset % k, axis=1, keepdims=False)

    fewer = objective.on(_map_examples(take, objective.data))
    if not _can_do_with(rows, fewer, objective, params):
        return Sample(objective, 1.0)
    return Sample(fewer, rows / n)


def _can_do_with(rows: int, fewer: Objective, whole: Objective, params: PyTree) -> bool:
    """Whether the loss on ``rows`` examples is one, and its outputs are fewer as well.

    Examples can hide in arrays of several lengths: a physics-informed network has
    points of several kinds, and a target that strings them together. Cutting the
    longest array alone would break such a loss, or broadcast it to something else.
    """
    try:
        if fewer.model is None:
            jax.eval_shape(fewer.value, params)
            return True
        cut = jax.eval_shape(fewer.model, params)
        jax.eval_shape(fewer.loss, cut)
    except Exception:  # Whatever the loss says to data that does not fit together.
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
    # Others stay as they are, parameters for a penalty among them; but next to a single
    # example they might be meant to go with all of them, and broadcast.
    fits = all(x == shortened(y) or (x == y and rows > 1) for x, y in pairs)
    # Nothing gets shorter if the longest array is no data, but a table to look up.
    return fits and any(x != y for x, y in pairs)


def curvature_sample(
    objective: Objective,
    params: PyTree,
    batch: Mapping[str, PyTree] | None,
    sampling: Sampling,
    count: jax.Array,
) -> Sample:
    """What the curvature of step number ``count`` is taken of.

    Args:
      objective: the loss on the whole batch.
      params: the parameters.
      batch: data to take instead, by name; None for a part of the whole batch.
      sampling: which share of the batch, and how many examples at least.
      count: rotates the sample, so that every example has its turn.

    Raises:
      TypeError: if ``batch`` is not a mapping.
      ValueError: if it has a name that the loss does not know, or a value of another
        structure or example shape than the data.
    """
    if batch is None:
        fraction, at_least = sampling.curvature_fraction, sampling.min_examples
        piece = sampling.microbatch_size
        return every_kth(objective, params, fraction, at_least, count, piece)
    if not isinstance(batch, Mapping):
        raise TypeError(
            "curvature_batch must be a dict of data arguments of the loss, such as "
            f"dict(x=..., y=...), got {type(batch).__name__}."
        )
    for name, given in batch.items():
        if name not in objective.data:
            raise ValueError(
                f"curvature_batch: the loss has no data argument {name!r}; it has "
                f"{', '.join(sorted(objective.data)) or 'none (a closure)'}."
            )
        expected = objective.data[name]
        if _example_shapes(given) != _example_shapes(expected):
            raise ValueError(
                f"curvature_batch: {name!r} must have the structure of the batch's, "
                f"with any number of rows: got {_shapes(given)}, expected "
                f"{_shapes(expected)}."
            )
    whole = number_of_examples(objective.data)
    return Sample(objective.on(batch), number_of_examples(batch) / max(whole, 1))


def _shapes(tree: PyTree) -> PyTree:
    return jax.tree.map(lambda x: getattr(x, "shape", ()), tree)


def _example_shapes(tree: PyTree) -> tuple[Any, list[tuple[int, ...]]]:
    leaves, treedef = jax.tree.flatten(tree)
    return treedef, [getattr(x, "shape", ())[1:] for x in leaves]


def _is_inexact(x: Any) -> bool:
    return jnp.issubdtype(jnp.result_type(x), jnp.inexact)


def _mean_over(count: int, term: Callable[[jax.Array], PyTree]) -> PyTree:
    """``sum_i term(i) / count``, one term at a time, so that memory is that of one.

    Of what cannot be averaged (integers, random keys) the last one.
    """

    def add(i, total):
        pick = lambda a, b: a + b if _is_inexact(a) else b  # noqa: E731
        return jax.tree.map(pick, total, term(i))

    # Starts from the first term, whose leaves vary over the mapped axes as they should.
    total = jax.lax.fori_loop(1, count, add, term(0))
    return jax.tree.map(lambda x: x / count if _is_inexact(x) else x, total)


def _microbatches(
    objective: Objective, size: int, params: PyTree
) -> tuple[int, Callable]:
    """How many microbatches there are, and ``i -> the loss on the i-th``."""
    n = number_of_examples(objective.data)
    if n == 0:
        raise ValueError(
            "microbatch_size needs to see the data: pass it to update by name, or "
            "through CompositeLoss(...).bind(...), instead of closing over it."
        )
    if n > size and n % size:
        raise ValueError(
            f"microbatch_size must divide the number of examples, got {size} for "
            f"{n} examples."
        )

    def microbatch(i):
        take = lambda x: jax.lax.dynamic_slice_in_dim(x, i * size, size)  # noqa: E731
        return objective.on(_map_examples(take, objective.data))

    if n <= size:
        return 1, lambda i: objective
    if not _can_do_with(size, microbatch(0), objective, params):
        raise ValueError(
            f"microbatch_size: the loss does not work on {size} of its {n} examples. "
            "These are taken from the data arguments with the longest first axis: "
            "close over an array that is no data, such as a table to look up; if "
            "there are several kinds of examples, pass microbatch_size=None."
        )
    return n // size, microbatch


def in_microbatches(objective: Objective, size: int | None) -> Objective:
    """The loss evaluated on ``size`` examples at a time.

    Raises:
      ValueError: in ``value``, if no examples can be seen, ``size`` does not divide
        them or the loss does not work on fewer of them.
    """
    if size is None:
        return objective

    def value(params):
        count, microbatch = _microbatches(objective, size, params)
        return _mean_over(count, lambda i: microbatch(i).value(params))

    return objective._replace(value=value)


def value_and_grad(
    objective: Objective, params: PyTree, size: int | None
) -> tuple[tuple[jax.Array, PyTree], PyTree]:
    """``((loss, aux), gradient)`` of one device's share, ``size`` examples at a time.

    The aux is averaged over the microbatches, as batch statistics should be; of what
    is not a floating-point number it is that of the last one.
    """

    def of(part):
        return jax.value_and_grad(part.with_aux, has_aux=True)(params)

    if size is None:
        return of(objective)
    count, microbatch = _microbatches(objective, size, params)
    return _mean_over(count, lambda i: of(microbatch(i)))


def curvature_in_microbatches(curvature: Curvature, size: int | None) -> Curvature:
    r"""The same curvature on ``size`` examples at a time.

    .. math::
      B v = \frac1m \sum_{i=1}^m B_i v

    for a loss that is the mean over the examples. Each product linearises every
    microbatch anew, which costs a forward pass more than keeping the linearisation of
    the whole batch, and needs the memory of one microbatch.
    """
    if size is None:
        return curvature

    def linearize(objective, params):
        count, microbatch = _microbatches(objective, size, params)
        if count == 1:
            return curvature.linearize(objective, params)

        def product(v):
            return _mean_over(
                count, lambda i: curvature.linearize(microbatch(i), params)[1](v)
            )

        return in_microbatches(objective, size).value(params), product

    return Curvature(linearize, curvature.cost + 1 / 3)
