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
      steps: updates since the first finite estimate, int32, shape=().
      diagonal: running mean of the estimates, a tree shaped like the parameters, real,
        float32 or wider.
    """

    steps: jax.Array
    diagonal: PyTree


def _relative_squares(grads: PyTree) -> PyTree:
    """``|g_i|^2`` in units of their mean: what the size of the loss does not change."""
    peak = pytree.max_norm(grads)
    # Squares of the gradients of a small loss would underflow.
    unit = jax.tree.map(lambda g: g / jnp.where(peak > 0, peak, 1), grads)
    size = sum(g.size for g in jax.tree.leaves(grads))
    mean = jnp.where(peak > 0, pytree.vdot(unit, unit) / size, 1)
    return jax.tree.map(lambda g: jnp.square(jnp.abs(g)) / mean, unit)


ESTIMATES = ("hutchinson", "gradient")


@dataclasses.dataclass(frozen=True)
class jacobi(Preconditioner):
    r"""Diagonal preconditioner, for curvatures whose scale varies between parameters.

    Divides by

    .. math::
      \left(|d_i| + \lambda + \text{damping} \cdot \operatorname{mean}|d|
      \right)^{\text{exponent}}

    with :math:`d` a running mean of one of two estimates.

    ``"hutchinson"``: the diagonal of ``B`` from products with random signs,

    .. math::
      d = \operatorname{diag} B = E[v \odot B v], \qquad v_i = \pm 1

    (Bekas, Kokiopoulou and Saad 2007, equation 1). One probe has the variance
    :math:`\sum_{j \ne i} B_{ij}^2`, so that a diagonal matrix takes one and a dense
    one many. Entries that are negative count with their size: the result is positive
    definite whatever ``B`` is.

    ``"gradient"``: the squares of the gradients, :math:`d_i \propto g_i^2`, for no
    product at all. Each gradient counts in units of its own mean square; as that is
    another unit than the curvature's, :math:`\lambda` is left out. Martens (2010,
    section 4.7) takes 0.75 for the exponent here.

    The last term is a damping of its own, by leaf: sharing only :math:`\lambda` with
    the operator, an entry that is small by chance would be divided by next to nothing.

    Cost: ``probes`` products every ``refresh`` steps (``first_probes`` at the first),
    none for ``"gradient"``; an application is a division. Under `jax.vmap` (an
    ensemble) an estimate is made at every step. Memory: one number a
    parameter. A complex entry gets the mean of the diagonal at its real and its
    imaginary part.

    Attributes:
      estimate: ``"hutchinson"`` or ``"gradient"``.
      exponent: on the diagonal, in [0, 1]; 0 is no preconditioning.
      decay: of the running mean from one estimate to the next, in [0, 1).
      refresh: steps from one estimate to the next; gradients are taken at each step.
      probes: products for an estimate.
      first_probes: products for the first estimate.
      damping: own damping, in units of the mean of the leaf's diagonal.

    Raises:
      TypeError: if a setting is not a number, or a count not an integer.
      ValueError: if a setting is out of range or NaN, or the estimate unknown.

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
        """No estimate so far."""
        zeros = pytree.widened_zeros_like(params)
        return JacobiState(
            steps=jnp.zeros((), jnp.int32), diagonal=jax.tree.map(jnp.real, zeros)
        )

    def update(self, state, product, grads, damping, key, count):
        """The running mean with a new estimate, if one is due."""
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
        mixed = jax.tree.map(
            lambda old, x: ((1 - share) * old + share * x).astype(old.dtype),
            state.diagonal,
            new,
        )
        usable = due & pytree.all_finite(new)
        diagonal = pytree.where(usable, mixed, state.diagonal)
        # Without any estimate the next step tries again.
        steps = state.steps + (usable | ~fresh).astype(jnp.int32)
        return JacobiState(steps, diagonal), products

    def apply(self, state: JacobiState, r: PyTree, damping: jax.Array) -> PyTree:
        """``r`` divided by the damped diagonal."""
        return self._divided(state, r, damping, self.exponent)

    def sqrt(self, state: JacobiState, r: PyTree, damping: jax.Array) -> PyTree:
        """``r`` divided by the root of the damped diagonal."""
        return self._divided(state, r, damping, self.exponent / 2)

    def _divided(self, state, r, damping, power):
        shared = damping if self.estimate == "hutchinson" else 0

        def leaf(d, x):
            d = jnp.abs(d)
            d += self.damping * jnp.mean(d) + shared
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
