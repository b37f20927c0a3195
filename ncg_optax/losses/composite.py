"""How a loss is handed over: composite losses, extra arguments by name, aux dropped."""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ncg_optax._utils import reductions
from ncg_optax._utils.reductions import Axes

PyTree = Any

# Names that `update` takes itself and never hands to a value_fn.
RESERVED = frozenset({"updates", "state", "params", "value", "grad", "value_fn"})


class Objective(NamedTuple):
    """A loss as a function of the trained parameters alone: all else is bound.

    Attributes:
      value: parameters to the scalar loss, shape=().
      model: parameters to the outputs of the network, or None for a plain loss.
      loss: outputs of the network to the scalar loss, or None for a plain loss.
      axes: names of the mapped axes the loss is spread over.
      data: the data arguments that are bound, by name; empty for a closure.
      on: ``on(data) -> Objective``, the same loss with other data of these names.
      with_aux: parameters to ``(loss, aux)``; the aux is None if there is none.
      reduced_value: the loss at the current parameters, averaged over ``axes``, if
        whoever calls ``update`` has averaged loss and gradient; None if not.
      product_dtype: what curvature products are sent around in, or None for their own.
    """

    value: Callable[[PyTree], jax.Array]
    model: Callable[[PyTree], PyTree] | None = None
    loss: Callable[[PyTree], jax.Array] | None = None
    axes: Axes = ()
    data: Mapping[str, PyTree] = {}
    on: Callable[[Mapping[str, PyTree]], "Objective"] | None = None
    with_aux: Callable[[PyTree], tuple[jax.Array, PyTree]] | None = None
    reduced_value: jax.Array | None = None
    product_dtype: Any = None

    def restricted(self, embed: Callable[[PyTree], PyTree]) -> "Objective":
        """The same loss as a function of what ``embed`` maps to the parameters."""
        return self._replace(
            value=lambda p: self.value(embed(p)),
            model=None if self.model is None else lambda p: self.model(embed(p)),
            on=None if self.on is None else lambda d: self.on(d).restricted(embed),
            with_aux=(
                None if self.with_aux is None else lambda p: self.with_aux(embed(p))
            ),
        )


def _data_parameters(fn: Callable[..., Any]) -> list[inspect.Parameter]:
    """The parameters of ``fn`` after the first, which takes params or outputs."""
    parameters = list(inspect.signature(fn).parameters.values())
    for i, parameter in enumerate(parameters):
        if parameter.kind in (
            parameter.POSITIONAL_ONLY,
            parameter.POSITIONAL_OR_KEYWORD,
        ):
            return parameters[:i] + parameters[i + 1 :]
        if parameter.kind is parameter.VAR_POSITIONAL:
            return parameters
    raise TypeError(
        f"{_name(fn)} must take the parameters as its first positional argument, but "
        f"its signature is {inspect.signature(fn)}."
    )


def named_parameters(fn: Callable[..., Any]) -> list[inspect.Parameter]:
    """The data arguments of ``fn`` that can be passed by name."""
    by_name = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return [p for p in _data_parameters(fn) if p.kind in by_name]


def _name(fn: Callable[..., Any]) -> str:
    return getattr(fn, "__name__", None) or repr(fn)


def route(
    role: str, fn: Callable[..., Any], extra: Mapping[str, Any], partly: bool = False
) -> dict[str, Any]:
    """The part of ``extra`` that ``fn`` takes, by parameter name.

    Args:
      role: how the error message calls ``fn``.
      fn: a function of the parameters and further arguments.
      extra: the extra arguments at hand; those that ``fn`` does not name are left
        out, all but the reserved ones are passed if it has ``**kwargs``.
      partly: whether the rest of its arguments will come later.

    Raises:
      TypeError: if a parameter without default is not in ``extra``, unless partly.
    """
    available = {k: v for k, v in extra.items() if k not in RESERVED}
    if any(p.kind is p.VAR_KEYWORD for p in _data_parameters(fn)):
        return available
    by_name = named_parameters(fn)
    missing = [
        p.name for p in by_name if p.default is p.empty and p.name not in available
    ]
    if missing and not partly:
        reserved = sorted(RESERVED.intersection(missing))
        hint = (
            f" {', '.join(reserved)}: reserved by optax, rename the parameter."
            if reserved
            else " Pass them to update by name, or close over them: "
            "value_fn=lambda params: loss(params, batch)."
        )
        raise TypeError(
            f"{role} needs the argument(s) {', '.join(missing)}, which were not given; "
            f"available: {', '.join(sorted(available)) or 'none'}.{hint}"
        )
    return {p.name: available[p.name] for p in by_name if p.name in available}


def data_names(fn: Callable[..., Any]) -> tuple[list[str], bool]:
    """Names of the arguments of ``fn`` after the first; whether it takes any others.

    Those without a default come first.
    """
    named = sorted(named_parameters(fn), key=lambda p: p.default is not p.empty)
    takes_any = any(p.kind is p.VAR_KEYWORD for p in _data_parameters(fn))
    return [p.name for p in named], takes_any


def with_constants(value_fn: Any, constants: Mapping[str, Any]) -> Any:
    """``value_fn`` with those of ``constants`` bound that it names.

    Unlike data they stay whole where the loss is evaluated on fewer examples.
    """

    def bound(role, fn):
        return functools.partial(fn, **route(role, fn, constants, partly=True))

    if not constants:
        return value_fn
    if isinstance(value_fn, CompositeLoss):
        return dataclasses.replace(
            value_fn,
            model_fn=bound("model_fn", value_fn.model_fn),
            loss_fn=bound("loss_fn", value_fn.loss_fn),
        )
    return bound("value_fn", value_fn)


def drop_aux(out: Any) -> Any:
    """The loss of ``loss`` or ``(loss, aux)``."""
    return out[0] if isinstance(out, tuple) else out


def split_aux(out: Any) -> tuple[jax.Array, PyTree]:
    """Loss and aux of ``loss`` or ``(loss, aux)``; without aux, None."""
    aux = out[1] if isinstance(out, tuple) and len(out) > 1 else None
    return scalar_loss(out), aux


def scalar_loss(out: Any) -> jax.Array:
    """``out`` as a real scalar array.

    Raises:
      TypeError: if it is not a real floating-point scalar.
    """
    out = drop_aux(out)
    if not hasattr(out, "dtype") and not isinstance(out, (int, float)):
        raise TypeError(
            f"value_fn must return a scalar loss (or (loss, aux)), got {out!r} of type "
            f"{type(out).__name__}."
        )
    out = jnp.asarray(out)
    if out.shape != ():
        raise TypeError(
            f"value_fn must return a scalar loss, got an array of shape {out.shape}: "
            "take the mean over the examples."
        )
    if not jnp.issubdtype(out.dtype, jnp.floating):
        raise TypeError(
            f"value_fn must return a real floating-point loss, got dtype {out.dtype}."
        )
    return out


@dataclasses.dataclass(frozen=True, eq=False)
class CompositeLoss:
    r"""A loss that shows where the network ends and the convex loss begins.

    .. math::
      f(\theta) = \ell(m(\theta, \text{data}), \text{data})

    The Gauss-Newton matrix :math:`J^T H_\ell J` needs the Jacobian :math:`J` of the
    model :math:`m` and the Hessian :math:`H_\ell` of the loss :math:`\ell` apart
    (Schraudolph 2002). A ``CompositeLoss`` is called like any ``value_fn``, and may be
    used wherever one is expected. Data is passed by keyword and routed to the two
    functions by parameter name; a name that both have goes to both.

    Attributes:
      model_fn: ``model_fn(params, **data)``, returns the outputs, a pytree of
        floating-point arrays. ``(outputs, aux)`` with ``has_aux``.
      loss_fn: ``loss_fn(outputs, **data)``, returns the scalar loss, convex in the
        outputs. If parts of it depend on the parameters directly (weight decay), let
        the model return the parameters as a part of its outputs.
      has_aux: whether ``model_fn`` returns ``(outputs, aux)``, such as the new
        batch statistics. The composite then returns ``(loss, aux)``.
      data: arguments bound so far, see :meth:`bind`.

    Raises:
      TypeError: if ``model_fn`` or ``loss_fn`` is not callable, or on a call that
        lacks an argument.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> import ncg_optax as ncg
      >>> loss = ncg.CompositeLoss(
      ...     lambda params, x: x @ params,
      ...     lambda outputs, y: jnp.mean((outputs - y) ** 2),
      ... )
      >>> x, y = jnp.eye(2), jnp.ones(2)
      >>> print(loss(jnp.zeros(2), x=x, y=y))
      1.0
      >>> bound = loss.bind(x=x, y=y)
      >>> print(jax.grad(bound)(jnp.zeros(2)))
      [-1. -1.]
    """

    model_fn: Callable[..., PyTree]
    loss_fn: Callable[..., jax.Array]
    has_aux: bool = False
    data: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        for name in ("model_fn", "loss_fn"):
            fn = getattr(self, name)
            if not callable(fn):
                raise TypeError(
                    f"CompositeLoss: {name} must be a function, got {fn!r} of type "
                    f"{type(fn).__name__}."
                )

    @property
    def __signature__(self) -> inspect.Signature:
        # optax's line searches look here for the names of the data arguments.
        parameters = {
            "params": inspect.Parameter("params", inspect.Parameter.POSITIONAL_ONLY)
        }
        for fn in (self.model_fn, self.loss_fn):
            for p in named_parameters(fn):
                default = self.data.get(p.name, p.default)
                parameters.setdefault(
                    p.name, inspect.Parameter(p.name, p.KEYWORD_ONLY, default=default)
                )
        return inspect.Signature(list(parameters.values()))

    def bind(self, **data: Any) -> "CompositeLoss":
        """The same loss with some data arguments fixed; later ones win."""
        return dataclasses.replace(self, data={**self.data, **data})

    def model(self, params: PyTree, **data: Any) -> PyTree:
        """The outputs of the network alone, without aux."""
        out = self._model_and_aux(params, {**self.data, **data})[0]
        return out

    def loss(self, outputs: PyTree, **data: Any) -> jax.Array:
        """The scalar loss of given outputs."""
        data = {**self.data, **data}
        return scalar_loss(
            self.loss_fn(outputs, **route("loss_fn", self.loss_fn, data))
        )

    def __call__(self, params: PyTree, **data: Any) -> Any:
        """The loss, or ``(loss, aux)`` with ``has_aux``."""
        outputs, aux = self._model_and_aux(params, {**self.data, **data})
        value = self.loss(outputs, **data)
        return (value, aux) if self.has_aux else value

    def _model_and_aux(self, params, data):
        out = self.model_fn(params, **route("model_fn", self.model_fn, data))
        return out if self.has_aux else (out, None)


@dataclasses.dataclass(frozen=True, eq=False)
class MappedLoss:
    """A loss whose batch is spread over mapped axes, and what is known of it.

    This is what a data-parallel step hands to ``update`` as ``value_fn``, so that the
    optimizer need not be told about the axes, nor average what is averaged already.
    Called, it is the loss over all devices, as optax's line searches want it.

    Attributes:
      objective: the loss of one device's share, with its data, its axes and its
        ``reduced_value``.
    """

    objective: Objective

    def __call__(self, params: PyTree) -> jax.Array:
        """The loss over all devices, the same on each."""
        return reductions.mean(self.objective.value(params), self.objective.axes)


def as_objective(value_fn: Any, extra: Mapping[str, Any], axes: Axes = ()) -> Objective:
    """``value_fn`` with the extra arguments of ``update`` bound, aux dropped.

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
    if not callable(value_fn):
        raise TypeError(
            f"value_fn must be a function of the parameters, got {value_fn!r} of type "
            f"{type(value_fn).__name__}."
        )
    if isinstance(value_fn, MappedLoss):
        return value_fn.objective
    if isinstance(value_fn, CompositeLoss):
        given = {k: v for k, v in extra.items() if k not in RESERVED}
        return _composite_on(value_fn, {**value_fn.data, **given}, axes)
    return _plain_on(value_fn, route("value_fn", value_fn, extra), axes)


def _composite_on(loss: CompositeLoss, data: Mapping[str, Any], axes: Axes):
    bound = loss.bind(**data)
    return Objective(
        value=lambda p: scalar_loss(bound(p)),
        model=bound.model,
        loss=bound.loss,
        axes=axes,
        data=data,
        on=lambda new: _composite_on(loss, {**data, **new}, axes),
        with_aux=lambda p: split_aux(bound(p)),
    )


def _plain_on(value_fn: Callable[..., Any], data: Mapping[str, Any], axes: Axes):
    return Objective(
        value=lambda p: scalar_loss(value_fn(p, **data)),
        axes=axes,
        data=data,
        on=lambda new: _plain_on(value_fn, {**data, **new}, axes),
        with_aux=lambda p: split_aux(value_fn(p, **data)),
    )
