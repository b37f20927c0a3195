"""Kronecker factors of the curvature, estimated from products with random vectors."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ncg_optax import _tree, _validate
from ncg_optax._preconditioners._base import Preconditioner

PyTree = Any


class Factor(NamedTuple):
    """The Kronecker factors of one leaf, seen as a matrix of shape (m, n).

    Attributes:
      left: running mean of ``Y Y^H``, shape (m, m), or its diagonal, shape (m,).
      right: running mean of ``Y^H Y``, shape (n, n), or its diagonal, shape (n,).
      left_basis: eigenvectors of ``left``, shape (m, m); shape (0,) for a diagonal.
      right_basis: eigenvectors of ``right``, shape (n, n); shape (0,) likewise.
      spectrum: eigenvalues of the leaf's block of the curvature, shape (m, n).
    """

    left: jax.Array
    right: jax.Array
    left_basis: jax.Array
    right_basis: jax.Array
    spectrum: jax.Array


class KroneckerState(NamedTuple):
    """State of :func:`kronecker`.

    Attributes:
      steps: updates so far, int32, shape=().
      factors: a tuple of :class:`Factor`, one for each leaf.
    """

    steps: jax.Array
    factors: tuple[Factor, ...]


def _as_matrix(x: jax.Array) -> jax.Array:
    """Folds a leaf: vectors to one column, kernels to (spatial and inputs, outputs)."""
    return x.reshape(-1, 1) if x.ndim < 2 else x.reshape(-1, x.shape[-1])


def _gram(y: jax.Array, full: bool) -> jax.Array:
    """``Y Y^H`` or its diagonal."""
    return y @ jnp.conj(y.T) if full else jnp.sum(jnp.abs(y) ** 2, axis=1)


def _eigen(gram: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Eigenvalues (not negative) and eigenvectors of a factor."""
    if gram.ndim == 1:
        return gram, jnp.zeros((0,), gram.dtype)
    values, vectors = jnp.linalg.eigh(gram)
    return jnp.maximum(values, 0), vectors


def _rotate(basis: jax.Array, x: jax.Array) -> jax.Array:
    return basis @ x if basis.ndim == 2 else x


def _adjoint(basis: jax.Array) -> jax.Array:
    return jnp.conj(basis.T) if basis.ndim == 2 else basis


def _decomposed(factor: Factor) -> Factor:
    """The factor with its eigenvectors and spectrum brought up to date.

    With ``B = R (x) L`` and Gaussian ``V``, ``Y = L V R`` has
    ``E[Y Y^H] = tr(R^2) L^2`` and ``E[Y^H Y] = tr(L^2) R^2``, both of trace
    ``tr(L^2) tr(R^2)``.
    """
    left, left_basis = _eigen(factor.left)
    right, right_basis = _eigen(factor.right)
    total = jnp.sum(left)
    square = left[:, None] * right[None, :] / jnp.where(total > 0, total, 1)
    return factor._replace(
        left_basis=left_basis,
        right_basis=right_basis,
        spectrum=jnp.sqrt(square).astype(factor.spectrum.dtype),
    )


def kronecker(
    decay: float = 0.95,
    refresh: int = 5,
    first_probes: int = 8,
    damping: float = 0.1,
    max_size: int = 1024,
) -> Preconditioner:
    r"""Kronecker-factored preconditioner for any pytree, loss and curvature.

    For a leaf of shape (m, n) whose block of the curvature is near :math:`R \otimes
    L`, a product with a Gaussian :math:`V` is :math:`Y = L V R`, so

    .. math::
      E[Y Y^H] = \operatorname{tr}(R^2)\, L^2, \qquad
      E[Y^H Y] = \operatorname{tr}(L^2)\, R^2

    and a few products with random vectors give the factors, without knowing about
    layers: one product a step, averaged exponentially. As the squares are estimated,
    the result is positive semidefinite whatever ``B`` is, and stands for
    :math:`|B|` if it is indefinite. In the eigenbases the preconditioner divides by

    .. math::
      \sigma_{ij} + \lambda + \text{damping} \cdot \operatorname{mean}(\sigma)

    The last term is its own: sharing only :math:`\lambda` with the operator lets dead
    inputs stall it. Vectors are one-column matrices, kernels of more than two axes
    are folded to (all but the last, last), a side longer than ``max_size`` gets a
    diagonal factor.

    Cost: a product a step (``first_probes`` at the first) and, every ``refresh``
    steps, eigendecompositions of about :math:`10 (m^3 + n^3)` operations a leaf; each
    application :math:`4 m n (m + n)`. Memory: :math:`2 (m^2 + n^2) + m n` numbers a
    leaf.

    Args:
      decay: of the running means, in [0, 1).
      refresh: steps from one eigendecomposition to the next.
      first_probes: products at the first step.
      damping: own damping, in units of the mean eigenvalue of the leaf.
      max_size: longest side with a full factor.

    Returns:
      A :class:`Preconditioner`.

    Raises:
      TypeError: if a setting is not a number, or a count not an integer.
      ValueError: if a setting is out of range or NaN.

    Examples:
      >>> import ncg_optax as ncg
      >>> tx = ncg.newton_cg(preconditioner=ncg.kronecker(refresh=10))
    """
    _validate.number("kronecker: decay", decay, low=0.0, high=0.9999)
    _validate.integer("kronecker: refresh", refresh, low=1)
    _validate.integer("kronecker: first_probes", first_probes, low=1)
    _validate.number("kronecker: damping", damping, low=0.0)
    _validate.integer("kronecker: max_size", max_size, low=1)

    def init_factor(leaf):
        wide = jnp.result_type(jnp.float32, leaf.dtype)
        size = leaf.size
        n = 1 if len(leaf.shape) < 2 else leaf.shape[-1]
        m = size // n

        def side(k):
            shape = (k, k) if k <= max_size else (k,)
            basis = jnp.zeros(shape if k <= max_size else (0,), wide)
            return jnp.zeros(shape, wide), basis

        left, left_basis = side(m)
        right, right_basis = side(n)
        spectrum = jnp.zeros((m, n), jnp.finfo(wide).dtype)
        return Factor(left, right, left_basis, right_basis, spectrum)

    def init(params):
        return KroneckerState(
            steps=jnp.zeros((), jnp.int32),
            factors=tuple(init_factor(leaf) for leaf in jax.tree.leaves(params)),
        )

    def update(state, matvec, grads, lam, key, count):
        fresh = state.steps == 0
        probes = jnp.where(fresh, first_probes, 1)

        def probe(i, grams):
            v = _tree.random_normal(jax.random.fold_in(key, i), grads)
            ys = [_as_matrix(y) for y in jax.tree.leaves(matvec(v))]
            return tuple(
                (
                    left + _gram(y, left.ndim == 2),
                    right + _gram(jnp.conj(y.T), right.ndim == 2),
                )
                for y, (left, right) in zip(ys, grams, strict=True)
            )

        zeros = tuple(
            (jnp.zeros_like(f.left), jnp.zeros_like(f.right)) for f in state.factors
        )
        grams = jax.lax.fori_loop(0, probes, probe, zeros)
        share = jnp.where(fresh, 1.0, 1 - decay)

        def averaged(old, new):
            mixed = (1 - share) * old + share * new / probes
            return jnp.where(jnp.all(jnp.isfinite(new)), mixed, old).astype(old.dtype)

        factors = tuple(
            f._replace(left=averaged(f.left, left), right=averaged(f.right, right))
            for f, (left, right) in zip(state.factors, grams, strict=True)
        )
        factors = jax.lax.cond(
            state.steps % refresh == 0,
            lambda: tuple(map(_decomposed, factors)),
            lambda: factors,
        )
        return KroneckerState(state.steps + 1, factors), probes

    def apply_factor(factor, r, lam):
        floor = lam + damping * jnp.mean(factor.spectrum)
        scale = factor.spectrum + jnp.where(floor > 0, floor, 1)
        x = _rotate(_adjoint(factor.left_basis), _as_matrix(r))
        x = jnp.conj(_rotate(_adjoint(factor.right_basis), jnp.conj(x.T)).T) / scale
        x = _rotate(factor.left_basis, x)
        x = jnp.conj(_rotate(factor.right_basis, jnp.conj(x.T)).T)
        return x.reshape(r.shape).astype(r.dtype)

    def apply(state, r, lam):
        leaves, treedef = jax.tree.flatten(r)
        return treedef.unflatten(
            apply_factor(f, leaf, lam)
            for f, leaf in zip(state.factors, leaves, strict=True)
        )

    return Preconditioner(init, update, apply)
