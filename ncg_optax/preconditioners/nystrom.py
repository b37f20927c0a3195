"""Eigenvectors of the largest eigenvalues of the curvature, by random products."""

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ncg_optax._utils import pytree, validate
from ncg_optax.preconditioners.base import Preconditioner
from ncg_optax.solvers.base import Operator

PyTree = Any
Sketch = PyTree  # ``rank`` vectors: a tree with leaves of shape (rank, *leaf.shape)


class NystromState(NamedTuple):
    """State of :func:`nystrom`.

    Attributes:
      steps: number of updates from the first finite sketch on, int32, shape=().
      vectors: eigenvectors, a tree shaped like the parameters with an additional first
        axis of length ``rank``; unused ones are zero.
      values: eigenvalues in ascending order, shape (rank,); 0 for unused ones.
    """

    steps: jax.Array
    vectors: Sketch
    values: jax.Array


def _contract(a: Sketch, b: PyTree) -> jax.Array:
    """``Re <a_i, b>``, or ``Re <a_i, b_j>`` if ``b`` is a sketch as well."""
    dtype = pytree.scalar_dtype((a, b))

    def leaf(x, y):
        k = x.ndim - 1
        axes = tuple(range(1, x.ndim)), tuple(range(y.ndim - k, y.ndim))
        product = jnp.tensordot(jnp.conj(x), y, axes, precision="highest")
        return jnp.real(product).astype(dtype)

    return pytree.add_leaves(jax.tree.map(leaf, a, b))


def _combine(weights: jax.Array, a: Sketch) -> PyTree:
    """``sum_i w_i a_i``; for a matrix of weights, one such sum for each row."""
    return jax.tree.map(
        lambda x: jnp.tensordot(weights, x, 1, precision="highest").astype(x.dtype), a
    )


def _inverse_root(x: jax.Array) -> jax.Array:
    """``x^(-1/2)``, and 0 where ``x`` is not positive."""
    return jnp.where(x > 0, jnp.where(x > 0, x, 1) ** -0.5, 0)


def _eigenpairs(omega: Sketch, y: Sketch) -> tuple[Sketch, jax.Array]:
    """Eigenvectors and eigenvalues of the Nystrom approximation from ``y = B omega``.

    Only matrices of shape (rank, rank) are factorised, and no leaves are concatenated.
    """
    # In an orthonormal basis of the span of omega, W = omega^T B omega = Q w Q^T.
    root = jnp.linalg.cholesky(_contract(omega, omega))
    whiten = jnp.linalg.inv(root)
    core = whiten @ _contract(omega, y) @ whiten.T
    w, q = jnp.linalg.eigh((core + core.T) / 2)
    eps = w.size * jnp.finfo(w.dtype).eps
    w += jnp.maximum(-2 * w[0], eps * w[-1])

    # Y W^-1 Y^T = F F^T, whose eigenvectors are F times those of F^T F.
    f = _combine((whiten.T @ q * _inverse_root(w)[None, :]).T, y)
    values, p = jnp.linalg.eigh(_contract(f, f))
    # The eigenvalues of F^T F have rounding errors relative to the largest one.
    values = jnp.where(values > 10 * eps * values[-1], values, 0)
    return _combine((p * _inverse_root(values)[None, :]).T, f), values


def _check_rank(rank: int, params: PyTree) -> None:
    """Raises if there are fewer parameters than ``rank``."""
    leaves = jax.tree.leaves(params)
    size = sum(math.prod(x.shape) * (2 if jnp.iscomplexobj(x) else 1) for x in leaves)
    # optax.tree.map_params passes a tree without leaves.
    if leaves and rank > size:
        raise ValueError(
            f"nystrom: rank must be at most the number of trained parameters, {size} "
            f"(a complex one counts twice), got {rank}."
        )


@dataclasses.dataclass(frozen=True)
class nystrom(Preconditioner):
    r"""Randomised Nystrom preconditioner: it inverts the largest eigenvalues.

    It is for curvatures with a few large and many small eigenvalues, such as those of
    physics-informed networks and regression. Products with ``rank`` Gaussian vectors,
    :math:`Y = B\,\Omega`, the *sketch*, give the approximation

    .. math::
      B \approx Y (\Omega^T Y + \nu)^{-1} Y^T = U \Lambda U^T

    (Frangella, Tropp and Udell 2023, algorithm 2.1; their shift :math:`\nu`, of the
    size of rounding, is used in the core :math:`\Omega^T Y` only), and the
    preconditioner is

    .. math::
      M = U (\Lambda + \lambda)^{-1} U^T
          + \frac{1}{\ell + \lambda} (I - U U^T)

    (their equation 5.3, up to a factor). :math:`\ell` is the smallest eigenvalue kept,
    and directions outside the sketch are treated as if it were their eigenvalue. So
    directions without curvature are not amplified, and no damping besides
    :math:`\lambda` is needed.

    If ``B`` is indefinite the core, in an orthonormal basis, has a smallest eigenvalue
    :math:`w < 0`, and :math:`\nu = 2 |w|`. So all eigenvalues of the shifted core are
    at least :math:`|w|`. (A shift by :math:`|w|` alone would lose the most negative
    direction.) The result is positive definite for every ``B``. An eigenvalue far below
    zero is replaced by approximately its absolute value, as in :math:`|B|`.

    Cost: ``rank`` products every ``refresh`` steps, with about :math:`10\,
    \text{rank}^2` operations per parameter; :math:`4\, \text{rank}` operations per
    parameter for each application. Under `jax.vmap` (an ensemble) a sketch is made at
    every step. Memory: ``rank`` vectors the size of the parameters, and five to seven
    times that while a sketch is made (measured on a CPU).

    Attributes:
      rank: number of eigenvectors, at least 1 and at most the number of trained
        parameters.
      refresh: number of steps from one sketch to the next, at least 1.

    Raises:
      TypeError: if a setting is not an integer.
      ValueError: if a setting is less than 1. In ``init``: if there are fewer
        parameters than ``rank``.

    Examples:
      >>> import ncg_optax as ncg
      >>> tx = ncg.newton_cg(preconditioner=ncg.nystrom(rank=30))
    """

    rank: int = 20
    refresh: int = 20

    has_sqrt = True

    def __post_init__(self):
        validate.integer("nystrom: rank", self.rank, low=1)
        validate.integer("nystrom: refresh", self.refresh, low=1)

    def init(self, params: PyTree) -> NystromState:
        """The state before the first sketch."""
        _check_rank(self.rank, params)
        return NystromState(
            steps=jnp.zeros((), jnp.int32),
            vectors=jax.tree.map(
                lambda x: jnp.zeros((self.rank, *x.shape), x.dtype),
                pytree.widened_zeros_like(params),
            ),
            values=jnp.zeros((self.rank,), pytree.scalar_dtype(params)),
        )

    def update(self, state, product, grads, damping, key, count):
        """Makes a new sketch every ``refresh`` steps."""
        due = state.steps % self.refresh == 0
        new_state = jax.lax.cond(
            due,
            lambda: self._rebuilt(state, product, grads, key),
            lambda: state._replace(steps=state.steps + 1),
        )
        return new_state, jnp.where(due, self.rank, 0)

    def _rebuilt(
        self, state: NystromState, product: Operator, grads: PyTree, key: jax.Array
    ) -> NystromState:
        keys = jax.random.split(key, self.rank)
        omega = jax.vmap(lambda k: pytree.random_normal(k, grads))(keys)
        y = jax.lax.map(product, omega)
        usable = pytree.all_finite(y)
        # Decompositions of NaN are slow on some backends, so zeros are decomposed.
        y = pytree.where(usable, y, pytree.zeros_like(y))
        new = pytree.cast_like(_eigenpairs(omega, y), (state.vectors, state.values))
        usable &= pytree.all_finite(new)
        vectors, values = pytree.where(usable, new, (state.vectors, state.values))
        # If the first sketch is not finite the next step makes another one.
        return NystromState(
            state.steps + (usable | (state.steps > 0)).astype(jnp.int32),
            vectors,
            values,
        )

    def apply(self, state: NystromState, r: PyTree, damping: jax.Array) -> PyTree:
        """``M r``."""
        return _power(state, r, damping, 1.0)

    def sqrt(self, state: NystromState, r: PyTree, damping: jax.Array) -> PyTree:
        """``M^(1/2) r``."""
        return _power(state, r, damping, 0.5)


def _power(
    state: NystromState, r: PyTree, damping: jax.Array, exponent: float
) -> PyTree:
    """``M^exponent r``."""
    used = state.values > 0
    least = jnp.min(state.values, where=used, initial=jnp.inf)
    rest = jnp.where(jnp.any(used), least, 0) + damping
    rest = jnp.where(rest > 0, rest, 1) ** -exponent
    kept = jnp.where(used, state.values + damping, 1) ** -exponent
    inside = _combine((kept - rest) * _contract(state.vectors, r), state.vectors)
    return pytree.add_scaled(inside, rest, r)
