"""SOAP: Adam in the slowly changing eigenbases of Shampoo's preconditioner.

Vyas, Morwani, Zhao, Kwun, Shapira, Brandfonbrener, Janson and Kakade, SOAP: Improving
and Stabilizing Shampoo using Adam, arXiv 2409.11321, 2024: algorithms 3 and 4, with
what the authors' own code (github.com/nikhilvyas/SOAP) adds to them.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

PyTree = Any


class Side(NamedTuple):
    """One side of a leaf that is a matrix ``G`` of shape (m, n)."""

    gram: jax.Array  # running mean of ``G G^T`` or ``G^T G``, shape (m, m) or (n, n)
    basis: jax.Array  # its eigenvectors, about, those of large eigenvalues first


class Sides(NamedTuple):
    """Both sides of a leaf; ``None`` for one that is not rotated."""

    left: Side | None
    right: Side | None


class SoapState(NamedTuple):
    """State of `scale_by_soap`."""

    count: jax.Array  # updates done, int32, shape=()
    mu: PyTree  # running mean of the gradients, in their own space
    nu: PyTree  # running mean of the squares of the rotated gradients
    sides: PyTree  # a tree like the parameters, with `Sides` in the place of each leaf


def _matrix(x: jax.Array) -> jax.Array:
    """Folds a leaf: vectors to one column, kernels to (all but the last axis, last)."""
    return x.reshape(-1, x.shape[-1] if x.ndim > 1 else 1)


def _rotate(x: jax.Array, sides: Sides, back: bool = False) -> jax.Array:
    """``Q_L^T X Q_R``, or ``Q_L X Q_R^T`` to undo it."""
    y = _matrix(x)
    if sides.left is not None:
        basis = sides.left.basis
        y = (basis if back else basis.T) @ y
    if sides.right is not None:
        basis = sides.right.basis
        y = y @ (basis.T if back else basis)
    return y.reshape(x.shape)


def _averaged(grad: jax.Array, sides: Sides, decay: float) -> Sides:
    """The sides of a leaf with a gradient added to their means."""
    g = _matrix(grad)

    def side(old: Side | None, g: jax.Array) -> Side | None:
        if old is None:
            return None
        return old._replace(gram=decay * old.gram + (1 - decay) * g @ g.T)

    return Sides(side(sides.left, g), side(sides.right, g.T))


def _decomposed(sides: Sides) -> Sides:
    """The sides of a leaf with the bases that their means really have."""
    return Sides(
        *(
            side and side._replace(basis=jnp.linalg.eigh(side.gram)[1][:, ::-1])
            for side in sides
        )
    )


def _followed(nu: jax.Array, sides: Sides) -> tuple[jax.Array, Sides]:
    """New bases by one power iteration and a QR decomposition (algorithm 4).

    As in the authors' code the vectors are sorted by their Rayleigh quotients first,
    and the second moments with them.
    """
    squares, followed = _matrix(nu), []
    for axis, side in enumerate(sides):
        if side is not None:
            product = side.gram @ side.basis
            order = jnp.argsort(-jnp.sum(side.basis * product, axis=0))
            squares = jnp.take(squares, order, axis)
            side = side._replace(basis=jnp.linalg.qr(product[:, order])[0])
        followed.append(side)
    return squares.reshape(nu.shape), Sides(*followed)


def _follow(state: SoapState) -> SoapState:
    squares, treedef = jax.tree.flatten(state.nu)
    sides = treedef.flatten_up_to(state.sides)
    moved = zip(*map(_followed, squares, sides), strict=True)
    nu, sides = map(treedef.unflatten, moved)
    return state._replace(nu=nu, sides=sides)


def _decompose(state: SoapState) -> SoapState:
    sides = jax.tree.map(lambda _, s: _decomposed(s), state.nu, state.sides)
    return state._replace(sides=sides)


def scale_by_soap(
    b1: float = 0.95,
    b2: float = 0.95,
    eps: float = 1e-8,
    precondition_frequency: int = 10,
    max_size: int = 10000,
) -> optax.GradientTransformation:
    """SOAP without a learning rate; see `soap`.

    ``b1`` and ``b2`` are the decays of the first moment, and of the second one and the
    two means; ``precondition_frequency`` is the number of updates from one change of
    the bases to the next. Sides longer than ``max_size`` are not rotated.
    """

    def wide(dtype: Any) -> Any:
        return jnp.promote_types(dtype, jnp.float32)

    def init(params: PyTree) -> SoapState:
        def sides(leaf: jax.Array) -> Sides:
            if len(leaf.shape) < 2:
                return Sides(None, None)

            def side(size: int) -> Side | None:
                square = jnp.zeros((size, size), wide(leaf.dtype))
                return Side(square, square) if size <= max_size else None

            columns = leaf.shape[-1]
            return Sides(side(leaf.size // columns), side(columns))

        zeros = jax.tree.map(lambda p: jnp.zeros(p.shape, wide(p.dtype)), params)
        both = jax.tree.map(sides, params)
        return SoapState(jnp.zeros((), jnp.int32), zeros, zeros, both)

    def skip(grads: PyTree, state: SoapState) -> tuple[PyTree, SoapState]:
        return optax.tree.zeros_like(grads), state

    def step(grads: PyTree, state: SoapState) -> tuple[PyTree, SoapState]:
        """Adam in the eigenbases, which do not know these gradients yet."""
        rotated = jax.tree.map(_rotate, grads, state.sides)
        mu = optax.tree.update_moment(grads, state.mu, b1, 1)
        nu = optax.tree.update_moment(rotated, state.nu, b2, 2)

        def direction(mean: jax.Array, square: jax.Array, sides: Sides) -> jax.Array:
            scaled = _rotate(mean, sides) / (jnp.sqrt(square) + eps)
            return _rotate(scaled, sides, back=True)

        means = optax.tree.bias_correction(mu, b1, state.count)
        squares = optax.tree.bias_correction(nu, b2, state.count)
        directions = jax.tree.map(direction, means, squares, state.sides)
        return directions, state._replace(mu=mu, nu=nu)

    def update(
        updates: PyTree, state: SoapState, params: PyTree | None = None
    ) -> tuple[PyTree, SoapState]:
        del params
        first = state.count == 0
        due = state.count % precondition_frequency == 0
        with jax.default_matmul_precision("highest"):
            grads = jax.tree.map(lambda g: g.astype(wide(g.dtype)), updates)
            directions, state = jax.lax.cond(first, skip, step, grads, state)
            sides = jax.tree.map(lambda g, s: _averaged(g, s, b2), grads, state.sides)
            state = jax.lax.switch(
                jnp.where(first, 2, due.astype(int)),
                (lambda state: state, _follow, _decompose),
                state._replace(count=state.count + 1, sides=sides),
            )
        return optax.tree.cast_like(directions, updates), state

    return optax.GradientTransformation(init, update)


def soap(
    learning_rate: optax.ScalarOrSchedule, **settings: Any
) -> optax.GradientTransformation:
    r"""Adam in the eigenbases of running means of :math:`G G^T` and :math:`G^T G`.

    The bases are decomposed at the first update, which only starts the means and steps
    nowhere, and every ``precondition_frequency`` updates they follow by one power
    iteration and a QR decomposition. A gradient enters them after its own step. The
    first moment is kept in the space of the parameters, the second in the eigenbases.
    Leaves with fewer than two axes get plain Adam; those with more are folded to
    (all but the last axis, last). No weight decay. The bias correction is Adam's,
    which the authors' code has and algorithm 3 leaves out.

    The settings are those of `scale_by_soap`.
    """
    descend = optax.scale_by_learning_rate(learning_rate)
    return optax.chain(scale_by_soap(**settings), descend)
