"""The loss as the parts of a step see it: a function of the trained parameters."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax

from ncg_optax._utils import reductions, validate
from ncg_optax._utils.reductions import Axes
from ncg_optax.losses.arguments import (
    RESERVED,
    select_arguments,
    warn_of_unused,
)
from ncg_optax.losses.composite import CompositeLoss
from ncg_optax.losses.scalar import scalar_loss, split_aux

PyTree = Any


class Objective(NamedTuple):
    """A loss as a function of the trained parameters; its data is bound.

    Attributes:
      value: parameters to the scalar loss, shape=().
      value_and_aux: parameters to ``(loss, aux)``; the aux is None if there is none.
      data: the bound data arguments, by name; empty for a closure.
      with_data: ``with_data(data) -> Objective``, the same loss with some of its data
        arguments replaced.
      model: parameters to the outputs of the network, or None for a plain loss.
      loss: outputs of the network to the scalar loss, or None for a plain loss.
      axes: names of the mapped axes over which the examples are distributed.
      reduced_value: the loss at the current parameters, averaged over ``axes``, if
        the caller of ``update`` has averaged loss and gradient; None if not.
      product_dtype: the dtype in which curvature products are sent between devices;
        None for the dtype that they have.
    """

    value: Callable[[PyTree], jax.Array]
    value_and_aux: Callable[[PyTree], tuple[jax.Array, PyTree]]
    data: Mapping[str, PyTree]
    with_data: Callable[[Mapping[str, PyTree]], "Objective"]
    model: Callable[[PyTree], PyTree] | None = None
    loss: Callable[[PyTree], jax.Array] | None = None
    axes: Axes = ()
    reduced_value: jax.Array | None = None
    product_dtype: Any = None

    def model_and_loss(
        self, who: str
    ) -> tuple[Callable[[PyTree], PyTree], Callable[[PyTree], jax.Array]]:
        """``model`` and ``loss`` of a composite loss, which ``who`` needs.

        Raises:
          TypeError: if the loss is a plain function.
        """
        if self.model is None or self.loss is None:
            raise TypeError(
                f"{who} needs to see where the network ends and the loss begins: pass "
                "value_fn=ncg_optax.CompositeLoss(model_fn, loss_fn) (or its "
                ".bind(...)), not a plain function. A plain function is enough for "
                "curvature=ncg_optax.hessian() with cg()."
            )
        return self.model, self.loss

    def restricted(self, embed: Callable[[PyTree], PyTree]) -> "Objective":
        """The same loss as a function of ``p``, at the parameters ``embed(p)``."""
        model = self.model
        return self._replace(
            value=lambda p: self.value(embed(p)),
            value_and_aux=lambda p: self.value_and_aux(embed(p)),
            with_data=lambda data: self.with_data(data).restricted(embed),
            model=None if model is None else lambda p: model(embed(p)),
        )


@dataclasses.dataclass(frozen=True, eq=False)
class MappedLoss:
    """A loss whose examples are distributed over mapped axes.

    A data-parallel step passes it to ``update`` as ``value_fn``. The optimizer then
    needs no ``axis_name``, and does not average again what is averaged already. A call
    returns the loss over all devices, and its derivatives are those of this loss, as
    optax's line searches need them: with local gradients the devices would leave the
    loop of a search at different trials, and wait for each other for ever.

    Attributes:
      objective: the loss of one device's share, with its data, its axes and its
        ``reduced_value``.
    """

    objective: Objective

    def __call__(self, params: PyTree) -> jax.Array:
        """The loss over all devices, the same on each."""
        axes = self.objective.axes
        params = reductions.same_on_all_devices(params, axes)
        return reductions.mean(self.objective.value(params), axes)


def as_objective(value_fn: Any, extra: Mapping[str, Any], axes: Axes = ()) -> Objective:
    """``value_fn`` with the extra arguments of ``update`` bound.

    Raises:
      ValueError: if ``value_fn`` is missing.
      TypeError: if it is not callable, lacks an argument or returns no scalar.
    """
    if value_fn is None:
        raise ValueError(
            "newton_cg needs value_fn, the loss as a function of the parameters: call "
            "update(grads, state, params, value=value, grad=grads, "
            "value_fn=lambda params: loss(params, batch))."
        )
    validate.function("value_fn", value_fn)
    if isinstance(value_fn, MappedLoss):
        return value_fn.objective
    bound = value_fn.data if isinstance(value_fn, CompositeLoss) else {}
    names = {**bound, **extra}
    warn_of_unused("update", functions_of(value_fn), names, only_similar=True)
    if isinstance(value_fn, CompositeLoss):
        given = {k: v for k, v in extra.items() if k not in RESERVED}
        return _of_composite(value_fn, {**value_fn.data, **given}, axes)
    return _of_function(value_fn, select_arguments("value_fn", value_fn, extra), axes)


def _of_composite(
    loss: CompositeLoss, data: Mapping[str, Any], axes: Axes
) -> Objective:
    bound = dataclasses.replace(loss, data=data)
    return Objective(
        value=lambda p: scalar_loss(bound(p)),
        value_and_aux=lambda p: split_aux(bound(p)),
        data=data,
        with_data=lambda new: _of_composite(loss, {**data, **new}, axes),
        model=bound.model,
        loss=bound.loss,
        axes=axes,
    )


def _of_function(
    value_fn: Callable[..., Any], data: Mapping[str, Any], axes: Axes
) -> Objective:
    return Objective(
        value=lambda p: scalar_loss(value_fn(p, **data)),
        value_and_aux=lambda p: split_aux(value_fn(p, **data)),
        data=data,
        with_data=lambda new: _of_function(value_fn, {**data, **new}, axes),
        axes=axes,
    )


def functions_of(value_fn: Any) -> tuple[Callable[..., Any], ...]:
    """The functions of ``value_fn`` that take data: the two of a composite loss."""
    if isinstance(value_fn, CompositeLoss):
        return value_fn.model_fn, value_fn.loss_fn
    return (value_fn,)


def bind_constants(value_fn: Any, constants: Mapping[str, Any]) -> Any:
    """``value_fn`` with those of the ``constants`` bound that it names.

    Unlike data they are never cut to fewer examples.
    """

    def bound(role, fn):
        selected = select_arguments(role, fn, constants, partial=True)
        return functools.partial(fn, **selected)

    if not constants:
        return value_fn
    if isinstance(value_fn, CompositeLoss):
        return dataclasses.replace(
            value_fn,
            model_fn=bound("model_fn", value_fn.model_fn),
            loss_fn=bound("loss_fn", value_fn.loss_fn),
        )
    return bound("value_fn", value_fn)
