"""Two preconditioners, one after the other."""

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
      outer: state of the outer preconditioner.
    """

    inner: Any
    outer: Any


PyTree = Any


@dataclasses.dataclass(frozen=True)
class compose(Preconditioner):
    r"""Two preconditioners: ``outer`` improves the operator that ``inner`` has scaled.

    Let :math:`S = M_{\text{inner}}^{1/2}`, symmetric. ``outer`` is computed for the
    operator :math:`S (B + \lambda I) S`. Its eigenvalues are near 1 where ``inner`` is
    accurate, and ``outer`` changes the others:

    .. math::
      M = S\, M_{\text{outer}}\, S, \qquad
      M_{\text{outer}} \approx \left(S (B + \lambda I) S\right)^{-1}

    (the change of variables behind preconditioned CG: Golub and Van Loan 2013, section
    11.5.1). That operator contains :math:`\lambda`, so the damping of ``outer`` is 0.
    The result is positive definite if both preconditioners are.

    ``compose(jacobi(), nystrom(30, refresh=10))`` is the Jacobi-scaled Nystrom
    preconditioner, for parameters of different scales and a curvature with a few large
    eigenvalues. To combine three, write ``compose(a, compose(b, c))``.

    Cost: the products of both, all on the examples of the solver's curvature. (On more
    examples :func:`kronecker` makes fewer products, so that its cost is the same as
    alone.) Each product for ``outer`` and each application needs two applications of
    :math:`S`. Memory: that of both.

    Attributes:
      inner: a preconditioner with a square root: :func:`identity`, :func:`jacobi`,
        :func:`nystrom`, ``kronecker(with_sqrt=True)``, or another one with ``sqrt``.
      outer: any :class:`Preconditioner`.

    Raises:
      TypeError: if one of them is not a :class:`Preconditioner`, or if ``inner`` has no
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
                f"compose: inner must have a square root, got {self.inner!r} with "
                "has_sqrt=False. kronecker(with_sqrt=True) has one. In a class of your "
                "own, set has_sqrt=True and define sqrt(state, r, damping) -> S r with "
                "S symmetric and S S = M. Instead of compose(compose(a, b), c), nest "
                "on the right: compose(a, compose(b, c))."
            )

    def init(self, params: PyTree) -> ComposeState:
        """The states of both before the first step."""
        return ComposeState(self.inner.init(params), self.outer.init(params))

    def update(self, state, product, grads, damping, key, count):
        """``inner`` is updated for ``B``, and ``outer`` for the scaled operator."""
        inner_key, outer_key = jax.random.split(key)
        inner_state, inner_products = self.inner.update(
            state.inner, product, grads, damping, inner_key, count
        )

        inner_prepared = self.inner.prepare(inner_state, damping)

        def root(v):
            return self.inner.sqrt(inner_prepared, v, damping)

        def scaled_product(v):
            v = root(v)
            return root(pytree.add_scaled(product(v), damping, v))

        scaled = SampledProduct(scaled_product, share_of(product))
        no_damping = jnp.zeros_like(damping)
        outer_state, outer_products = self.outer.update(
            state.outer, scaled, root(grads), no_damping, outer_key, count
        )
        products = inner_products + outer_products
        return ComposeState(inner_state, outer_state), products

    def over(self, axes: tuple[str, ...]) -> Preconditioner:
        """Both preconditioners share their work over the mapped axes."""
        inner, outer = self.inner.over(axes), self.outer.over(axes)
        return dataclasses.replace(self, inner=inner, outer=outer)

    def prepare(self, state: ComposeState, damping: jax.Array) -> ComposeState:
        """What both prepare."""
        return ComposeState(
            self.inner.prepare(state.inner, damping),
            self.outer.prepare(state.outer, jnp.zeros_like(damping)),
        )

    def apply(self, state: ComposeState, r: PyTree, damping: jax.Array) -> PyTree:
        """``S M S r`` with the ``S`` of ``inner`` and the ``M`` of ``outer``."""
        r = self.inner.sqrt(state.inner, r, damping)
        r = self.outer.apply(state.outer, r, jnp.zeros_like(damping))
        return self.inner.sqrt(state.inner, r, damping)
