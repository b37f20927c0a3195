import dataclasses
import sys
from fractions import Fraction
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree
from oracles import assert_trees_close, assert_trees_equal, krylov, symmetric, vector

import ncg_optax as ncg
from ncg_optax._utils import pytree
from ncg_optax.curvature import SampledProduct
from ncg_optax.preconditioners import kronecker_factors
from ncg_optax.preconditioners.kronecker_factors import Factor

# The package has the class under the name of the module.
MODULE = sys.modules["ncg_optax.preconditioners.kronecker"]
DEFAULT_MAX_VECTOR = MODULE.MAX_VECTOR

pytestmark = pytest.mark.usefixtures("x64", "diagonal_vectors")


@pytest.fixture
def diagonal_vectors(monkeypatch):
    """The vectors of these tests are short; their factors shall be diagonals."""
    monkeypatch.setattr(MODULE, "MAX_VECTOR", 1)


M, N = 4, 3
SIZE = M * N
DAMPING = 0.01
# Of plain functions: eight products at the first step, then two.
# So many iterations find the eigenvectors.
SETTINGS = dict(
    decay=0.75,
    refresh=3,
    iterations=200,
    probes=8,
    first_probes=16,
    fraction=1 / 4,
    damping=DAMPING,
    max_size=4,
)
KRONECKER = ncg.kronecker(**SETTINGS)
ROOTED = ncg.kronecker(**SETTINGS, with_sqrt=True)


def affine_update(preconditioner, state, a, y, damping, key):
    """An update at a leaf shaped like ``y`` with the product ``v -> a v + y``."""

    def product(v):
        return (a @ v.ravel()).reshape(y.shape) + y

    count = jnp.zeros((), jnp.int32)
    return preconditioner.update(state, product, jnp.zeros_like(y), damping, key, count)


affine_step = jax.jit(affine_update, static_argnums=0)


def updated(
    a=0.0, y=0.0, state=None, seed=0, dtype=jnp.float64, damping=0.0, of=KRONECKER
):
    """State and products after an update at a matrix of shape (M, N)."""
    state = of.init(jnp.zeros((M, N), dtype)) if state is None else state
    a = jnp.asarray(np.broadcast_to(a, (SIZE, SIZE)), dtype)
    y = jnp.asarray(np.broadcast_to(y, (M, N)), dtype)
    damping = jnp.asarray(damping, dtype)
    return affine_step(of, state, a, y, damping, jax.random.key(seed))


@partial(jax.jit, static_argnums=(0, 1))
def columns(of, method, state, damping, like):
    vec, unravel = ravel_pytree(like)
    prepared = of.prepare(state, damping)

    def image(e):
        # The damping is in the inverses: that of an application makes no difference.
        return ravel_pytree(getattr(of, method)(prepared, unravel(e), jnp.nan))[0]

    return jax.vmap(image, out_axes=1)(jnp.eye(vec.size, dtype=vec.dtype))


def dense(state, damping=0.0, like=None, of=KRONECKER, method="apply"):
    """``M``, or what another method applies, as a matrix."""
    like = jnp.zeros((M, N)) if like is None else like
    return np.asarray(columns(of, method, state, jnp.asarray(damping), like))


@partial(jax.jit, static_argnums=0)
def applied(of, state, r, damping):
    return of.apply(of.prepare(state, damping), r, damping)


def matrix(seed, shape=(M, N)):
    return np.random.default_rng(seed).normal(size=shape)


def expected_sides(y, max_size=np.inf):
    """Eigenvalues and eigenvectors of both sides from the one product ``y``."""

    def side(y):
        gram = y @ y.conj().T
        if len(y) > max_size or 1 in y.shape:
            return np.sqrt(np.diag(gram).real), np.eye(len(y))
        values, basis = np.linalg.eigh(gram)
        return np.sqrt(values.clip(0)), basis

    (left, u), (right, v) = side(y), side(y.conj().T)
    return (left, u), (right / np.linalg.norm(y), v)


def expected_image(y, r, damping, max_size=np.inf, own=DAMPING):
    y, matrix = (x.reshape(-1, x.shape[-1] if x.ndim > 1 else 1) for x in (y, r))
    (left, u), (right, v) = expected_sides(y, max_size)
    shared = damping / (left.mean() * right.mean())
    if 1 in y.shape:
        c, d = (0, own + shared) if len(left) == 1 < len(right) else (own + shared, 0)
    else:
        c = d = np.sqrt(own**2 + shared)
    divisor = np.outer(left + c * left.mean(), right + d * right.mean())
    return (u @ ((u.conj().T @ matrix @ v) / divisor) @ v.conj().T).reshape(r.shape)


# What it estimates.

PROBES = 4000


def product_matrix(left, right):
    """The matrix of ``V -> L V R`` on raveled ``V``."""
    return np.kron(left, right.T)


def recovery(operator, like, probes=PROBES):
    """Eigenvalues of ``M B``: 1 if it is recovered. And those with B's diagonal."""
    vec, unravel = ravel_pytree(like)
    preconditioner = ncg.kronecker(
        first_probes=probes, fraction=1.0, damping=1e-9, iterations=200
    )
    b = jnp.asarray(operator)
    state, _ = jax.jit(
        lambda key: preconditioner.update(
            preconditioner.init(like),
            lambda v: unravel(b @ ravel_pytree(v)[0]),
            like,
            jnp.zeros(()),
            key,
            0,
        )
    )(jax.random.key(0))
    m = dense(state, like=like, of=preconditioner)
    diagonal = np.diag(1 / np.diag(operator))
    return (np.linalg.eigvals(x @ operator) for x in (m, diagonal))


def assert_recovered(ours, diagonals, side):
    # With P products the Gram matrix of a side k is within a factor 1 -+ e of its mean,
    # e = 2 sqrt(k / P) + k / P (Davidson and Szarek, for one column; more are better).
    # Its square root is then within e / 2, and so is each of the three in the spectrum.
    bound = 1.5 * (2 * np.sqrt(side / PROBES) + side / PROBES)
    assert np.abs(ours - 1).max() < bound < 0.1
    assert np.abs(diagonals - 1).max() > 8 * bound


def test_a_kronecker_product_in_each_leaf_is_recovered():
    like = {"kernel": jnp.zeros((2, 1, 2, 3)), "s": jnp.zeros(()), "v": jnp.zeros(3)}
    operator = np.zeros((16, 16))
    operator[:12, :12] = product_matrix(
        symmetric(np.geomspace(10, 0.1, 4)), symmetric(np.geomspace(3, 0.1, 3), 1)
    )
    operator[12, 12] = 0.7
    operator[13:, 13:] = np.diag(np.geomspace(1, 1e-2, 3))  # as the factor of a vector
    assert_recovered(*recovery(operator, like), side=4)


def test_a_complex_kronecker_product_is_recovered():
    def hermitian(values, seed):
        z = matrix(seed, (len(values),) * 2) + 1j * matrix(seed + 1, (len(values),) * 2)
        q, _ = np.linalg.qr(z)
        return q @ np.diag(values) @ q.conj().T

    left, right = hermitian([5.0, 1.0, 0.1], 0), hermitian([3.0, 0.2], 2)
    like = jnp.zeros((3, 2), complex)
    assert_recovered(*recovery(product_matrix(left, right), like), side=3)


@pytest.mark.parametrize("damping", [0.0, 0.1, 10.0])
def test_the_factors_of_one_product(damping):
    y = matrix(0)
    state, _ = updated(y=y)
    np.testing.assert_allclose(state.left.gram, y @ y.T, rtol=1e-12)
    np.testing.assert_allclose(state.right.gram, y.T @ y, rtol=1e-12)
    (left, u), (right, v) = expected_sides(y)
    c = np.sqrt(DAMPING**2 + damping / (left.mean() * right.mean()))
    left_inverse = (u / (left + c * left.mean())) @ u.T
    right_inverse = (v / (right + c * right.mean())) @ v.T
    (sides,) = KRONECKER.prepare(state, jnp.float64(damping))
    # Which of the two sides has a common factor, nobody sees.
    np.testing.assert_allclose(
        np.kron(sides.left, sides.right),
        np.kron(left_inverse, right_inverse),
        rtol=1e-6,
        atol=1e-6 * np.abs(left_inverse).max() * np.abs(right_inverse).max(),
    )


def share(count):
    """The weight of the estimate after ``count`` others, as float32 has it.

    Two products give 6 columns for the longer side, of length 4.
    """
    early = 2 / (count + 2) if count == 0 else min(2 / (count + 2), 6 / (6 + 3 * 4))
    return np.float32(max(0.25, early))


def test_running_means_move_each_step_and_eigenvectors_in_turn():
    ys = [matrix(seed) for seed in range(10)]
    left, right, state = ys[0] @ ys[0].T, ys[0].T @ ys[0], None
    moved = {"left": [], "right": []}
    for count, y in enumerate(ys):
        old = state
        state, _ = updated(y=y, state=old)
        left = (1 - share(count)) * left + share(count) * y @ y.T
        right = (1 - share(count)) * right + share(count) * y.T @ y
        np.testing.assert_allclose(state.left.gram, left, rtol=1e-10)
        np.testing.assert_allclose(state.right.gram, right, rtol=1e-10)
        for name, due in moved.items():
            new = getattr(state, name)
            kept = getattr(old, name) if count else KRONECKER.init(y).left
            # Basis and eigenvalues change together.
            changes = {
                not np.array_equal(a, b) for a, b in zip(new[1:], kept[1:], strict=True)
            }
            assert len(changes) == 1
            if changes == {True}:
                due.append(count)
                gram = {"left": left, "right": right}[name]
                values = np.sqrt(np.linalg.eigvalsh(gram).clip(0))
                np.testing.assert_allclose(
                    np.sort(new.eigenvalues), values, rtol=1e-6, atol=1e-6
                )
        assert state.steps == count + 1
    assert moved == {"left": [0, 3, 6, 9], "right": [0, 2, 5, 8]}


def test_the_weights_of_the_first_estimates_increase_linearly():
    """Estimate i of n has the weight 2 i / (n (n + 1)) while this decays faster."""
    # So many products that they set no limit.
    of = dataclasses.replace(KRONECKER, decay=0.95, first_probes=400, probes=400)
    state, n = None, 7
    left = right = 0.0
    for i in range(1, n + 1):
        y = matrix(i)
        state, _ = updated(y=y, state=state, of=of)
        weight = Fraction(2 * i, n * (n + 1))
        left = left + float(weight) * y @ y.T
        right = right + float(weight) * y.T @ y
    # The weights are float32.
    np.testing.assert_allclose(state.left.gram, left, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(state.right.gram, right, rtol=1e-6, atol=1e-6)


def test_the_own_damping_and_the_eigenvalues_of_one_refresh():
    ys = [matrix(seed) for seed in range(4)]
    each_step = dataclasses.replace(KRONECKER, refresh=1)
    left, right, state = 0.0, 0.0, None
    for count, y in enumerate(ys):
        state, _ = updated(y=y, state=state, of=each_step)
        left = (1 - share(count)) * left + share(count) * y @ y.T
        right = (1 - share(count)) * right + share(count) * y.T @ y
    values = [np.sqrt(np.linalg.eigvalsh(x).clip(0)) for x in (left, right)]
    own = DAMPING / (1 + 3 / 20)  # three steps after the first
    a, b = (x + own * x.mean() for x in values)
    np.testing.assert_allclose(
        np.linalg.eigvalsh(dense(state, of=each_step)),
        np.sort(np.sqrt(np.trace(left)) / np.outer(a, b).ravel()),
        rtol=1e-6,
    )


@pytest.mark.parametrize("damping", [0.0, 0.1, 10.0])
def test_the_damping_is_that_of_the_present_step(damping):
    y, r = matrix(0), matrix(1)
    state, _ = updated(y=y, damping=0.7)
    np.testing.assert_allclose(
        applied(KRONECKER, state, jnp.asarray(r), jnp.float64(damping)),
        expected_image(y, r, damping),
        rtol=1e-5,
    )


# Eigenvectors in turn.


def members_due(of, shapes, seeds, failing=0):
    """Of each factor that is a matrix, the steps at which its eigenvectors change.

    The first ``failing`` estimates are not finite.
    """
    params = [jnp.zeros(shape) for shape in shapes]

    @jax.jit
    def step(state, ys):
        zero = jnp.zeros(())
        return of.update(state, lambda v: ys, ys, zero, jax.random.key(0), zero)[0]

    states = [of.init(params)]
    for seed in range(seeds):
        ys = [
            jnp.asarray(matrix(100 * i + seed, shape)) for i, shape in enumerate(shapes)
        ]
        bad = jnp.nan if seed < failing else 1.0
        states.append(step(states[-1], [bad * y for y in ys]))
    due = []
    for i in range(len(shapes)):
        for name in ("left", "right"):
            values = [np.asarray(getattr(s, name).eigenvalues[i]) for s in states]
            if getattr(states[0], name).gram[i].ndim == 2:
                changes = zip(values, values[1:], strict=False)
                due.append([k for k, (a, b) in enumerate(changes) if (a != b).any()])
    return due


def expected_due(place, members, offset, cycle, steps):
    """When the member in this place of its stack is due, in exact numbers."""
    due, position = [0], Fraction(offset) * members
    for step in range(1, steps):
        end = position + Fraction(members) / cycle(step)
        if any(k % members == place for k in range(position // 1, end // 1)):
            due.append(step)
        position = end
    return due


SCHEDULES = {
    "default": (ncg.kronecker().refresh, lambda step: max(1, Fraction(step, 20))),
    "1": (1, lambda step: 1),
    "3": (3, lambda step: 3),
    "5": (5, lambda step: 5),
    "9": (9, lambda step: 9),
    "10": (10, lambda step: 10),
    "linear": (
        optax.linear_schedule(1, 9, 16),
        lambda step: 1 + Fraction(min(step, 16), 2),
    ),
    "below one": (lambda steps: 0.5, lambda step: 1),
    "switch": (
        lambda steps: jnp.where(steps < 5, 2, 5),
        lambda step: 2 if step < 5 else 5,
    ),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_each_factor_is_due_once_in_a_cycle(name):
    refresh, cycle = SCHEDULES[name]
    of = ncg.kronecker(refresh=refresh)
    # A stack of four factors of side 4, and one of two factors of side 3.
    shapes, steps = [(4, 3), (4, 3), (4, 4)], 40
    lefts = [expected_due(i, 4, 0, cycle, steps) for i in range(4)]
    rights = [expected_due(i, 2, Fraction(1, 2), cycle, steps) for i in range(2)]
    expected = [lefts[0], rights[0], lefts[1], rights[1], lefts[2], lefts[3]]
    due = members_due(of, shapes, steps)
    assert due == expected
    if isinstance(refresh, int):
        for start in range(1, steps - refresh):
            window = range(start, start + refresh)
            counts = [sum(k in window for k in steps_of) for steps_of in due]
            assert counts == 6 * [1]
        for kind in (lefts, rights):
            numbers = np.bincount(np.concatenate(kind), minlength=steps)[1:]
            assert np.ptp(numbers) <= 1


def test_a_failed_first_estimate_starts_all_factors_again():
    shapes = [(4, 3), (4, 3)]
    due = members_due(ncg.kronecker(refresh=4), shapes, seeds=9, failing=3)
    without = members_due(ncg.kronecker(refresh=4), shapes, seeds=6)
    assert due == [[k + 3 for k in steps] for steps in without]
    assert all(steps[0] == 3 for steps in due)


def a_factor(k=5, seed=0):
    """A factor with a Gram matrix of its own and another one's eigenvectors."""
    basis, _ = np.linalg.qr(matrix(seed, (k, k)))
    y = matrix(seed + 1, (k, k))
    return Factor(*map(jnp.asarray, (y @ y.T, basis, np.ones(k))))


def test_an_iteration_is_that_of_numpy():
    factor = a_factor()
    new = jax.jit(kronecker_factors.diagonalized)(factor, 1)
    gram = np.asarray(factor.gram)
    basis, _ = np.linalg.qr(gram @ np.asarray(factor.basis))
    # The sign of a column is arbitrary.
    basis *= np.sign(np.sum(basis * np.asarray(new.basis), axis=0))
    np.testing.assert_allclose(new.basis, basis, rtol=1e-12, atol=1e-12)
    quotients = [q @ gram @ q for q in basis.T]
    np.testing.assert_allclose(new.eigenvalues, np.sqrt(quotients), rtol=1e-12)
    np.testing.assert_array_equal(new.gram, factor.gram)


@pytest.mark.parametrize(("iterations", "first"), [(1, 8), (12, 12)])
def test_the_number_of_iterations(iterations, first):
    """At the first step at least eight, then those of the setting."""
    of = ncg.kronecker(iterations=iterations, refresh=1, decay=0.0)
    # Singular values that are near each other converge slowly.
    ys = [symmetric([1.0, 0.9, 0.8, 0.7], seed)[:, :N] for seed in (0, 1)]
    state, basis = None, np.eye(M)
    for y, number in zip(ys, (first, iterations), strict=True):
        state, _ = updated(y=y, state=state, of=of)

        def differs(number, start=basis, y=y, ours=np.asarray(state.left.basis)):
            """The basis of NumPy, and by how much ours differs apart from signs."""
            for _ in range(number):
                start, _ = np.linalg.qr(y @ y.T @ start)
            # The last eigenvalue is 0, and its column rounding.
            cosines = np.abs(np.sum(start * ours, axis=0))[:N]
            return start, np.abs(cosines - 1).max()

        basis, error = differs(number)
        assert error < 1e-10 < 1e-8 < differs(number - 1)[1]


@pytest.mark.parametrize("full", [True, False])
def test_the_scale_is_that_of_the_present_estimate(full):
    factor = kronecker_factors.diagonalized(a_factor(), 3)
    if not full:
        diagonal = jnp.arange(1.0, 6.0)
        factor = Factor(diagonal, jnp.ones(()), jnp.sqrt(diagonal))
    np.testing.assert_allclose(
        kronecker_factors.rescaled(factor), factor.eigenvalues, rtol=1e-12
    )
    later = factor._replace(gram=49.0 * factor.gram)
    np.testing.assert_allclose(
        kronecker_factors.rescaled(later), 7 * factor.eigenvalues, rtol=1e-12
    )


@pytest.mark.parametrize("full", [True, False])
def test_the_eigenvalues_of_a_factor_that_was_zero_are_equal(full):
    """Their squares sum to the trace of the present Gram matrix."""
    factor = a_factor()._replace(eigenvalues=jnp.zeros(5))
    trace = np.trace(factor.gram)
    if not full:
        factor = Factor(jnp.arange(1.0, 6.0), jnp.ones(()), jnp.zeros(5))
        trace = 15.0
    values = kronecker_factors.rescaled(factor)
    np.testing.assert_allclose(values, np.full(5, np.sqrt(trace / 5)), rtol=1e-12)
    nothing = factor._replace(gram=0 * factor.gram)
    np.testing.assert_array_equal(kronecker_factors.rescaled(nothing), np.zeros(5))


def test_a_factor_that_is_not_due_has_the_present_scale():
    """The curvature grows a hundredfold, and no factor is due at the second step."""
    of = dataclasses.replace(KRONECKER, refresh=100, decay=0.0)
    y, r = matrix(0), jnp.asarray(matrix(1))
    old, _ = updated(y=y, of=of)
    new, _ = updated(y=100 * y, state=old, of=of)
    np.testing.assert_array_equal(new.left.eigenvalues, old.left.eigenvalues)
    np.testing.assert_array_equal(new.right.eigenvalues, old.right.eigenvalues)
    own = DAMPING / (1 + 1 / 20)
    expected = expected_image(100 * y, np.asarray(r), 0.1, own=own)
    np.testing.assert_allclose(applied(of, new, r, 0.1), expected, rtol=1e-5)


def test_a_leaf_that_was_without_curvature_is_divided_by_its_mean():
    """No factor is due at the second step, the first with curvature."""
    of = dataclasses.replace(KRONECKER, refresh=100, decay=0.0)
    y, damping = matrix(0), 0.1
    state, _ = updated(of=of)
    state, _ = updated(y=y, state=state, of=of)
    # The mean eigenvalue of equal ones: SIZE squares sum to that of the norm of y.
    mean = np.linalg.norm(y) / np.sqrt(SIZE)
    c = np.sqrt((DAMPING / (1 + 1 / 20)) ** 2 + damping / mean)
    expected = np.eye(SIZE) / (mean * (1 + c) ** 2)
    np.testing.assert_allclose(dense(state, damping, of=of), expected, atol=1e-12)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_result_that_is_not_finite_keeps_the_factor(bad, monkeypatch):
    factor = a_factor()
    # A product that overflows, or a decomposition that fails.
    huge = factor._replace(gram=1e300 * factor.gram, basis=1e300 * factor.basis)
    assert_trees_equal(kronecker_factors.diagonalized(huge, 2), huge)
    monkeypatch.setattr(kronecker_factors, "_orthonormal", lambda x: bad * x)
    assert_trees_equal(kronecker_factors.diagonalized(factor, 2), factor)


def test_eigenvalues_within_rounding_of_zero_are_zero():
    # Of rank 2: its two smallest quotients are near 1e-16, their roots near 1e-8.
    rows = np.random.default_rng(0).normal(size=(4, 2))
    factor = kronecker_factors.first_factor(4, 4, jnp.float64)
    factor = factor._replace(gram=jnp.asarray(rows @ rows.T))
    values = np.sort(kronecker_factors.diagonalized(factor, 50).eigenvalues)
    exact = np.linalg.svd(rows, compute_uv=False)[::-1]
    np.testing.assert_allclose(values, [0, 0, *exact], rtol=1e-10, atol=0)


def test_without_mapped_axes_nothing_is_shared():
    assert KRONECKER.over(()) == KRONECKER
    shared = KRONECKER.over(("data",))
    assert shared.axes == ("data",)
    assert shared.over(()) == KRONECKER
    assert repr(KRONECKER.over(())) == repr(KRONECKER)


def test_probes_differ_within_a_step_and_from_step_to_step():
    a = np.eye(SIZE)
    state, products = updated(a)
    # One probe has as many eigenvalues above 0 as its shorter side.
    assert products == 8
    assert np.linalg.eigvalsh(state.left.gram)[0] > 1e-3
    again, other = updated(a)[0], updated(a, seed=1)[0]
    assert_trees_equal(again, state)
    assert np.abs(other.left.gram - state.left.gram).max() > 0.1


# Safety.

NULL_ROWS = product_matrix(
    np.diag([2.0, 0.0, 1.0, 0.0]), symmetric([3.0, 1.0, 0.5], seed=1)
)
OPERATORS = {
    "indefinite": symmetric(np.linspace(-1, 1, SIZE)),
    "negative": -symmetric(np.linspace(0.1, 1, SIZE)),
    "one": symmetric(np.r_[np.zeros(SIZE - 1), [-3.0]]),
    "null rows": NULL_ROWS,
    "zero": np.zeros((SIZE, SIZE)),
}


@pytest.mark.parametrize("a", OPERATORS.values(), ids=OPERATORS)
@pytest.mark.parametrize("damping", [0.0, 0.1])
def test_it_is_symmetric_and_positive_definite(a, damping):
    state, _ = updated(a, damping=damping)
    m = dense(state, damping)
    np.testing.assert_allclose(m, m.T, atol=1e-12 * np.abs(m).max())
    lowest, *_, highest = np.linalg.eigvalsh(m)
    (left, right) = (np.linalg.eigvalsh(x.gram) for x in state[2:])
    total = max(left.sum(), 1e-300)
    mean = np.sqrt(left.clip(0)).mean() * np.sqrt(right.clip(0) / total).mean()
    assert lowest > 0.03
    assert highest < 1.001 / ((damping + DAMPING**2 * mean) or 1.0)


def test_a_negative_operator_counts_as_a_positive_one():
    a = OPERATORS["indefinite"]
    assert_trees_equal(updated(-a)[0], updated(a)[0])


def test_the_zero_operator_leaves_the_damping():
    np.testing.assert_allclose(
        dense(updated(damping=0.3)[0], 0.3), np.eye(SIZE) / 0.3, rtol=1e-12
    )
    np.testing.assert_allclose(dense(updated()[0]), np.eye(SIZE), rtol=1e-12)


def test_without_any_damping_it_is_still_definite():
    undamped = ncg.kronecker(**SETTINGS | {"damping": 0.0})
    state, _ = updated(NULL_ROWS, of=undamped)
    assert np.linalg.eigvalsh(dense(state, of=undamped))[0] > 0


def test_dead_inputs_are_divided_by_the_own_damping():
    dead = jnp.zeros((M, N)).at[1].set(vector(N)).at[3].set(vector(N, 2))

    def stretch(own, damping=0.0):
        """By how much dead inputs are stretched more than the others, at most."""
        of = ncg.kronecker(**SETTINGS | {"damping": own})
        state, _ = updated(NULL_ROWS, damping=damping, of=of)
        image = applied(of, state, dead, damping)
        assert not image[0].any() and not image[2].any()
        live = applied(of, state, jnp.zeros((M, N)).at[0].set(1.0), damping)
        return float(pytree.norm(image) / pytree.norm(dead)), live

    sizes = [stretch(own)[0] for own in (0.4, 0.04, 0.004)]
    # In units of the curvature, which is about 1, of the dead side alone.
    assert 0.5 < sizes[0] < 5
    assert 7 < sizes[1] / sizes[0] < 30 and 7 < sizes[2] / sizes[1] < 30
    # What the operator shares makes little difference where it is small.
    np.testing.assert_allclose(stretch(0.04, 1e-12)[0], sizes[1], rtol=1e-6)


@pytest.mark.parametrize(("halving", "left"), [(4, 1 / 2), (1, 1 / 5), (None, 1)])
def test_the_own_damping_falls_from_step_to_step(halving, left):
    """The fifth estimate, the same as the first, is damped by what is left."""
    y = matrix(3)
    of = ncg.kronecker(**SETTINGS | {"damping_halving": halving})
    state, r = None, matrix(4)
    for _ in range(5):
        state, _ = updated(y=y, state=state, of=of)
    np.testing.assert_allclose(
        applied(of, state, jnp.asarray(r), 0.0),
        expected_image(y, r, 0.0, own=DAMPING * left),
        rtol=1e-5,
    )


def test_leaves_without_elements_take_part():
    params = {
        "none": jnp.zeros((3, 0)),
        "some": jnp.ones((3,)),
        "no rows": jnp.zeros((0, 3)),
    }
    state = KRONECKER.init(params)
    state, _ = KRONECKER.update(
        state, lambda v: v, params, jnp.zeros(()), jax.random.key(0), 0
    )
    image = applied(KRONECKER, state, params, jnp.ones(()))
    assert jax.tree.map(jnp.shape, image) == jax.tree.map(jnp.shape, params)
    assert jnp.all(image["some"] > 0)


@pytest.mark.parametrize("damping", [0.0, 0.1])
def test_the_root_applied_twice(damping):
    a = symmetric(np.linspace(-1, 3, SIZE))
    m = dense(updated(a)[0], damping)
    state, _ = updated(a, of=ROOTED)
    root = dense(state, damping, of=ROOTED, method="sqrt")
    np.testing.assert_allclose(root, root.T, atol=1e-10)
    np.testing.assert_allclose(root @ root, m, rtol=1e-8, atol=1e-8 * m.max())
    np.testing.assert_allclose(
        dense(state, damping, of=ROOTED), root @ root, rtol=1e-10
    )
    assert np.linalg.eigvalsh(root)[0] > 0


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_first_estimate_that_failed_is_tried_again(bad):
    state, products = updated(y=bad, damping=0.5)
    assert (int(state.steps), int(products)) == (0, 8)
    np.testing.assert_allclose(dense(state, 0.5), 2 * np.eye(SIZE), rtol=1e-12)
    y = matrix(0)
    state, products = updated(y=y, state=state)
    assert (int(state.steps), int(products)) == (1, 8)
    assert_trees_close(state, updated(y=y)[0], rtol=1e-12)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_products_that_are_not_finite_keep_the_factors(bad):
    state, _ = updated(y=matrix(0))
    y = matrix(1)
    y[2, 1] = bad
    kept, products = updated(y=y, state=state)
    assert (int(kept.steps), int(products)) == (2, 2)
    # At the second step of three no eigenvectors are due.
    assert_trees_equal(kept[2:], state[2:])


# A spectrum up to 100, whose fourth power at a scale of 2^27 is beyond float32.
@pytest.mark.parametrize("scale", [2.0**-27, 2.0**27], ids=["1e-8", "1e8"])
def test_it_does_not_know_the_scale(scale):
    a = product_matrix(
        symmetric(np.geomspace(10, 1, M)), symmetric(np.geomspace(10, 1, N), 1)
    )
    like = jnp.zeros((M, N), jnp.float32)
    m, scaled = (
        dense(updated(c * a, dtype=jnp.float32)[0], jnp.float32(c * 0.5), like)
        for c in (1, scale)
    )
    assert np.linalg.eigvalsh(m)[0] > 1e-3
    np.testing.assert_allclose(scale * scaled, m, atol=1e-5 * np.abs(m).max())


# Any tree.


def leaves(dtype=jnp.float64):
    """Real leaves in ``dtype`` whose sides are up to and above a ``max_size`` of 4."""
    return {
        "bias": jnp.zeros(4, dtype),
        "column": jnp.zeros((2, 2, 1), dtype),
        "complex": jnp.zeros((6, 2), complex),
        "kernel": jnp.zeros((1, 2, 2, 3), dtype),
        "long": jnp.zeros(7, dtype),
        "row": jnp.zeros((1, 3), dtype),
        "scalar": jnp.zeros((), dtype),
        "wide": jnp.zeros((2, 5), dtype),
    }


def typed(tree):
    return jax.tree.map(lambda x: (x.shape, x.dtype), tree)


def test_the_shapes_of_the_state():
    state = KRONECKER.init(leaves())
    by_name = {
        k: [getattr(side, name)[k] for name in Factor._fields for side in state[2:]]
        for k in leaves()
    }
    shapes = {k: [x.shape for x in f] for k, f in by_name.items()}
    diagonal = ()
    assert shapes == {
        # gram, basis, eigenvalues, each of the left and of the right factor
        "bias": [(4,), (1,), diagonal, diagonal, (4,), (1,)],
        "column": [(4,), (1,), diagonal, diagonal, (4,), (1,)],
        "complex": [(6,), (2, 2), diagonal, (2, 2), (6,), (2,)],
        "kernel": [(4, 4), (3, 3), (4, 4), (3, 3), (4,), (3,)],
        "long": [(7,), (1,), diagonal, diagonal, (7,), (1,)],
        "row": [(1,), (3,), diagonal, diagonal, (1,), (3,)],
        "scalar": [(1,), (1,), diagonal, diagonal, (1,), (1,)],
        "wide": [(2, 2), (5,), (2, 2), diagonal, (2,), (5,)],
    }
    dtypes = {k: [x.dtype.name for x in f] for k, f in by_name.items()}
    matrices = ["complex128" if len(x) == 2 else "float64" for x in shapes["complex"]]
    assert dtypes.pop("complex") == matrices
    assert set().union(*dtypes.values()) == {"float64"}


def test_the_operations_of_the_inverses_and_of_an_application():
    m, n = 120, 70
    x = jax.ShapeDtypeStruct((m, n), jnp.float32)
    of = ncg.kronecker()
    damping = jax.ShapeDtypeStruct((), jnp.float32)
    state = jax.eval_shape(of.init, x)
    prepared = jax.eval_shape(of.prepare, state, damping)

    def flops(fn, *args):
        return jax.jit(fn).lower(*args).compile().cost_analysis()["flops"]

    inverses = flops(of.prepare, state, damping)
    assert inverses == pytest.approx(2 * (m**3 + n**3), rel=0.03)
    application = flops(of.apply, prepared, x, damping)
    assert application == pytest.approx(2 * m * n * (m + n), rel=0.01)


@pytest.mark.parametrize(
    "shape", [(30, 20), (30,), (30, 1), (1, 30), (2, 5, 3, 7), (2000, 3), ()]
)
def test_the_memory_of_the_state(shape):
    """At most twice the squares of both sides, and the eigenvalues.

    A vector has its diagonal and its eigenvalues.
    """
    x = jax.ShapeDtypeStruct(shape, jnp.float32)
    state = jax.eval_shape(ncg.kronecker().init, x)
    m, n = jax.eval_shape(kronecker_factors.as_matrix, x).shape
    numbers = sum(leaf.size for leaf in jax.tree.leaves(state))
    sides = [k for k in (m, n) if k <= 1024 and min(m, n) > 1]
    others = [k for k in (m, n) if k not in sides]
    # Steps and turn; a diagonal has eigenvalues as well, and a basis of one number.
    scalars = 2 + len(others) + sum(others)
    assert numbers == sum(2 * k * k for k in sides) + m + n + scalars
    assert numbers <= 2 * (m * m + n * n) + m + n + 4


@pytest.mark.parametrize("shape", [(5,), (5, 1), (1, 5), (2, 3, 1), (1, 1, 5)])
@pytest.mark.parametrize("damping", [0.0, 0.1])
def test_a_leaf_of_one_row_or_column_is_divided_by_a_diagonal(shape, damping):
    y, r = matrix(0, shape), matrix(1, shape)
    of = ncg.kronecker(**SETTINGS | {"max_size": 1024, "damping_halving": None})
    a = jnp.zeros((y.size, y.size))
    state, _ = affine_step(
        of, of.init(jnp.zeros(shape)), a, jnp.asarray(y), damping, jax.random.key(0)
    )
    size = np.abs(y)
    np.testing.assert_allclose(
        applied(of, state, jnp.asarray(r), damping),
        r / (size + DAMPING * size.mean() + damping),
        rtol=1e-12,
    )


def test_every_leaf_is_folded_to_a_matrix():
    like = leaves()
    treedef = jax.tree.structure(like)

    def random(seed):
        flat = [
            matrix(seed + i, x.shape)
            + (1j * matrix(seed - i, x.shape) if jnp.iscomplexobj(x) else 0)
            for i, x in enumerate(jax.tree.leaves(like))
        ]
        return treedef.unflatten(flat)

    ys, r = random(10), random(30)

    damping = 0.1

    @partial(jax.jit, static_argnums=0)
    def run(of, key):
        count = jnp.zeros((), jnp.int32)
        state, _ = of.update(of.init(like), lambda v: ys, like, damping, key, count)
        return state, applied(of, state, r, damping)

    state, image = run(KRONECKER, jax.random.key(0))
    twice = run(ROOTED, jax.random.key(0))[1]
    expected = jax.tree.map(
        lambda y, x: expected_image(np.asarray(y), np.asarray(x), damping, 4), ys, r
    )
    # A zero eigenvalue is rounded, and then its root taken.
    assert_trees_close(image, expected, rtol=1e-5, atol=1e-5)
    assert_trees_close(twice, image, rtol=1e-10)
    assert typed(state) == typed(KRONECKER.init(like))
    assert typed(image) == typed(like)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_the_state_keeps_its_shapes_and_dtypes(dtype):
    params = leaves(dtype)
    start = KRONECKER.init(params)
    trees = [tree for side in start[2:] for tree in side]
    narrow = [{k: x for k, x in t.items() if k != "complex"} for t in trees]
    assert {x.dtype.name for x in jax.tree.leaves(narrow)} == {"float32"}
    grads = pytree.widen(params)

    def run(state, key):
        def body(state, key):
            # The transform widens the vectors that the product of narrow ones takes.
            product = pytree.in_dtypes_of(params, lambda v: v)
            return KRONECKER.update(state, product, grads, 0.0, key, 0)

        state, products = jax.lax.scan(body, state, jax.random.split(key, 4))
        return state, products, applied(KRONECKER, state, grads, 0.1)

    state, products, image = jax.eval_shape(run, start, jax.random.key(0))
    assert typed(state) == typed(start)
    assert products.shape == (4,)
    assert typed(image) == typed(grads)


def test_vectors_of_few_elements_have_full_factors(monkeypatch):
    monkeypatch.setattr(MODULE, "MAX_VECTOR", DEFAULT_MAX_VECTOR)
    params = [jnp.zeros(16), jnp.zeros((1, 16)), jnp.zeros(17), jnp.zeros((17, 1))]
    state = ncg.kronecker().init(params)
    shapes = [
        (a.shape, b.shape)
        for a, b in zip(state.left.gram, state.right.gram, strict=True)
    ]
    assert shapes == [
        ((16, 16), (1,)),
        ((1,), (16, 16)),
        ((17,), (1,)),
        ((17,), (1,)),
    ]
    small = ncg.kronecker(max_size=8).init(params)
    assert [x.shape for x in small.left.gram] == [(16,), (1,), (17,), (17,)]


def test_init_works_on_abstract_parameters():
    params = leaves(jnp.bfloat16)
    abstract = jax.eval_shape(lambda: params)
    assert_trees_equal(KRONECKER.init(abstract), KRONECKER.init(params))


# What it costs and what it buys.


@pytest.mark.parametrize(
    ("share", "counted"),
    [(None, [8, 2, 2]), (1.0, [8, 2, 2]), (0.25, [16, 8, 8])],
)
def test_products_are_counted_when_spent(share, counted):
    calls = []

    def product(v):
        jax.debug.callback(lambda _: calls.append(1), v[0])
        return v

    matvec = product if share is None else SampledProduct(product, share)
    like = jnp.zeros(5)
    step = jax.jit(
        lambda state, key: KRONECKER.update(state, matvec, like, 0.0, key, 0)
    )
    state, total = KRONECKER.init(like), 0
    for expected in counted:
        state, products = step(state, jax.random.key(0))
        jax.effects_barrier()
        total += expected
        assert (int(products), len(calls)) == (expected, total)


@pytest.mark.parametrize(
    ("settings", "share", "counted"),
    [
        ({"first_probes": 1, "probes": 1, "fraction": 0.01}, 1.0, (1, 1)),
        ({}, 1 / 8, (16, 2)),
        ({}, 1.0, (8, 1)),
        ({"first_probes": 5}, 1.0, (5, 1)),
    ],
)
def test_at_least_one_product_and_by_default_two(settings, share, counted):
    preconditioner = ncg.kronecker(**settings)
    assert preconditioner.fraction == settings.get("fraction", 1 / 8)
    like, product = jnp.zeros(1), SampledProduct(lambda v: v, share)
    start = preconditioner.init(like)
    products = jax.jit(
        lambda state: preconditioner.update(
            state, product, like, 0.0, jax.random.key(0), 0
        )[1]
    )
    assert products(start) == counted[0]
    assert products(start._replace(steps=jnp.int32(1))) == counted[1]


def autoencoder(inputs=8, width=6, examples=100):
    """Jacobian and residuals of an 8-6-8 network on inputs of decaying variance."""
    rng = np.random.default_rng(0)
    basis, _ = np.linalg.qr(rng.normal(size=(inputs, inputs)))
    x = rng.normal(size=(examples, inputs)) * np.geomspace(1, 0.01, inputs) @ basis.T
    params = {
        "encoder": jnp.asarray(rng.normal(size=(inputs, width)) / inputs**0.5),
        "decoder": jnp.asarray(rng.normal(size=(width, inputs)) / width**0.5),
    }
    vec, unravel = ravel_pytree(params)

    def residuals(vec):
        p = unravel(vec)
        return (jnp.tanh(x @ p["encoder"]) @ p["decoder"] - x).ravel() / examples**0.5

    return params, *jax.jit(lambda v: (jax.jacobian(residuals)(v), residuals(v)))(vec)


def test_conjugate_gradients_take_a_third_of_the_iterations():
    params, jacobian, residuals = autoencoder()
    _, unravel = ravel_pytree(params)
    a, b = np.asarray(jacobian.T @ jacobian), -np.asarray(jacobian.T @ residuals)
    damping = jnp.float64(1e-4)
    preconditioner = ncg.kronecker(first_probes=16, fraction=1.0)

    def product(v):
        return unravel(a @ ravel_pytree(v)[0])

    @jax.jit
    def run(key):
        state, _ = preconditioner.update(
            preconditioner.init(params), product, params, damping, key, 0
        )
        prepared = preconditioner.prepare(state, damping)
        return ncg.solvers.conjugate_gradient(
            product,
            unravel(b),
            damping,
            maxiter=3,
            tolerance=0.0,
            precondition=lambda r: preconditioner.apply(prepared, r, damping),
        ).model_decrease

    def decrease(basis):
        """The most that the model falls within a space."""
        projected = basis.T @ (a + damping * np.eye(len(b))) @ basis
        return basis.T @ b @ np.linalg.solve(projected, basis.T @ b) / 2

    best = decrease(np.eye(len(b)))
    ours, plain = run(jax.random.key(0)), decrease(krylov(a, b, 9))
    assert plain < 0.99 * best < ours < best  # in a third of the iterations


# Ensembles.


def ranks_of_decomposed(jaxpr):
    """The ranks of the operands of all QR decompositions in ``jaxpr``."""
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "qr":
            yield eqn.invars[0].aval.ndim
        for sub in jax.tree.leaves(list(eqn.params.values())):
            sub = getattr(sub, "jaxpr", sub)
            if hasattr(sub, "eqns"):
                yield from ranks_of_decomposed(sub)


def ensemble():
    operators = np.stack([symmetric(np.linspace(0.1, k, SIZE), k) for k in (1, 2, 5)])
    ys = np.zeros((3, M, N))
    keys = jax.random.split(jax.random.key(0), 3)
    return jnp.asarray(operators), jnp.asarray(ys), keys


def member_update(state, a, y, key):
    return affine_update(KRONECKER, state, a, y, jnp.float64(0.1), key)


def test_an_ensemble_never_decomposes_a_batch_of_matrices():
    batched = jax.make_jaxpr(jax.vmap(jnp.linalg.qr))(jnp.zeros((3, 2, 2)))
    assert list(ranks_of_decomposed(batched.jaxpr)) == [3]
    operators, ys, keys = ensemble()
    states = jax.vmap(KRONECKER.init)(ys)
    step = jax.make_jaxpr(jax.vmap(member_update))(states, operators, ys, keys)
    assert list(ranks_of_decomposed(step.jaxpr)) == [2, 2]  # a kind each


def test_an_ensemble_equals_separate_updates():
    operators, ys, keys = ensemble()
    mapped = jax.jit(jax.vmap(member_update))
    failing = ys.at[1].set(jnp.nan)  # at the first step, of one member
    together = jax.vmap(KRONECKER.init)(ys)
    separate = [KRONECKER.init(y) for y in ys]
    for y, counted in ((failing, [8, 8, 8]), (ys, [2, 8, 2])):
        together, products = mapped(together, operators, y, keys)
        assert products.tolist() == counted
        for i, state in enumerate(separate):
            state, alone = jax.jit(member_update)(state, operators[i], y[i], keys[i])
            assert alone == counted[i]
            member = jax.tree.map(lambda x, i=i: x[i], together)
            assert member.steps == state.steps
            np.testing.assert_allclose(dense(member, 0.1), dense(state, 0.1), 1e-9)
            separate[i] = state


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"decay": 1.0}, ValueError, r"kronecker: decay must be .*\[0, 1\)"),
        ({"decay": np.nan}, ValueError, "kronecker: decay .* got nan"),
        ({"decay": "0.9"}, TypeError, "kronecker: decay must be a number"),
        ({"refresh": 0}, ValueError, "kronecker: refresh must be .*schedule, got 0"),
        ({"iterations": 0}, ValueError, "kronecker: iterations"),
        ({"iterations": 2.0}, TypeError, "kronecker: iterations must be an integer"),
        ({"probes": 0}, ValueError, "kronecker: probes"),
        ({"probes": 2.0}, TypeError, "kronecker: probes must be an integer"),
        ({"first_probes": 0}, ValueError, "kronecker: first_probes"),
        ({"fraction": 0.0}, ValueError, r"kronecker: fraction must be .*\(0, 1\]"),
        ({"fraction": 1.5}, ValueError, "kronecker: fraction .* got 1.5"),
        ({"damping": -0.1}, ValueError, "kronecker: damping"),
        ({"max_size": 0}, ValueError, "kronecker: max_size"),
    ],
)
def test_errors(settings, error, message):
    with pytest.raises(error, match=message):
        ncg.kronecker(**settings)
