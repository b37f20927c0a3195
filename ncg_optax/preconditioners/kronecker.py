"""Kronecker factors of the curvature, estimated by products with random vectors."""

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
      steps: number of updates from the first finite estimate on, int32, shape=().
      factors: a named tuple of four trees with the structure of the parameters:
        ``left``, ``right``, ``left_inverse``, ``right_inverse``. Each leaf is an array,
        because Flax's ``nnx.Optimizer`` wraps it as it wraps the parameter.
    """

    steps: jax.Array
    factors: Factor


@dataclasses.dataclass(frozen=True)
class kronecker(Preconditioner):
    r"""Kronecker-factored preconditioner for any pytree, loss and curvature.

    Let the block of the curvature of a leaf of shape (m, n) be near :math:`R \otimes
    L`. A product with a matrix :math:`V` of random signs is :math:`Y = L V R`, so

    .. math::
      E[Y Y^H] = \operatorname{tr}(R^2)\, L^2, \qquad
      E[Y^H Y] = \operatorname{tr}(L^2)\, R^2

    and a few products with random vectors estimate the factors; the layers of the model
    need not be known. ``probes`` products per step enter a running mean. The squares
    of the factors are estimated, so the factors are positive semidefinite for every
    ``B``; if ``B`` is indefinite they approximate :math:`|B|`. The preconditioner is
    the inverse of

    .. math::
      (R + c\, \bar r\, I) \otimes (L + c\, \bar l\, I), \qquad
      c^2 = \Bigl(\frac{\text{damping}}{1 + t / \text{damping\_halving}}\Bigr)^2
        + \frac{\lambda}{\bar r \bar l}

    at step :math:`t`, with :math:`\bar l` and :math:`\bar r` the mean eigenvalues. Both
    factors are damped by the same multiple of their mean eigenvalue (Martens and Grosse
    2015, section 6.3). An application costs half as much as one that damps the
    Kronecker product by :math:`\bar l \bar r c^2` in its eigenbasis, and the result is
    better: a Kronecker product is least accurate in directions in which only one factor
    has a small eigenvalue. The first term of :math:`c^2` is the preconditioner's own
    damping. With :math:`\lambda` alone, inputs that are always zero prevent progress.
    The own damping decreases with :math:`t`: the early steps of autoencoders need a
    large one, the long runs of physics-informed networks a small one. For mini-batches
    :func:`stochastic_hessian_free` keeps it at 0.5. A vector is a matrix of one column
    and has one factor; there :math:`c` is the sum of both terms without the squares.
    Kernels of more than two axes are reshaped to (product of all axes but the last,
    last axis). A side longer than ``max_size`` gets a diagonal factor.

    At the same cost many products on few examples give a better estimate than few
    products on many examples. So the products are computed on a ``fraction`` of the
    batch. If they have to be computed on a larger share, for example because the data
    cannot be split, there are fewer of them, and the cost is the same.

    Cost: ``probes * fraction`` products with the whole batch per step (``first_probes *
    fraction`` at the first step), each with :math:`2 m n (m + n)` operations per leaf
    for its factors; every ``refresh`` steps eigendecompositions and inverses of about
    :math:`12 (m^3 + n^3)` operations; :math:`2 m n (m + n)` operations for each
    application. Memory: :math:`2 (m^2 + n^2)` numbers per leaf. Under `jax.vmap` (an
    ensemble) the factors are decomposed at every step.

    Attributes:
      decay: factor on the running means at each step, in [0, 1).
      refresh: number of steps from one eigendecomposition to the next, at least 1, or
        an optax schedule: in the first steps the curvature may grow by orders of
        magnitude, so the eigenvectors have to be updated more often. With a schedule
        :math:`s` the factors are decomposed at the steps :math:`t` that
        :math:`\lfloor s(t) \rfloor` divides.
      probes: number of products at each step, at least 1.
      first_probes: number of products at the first step, at least 1.
      fraction: share of the examples in these products, in (0, 1], but at least 32
        examples.
      damping: own damping at the first step, in units of the mean eigenvalue of each
        factor, at least 0.
      damping_halving: number of steps after which half of the own damping is left,
        above 0; None keeps it constant.
      max_size: largest side that gets a full factor, at least 1.
      with_sqrt: whether to store the square roots of the inverses instead of the
        inverses, for ``inner`` of :func:`compose`. Then an application costs twice as
        much.

    Raises:
      TypeError: if a setting is not a number, or if a count is not an integer.
      ValueError: if a setting is out of range or NaN.

    References:
      Martens and Grosse, Optimizing neural networks with Kronecker-factored approximate
      curvature, 2015, section 6.3 (damping of both factors).

    Examples:
      >>> import optax
      >>> import ncg_optax as ncg
      >>> tx = ncg.newton_cg(preconditioner=ncg.kronecker(refresh=10))
      >>> more_often_at_first = ncg.kronecker(refresh=optax.linear_schedule(1, 10, 20))
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
        """Whether the square roots of the inverses are stored."""
        return self.with_sqrt

    def init(self, params: PyTree) -> KroneckerState:
        """The state before the first estimate; the inverses are identities."""
        leaves, treedef = jax.tree.flatten(params)
        return KroneckerState(
            steps=jnp.zeros((), jnp.int32),
            factors=of_trees(list(map(self._first_factor, leaves)), treedef),
        )

    def update(self, state, product, grads, damping, key, count):
        """Adds new products to the running means; computes the inverses if due."""
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
        # If the first estimate is not finite the next step makes another one.
        steps = state.steps + (usable | ~fresh).astype(jnp.int32)
        trees = of_trees(factors, jax.tree.structure(grads))
        return KroneckerState(steps, trees), number

    def apply(self, state: KroneckerState, r: PyTree, damping: jax.Array) -> PyTree:
        """``r`` times the inverse factors, from both sides."""
        if self.with_sqrt:
            r = _times(state, r)
        return _times(state, r)

    def sqrt(self, state: KroneckerState, r: PyTree, damping: jax.Array) -> PyTree:
        """``r`` times the square roots of the inverse factors, from both sides."""
        if not self.with_sqrt:
            # The method of the protocol raises.
            return super().sqrt(state, r, damping)  # pyright: ignore[reportAbstractUsage]
        return _times(state, r)

    def _first_factor(self, leaf: Any) -> Factor:
        """The factors of a leaf, which may be a `jax.ShapeDtypeStruct`."""
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
        # On a larger share of the examples, fewer products cost the same.
        fewer = self.fraction / share_of(product)
        number = jnp.where(
            fresh,
            max(1, round(self.first_probes * fewer)),
            max(1, round(self.probes * fewer)),
        )

        def probe(i, total):
            y = product(pytree.random_signs(jax.random.fold_in(key, i), grads))
            new = list(map(grams_like, factors, jax.tree.leaves(y)))
            return jax.tree.map(jnp.add, total, new)

        zeros = [Sides(*map(jnp.zeros_like, (f.left, f.right))) for f in factors]
        return jax.lax.fori_loop(0, number, probe, zeros), number

    def _is_due(self, steps: jax.Array) -> jax.Array:
        """Whether the factors are decomposed at this step."""
        every = self.refresh(steps) if callable(self.refresh) else self.refresh
        return steps % jnp.maximum(jnp.asarray(every).astype(jnp.int32), 1) == 0

    def _own_damping(self, steps: jax.Array) -> jax.Array | float:
        """The own damping at this step, in units of the mean eigenvalue."""
        halving = self.damping_halving
        return self.damping / (1 + (0.0 if halving is None else steps / halving))


def _times(state: KroneckerState, r: PyTree) -> PyTree:
    """Each leaf of ``r`` times its two inverse factors, or their roots."""
    leaves, treedef = jax.tree.flatten(r)
    return treedef.unflatten(
        times(f, as_matrix(x)).reshape(x.shape).astype(x.dtype)
        for f, x in zip(of_leaves(state.factors), leaves, strict=True)
    )
