"""A loss that is given as a model and a loss function of its outputs."""

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from ncg_optax._utils import validate
from ncg_optax.losses.arguments import (
    named_parameters,
    select_arguments,
    warn_of_unused,
)
from ncg_optax.losses.broadcasting import warn_of_pairs
from ncg_optax.losses.scalar import scalar_loss

PyTree = Any


@dataclasses.dataclass(frozen=True, eq=False)
class CompositeLoss:
    r"""A loss as a model followed by a convex loss function of its outputs.

    .. math::
      f(\theta) = \ell(m(\theta, \text{data}), \text{data})

    The Gauss-Newton matrix :math:`J^T H_\ell J` needs the Jacobian :math:`J` of the
    model :math:`m` and the Hessian :math:`H_\ell` of the loss function :math:`\ell`
    separately (Schraudolph 2002). A ``CompositeLoss`` is called like any ``value_fn``
    and is accepted wherever one is. Data is passed by keyword; each of the two
    functions gets the arguments that it names.

    Attributes:
      model_fn: ``model_fn(params, **data)``, returns the outputs, a pytree of
        floating-point arrays. ``(outputs, aux)`` with ``has_aux``.
      loss_fn: ``loss_fn(outputs, **data)``, returns the scalar loss, convex in the
        outputs. If a term of it depends on the parameters directly (weight decay), let
        the model return the parameters as a part of its outputs.
      has_aux: whether ``model_fn`` returns ``(outputs, aux)``, such as the new
        batch statistics. The composite then returns ``(loss, aux)``.
      data: the arguments that are bound, see :meth:`bind`.

    Raises:
      TypeError: if ``model_fn`` or ``loss_fn`` is not callable, or if a call
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
    loss_fn: Callable[..., ArrayLike]
    has_aux: bool = False
    data: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        for name in ("model_fn", "loss_fn"):
            of = "the parameters" if name == "model_fn" else "the outputs"
            validate.function(f"CompositeLoss: {name}", getattr(self, name), of)
        validate.flag("CompositeLoss: has_aux", self.has_aux)

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
        """The same loss with data arguments bound; they replace those bound before.

        Warns of an argument that neither of the two functions takes.
        """
        warn_of_unused("CompositeLoss.bind", (self.model_fn, self.loss_fn), data)
        return dataclasses.replace(self, data={**self.data, **data})

    def model(self, params: PyTree, **data: Any) -> PyTree:
        """The outputs of the network alone, without aux.

        Raises:
          TypeError: if they are not floating-point, so that they have no derivatives.
        """
        outputs = self._model_and_aux(params, {**self.data, **data})[0]
        for path, x in jax.tree_util.tree_leaves_with_path(outputs):
            if not jnp.issubdtype(jnp.result_type(x), jnp.inexact):
                hint = (
                    " If it returns (outputs, aux), pass has_aux=True to CompositeLoss."
                    if isinstance(outputs, tuple) and len(outputs) == 2
                    else ""
                )
                raise TypeError(
                    "model_fn must return floating-point arrays, but "
                    f"outputs{jax.tree_util.keystr(path)} has dtype "
                    f"{jnp.result_type(x)}.{hint}"
                )
        return outputs

    def loss(self, outputs: PyTree, **data: Any) -> jax.Array:
        """The scalar loss of given outputs."""
        data = select_arguments("loss_fn", self.loss_fn, {**self.data, **data})
        warn_of_pairs(self.loss_fn, outputs, data)
        return scalar_loss(self.loss_fn(outputs, **data))

    def __call__(self, params: PyTree, **data: Any) -> Any:
        """The loss, or ``(loss, aux)`` with ``has_aux``."""
        outputs, aux = self._model_and_aux(params, {**self.data, **data})
        value = self.loss(outputs, **data)
        return (value, aux) if self.has_aux else value

    def _model_and_aux(self, params, data):
        data = select_arguments("model_fn", self.model_fn, data)
        out = self.model_fn(params, **data)
        if not self.has_aux:
            return out, None
        if not isinstance(out, (tuple, list)) or len(out) != 2:
            raise TypeError(
                "model_fn must return (outputs, aux), because has_aux=True; got "
                f"{validate.type_name(out)}."
            )
        return out
