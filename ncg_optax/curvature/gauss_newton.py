"""Curvature operators: linearise once, then multiply.

A curvature is a matrix ``B`` that stands for the second derivative of the loss, known
only through its products ``v -> B v``. Products run at the highest matrix precision by
default: the default of GPUs and TPUs (TF32, bfloat16) makes ``B`` unsymmetric, which
is what conjugate gradients cannot take.
"""

import contextlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ncg_optax._utils import pytree, validate
from ncg_optax._utils.reductions import reduced_axes_size
from ncg_optax.losses.objective import Objective, as_objective

PyTree = Any
Matvec = Callable[[PyTree], PyTree]


class Curvature(NamedTuple):
    """A curvature operator.

    Attributes:
      linearize: ``linearize(objective, params) -> (value, matvec)``: the loss at
        ``params``, shape=(), and the product ``v -> B v`` there. ``objective`` has
        the fields ``value``, ``model``, ``loss`` (see :class:`CompositeLoss`); ``v``
        has the structure, shapes and dtypes of ``params``. On several devices this
        works on the local share of the data; the transform reduces.
      cost: of one product, in gradients, as a rule of thumb for accounting (that of a
        dense network whose forward pass costs half its backward pass).

    Examples:
      The identity, which makes Newton's method gradient descent:

      >>> import jax.numpy as jnp
      >>> import ncg_optax as ncg
      >>> identity = ncg.curvature.Curvature(
      ...     linearize=lambda objective, p: (objective.value(p), lambda v: v),
      ...     cost=0.0,
      ... )
      >>> product = ncg.curvature.curvature_product(identity, jnp.sum, jnp.zeros(2))
      >>> print(product(jnp.array([1.0, 2.0])))
      [1. 2.]
    """

    linearize: Callable[[Objective, PyTree], tuple[jax.Array, Matvec]]
    cost: float


def _matmul_precision(precision: str | None) -> AbstractContextManager:
    """The precision that products are traced under.

    A CPU multiplies in full precision anyway; to ask for it there would only keep XLA
    from sharing the linearisation with the user's gradient.
    """
    if precision == "highest" and jax.default_backend() == "cpu":
        precision = None
    if precision is None:
        return contextlib.nullcontext()
    return jax.default_matmul_precision(precision)


def hessian(
    mode: str = "forward_over_reverse", precision: str | None = "highest"
) -> Curvature:
    r"""The exact Hessian, by Pearlmutter's trick.

    .. math::
      B v = \nabla^2 f(\theta)\, v
          = \left.\tfrac{\partial}{\partial t} \nabla f(\theta + t v)\right|_{t=0}

    (Pearlmutter 1994). It may be indefinite: use a solver that says what it does then,
    as all of ours do. The gradient is linearised once a step, so a product costs
    about 1.5 gradients of a dense network, not 2.5.

    Args:
      mode: ``"forward_over_reverse"`` is the cheaper one;
        ``"reverse_over_reverse"`` serves models with a ``custom_vjp`` whose backward
        pass has no forward-mode derivative.
      precision: matrix precision of the products, as in
        `jax.default_matmul_precision`; None leaves the ambient one.

    Returns:
      A :class:`Curvature`.

    Raises:
      ValueError: if ``mode`` is unknown.

    Examples:
      >>> import jax.numpy as jnp
      >>> import ncg_optax as ncg
      >>> f = lambda w: w[0] ** 2 - 3.0 * w[1] ** 2
      >>> product = ncg.curvature.curvature_product(ncg.hessian(), f, jnp.ones(2))
      >>> print(product(jnp.ones(2)))
      [ 2. -6.]
    """
    modes = ("forward_over_reverse", "reverse_over_reverse")
    validate.choice("hessian: mode", mode, modes)

    def forward(objective, params):
        value_and_aux = lambda p: (objective.value(p),) * 2  # noqa: E731
        grad_fn = jax.grad(value_and_aux, has_aux=True)
        _, product, value = jax.linearize(grad_fn, params, has_aux=True)
        # Conjugated, as optax wants the gradients of complex parameters.
        return value, lambda v: pytree.conj(product(v))

    def reverse(objective, params):
        (value, _), pullback = jax.vjp(jax.value_and_grad(objective.value), params)

        def product(v):
            # The Hessian is symmetric in the real inner product of JAX's pairing, in
            # which the cotangent of a gradient is the conjugate of a tangent.
            return pytree.conj(pullback((jnp.zeros_like(value), v))[0])

        return value, product

    def linearize(objective, params):
        with _matmul_precision(precision):
            return (forward if mode == modes[0] else reverse)(objective, params)

    return Curvature(linearize, cost=1.5)


def _jvp_by_double_vjp(model: Callable, params: PyTree) -> tuple[PyTree, Matvec]:
    """Outputs and ``v -> J v`` by transposing the pullback, which is linear."""
    outputs, pullback = jax.vjp(model, params)
    zeros = jax.tree.map(jnp.zeros_like, outputs)
    _, push = jax.vjp(lambda u: pullback(u)[0], zeros)
    return outputs, lambda v: push(v)[0]


def _linearize_model(
    model: Callable, params: PyTree, mode: str
) -> tuple[PyTree, Matvec, Matvec]:
    """Outputs, ``v -> J v`` and ``u -> J^T u``."""
    if mode == "double_vjp":
        outputs, push = _jvp_by_double_vjp(model, params)
    else:
        outputs, push = jax.linearize(model, params)
        # A custom_vjp objects only when the product is compiled, too late to catch.
        if mode == "auto" and "custom_lin" in str(jax.make_jaxpr(push)(params)):
            outputs, push = _jvp_by_double_vjp(model, params)
    _, pullback = jax.vjp(model, params)
    return outputs, push, lambda u: pullback(u)[0]


def _require_composite(objective: Objective, who: str) -> None:
    if objective.model is None:
        raise TypeError(
            f"{who} needs to see where the network ends and the loss begins: pass "
            "value_fn=ncg_optax.CompositeLoss(model_fn, loss_fn) (or its .bind(...)), "
            "not a plain function. A plain function is enough for "
            "curvature=ncg_optax.hessian()."
        )


_MODEL_MODES = ("auto", "forward", "double_vjp")


def gauss_newton(mode: str = "auto", precision: str | None = "highest") -> Curvature:
    r"""The generalised Gauss-Newton matrix of a :class:`CompositeLoss`.

    .. math::
      B v = J^T H_\ell J v

    with :math:`J` the Jacobian of the model's outputs with respect to the parameters
    and :math:`H_\ell` the Hessian of the loss with respect to the outputs (Schraudolph
    2002; Martens 2010). It is positive semidefinite if the loss is convex in the
    outputs, and for a squared loss it is that of Gauss and Newton. A product costs
    about 1.2 gradients of a dense network.

    Args:
      mode: how to compute ``J v``. ``"forward"`` linearises the model;
        ``"double_vjp"`` serves layers with a ``custom_vjp``, which have no forward
        mode; ``"auto"`` tries the first and falls back to the second.
      precision: matrix precision of the products, as in
        `jax.default_matmul_precision`; None leaves the ambient one.

    Returns:
      A :class:`Curvature`. Its ``linearize`` raises TypeError for a loss that is not
      a :class:`CompositeLoss`.

    Raises:
      ValueError: if ``mode`` is unknown.

    Examples:
      >>> import jax.numpy as jnp
      >>> import ncg_optax as ncg
      >>> loss = ncg.CompositeLoss(
      ...     lambda w: jnp.sin(w), lambda outputs: jnp.sum(outputs**2)
      ... )
      >>> product = ncg.curvature.curvature_product(ncg.gauss_newton(), loss, jnp.zeros(2))
      >>> print(product(jnp.ones(2)))  # 2 cos(0)^2, without the term in -sin
      [2. 2.]
    """
    validate.choice("gauss_newton: mode", mode, _MODEL_MODES)

    def linearize(objective, params):
        _require_composite(objective, "gauss_newton")
        with _matmul_precision(precision):
            outputs, push, pull = _linearize_model(objective.model, params, mode)
            value_and_aux = lambda out: (objective.loss(out),) * 2  # noqa: E731
            loss_grad = jax.grad(value_and_aux, has_aux=True)
            _, loss_hessian, value = jax.linearize(loss_grad, outputs, has_aux=True)
        return value, lambda v: pytree.conj(pull(loss_hessian(push(v))))

    return Curvature(linearize, cost=1.2)


def empirical_fisher(
    mode: str = "auto", precision: str | None = "highest"
) -> Curvature:
    r"""The empirical Fisher matrix: the second moment of the per-example gradients.

    .. math::
      B v = \frac{1}{N} \sum_{i=1}^{N} g_i\, (g_i^T v), \qquad
      g_i = J_i^T \nabla \ell_i

    Needs a :class:`CompositeLoss` whose outputs have the examples along their first
    axis and whose loss is the *mean* over examples of a loss of each example's
    outputs. A product costs what a Gauss-Newton one does. It is a poor stand-in for
    the Gauss-Newton matrix far from a good fit and vanishes at a perfect one (Kunstner
    et al. 2019): an option, not a default.

    Args:
      mode: how to compute ``J v``, as in :func:`gauss_newton`.
      precision: matrix precision of the products, as in
        `jax.default_matmul_precision`; None leaves the ambient one.

    Returns:
      A :class:`Curvature`. Its ``linearize`` raises TypeError for a loss that is not
      a :class:`CompositeLoss`, ValueError for outputs without a common first axis.

    Raises:
      ValueError: if ``mode`` is unknown.

    Examples:
      >>> import jax.numpy as jnp
      >>> import ncg_optax as ncg
      >>> loss = ncg.CompositeLoss(
      ...     lambda w, x: x * w, lambda outputs: jnp.mean(outputs)
      ... ).bind(x=jnp.array([1.0, 3.0]))
      >>> product = ncg.curvature.curvature_product(ncg.empirical_fisher(), loss, jnp.array(0.0))
      >>> print(product(jnp.array(1.0)))  # (1^2 + 3^2) / 2
      5.0
    """
    validate.choice("empirical_fisher: mode", mode, _MODEL_MODES)

    def linearize(objective, params):
        _require_composite(objective, "empirical_fisher")
        with _matmul_precision(precision):
            outputs, push, pull = _linearize_model(objective.model, params, mode)
            value, cotangent = jax.value_and_grad(objective.loss)(outputs)
        # cotangent[i] = grad l_i / N. A loss that the user has averaged over devices
        # has the N of all of them in it.
        examples = _examples(outputs) * reduced_axes_size(value, objective.axes)

        def product(v):
            slopes = _sum_per_example(cotangent, push(v))  # (grad l_i / N) . J_i v
            weighted = jax.tree.map(
                lambda u: u * (examples * slopes).reshape(-1, *(1,) * (u.ndim - 1)),
                cotangent,
            )
            return pytree.conj(pull(weighted))

        return value, product

    return Curvature(linearize, cost=1.2)


def _examples(outputs: PyTree) -> int:
    """The common length of the first axis of all outputs."""
    lengths = {x.shape[0] if x.ndim else None for x in jax.tree.leaves(outputs)}
    if len(lengths) != 1 or None in lengths:
        raise ValueError(
            "empirical_fisher needs outputs whose first axis runs over the examples; "
            f"the model returned shapes {[x.shape for x in jax.tree.leaves(outputs)]}."
        )
    return lengths.pop()


def _sum_per_example(a: PyTree, b: PyTree) -> jax.Array:
    """``Re(a_i . b_i)`` for each example i (JAX's pairing: no conjugate)."""
    dots = jax.tree.map(
        lambda x, y: jnp.sum(jnp.real(x * y).reshape(x.shape[0], -1), axis=1), a, b
    )
    return sum(jax.tree.leaves(dots))


def curvature_product(
    curvature: Curvature, value_fn: Callable, params: PyTree, **data: Any
) -> Matvec:
    """The product ``v -> B v`` of a curvature, for use outside of an optimizer.

    Args:
      curvature: :func:`hessian`, :func:`gauss_newton`, :func:`empirical_fisher` or
        one's own.
      value_fn: the loss, as for ``update``; a :class:`CompositeLoss` for the latter
        two.
      params: where to linearise.
      **data: further arguments of ``value_fn``, by name.

    Returns:
      A function of a tree with the structure, shapes and dtypes of ``params``.

    Raises:
      TypeError: as ``update`` does for an unsuitable ``value_fn``.

    Examples:
      >>> import jax.numpy as jnp
      >>> import ncg_optax as ncg
      >>> f = lambda w, a: 0.5 * jnp.sum(a * w**2)
      >>> a = jnp.array([0.0, 1.0])
      >>> product = ncg.curvature.curvature_product(ncg.hessian(), f, jnp.ones(2), a=a)
      >>> print(product(jnp.ones(2)))
      [0. 1.]
    """
    validate.component("curvature", curvature, Curvature, "hessian() or gauss_newton()")
    return curvature.linearize(as_objective(value_fn, data), params)[1]
