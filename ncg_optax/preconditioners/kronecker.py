"""Kronecker factors of the curvature, estimated by products with random vectors."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from ncg_optax._utils import pytree, validate
from ncg_optax._utils.schedules import linear_schedule
from ncg_optax.curvature.base import matmul_precision, share_of
from ncg_optax.preconditioners import kronecker_stacks as stacks
from ncg_optax.preconditioners import sharing
from ncg_optax.preconditioners.base import Preconditioner
from ncg_optax.preconditioners.kronecker_factors import (
    Factor,
    Sides,
    as_matrix,
    estimate_weight,
    first_factor,
    gram,
    inverse_eigenvalues,
    is_full,
    rescaled,
    times,
)
from ncg_optax.solvers.base import Operator

PyTree = Any

# Number of orthogonal iterations at the first step, which begins with the identity.
FIRST_ITERATIONS = 8
# Least number of products at the first step, unless `first_probes` is less.
FIRST_PRODUCTS = 8
# Longest vector with a full factor. Each product adds one column to its estimate.
MAX_VECTOR = 16


class KroneckerState(NamedTuple):
    """State of :func:`kronecker`.

    Attributes:
      steps: number of updates from the first finite estimate on, int32, shape=().
      turn: the part of a cycle of ``refresh`` steps that is over, in units of
        1 / ``CYCLE``, int32, shape=().
      left: the left factors: a :class:`Factor` of trees with the structure of the
        parameters. Each leaf is an array, because Flax's ``nnx.Optimizer`` wraps it as
        it wraps the parameter.
      right: the right factors, likewise.
    """

    steps: jax.Array
    turn: jax.Array
    left: Factor
    right: Factor


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
    damping; with :math:`\lambda` alone, inputs that are always zero prevent progress.
    It decreases: early steps of autoencoders need a large one, late ones a small one.

    A vector is a matrix of one column and has one factor; there :math:`c` is the sum of
    both terms without the squares. The factor of more than 16 elements is a diagonal:
    few columns leave out directions, in which steps are too long. Kernels of more than
    two axes are reshaped to (product of all axes but the last, last axis). A side
    longer than ``max_size`` gets a diagonal factor.

    The eigenvectors of each factor are followed by orthogonal iterations ``Q <- qr(G
    Q)`` with ``G`` the estimate of the squared factor: a few from the last eigenvectors
    are as good as a decomposition, at a fraction of its time on a GPU. Factors are due
    in turn, so that no step takes longer than others; one whose eigenvectors are older
    is scaled to the trace of its present estimate.

    At the same cost many products on few examples are better than few products on many.
    So they are computed on a ``fraction`` of the batch. On a larger share, for example
    if the data cannot be split, there are fewer of them at the same cost; but at least
    8 at the first step: fewer leave out directions of short vectors.

    Cost: ``probes * fraction`` products with the whole batch per step (``first_probes *
    fraction`` at the first step), each with :math:`2 m n (m + n)` operations per leaf
    for its factors; :math:`2 (m^3 + n^3)` operations for the inverses; in each of
    ``refresh`` steps about :math:`10 (m^3 + n^3)` operations for two iterations;
    :math:`2 m n (m + n)` operations for each application. Under a mapped axis the
    devices share the rows of all these products, and deal out the iterations. Memory:
    :math:`2 (m^2 + n^2)` numbers per leaf.

    Attributes:
      decay: factor on the running means at each step, in [0, 1). In the first steps t
        it is less: a new estimate has the weight 2 / (t + 2), but at most c / (c + 3 k)
        with c columns for a side of length k.
      refresh: number of steps in which each factor is due once, at least 1, or an optax
        schedule of the number of steps done (1 where it is less). By default a
        twentieth of the steps done, 10 at most: in the first steps the curvature may
        grow by orders of magnitude, so all factors are due at each of them.
      iterations: number of orthogonal iterations for a factor that is due, at least 1;
        at the first step at least 8.
      probes: number of products at each step, at least 1.
      first_probes: number of products at the first step, at least 1.
      fraction: share of the examples in these products, in (0, 1], but at least 32
        examples.
      damping: own damping at the first step, in units of the mean eigenvalue of each
        factor, at least 0.
      damping_halving: number of steps after which half of the own damping is left,
        above 0; None keeps it constant.
      max_size: largest side that gets a full factor, at least 1.
      with_sqrt: whether to compute the square roots of the inverses instead of the
        inverses, for ``inner`` of :func:`compose`. Then an application costs twice as
        much.
      axes: mapped axes whose devices share the work; set by the optimizer.

    Raises:
      TypeError: if a setting is not a number, or if a count is not an integer.
      ValueError: if a setting is out of range or NaN.

    References:
      Martens and Grosse, Optimizing neural networks with Kronecker-factored approximate
      curvature, 2015, section 6.3 (damping of both factors); Golub and Van Loan,
      Matrix computations, 2013, section 8.2.4 (orthogonal iteration).

    Examples:
      >>> import optax
      >>> import ncg_optax as ncg
      >>> tx = ncg.newton_cg(preconditioner=ncg.kronecker(refresh=10))
      >>> more_often_at_first = ncg.kronecker(refresh=optax.linear_schedule(1, 10, 20))
    """

    decay: float = 0.95
    refresh: int | optax.Schedule = linear_schedule(0, 10, 200)
    iterations: int = 2
    probes: int = 2
    first_probes: int = 16
    fraction: float = 1 / 8
    damping: float = 0.1
    damping_halving: float | None = 20
    max_size: int = 1024
    with_sqrt: bool = False
    axes: tuple[str, ...] = ()

    def __post_init__(self):
        def number(name, **interval):
            validate.number(f"kronecker: {name}", getattr(self, name), **interval)

        def integer(name, **limits):
            validate.integer(f"kronecker: {name}", getattr(self, name), **limits)

        number("decay", low=0.0, high=1.0, high_open=True)
        validate.integer_or_schedule("kronecker: refresh", self.refresh, low=1)
        integer("iterations", low=1)
        integer("probes", low=1)
        integer("first_probes", low=1)
        number("fraction", low=0.0, high=1.0, low_open=True)
        number("damping", low=0.0)
        if self.damping_halving is not None:
            number("damping_halving", low=0.0, low_open=True)
        integer("max_size", low=1)
        validate.flag("kronecker: with_sqrt", self.with_sqrt)

    @property
    def has_sqrt(self) -> bool:
        """Whether there are square roots of the inverses."""
        return self.with_sqrt

    def over(self, axes: tuple[str, ...]) -> "kronecker":
        """Devices share the estimates, iterations, inverses and applications."""
        return dataclasses.replace(self, axes=axes)

    def init(self, params: PyTree) -> KroneckerState:
        """The state before the first estimate."""
        leaves, treedef = jax.tree.flatten(params)
        factors = [side for leaf in leaves for side in self._first_factors(leaf)]
        zero = jnp.zeros((), jnp.int32)
        return KroneckerState(zero, zero, *_trees(factors, treedef))

    def update(self, state, product, grads, damping, key, count):
        """Adds products to the running means, and iterates the eigenvectors in turn."""
        fresh = state.steps == 0
        factors = _sides(state)
        grams, number = self._estimate(factors, product, grads, key, fresh)
        usable = pytree.all_finite(grams)
        weights = []
        for sides in map(Sides, factors[::2], factors[1::2]):
            weight = estimate_weight(sides, number, state.steps, self.decay)
            weights += [weight, weight]

        def averaged(factor, total, weight):
            mixed = (1 - weight) * factor.gram + weight * total / number
            mixed = jnp.where(usable, mixed, factor.gram).astype(factor.gram.dtype)
            return factor._replace(gram=mixed)

        factors = list(map(averaged, factors, grams, weights))
        advance = jnp.where(fresh, stacks.CYCLE, self._advance(state.steps))
        with matmul_precision("highest"):
            least = jnp.where(fresh, FIRST_ITERATIONS, 0)
            iterations = jnp.maximum(least, self.iterations)
            factors = stacks.in_turn(
                factors, state.turn, advance, iterations, self.axes
            )
        # If the first estimate is not finite the next step makes another one.
        steps = state.steps + (usable | ~fresh).astype(jnp.int32)
        turn = (state.turn + advance) % stacks.CYCLE
        trees = _trees(factors, jax.tree.structure(grads))
        return KroneckerState(steps, turn, *trees), number

    def prepare(self, state: KroneckerState, damping: jax.Array) -> list[Sides]:
        """The inverse factors of each leaf, or their roots: the own rows of the left.

        They are damped for the present step, also if their eigenvectors are older.
        """
        factors = _sides(state)
        own = self._own_damping(jnp.maximum(state.steps - 1, 0))
        values = []
        for left, right in zip(factors[::2], factors[1::2], strict=True):
            pair = rescaled(left), rescaled(right)
            values.extend(inverse_eigenvalues(*pair, damping, own))
        if self.with_sqrt:
            values = list(map(jnp.sqrt, values))
        with matmul_precision("highest"):
            inverses = stacks.own_inverses(factors, values, self.axes)
        rights = stacks.whole(inverses[1::2], factors[1::2], self.axes)
        return list(map(Sides, inverses[::2], rights))

    def apply(self, state: list[Sides], r: PyTree, damping: jax.Array) -> PyTree:
        """``r`` times the inverse factors, from both sides."""
        if self.with_sqrt:
            r = self._times(state, r)
        return self._times(state, r)

    def sqrt(self, state: list[Sides], r: PyTree, damping: jax.Array) -> PyTree:
        """``r`` times the square roots of the inverse factors, from both sides."""
        if not self.with_sqrt:
            # The method of the protocol raises.
            return super().sqrt(state, r, damping)  # pyright: ignore[reportAbstractUsage]
        return self._times(state, r)

    def _first_factors(self, leaf: Any) -> list[Factor]:
        """Both factors of a leaf, which may be a `jax.ShapeDtypeStruct`."""
        wide = jnp.result_type(jnp.float32, leaf.dtype)
        sides = jax.eval_shape(as_matrix, leaf).shape
        largest = self.max_size if min(sides) > 1 else min(MAX_VECTOR, self.max_size)
        return [first_factor(k, largest, wide) for k in sides]

    def _estimate(
        self,
        factors: list[Factor],
        product: Operator,
        grads: PyTree,
        key: jax.Array,
        fresh: jax.Array,
    ) -> tuple[list[jax.Array], jax.Array]:
        """The sums of ``Y Y^H`` and ``Y^H Y`` over products, and how many there are."""
        # On a larger share of the examples, fewer products cost the same.
        fewer = self.fraction / share_of(product)
        least = min(self.first_probes, FIRST_PRODUCTS)
        first = max(least, round(self.first_probes * fewer))
        number = jnp.where(fresh, first, max(1, round(self.probes * fewer)))

        def own_rows(x):
            return sharing.own_rows(x, self.axes)

        def probe(i, totals):
            y = product(pytree.random_signs(jax.random.fold_in(key, i), grads))
            matrices = map(as_matrix, jax.tree.leaves(y))
            sides = [side for x in matrices for side in (x, jnp.conj(x.T))]
            return [
                total
                + (gram(own_rows(x), x, True) if is_full(f) else gram(x, x, False))
                for total, f, x in zip(totals, factors, sides, strict=True)
            ]

        zeros = [jnp.zeros_like(f.gram) for f in factors]
        own = [
            own_rows(z) if is_full(f) else z
            for z, f in zip(zeros, factors, strict=True)
        ]
        totals = jax.lax.fori_loop(0, number, probe, own)
        return stacks.whole(totals, factors, self.axes), number

    def _own_damping(self, steps: jax.Array) -> jax.Array | float:
        """The own damping at this step, in units of the mean eigenvalue."""
        halving = self.damping_halving
        return self.damping / (1 + (0.0 if halving is None else steps / halving))

    def _advance(self, steps: jax.Array) -> jax.Array:
        """The part of a cycle that this step is, in units of 1 / ``CYCLE``, int32."""
        every = self.refresh(steps) if callable(self.refresh) else self.refresh
        every = jnp.maximum(jnp.asarray(every, jnp.float32), 1)
        return jnp.round(stacks.CYCLE / every).astype(jnp.int32)

    def _times(self, prepared: list[Sides], r: PyTree) -> PyTree:
        """Each leaf of ``r`` times its two inverse factors, or their roots."""
        leaves, treedef = jax.tree.flatten(r)
        matrices = list(map(as_matrix, leaves))
        parts = []
        for sides, x in zip(prepared, matrices, strict=True):
            if sides.left.ndim == 1:  # a diagonal, with the rows of all devices
                x = sharing.own_rows(x, self.axes)
                sides = sides._replace(left=sharing.own_rows(sides.left, self.axes))
            parts.append(times(sides, x))
        whole = sharing.all_rows(parts, [len(x) for x in matrices], self.axes)
        return treedef.unflatten(
            z.reshape(x.shape).astype(x.dtype)
            for z, x in zip(whole, leaves, strict=True)
        )


def _trees(factors: list[Factor], treedef: Any) -> tuple[Factor, Factor]:
    """The left and the right factors of all leaves, each a :class:`Factor` of trees."""

    def trees(sides):
        # Not by zip: optax initialises a tree without leaves.
        return Factor(*(treedef.unflatten(f[k] for f in sides) for k in range(3)))

    return trees(factors[::2]), trees(factors[1::2])


def _sides(state: KroneckerState) -> list[Factor]:
    """The left and the right factor of each leaf, in turn."""
    left, right = (
        list(map(Factor, *map(jax.tree.leaves, side)))
        for side in (state.left, state.right)
    )
    return [f for pair in zip(left, right, strict=True) for f in pair]
