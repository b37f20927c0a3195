"""The diagonal of the curvature, from random products or from squared gradients."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ncg_optax._utils import pytree, validate
from ncg_optax.preconditioners.base import Preconditioner
from ncg_optax.solvers.base import Operator

PyTree = Any


class JacobiState(NamedTuple):
    """State of :func:`jacobi`.

    Attributes:
      steps: number of updates from the first finite estimate on, int32, shape=().
      diagonal: running mean of the estimates, a tree shaped like the parameters, real,
        float32 or wider.
    """

    steps: jax.Array
    diagonal: PyTree


def _relative_squares(grads: PyTree) -> PyTree:
    """``|g_i|^2`` over their mean, which does not depend on the scale of the loss."""
    peak = pytree.max_norm(grads)
    # Divided by the largest entry, because small squares would underflow.
    unit = jax.tree.map(lambda g: g / jnp.where(peak > 0, peak, 1), grads)
    size = sum(g.size for g in jax.tree.leaves(grads))
    mean = jnp.where(peak > 0, pytree.vdot(unit, unit) / size, 1)
    return jax.tree.map(lambda g: jnp.square(jnp.abs(g)) / mean, unit)


ESTIMATES = ("hutchinson", "gradient")


@dataclasses.dataclass(frozen=True)
class jacobi(Preconditioner):
    r"""Diagonal preconditioner, for curvatures whose scale varies between parameters.

    Each entry of a vector is divided by

    .. math::
      \left(|d_i| + \lambda + \text{damping} \cdot \operatorname{mean}|d|
      \right)^{\text{exponent}}

    where :math:`d` is the running mean of an estimate of the diagonal, and the mean of
    :math:`|d|` is that of the leaf. There are two estimates.

    ``"hutchinson"``: the diagonal of ``B`` from products with random signs,

    .. math::
      d = \operatorname{diag} B = E[v \odot B v], \qquad v_i = \pm 1

    (Bekas, Kokiopoulou and Saad 2007, equation 1). The estimate from one product has
    the variance :math:`\sum_{j \ne i} B_{ij}^2`, so a diagonal matrix needs one product
    and a dense matrix many. The absolute values of the entries are used, so the result
    is positive definite for every ``B``.

    ``"gradient"``: the squares of the gradients, :math:`d_i \propto g_i^2`, without
    products. The squares of each gradient are divided by their mean. So they do not
    have the unit of the curvature, and :math:`\lambda` is omitted. Martens (2010,
    section 4.7) uses the exponent 0.75 with this estimate.

    The last term is the preconditioner's own damping. With :math:`\lambda` alone, an
    entry that is small by chance would be divided by nearly zero.

    Cost: ``probes`` products every ``refresh`` steps (``first_probes`` products at the
    first step), none with ``"gradient"``; an application is a division. Under
    `jax.vmap` (an ensemble) an estimate is made at every step. Memory: one number per
    parameter. For a complex entry the diagonal is the mean over its real and its
    imaginary part.

    Attributes:
      estimate: ``"hutchinson"`` or ``"gradient"``.
      exponent: exponent of the diagonal, in [0, 1]; 0 is no preconditioning.
      decay: factor on the running mean at each estimate, in [0, 1).
      refresh: number of steps from one estimate to the next, at least 1;
        ``"gradient"`` makes one at each step.
      probes: number of products for an estimate, at least 1.
      first_probes: number of products for the first estimate, at least 1.
      damping: own damping, in units of the mean of the leaf's diagonal, at least 0.

    Raises:
      TypeError: if a setting is not a number, or if a count is not an integer.
      ValueError: if a setting is out of range or NaN, or if the estimate is unknown.

    Examples:
      >>> import ncg_optax as ncg
      >>> tx = ncg.newton_cg(preconditioner=ncg.jacobi(probes=10))
    """

    estimate: str = "hutchinson"
    exponent: float = 1.0
    decay: float = 0.9
    refresh: int = 5
    probes: int = 5
    first_probes: int = 20
    damping: float = 0.1

    has_sqrt = True

    def __post_init__(self):
        validate.choice("jacobi: estimate", self.estimate, ESTIMATES)
        validate.number("jacobi: exponent", self.exponent, low=0.0, high=1.0)
        validate.number("jacobi: decay", self.decay, low=0.0, high=1.0, high_open=True)
        validate.integer("jacobi: refresh", self.refresh, low=1)
        validate.integer("jacobi: probes", self.probes, low=1)
        validate.integer("jacobi: first_probes", self.first_probes, low=1)
        validate.number("jacobi: damping", self.damping, low=0.0)

    def init(self, params: PyTree) -> JacobiState:
        """The state before the first estimate."""
        zeros = pytree.widened_zeros_like(params)
        return JacobiState(
            steps=jnp.zeros((), jnp.int32), diagonal=jax.tree.map(jnp.real, zeros)
        )

    def update(self, state, product, grads, damping, key, count):
        """Adds a new estimate to the running mean every ``refresh`` steps."""
        fresh = state.steps == 0
        if self.estimate == "hutchinson":
            due = state.steps % self.refresh == 0
            number = jnp.where(fresh, self.first_probes, self.probes)
            products = jnp.where(due, number, 0)
            new = jax.lax.cond(
                due,
                lambda: _hutchinson(product, grads, key, number),
                lambda: state.diagonal,
            )
        else:
            due, products = pytree.max_norm(grads) > 0, 0
            new = _relative_squares(grads)
        share = jnp.where(fresh, 1.0, 1 - self.decay)

        def mix(old, x):
            kept = jnp.where(jnp.isfinite(old), old, x)  # unless the state is damaged
            return ((1 - share) * kept + share * x).astype(old.dtype)

        mixed = jax.tree.map(mix, state.diagonal, new)
        usable = due & pytree.all_finite(new)
        diagonal = pytree.where(usable, mixed, state.diagonal)
        # If the first estimate is not finite the next step makes another one.
        steps = state.steps + (usable | ~fresh).astype(jnp.int32)
        return JacobiState(steps, diagonal), products

    def apply(self, state: JacobiState, r: PyTree, damping: jax.Array) -> PyTree:
        """``r`` divided by the damped diagonal."""
        return self._divided(state, r, damping, self.exponent)

    def sqrt(self, state: JacobiState, r: PyTree, damping: jax.Array) -> PyTree:
        """``r`` divided by the square root of the damped diagonal."""
        return self._divided(state, r, damping, self.exponent / 2)

    def _divided(self, state, r, damping, power):
        # Squared gradients do not have the unit of the curvature.
        lam = damping if self.estimate == "hutchinson" else 0

        def leaf(d, x):
            d = jnp.abs(d)
            d += self.damping * jnp.mean(d) + lam
            return (x / jnp.where(d > 0, d, 1) ** power).astype(x.dtype)

        return jax.tree.map(leaf, state.diagonal, r)


def _hutchinson(
    product: Operator, grads: PyTree, key: jax.Array, number: jax.Array
) -> PyTree:
    """The mean of ``v * B v`` over ``number`` vectors of random signs."""

    def probe(i, total):
        v = pytree.random_signs(jax.random.fold_in(key, i), grads)
        return jax.tree.map(
            lambda t, x, y: t + jnp.real(jnp.conj(x) * y), total, v, product(v)
        )

    zeros = jax.tree.map(jnp.real, pytree.zeros_like(grads))
    return pytree.scale(jax.lax.fori_loop(0, number, probe, zeros), 1 / number)
