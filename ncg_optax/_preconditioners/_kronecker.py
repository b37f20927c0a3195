"""Kronecker factors of the curvature, estimated from products with random vectors."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from ncg_optax import _tree, _validate
from ncg_optax._preconditioners._base import Preconditioner

PyTree = Any


class Factor(NamedTuple):
    """The Kronecker factors of one leaf, seen as a matrix of shape (m, n).

    In a state its fields are trees of these, see :class:`KroneckerState`.

    Attributes:
      left: running mean of ``Y Y^H``, shape (m, m), or its diagonal, shape (m,).
      right: running mean of ``Y^H Y``, shape (n, n), or its diagonal, shape (n,).
      left_basis: eigenvectors of ``left``, shape (m, m); shape (0,) for a diagonal.
      right_basis: eigenvectors of ``right``, shape (n, n); shape (0,) likewise.
      left_values: eigenvalues of ``L``, shape (m,), up to a factor.
      right_values: eigenvalues of ``R``, shape (n,), over that factor.
    """

    left: jax.Array
    right: jax.Array
    left_basis: jax.Array
    right_basis: jax.Array
    left_values: jax.Array
    right_values: jax.Array

    @property
    def spectrum(self) -> jax.Array:
        """Eigenvalues of the leaf's block of the curvature, shape (m, n).

        Not kept: it would be one more array of the size of the parameters.
        """
        return self.left_values[:, None] * self.right_values


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
    return Factor(*map(treedef.unflatten, zip(*factors, strict=True)))


def _of_leaves(factors: Factor) -> list[Factor]:
    """The other way: a factor for each leaf."""
    return list(map(Factor, *map(jax.tree.leaves, factors)))


class _Grams(NamedTuple):
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


def _grams_like(factor: Factor, y: jax.Array) -> _Grams:
    """The contribution of a product ``y`` to the factors of its leaf."""
    y = _as_matrix(y)
    return _Grams(
        _gram(y, factor.left.ndim == 2), _gram(jnp.conj(y.T), factor.right.ndim == 2)
    )


def _rotate(basis: jax.Array, x: jax.Array) -> jax.Array:
    return basis @ x if basis.ndim == 2 else x


def _adjoint(basis: jax.Array) -> jax.Array:
    return jnp.conj(basis.T) if basis.ndim == 2 else basis


# One matrix at a time, under vmap as well. On a CPU with jax 0.10, several batched
# decompositions at once wait for each other's threads for ever, if these are few: an
# ensemble of four networks did on two cores.
_eigh = jax.custom_batching.sequential_vmap(lambda gram: tuple(jnp.linalg.eigh(gram)))


def _eigen(gram: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Eigenvalues (not negative) and eigenvectors of a factor."""
    if gram.ndim == 1:
        return gram.real, jnp.zeros((0,), gram.dtype)
    values, vectors = _eigh(gram)
    return jnp.maximum(values, 0), vectors


def _decomposed(factor: Factor) -> Factor:
    """The factor with its eigenvectors and eigenvalues brought up to date.

    With ``B = R (x) L`` and Gaussian ``V``, ``Y = L V R`` has
    ``E[Y Y^H] = tr(R^2) L^2`` and ``E[Y^H Y] = tr(L^2) R^2``, both of trace
    ``tr(L^2) tr(R^2)``.
    """
    left, left_basis = _eigen(factor.left)
    right, right_basis = _eigen(factor.right)
    total = jnp.sum(left)
    return factor._replace(
        left_basis=left_basis,
        right_basis=right_basis,
        left_values=jnp.sqrt(left),
        right_values=jnp.sqrt(right / jnp.where(total > 0, total, 1)),
    )


def kronecker(
    decay: float = 0.95,
    refresh: int | optax.Schedule = 5,
    probes: int = 4,
    first_probes: int = 64,
    fraction: float = 1 / 8,
    damping: float = 0.01,
    damping_halving: float | None = 20,
    max_size: int = 1024,
) -> Preconditioner:
    r"""Kronecker-factored preconditioner for any pytree, loss and curvature.

    For a leaf of shape (m, n) whose block of the curvature is near :math:`R \otimes
    L`, a product with a Gaussian :math:`V` is :math:`Y = L V R`, so

    .. math::
      E[Y Y^H] = \operatorname{tr}(R^2)\, L^2, \qquad
      E[Y^H Y] = \operatorname{tr}(L^2)\, R^2

    and a few products with random vectors give the factors, without knowing about
    layers: ``probes`` of them a step, averaged exponentially. As the squares are
    estimated, the result is positive semidefinite whatever ``B`` is, and stands for
    :math:`|B|` if it is indefinite. In the eigenbases the preconditioner divides by

    .. math::
      \sigma_{ij} + \lambda
      + \frac{\text{damping}}{1 + t / \text{damping\_halving}}
      \operatorname{mean}(\sigma)

    at step :math:`t`. The last term is its own: sharing only :math:`\lambda` with the
    operator lets dead inputs stall it. It falls, as the early steps of autoencoders
    need more of it than the long runs of physics-informed networks bear: a constant 0.1
    keeps those on their plateau for good, and 0.001 from the first step slows these.
    For mini-batches :func:`stochastic_hessian_free` keeps it at 0.3. Vectors are
    one-column matrices, kernels of more than two axes are folded to (all but the last,
    last), a side longer than ``max_size`` gets a diagonal factor.

    Many products on few examples tell more than few on many, so they are made on a
    ``fraction`` of the batch. Where the data cannot be split there are fewer of them,
    for the same price.

    Cost: ``probes * fraction`` products with the whole batch a step (``first_probes *
    fraction`` at the first), each with :math:`2 m n (m + n)` operations a leaf for its
    factors; every ``refresh`` steps eigendecompositions of about :math:`10 (m^3 +
    n^3)`; each application :math:`4 m n (m + n)`. Memory: :math:`2 (m^2 + n^2) + m + n`
    numbers a leaf.

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
      damping: own damping at the first step, in units of the mean eigenvalue of the
        leaf.
      damping_halving: steps until half of it is left, or None to keep it.
      max_size: longest side with a full factor.

    Returns:
      A :class:`Preconditioner`.

    Raises:
      TypeError: if a setting is not a number, or a count not an integer.
      ValueError: if a setting is out of range or NaN.

    Examples:
      >>> import optax
      >>> import ncg_optax as ncg
      >>> tx = ncg.newton_cg(preconditioner=ncg.kronecker(refresh=10))
      >>> often_at_first = ncg.kronecker(refresh=optax.linear_schedule(1, 10, 20))
    """
    _validate.number("kronecker: decay", decay, low=0.0, high=0.9999)
    if not callable(refresh):
        _validate.integer(
            "kronecker: refresh", refresh, low=1, other="an optax schedule"
        )
    _validate.integer("kronecker: probes", probes, low=1)
    _validate.integer("kronecker: first_probes", first_probes, low=1)
    _validate.number("kronecker: fraction", fraction, low=0.0, high=1.0, low_open=True)
    _validate.number("kronecker: damping", damping, low=0.0)
    if damping_halving is not None:
        _validate.number(
            "kronecker: damping_halving", damping_halving, low=0.0, low_open=True
        )
    _validate.integer("kronecker: max_size", max_size, low=1)

    def is_due(steps):
        every = refresh(steps) if callable(refresh) else refresh
        return steps % jnp.maximum(jnp.asarray(every).astype(jnp.int32), 1) == 0

    def init_factor(leaf):
        wide = jnp.result_type(jnp.float32, leaf.dtype)
        n = 1 if len(leaf.shape) < 2 else leaf.shape[-1]
        m = leaf.size if len(leaf.shape) < 2 else math.prod(leaf.shape[:-1])

        def side(k):
            full = k <= max_size
            gram = jnp.zeros((k, k) if full else (k,), wide)
            return gram, jnp.zeros((k, k) if full else (0,), wide)

        left, left_basis = side(m)
        right, right_basis = side(n)
        values = (jnp.zeros((k,), jnp.finfo(wide).dtype) for k in (m, n))
        return Factor(left, right, left_basis, right_basis, *values)

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
            y = matvec(_tree.random_normal(jax.random.fold_in(key, i), grads))
            new = list(map(_grams_like, old, jax.tree.leaves(y)))
            return jax.tree.map(jnp.add, total, new)

        zeros = [_Grams(*map(jnp.zeros_like, (f.left, f.right))) for f in old]
        grams = jax.lax.fori_loop(0, number, probe, zeros)
        usable = _tree.all_finite(grams)
        share = jnp.where(fresh, 1.0, 1 - decay)

        def averaged(mean, total):
            mixed = (1 - share) * mean + share * total / number
            return jnp.where(usable, mixed, mean).astype(mean.dtype)

        factors = [
            f._replace(left=averaged(f.left, g.left), right=averaged(f.right, g.right))
            for f, g in zip(old, grams, strict=True)
        ]
        factors = jax.lax.cond(
            is_due(state.steps),
            lambda: list(map(_decomposed, factors)),
            lambda: factors,
        )
        # Without any estimate the next step tries again.
        steps = state.steps + (usable | ~fresh).astype(jnp.int32)
        factors = _of_trees(factors, jax.tree.structure(grads))
        return KroneckerState(steps, factors), number

    def own_damping(steps, dtype):
        if damping_halving is None:
            return damping
        before = jnp.maximum(steps - 1, 0).astype(dtype)  # updates before this one
        return damping / (1 + before / damping_halving)

    def divided(factor, r, lam, own, of):
        spectrum = factor.spectrum
        floor = lam + own * jnp.mean(spectrum)
        scale = of(spectrum + jnp.where(floor > 0, floor, 1))
        x = _rotate(_adjoint(factor.left_basis), _as_matrix(r))
        x = jnp.conj(_rotate(_adjoint(factor.right_basis), jnp.conj(x.T)).T) / scale
        x = _rotate(factor.left_basis, x)
        x = jnp.conj(_rotate(factor.right_basis, jnp.conj(x.T)).T)
        return x.reshape(r.shape).astype(r.dtype)

    def divided_by(of, state, r, lam):
        leaves, treedef = jax.tree.flatten(r)
        own = own_damping(state.steps, _tree.scalar_dtype(r))
        return treedef.unflatten(
            divided(f, leaf, lam, own, of)
            for f, leaf in zip(_of_leaves(state.factors), leaves, strict=True)
        )

    return Preconditioner(
        init,
        update,
        apply=lambda state, r, lam: divided_by(lambda x: x, state, r, lam),
        sqrt=lambda state, r, lam: divided_by(jnp.sqrt, state, r, lam),
        fraction=fraction,
    )
