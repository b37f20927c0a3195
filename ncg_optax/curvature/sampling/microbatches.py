"""Losses, gradients and curvature products computed on a few examples at a time."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ncg_optax.curvature.base import Curvature, Operator
from ncg_optax.curvature.sampling.examples import (
    map_examples,
    number_of_examples,
    works_on_fewer,
)
from ncg_optax.losses.objective import Objective

PyTree = Any


def _is_inexact(x: Any) -> bool:
    return jnp.issubdtype(jnp.result_type(x), jnp.inexact)


def _mean_over(count: int, term: Callable[[Any], PyTree]) -> PyTree:
    """``sum_i term(i) / count``, computed one term after the other to save memory.

    Leaves that cannot be averaged (integers, random keys) are those of the last term.
    """

    def add(i, total):
        pick = lambda a, b: a + b if _is_inexact(a) else b  # noqa: E731
        return jax.tree.map(pick, total, term(i))

    # Starts from the first term, whose leaves vary over the mapped axes as they should.
    total = jax.lax.fori_loop(1, count, add, term(0))
    return jax.tree.map(lambda x: x / count if _is_inexact(x) else x, total)


def _microbatches(
    objective: Objective, size: int, params: PyTree
) -> tuple[int, Callable[[Any], Objective]]:
    """The number of microbatches, and ``i -> the loss on the i-th``."""
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
        return objective.with_data(map_examples(take, objective.data))

    if n <= size:
        return 1, lambda i: objective
    if not works_on_fewer(microbatch(0), size, objective, params):
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
      ValueError: in ``value``, if the data is not visible, ``size`` does not divide the
        number of examples or the loss does not work on fewer of them.
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

    The aux is averaged over the microbatches, as batch statistics should be; leaves
    that are not floating-point numbers are those of the last microbatch.
    """

    def differentiate(part):
        return jax.value_and_grad(part.value_and_aux, has_aux=True)(params)

    if size is None:
        return differentiate(objective)
    count, microbatch = _microbatches(objective, size, params)
    return _mean_over(count, lambda i: differentiate(microbatch(i)))


def curvature_in_microbatches(curvature: Curvature, size: int | None) -> Curvature:
    """``curvature`` computed on ``size`` examples at a time; None for all at once."""
    if size is None:
        return curvature
    return _InMicrobatches(curvature, size, cost=curvature.cost + 1 / 3)


@dataclasses.dataclass(frozen=True)
class _InMicrobatches(Curvature):
    r"""A curvature computed on a few examples at a time.

    .. math::
      B v = \frac1m \sum_{i=1}^m B_i v

    for a loss that is the mean over the examples. Each product linearises every
    microbatch anew. That costs a forward pass more than to keep the linearisation of
    the whole batch, and needs the memory of one microbatch only.
    """

    curvature: Curvature
    size: int
    cost: float

    def linearize(
        self, objective: Objective, params: PyTree
    ) -> tuple[jax.Array, Operator]:
        """The loss at ``params`` and the product ``v -> B v`` there."""
        count, microbatch = _microbatches(objective, self.size, params)
        if count == 1:
            return self.curvature.linearize(objective, params)

        def product(v):
            def term(i):
                return self.curvature.linearize(microbatch(i), params)[1](v)

            return _mean_over(count, term)

        return in_microbatches(objective, self.size).value(params), product
