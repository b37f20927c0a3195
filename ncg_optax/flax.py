"""For Flax models: a linen ``TrainState``, and losses of an nnx module.

Importing this module needs Flax: ``pip install "ncg_optax[flax]"``. The rest of the
package does not.
"""

import dataclasses
import difflib
import functools
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import optax

from ncg_optax.losses.arguments import named_parameters
from ncg_optax.losses.composite import CompositeLoss
from ncg_optax.losses.objective import bind_constants

try:
    from flax import nnx
    from flax.training import train_state
except ImportError as error:
    raise ImportError(
        "ncg_optax.flax needs Flax, which cannot be imported: "
        'pip install "ncg_optax[flax]"'
    ) from error

PyTree = Any

# The fields that apply_gradients computes, and the arguments of update besides data.
_COMPUTED = ("step", "params", "opt_state")
_OF_UPDATE = ("value", "grad", "value_fn", "curvature_batch")


class TrainState(train_state.TrainState):
    """Flax's ``TrainState``, with the loss passed on to the optimizer.

    Fields, ``create`` and checkpoints are those of
    ``flax.training.train_state.TrainState``; any optax optimizer can be used. Only
    ``apply_gradients`` differs: keyword arguments that are not fields of the state are
    passed to ``tx.update``.

    Attributes:
      step: updates done.
      apply_fn: usually ``model.apply``; not part of the pytree.
      params: the parameters.
      tx: the optimizer; not part of the pytree.
      opt_state: its state.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> from flax import linen
      >>> import ncg_optax as ncg
      >>> from ncg_optax.flax import TrainState
      >>> x = jnp.linspace(-1, 1, 8)[:, None]
      >>> y = 3 * x - 1
      >>> model = linen.Dense(1)
      >>> state = TrainState.create(
      ...     apply_fn=model.apply,
      ...     params=model.init(jax.random.key(0), x)["params"],
      ...     tx=ncg.newton_cg(),
      ... )
      >>> @jax.jit
      ... def train_step(state, x, y):
      ...     def loss(params, x, y):
      ...         return jnp.mean((state.apply_fn({"params": params}, x) - y) ** 2)
      ...     value, grads = jax.value_and_grad(loss)(state.params, x, y)
      ...     state = state.apply_gradients(
      ...         grads=grads, value=value, value_fn=loss, x=x, y=y
      ...     )
      ...     return state, value
      >>> for _ in range(5):
      ...     state, value = train_step(state, x, y)
      >>> int(state.step), bool(value < 1e-6)
      (5, True)
    """

    def apply_gradients(self, *, grads: PyTree, **kwargs: Any) -> "TrainState":
        """One step of the optimizer.

        Args:
          grads: the gradient, a pytree like ``params``.
          **kwargs: new values of fields of the state (those of a subclass, such as
            ``batch_stats``), as in Flax. All other arguments are passed to
            ``tx.update``: ``value``, ``grad``, ``value_fn`` and the data that
            ``value_fn`` takes. An argument of ``value_fn`` that is a field of the state
            gets the value of the field *before* the step, as in the gradient.

        Returns:
          The state after the step.

        Raises:
          TypeError: if ``step``, ``params`` or ``opt_state`` is given, or a name that
            is neither a field nor an argument of ``value_fn`` but similar to a field.
        """
        fields = {field.name for field in dataclasses.fields(self)}
        value_fn = kwargs.get("value_fn")
        required, known = _arguments(value_fn)
        _check_names(type(self).__name__, kwargs, fields, known)
        changes = {name: kwargs[name] for name in kwargs if name in fields}
        extra = {name: kwargs[name] for name in kwargs if name not in fields}
        if callable(value_fn):
            # Bound, not passed as data, which may be cut to fewer examples.
            bound = {n: getattr(self, n) for n in required if n in fields}
            extra["value_fn"] = bind_constants(value_fn, bound)

        # Calls Flax's own apply_gradients, for its special cases and later changes,
        # with an optimizer whose extra arguments are bound.
        update = optax.with_extra_args_support(self.tx).update
        with_loss = optax.GradientTransformation(
            self.tx.init, functools.partial(update, **extra)
        )
        tx = changes.pop("tx", self.tx)
        new = super(TrainState, self.replace(tx=with_loss)).apply_gradients(
            grads=grads, **changes
        )
        return new.replace(tx=tx)


def _arguments(value_fn: Any) -> tuple[set[str], set[str]]:
    """The data arguments of ``value_fn``: those without a default, and all of them."""
    if not callable(value_fn):
        return set(), set()
    named = named_parameters(value_fn)
    required = {p.name for p in named if p.default is p.empty}
    return required, {p.name for p in named}


def _check_names(who: str, given, fields: set[str], known: set[str]) -> None:
    """Raises if a name is probably a field that was misspelt.

    Raises:
      TypeError: if so, or if apply_gradients computes the field itself.
    """
    for name in given:
        if name in _COMPUTED:
            raise TypeError(
                f"{who}.apply_gradients computes {', '.join(_COMPUTED)} itself, but "
                f"got {name}: if it is an argument of value_fn, rename it there; to "
                "set it, use replace."
            )
        if name in fields or name in known or name in _OF_UPDATE:
            continue
        like = difflib.get_close_matches(name, fields, n=1, cutoff=0.8)
        if like:
            raise TypeError(
                f"{who}.apply_gradients got {name}, which is neither a field of the "
                f"state nor an argument of value_fn: did you mean {like[0]}?"
            )


class FunctionalLoss(NamedTuple):
    """A loss of an nnx module as a pure function; see :func:`functional_loss`.

    Attributes:
      value_fn: ``value_fn(params, **data) -> (loss, rest)``, a pure function or a
        :class:`ncg_optax.CompositeLoss`.
      params: the trained variables of the module, an ``nnx.State``.
      rest: all its other variables (batch statistics, random number streams), an
        ``nnx.State`` of arrays.

    Examples:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> from ncg_optax.flax import functional_loss
      >>> model = nnx.Linear(1, 1, rngs=nnx.Rngs(0))
      >>> parts = functional_loss(model, lambda model, x: jnp.mean(model(x) ** 2))
      >>> loss, rest = parts.value_fn(parts.params, x=jnp.zeros((4, 1)))
      >>> print(loss)
      0.0
    """

    value_fn: Callable[..., Any]
    params: nnx.State
    rest: nnx.State


def functional_loss(
    model: nnx.Module, loss: Callable[..., Any], *, wrt: Any = nnx.Param
) -> FunctionalLoss:
    """A loss of an nnx module as a ``value_fn`` of its parameters.

    The optimizer evaluates the loss at several points in a step, and needs it as a pure
    function: all of these evaluations start from the same batch statistics and use the
    same random numbers (dropout), those of the module at the time of this call. The
    module itself does not change. ``value_fn`` returns the new variables along with the
    loss; ``nnx.update(model, rest)`` after the step stores statistics and random number
    streams in the module. Call this function inside the jitted step, at each step::

      @nnx.jit
      def train_step(model, optimizer, x, y):
          value_fn, params, _ = functional_loss(model, loss, wrt=optimizer.wrt)
          (value, rest), grads = jax.value_and_grad(value_fn, has_aux=True)(
              params, x=x, y=y
          )
          optimizer.update(
              model, grads, value=value, grad=grads, value_fn=value_fn, x=x, y=y
          )
          nnx.update(model, rest)
          return value

    Without ``nnx.Optimizer``, in a step on plain pytrees, pass ``rest`` from step to
    step: ``value_fn(params, rest=rest, **data)``. With
    :func:`ncg_optax.make_train_step` that is ``step(params, state, batch,
    rest=metrics.aux)``.

    Args:
      model: the module.
      loss: ``loss(model, **data)``, a scalar, or ``(scalar, aux)``; or, for
        Gauss-Newton, a :class:`ncg_optax.CompositeLoss` whose ``model_fn(model,
        **data)`` takes the module in place of the parameters (``has_aux`` and bound
        data are kept). No argument may be called ``rest``.
      wrt: which variables to train, a filter of nnx, the same as for
        ``nnx.Optimizer``.

    Returns:
      A :class:`FunctionalLoss` ``(value_fn, params, rest)``. ``value_fn`` returns
      ``(loss, rest)``; if ``loss`` has an aux, ``(loss, (rest, aux))``. ``rest`` has
      the structure of the given one: variables created during a call (``sow``) are not
      in it. A function without aux, as optax's line searches need it, is
      ``lambda params: value_fn(params, **data)[0]``.

    Raises:
      TypeError: if ``model`` is not a module, ``loss`` is not callable, or one of its
        arguments is called ``params`` or ``rest``.
      ValueError: if the filter ``wrt`` matches nothing.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> from flax import nnx
      >>> import ncg_optax as ncg
      >>> from ncg_optax.flax import functional_loss
      >>> class Net(nnx.Module):
      ...     def __init__(self, rngs):
      ...         self.first = nnx.Linear(1, 8, rngs=rngs)
      ...         self.norm = nnx.BatchNorm(8, rngs=rngs)
      ...         self.last = nnx.Linear(8, 1, rngs=rngs)
      ...     def __call__(self, x):
      ...         return self.last(jnp.tanh(self.norm(self.first(x))))
      >>> loss = ncg.CompositeLoss(
      ...     lambda model, x: model(x),
      ...     lambda outputs, y: jnp.mean((outputs - y) ** 2),
      ... )
      >>> model = Net(nnx.Rngs(0))
      >>> tx = ncg.newton_cg(curvature=ncg.gauss_newton())
      >>> optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
      >>> @nnx.jit
      ... def train_step(model, optimizer, x, y):
      ...     value_fn, params, _ = functional_loss(model, loss)
      ...     (value, rest), grads = jax.value_and_grad(value_fn, has_aux=True)(
      ...         params, x=x, y=y
      ...     )
      ...     optimizer.update(
      ...         model, grads, value=value, grad=grads, value_fn=value_fn, x=x, y=y
      ...     )
      ...     nnx.update(model, rest)
      ...     return value
      >>> x = jnp.linspace(-1, 1, 16)[:, None]
      >>> values = [train_step(model, optimizer, x, jnp.sin(3 * x)) for _ in range(10)]
      >>> bool(values[-1] < 0.1 * values[0]), bool(jnp.all(model.norm.var[...] < 1))
      (True, True)
    """
    if not isinstance(model, nnx.Module):
        raise TypeError(
            f"functional_loss: model must be a flax.nnx.Module, got {model!r} of type "
            f"{type(model).__name__}."
        )
    if not callable(loss):
        raise TypeError(
            "functional_loss: loss must be a function loss(model, **data) or a "
            f"CompositeLoss, got {loss!r} of type {type(loss).__name__}."
        )
    graphdef, params, rest = nnx.split(model, wrt, ...)
    if not nnx.to_flat_state(params):
        raise ValueError(
            f"functional_loss: wrt must match a variable of the model, got {wrt!r}, "
            "which matches none."
        )
    # As arrays: variables belong to the trace in which they were made, and cannot be
    # updated in the traces of gradients and products.
    rest = nnx.as_pure(rest)
    paths = {path for path, _ in nnx.to_flat_state(rest)}

    def variables(module):
        """The present values in the module of the variables in ``rest``."""
        _, _, state = nnx.split(module, wrt, ...)
        flat = nnx.to_flat_state(nnx.as_pure(state))
        return nnx.from_flat_state([(path, x) for path, x in flat if path in paths])

    def of_params(fn, has_aux):
        """``fn(module, ...)`` as ``(params, ...) -> (output, rest)``."""

        def called(params, *args, rest=rest, **data):
            module = nnx.merge(graphdef, params, nnx.as_pure(rest))
            out = fn(module, *args, **data)
            new_rest = variables(module)
            # Whether a plain loss has an aux is known by its output only.
            has_own = isinstance(out, tuple) if has_aux is None else has_aux
            return (out[0], (new_rest, out[1])) if has_own else (out, new_rest)

        called.__name__ = getattr(fn, "__name__", type(fn).__name__)
        called.__doc__ = fn.__doc__
        called.__signature__ = _signature(fn, rest)
        return called

    if isinstance(loss, CompositeLoss):
        _signature(loss.loss_fn, rest)  # Its names must not clash either.
        value_fn = dataclasses.replace(
            loss, model_fn=of_params(loss.model_fn, loss.has_aux), has_aux=True
        )
    else:
        value_fn = of_params(loss, None)
    return FunctionalLoss(value_fn, params, rest)


def _signature(fn: Callable[..., Any], rest: PyTree) -> inspect.Signature:
    """The signature of ``fn`` with ``params`` for the module, and with ``rest``."""
    first, *data = inspect.signature(fn).parameters.values()
    clashes = [p.name for p in data if p.name in ("params", "rest")]
    if clashes:
        name = getattr(fn, "__name__", repr(fn))
        raise TypeError(
            f"functional_loss: {clashes[0]} must not be the name of an argument of the "
            f"loss, got {name}{inspect.signature(fn)}: rename it."
        )
    rest_parameter = inspect.Parameter(
        "rest", inspect.Parameter.KEYWORD_ONLY, default=rest
    )
    if first.kind is first.VAR_POSITIONAL:
        data = [first, *data]
    at_the_end = [p for p in data if p.kind is p.VAR_KEYWORD]
    return inspect.Signature(
        [
            inspect.Parameter("params", inspect.Parameter.POSITIONAL_ONLY),
            *(p for p in data if p.kind is not p.VAR_KEYWORD),
            rest_parameter,
            *at_the_end,
        ]
    )
