"""A preconditioner for what another one has left."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ncg_optax._utils import pytree, validate
from ncg_optax.curvature.base import SampledProduct, share_of
from ncg_optax.preconditioners.base import Preconditioner


class ComposeState(NamedTuple):
    """State of :func:`compose`.

    Attributes:
      inner: state of the inner preconditioner.
      outer: state of the outer one.
    """

    inner: Any
    outer: Any


PyTree = Any


@dataclasses.dataclass(frozen=True)
class compose(Preconditioner):
    r"""Two preconditioners: ``outer`` works on what ``inner`` has scaled.

    With :math:`S = M_{\text{inner}}^{1/2}`, symmetric, ``outer`` is built for the
    operator :math:`S (B + \lambda I) S`, whose eigenvalues are near 1 where ``inner``
    is right, and

    .. math::
      M = S\, M_{\text{outer}}\, S, \qquad
      M_{\text{outer}} \approx \left(S (B + \lambda I) S\right)^{-1}

    (the change of variables behind preconditioned CG: Golub and Van Loan 2013, section
    11.5.1). As :math:`\lambda` is in that operator already, the damping that ``outer``
    is told is 0. The result is positive definite if both are.

    ``compose(jacobi(), nystrom(30, refresh=10))`` is the Jacobi-scaled Nystrom
    preconditioner, which is never bad. For three, compose on the right:
    ``compose(a, compose(b, c))``.

    Cost: the products of both, all on the examples of the solver's curvature. (Of these
    a :func:`kronecker` makes fewer, at the price that it has alone.) A product and an
    application take two applications of :math:`S` more. Memory: that of both.

    Attributes:
      inner: the scaling, with a square root: :func:`identity`, :func:`jacobi`,
        :func:`nystrom`, ``kronecker(with_sqrt=True)``, or one's own with ``sqrt``.
      outer: any :class:`Preconditioner`.

    Raises:
      TypeError: if one of them is not a :class:`Preconditioner`, or ``inner`` has no
        square root.

    Examples:
      >>> import ncg_optax as ncg
      >>> scaled = ncg.compose(ncg.jacobi(), ncg.nystrom(30, refresh=10))
      >>> tx = ncg.newton_cg(preconditioner=scaled)
    """

    inner: Preconditioner
    outer: Preconditioner

    def __post_init__(self):
        made_by = "jacobi(), nystrom()"
        validate.component("compose: inner", self.inner, Preconditioner, made_by)
        validate.component("compose: outer", self.outer, Preconditioner, made_by)
        if not self.inner.has_sqrt:
            raise TypeError(
                "compose: inner must have a square root: kronecker(with_sqrt=True) has "
                "one, and to your own Preconditioner give has_sqrt=True and a method "
                "sqrt(state, r, damping) -> S r with S symmetric and S S = M. If it "
                "is a composition itself, compose(compose(a, b), c), nest on the "
                "right: compose(a, compose(b, c))."
            )

    def init(self, params: PyTree) -> ComposeState:
        """The first states of both."""
        return ComposeState(self.inner.init(params), self.outer.init(params))

    def update(self, state, product, grads, damping, key, count):
        """``inner`` for the curvature, ``outer`` for what that makes of it."""
        inner_key, outer_key = jax.random.split(key)
        inner_state, inner_products = self.inner.update(
            state.inner, product, grads, damping, inner_key, count
        )

        def root(v):
            return self.inner.sqrt(inner_state, v, damping)

        def between_roots(v):
            v = root(v)
            return root(pytree.add_scaled(product(v), damping, v))

        scaled = SampledProduct(between_roots, share_of(product))
        nothing = jnp.zeros_like(damping)
        outer_state, outer_products = self.outer.update(
            state.outer, scaled, root(grads), nothing, outer_key, count
        )
        products = inner_products + outer_products
        return ComposeState(inner_state, outer_state), products

    def apply(self, state: ComposeState, r: PyTree, damping: jax.Array) -> PyTree:
        """``S M S r`` with ``S`` that of ``inner`` and ``M`` that of ``outer``."""
        r = self.inner.sqrt(state.inner, r, damping)
        r = self.outer.apply(state.outer, r, jnp.zeros_like(damping))
        return self.inner.sqrt(state.inner, r, damping)
