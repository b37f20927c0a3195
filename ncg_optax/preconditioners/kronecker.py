"""Kronecker factors of the curvature, estimated from products with random vectors."""

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from ncg_optax._utils import pytree, validate
from ncg_optax.curvature.base import share_of
from ncg_optax.preconditioners.base import Preconditioner
from ncg_optax.preconditioners.kronecker_factors import (
    Factor,
    Sides,
    as_matrix,
    grams_like,
    inverted,
    of_leaves,
    of_trees,
    times,
)
from ncg_optax.solvers.base import Operator

PyTree = Any


class KroneckerState(NamedTuple):
    """State of :func:`kronecker`.

    Attributes:
      steps: updates since the first finite estimate, int32, shape=().
      factors: a :class:`Factor` of trees with the structure of the parameters. Not a
        tree of factors: Flax's ``nnx.Optimizer`` wraps what takes the place of a
        parameter, which must be an array.
    """

    steps: jax.Array
    factors: Factor


@dataclasses.dataclass(frozen=True)
class kronecker(Preconditioner):
    r"""Kronecker-factored preconditioner for any pytree, loss and curvature.

    For a leaf of shape (m, n) whose block of the curvature is near :math:`R \otimes
    L`, a product with a :math:`V` of random signs is :math:`Y = L V R`, so

    .. math::
      E[Y Y^H] = \operatorname{tr}(R^2)\, L^2, \qquad
      E[Y^H Y] = \operatorname{tr}(L^2)\, R^2

    and a few products with random vectors give the factors, without knowing about
    layers: ``probes`` of them a step, averaged exponentially. As the squares are
    estimated, the result is positive semidefinite whatever ``B`` is, and stands for
    :math:`|B|` if it is indefinite. The preconditioner is the inverse of

    .. math::
      (R + c\, \bar r\, I) \otimes (L + c\, \bar l\, I), \qquad
      c^2 = \Bigl(\frac{\text{damping}}{1 + t / \text{damping\_halving}}\Bigr)^2
        + \frac{\lambda}{\bar r \bar l}

    at step :math:`t`, with :math:`\bar l` and :math:`\bar r` the mean eigenvalues: both
    sides are damped, by the same multiple of their own size (Martens and Grosse 2015,
    section 6.3). That costs half as much as to damp the product, by
    :math:`\bar l \bar r c^2` in its eigenbasis, and is better: a direction that one
    side alone takes for flat is where a Kronecker product errs most. Part of it is the
    preconditioner's own: sharing only :math:`\lambda` with the operator lets dead
    inputs stall it. That part falls, as the early steps of autoencoders need more of it
    than the long runs of physics-informed networks bear. For mini-batches
    :func:`stochastic_hessian_free` keeps it at 0.5. Vectors are one-column matrices,
    which have one side: :math:`c` is not squared there. Kernels of more than two axes
    are folded to (all but the last, last), a side longer than ``max_size`` gets a
    diagonal factor.

    Many products on few examples tell more than few on many, so they are made on a
    ``fraction`` of the batch. Where the data cannot be split there are fewer of them,
    for the same price.

    Cost: ``probes * fraction`` products with the whole batch a step (``first_probes *
    fraction`` at the first), each with :math:`2 m n (m + n)` operations a leaf for its
    factors; every ``refresh`` steps eigendecompositions and inverses of about
    :math:`12 (m^3 + n^3)`; each application :math:`2 m n (m + n)`. Memory:
    :math:`2 (m^2 + n^2)` numbers a leaf. Under `jax.vmap` (an ensemble) they are
    decomposed at every step.

    Attributes:
      decay: of the running means, in [0, 1).
      refresh: steps from one eigendecomposition to the next, or an optax schedule of
        them: eigenvectors go out of date sooner in the first steps, where the curvature
        may grow by orders of magnitude. At step :math:`t` of the schedule :math:`s` it
        is time where :math:`\lfloor s(t) \rfloor` divides :math:`t`.
      probes: products at each step.
      first_probes: products at the first step.
      fraction: share of the examples in these products, in (0, 1]; not fewer than 32
        examples.
      damping: own damping at the first step, in units of the mean eigenvalue of each
        side.
      damping_halving: steps until half of it is left, or None to keep it.
      max_size: longest side with a full factor.
      with_sqrt: whether to keep the square roots of the inverses in their place, for
        :func:`compose` with this as the inner one; then an application costs twice as
        much.

    Raises:
      TypeError: if a setting is not a number, or a count not an integer.
      ValueError: if a setting is out of range or NaN.

    References:
      Martens and Grosse, Optimizing neural networks with Kronecker-factored approximate
      curvature, 2015, section 6.3 (the damping of both sides).

    Examples:
      >>> import optax
      >>> import ncg_optax as ncg
      >>> tx = ncg.newton_cg(preconditioner=ncg.kronecker(refresh=10))
      >>> often_at_first = ncg.kronecker(refresh=optax.linear_schedule(1, 10, 20))
    """

    decay: float = 0.95
    refresh: int | optax.Schedule = 5
    probes: int = 4
    first_probes: int = 64
    fraction: float = 1 / 8
    damping: float = 0.1
    damping_halving: float | None = 20
    max_size: int = 1024
    with_sqrt: bool = False

    def __post_init__(self):
        def number(name, **interval):
            validate.number(f"kronecker: {name}", getattr(self, name), **interval)

        def integer(name, **limits):
            validate.integer(f"kronecker: {name}", getattr(self, name), **limits)

        number("decay", low=0.0, high=1.0, high_open=True)
        if not callable(self.refresh):
            integer("refresh", low=1, other="an optax schedule")
        integer("probes", low=1)
        integer("first_probes", low=1)
        number("fraction", low=0.0, high=1.0, low_open=True)
        number("damping", low=0.0)
        if self.damping_halving is not None:
            number("damping_halving", low=0.0, low_open=True)
        integer("max_size", low=1)

    @property
    def has_sqrt(self) -> bool:
        """Whether roots are kept in the place of the inverses."""
        return self.with_sqrt

    def init(self, params: PyTree) -> KroneckerState:
        """Identities, before the first estimate."""
        leaves, treedef = jax.tree.flatten(params)
        return KroneckerState(
            steps=jnp.zeros((), jnp.int32),
            factors=of_trees(list(map(self._first_factor, leaves)), treedef),
        )

    def update(self, state, product, grads, damping, key, count):
        """The running means with new products, and the inverses if these are due."""
        old = of_leaves(state.factors)
        fresh = state.steps == 0
        grams, number = self._estimate(old, product, grads, key, fresh)
        usable = pytree.all_finite(grams)
        share = jnp.where(fresh, 1.0, 1 - self.decay)

        def averaged(mean, total):
            mixed = (1 - share) * mean + share * total / number
            return jnp.where(usable, mixed, mean).astype(mean.dtype)

        factors = [
            f._replace(left=averaged(f.left, g.left), right=averaged(f.right, g.right))
            for f, g in zip(old, grams, strict=True)
        ]
        own, power = self._own_damping(state.steps), 0.5 if self.with_sqrt else 1.0
        factors = jax.lax.cond(
            self._is_due(state.steps),
            lambda: inverted(factors, damping, own, power),
            lambda: factors,
        )
        # Without any estimate the next step tries again.
        steps = state.steps + (usable | ~fresh).astype(jnp.int32)
        trees = of_trees(factors, jax.tree.structure(grads))
        return KroneckerState(steps, trees), number

    def apply(self, state: KroneckerState, r: PyTree, damping: jax.Array) -> PyTree:
        """The inverse factors from both sides."""
        if self.with_sqrt:
            r = _times(state, r)
        return _times(state, r)

    def sqrt(self, state: KroneckerState, r: PyTree, damping: jax.Array) -> PyTree:
        """The roots of the inverse factors from both sides."""
        if not self.with_sqrt:
            # Raises: the error of the protocol's own method.
            return super().sqrt(state, r, damping)  # pyright: ignore[reportAbstractUsage]
        return _times(state, r)

    def _first_factor(self, leaf: Any) -> Factor:
        """That of a leaf, which may be a `jax.ShapeDtypeStruct`."""
        wide = jnp.result_type(jnp.float32, leaf.dtype)
        n = 1 if len(leaf.shape) < 2 else leaf.shape[-1]
        m = leaf.size if len(leaf.shape) < 2 else math.prod(leaf.shape[:-1])

        def identity(k):
            small = k <= self.max_size
            return jnp.eye(k, dtype=wide) if small else jnp.ones((k,), wide)

        left, right = identity(m), identity(n)
        return Factor(jnp.zeros_like(left), jnp.zeros_like(right), left, right)

    def _estimate(
        self,
        factors: list[Factor],
        product: Operator,
        grads: PyTree,
        key: jax.Array,
        fresh: jax.Array,
    ) -> tuple[list[Sides], jax.Array]:
        """The sums of ``Y Y^H`` and ``Y^H Y`` over products, and how many there are."""
        saved = self.fraction / share_of(product)  # 1 where data can be split
        number = jnp.where(
            fresh,
            max(1, round(self.first_probes * saved)),
            max(1, round(self.probes * saved)),
        )

        def probe(i, total):
            y = product(pytree.random_signs(jax.random.fold_in(key, i), grads))
            new = list(map(grams_like, factors, jax.tree.leaves(y)))
            return jax.tree.map(jnp.add, total, new)

        zeros = [Sides(*map(jnp.zeros_like, (f.left, f.right))) for f in factors]
        return jax.lax.fori_loop(0, number, probe, zeros), number

    def _is_due(self, steps: jax.Array) -> jax.Array:
        every = self.refresh(steps) if callable(self.refresh) else self.refresh
        return steps % jnp.maximum(jnp.asarray(every).astype(jnp.int32), 1) == 0

    def _own_damping(self, steps: jax.Array) -> jax.Array | float:
        halving = self.damping_halving
        return self.damping / (1 + (0.0 if halving is None else steps / halving))


def _times(state: KroneckerState, r: PyTree) -> PyTree:
    """Both (roots of) inverse factors of each leaf times the leaf."""
    leaves, treedef = jax.tree.flatten(r)
    return treedef.unflatten(
        times(f, as_matrix(x)).reshape(x.shape).astype(x.dtype)
        for f, x in zip(of_leaves(state.factors), leaves, strict=True)
    )
