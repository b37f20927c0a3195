"""Kronecker factors of the curvature, estimated from products with random vectors."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from ncg_optax._utils import pytree, validate
from ncg_optax.preconditioners.base import Preconditioner

PyTree = Any


class Factor(NamedTuple):
    """The Kronecker factors of one leaf, seen as a matrix of shape (m, n).

    In a state its fields are trees of these, see :class:`KroneckerState`.

    Attributes:
      left: running mean of ``Y Y^H``, shape (m, m), or its diagonal, shape (m,).
      right: running mean of ``Y^H Y``, shape (n, n), or its diagonal, shape (n,).
      left_inverse: of the damped ``L``, shaped like ``left``; its square root if that
        was asked for.
      right_inverse: of the damped ``R``, shaped like ``right``, likewise.
    """

    left: jax.Array
    right: jax.Array
    left_inverse: jax.Array
    right_inverse: jax.Array


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


def _of_trees(factors: list[Factor], treedef: Any) -> Factor:
    """The factors of all leaves as one factor of trees."""
    fields = ([getattr(f, name) for f in factors] for name in Factor._fields)
    return Factor(*map(treedef.unflatten, fields))


def _of_leaves(factors: Factor) -> list[Factor]:
    """The other way: a factor for each leaf."""
    return list(map(Factor, *map(jax.tree.leaves, factors)))


class _Sides(NamedTuple):
    """One array for each side of a leaf."""

    left: jax.Array
    right: jax.Array


def _as_matrix(x: jax.Array) -> jax.Array:
    """Folds a leaf: vectors to one column, kernels to (spatial and inputs, outputs)."""
    if x.ndim < 2:
        return x.reshape(-1, 1)
    return x.reshape(math.prod(x.shape[:-1]), x.shape[-1])


def _gram(y: jax.Array, full: bool) -> jax.Array:
    """``Y Y^H`` or its diagonal."""
    return y @ jnp.conj(y.T) if full else jnp.sum(jnp.abs(y) ** 2, axis=1)


def _grams_like(factor: Factor, y: jax.Array) -> _Sides:
    """The contribution of a product ``y`` to the factors of its leaf."""
    y = _as_matrix(y)
    return _Sides(
        _gram(y, factor.left.ndim == 2), _gram(jnp.conj(y.T), factor.right.ndim == 2)
    )


# One matrix at a time, under vmap as well. On a CPU with jax 0.10, several batched
# decompositions at once wait for each other's threads for ever, if these are few: an
# ensemble of four networks did on two cores.
_eigh = jax.custom_batching.sequential_vmap(lambda gram: tuple(jnp.linalg.eigh(gram)))


class _Eigen(NamedTuple):
    values: jax.Array  # not negative, shape (k,)
    basis: jax.Array  # shape (k, k); of a diagonal (k,), where it is not looked at


def _eigen(gram: jax.Array) -> _Eigen:
    """Eigenvalues and eigenvectors of the factor whose square is ``gram``."""
    if gram.ndim == 1:
        return _Eigen(jnp.sqrt(gram.real), gram)
    values, vectors = _eigh(gram)
    return _Eigen(jnp.sqrt(jnp.maximum(values, 0)), vectors)


def _function_of(eigen: _Eigen, values: jax.Array) -> jax.Array:
    """The matrix, or diagonal, with these eigenvectors and other eigenvalues."""
    if eigen.basis.ndim == 1:
        return values.astype(eigen.basis.dtype)
    return (eigen.basis * values) @ jnp.conj(eigen.basis.T)


def _damped(values: _Sides, lam: jax.Array, own: jax.Array | float) -> _Sides:
    """Eigenvalues of both sides, each damped by ``c`` times its mean.

    The equation is that of :func:`kronecker`. What all have in common, the product of
    the means, is kept on the left.
    """
    means = _Sides(*map(jnp.mean, values))
    mean = means.left * means.right
    alive = mean > 0
    # A dead leaf is divided by lambda, or by 1 if that is zero too.
    unit = jnp.where(alive, mean, jnp.where(lam > 0, lam, 1))
    shared, own = jnp.where(alive, lam / unit, 1), jnp.where(alive, own, 0)
    left, right = (
        jnp.where(alive, x / jnp.where(alive, m, 1), 0)
        for x, m in zip(values, means, strict=True)
    )
    one_sided = 1 in (left.size, right.size)
    c = shared + own if one_sided else jnp.sqrt(shared + jnp.square(own))
    c = jnp.where(c > 0, c, 1)
    if right.size == 1:
        return _Sides(unit * (left + c), jnp.ones_like(right))
    if left.size == 1:
        return _Sides(unit * jnp.ones_like(left), right + c)
    return _Sides(unit * (left + c), right + c)


def _inverses(factor: Factor, lam: jax.Array, own: jax.Array, power: float) -> _Sides:
    """The inverses of both damped sides, or their ``power``.

    With ``B = R (x) L`` and random ``V``, ``Y = L V R`` has ``E[Y Y^H] = tr(R^2) L^2``
    and ``E[Y^H Y] = tr(L^2) R^2``, both of trace ``tr(L^2) tr(R^2)``.
    """
    left, right = _eigen(factor.left), _eigen(factor.right)
    total = jnp.sum(jnp.square(left.values))
    size = jnp.sqrt(jnp.where(total > 0, total, 1))
    damped = _damped(_Sides(left.values, right.values / size), lam, own)
    return _Sides(
        _function_of(left, damped.left**-power),
        _function_of(right, damped.right**-power),
    )


def _inverted(
    factors: list[Factor], lam: jax.Array, own: jax.Array, power: float
) -> list[Factor]:
    """The factors with their inverses, or their ``power``, brought up to date.

    Those of one type, by shape, dtype and sharding, go through one program: a deep
    network has hundreds of leaves, of a few shapes, and each would be compiled.
    """
    kinds = pytree.indices_by(lambda f: tuple(map(jax.typeof, f)), factors)
    inverted = list(factors)
    for members in kinds.values():
        stacked = jax.tree.map(lambda *x: jnp.stack(x), *(factors[k] for k in members))
        inverses = jax.vmap(lambda f: _inverses(f, lam, own, power))(stacked)
        for i, k in enumerate(members):
            left, right = inverses.left[i], inverses.right[i]
            inverted[k] = Factor(factors[k].left, factors[k].right, left, right)
    return inverted


def _times(factor: Factor, x: jax.Array) -> jax.Array:
    """Left inverse, ``x`` and right inverse multiplied, shape (m, n)."""
    left, right = factor.left_inverse, factor.right_inverse
    x = left @ x if left.ndim == 2 else left[:, None] * x
    return x @ right if right.ndim == 2 else x * right


def kronecker(
    decay: float = 0.95,
    refresh: int | optax.Schedule = 5,
    probes: int = 4,
    first_probes: int = 64,
    fraction: float = 1 / 8,
    damping: float = 0.1,
    damping_halving: float | None = 20,
    max_size: int = 1024,
    with_sqrt: bool = False,
) -> Preconditioner:
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

    Args:
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

    Returns:
      A :class:`Preconditioner`, with a square root if that was asked for.

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
    validate.number("kronecker: decay", decay, low=0.0, high=1.0, high_open=True)
    if not callable(refresh):
        validate.integer(
            "kronecker: refresh", refresh, low=1, other="an optax schedule"
        )
    validate.integer("kronecker: probes", probes, low=1)
    validate.integer("kronecker: first_probes", first_probes, low=1)
    validate.number("kronecker: fraction", fraction, low=0.0, high=1.0, low_open=True)
    validate.number("kronecker: damping", damping, low=0.0)
    if damping_halving is not None:
        validate.number(
            "kronecker: damping_halving", damping_halving, low=0.0, low_open=True
        )
    validate.integer("kronecker: max_size", max_size, low=1)

    power = 0.5 if with_sqrt else 1.0

    def is_due(steps):
        every = refresh(steps) if callable(refresh) else refresh
        return steps % jnp.maximum(jnp.asarray(every).astype(jnp.int32), 1) == 0

    def init_factor(leaf):
        wide = jnp.result_type(jnp.float32, leaf.dtype)
        n = 1 if len(leaf.shape) < 2 else leaf.shape[-1]
        m = leaf.size if len(leaf.shape) < 2 else math.prod(leaf.shape[:-1])

        def identity(k):
            return jnp.eye(k, dtype=wide) if k <= max_size else jnp.ones((k,), wide)

        left, right = identity(m), identity(n)
        return Factor(jnp.zeros_like(left), jnp.zeros_like(right), left, right)

    def init(params):
        leaves, treedef = jax.tree.flatten(params)
        return KroneckerState(
            steps=jnp.zeros((), jnp.int32),
            factors=_of_trees(list(map(init_factor, leaves)), treedef),
        )

    def update(state, matvec, grads, lam, key, count):
        old = _of_leaves(state.factors)
        fresh = state.steps == 0
        saved = fraction / getattr(matvec, "share", 1.0)  # 1 where data can be split
        number = jnp.where(
            fresh, max(1, round(first_probes * saved)), max(1, round(probes * saved))
        )

        def probe(i, total):
            y = matvec(pytree.random_signs(jax.random.fold_in(key, i), grads))
            new = list(map(_grams_like, old, jax.tree.leaves(y)))
            return jax.tree.map(jnp.add, total, new)

        zeros = [_Sides(*map(jnp.zeros_like, (f.left, f.right))) for f in old]
        grams = jax.lax.fori_loop(0, number, probe, zeros)
        usable = pytree.all_finite(grams)
        share = jnp.where(fresh, 1.0, 1 - decay)

        def averaged(mean, total):
            mixed = (1 - share) * mean + share * total / number
            return jnp.where(usable, mixed, mean).astype(mean.dtype)

        factors = [
            f._replace(left=averaged(f.left, g.left), right=averaged(f.right, g.right))
            for f, g in zip(old, grams, strict=True)
        ]
        own = own_damping(state.steps)
        factors = jax.lax.cond(
            is_due(state.steps),
            lambda: _inverted(factors, lam, own, power),
            lambda: factors,
        )
        # Without any estimate the next step tries again.
        steps = state.steps + (usable | ~fresh).astype(jnp.int32)
        factors = _of_trees(factors, jax.tree.structure(grads))
        return KroneckerState(steps, factors), number

    def own_damping(steps):
        halvings = 0.0 if damping_halving is None else steps / damping_halving
        return damping / (1 + halvings)

    def times(state, r):
        leaves, treedef = jax.tree.flatten(r)
        return treedef.unflatten(
            _times(f, _as_matrix(x)).reshape(x.shape).astype(x.dtype)
            for f, x in zip(_of_leaves(state.factors), leaves, strict=True)
        )

    def apply(state, r, lam):
        return times(state, times(state, r)) if with_sqrt else times(state, r)

    def sqrt(state, r, lam):
        return times(state, r)

    return Preconditioner(
        init, update, apply, sqrt if with_sqrt else None, fraction=fraction
    )
