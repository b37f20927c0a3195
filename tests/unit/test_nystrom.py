from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import as_matrix, symmetric, vector

import ncg_optax as ncg

pytestmark = pytest.mark.usefixtures("x64")

N = 40
DECAYING = np.geomspace(1.0, 1e-6, N)


def first_sketch(preconditioner, matvec, params):
    """The state after one jitted update, at a damping of 0."""
    return jax.jit(
        lambda: preconditioner.update(
            preconditioner.init(params),
            matvec,
            params,
            jnp.zeros(()),
            jax.random.key(0),
            0,
        )[0]
    )()


@partial(jax.jit, static_argnums=0)
def _sketch(preconditioner, a):
    product = lambda v: jnp.matmul(a, v, precision="highest")  # noqa: E731
    return first_sketch(preconditioner, product, jnp.zeros(len(a), a.dtype))


def sketched(a, rank, dtype=jnp.float64):
    """The state of a sketch of the dense matrix ``a``."""
    return _sketch(ncg.nystrom(rank), jnp.asarray(a, dtype))


@jax.jit
def applied(state, r, damping):
    """``M r``; the rank is that of the state."""
    return ncg.nystrom().apply(state, r, damping)


@jax.jit
def _matrix(state, damping):
    n = state.vectors.shape[1]
    columns = jnp.eye(n, dtype=state.vectors.dtype)
    return jax.vmap(lambda v: applied(state, v, damping))(columns).T


def dense(state, damping, dtype=jnp.float64):
    """``M`` as a matrix in float64."""
    return np.asarray(_matrix(state, jnp.asarray(damping, dtype)), np.float64)


def approximation(state):
    u = np.asarray(state.vectors)
    return u.T @ np.diag(state.values) @ u


@pytest.mark.parametrize("rank", [5, 9])
def test_a_matrix_of_low_rank_is_exact(rank):
    a = symmetric(np.r_[[5.0, 3.0, 2.0, 1.0, 0.5], np.zeros(N - 5)])
    state = sketched(a, rank)
    np.testing.assert_allclose(approximation(state), a, atol=1e-10)
    np.testing.assert_allclose(state.values[-5:], [0.5, 1, 2, 3, 5], rtol=1e-10)
    assert not state.values[:-5].any()


def test_a_sketch_of_everything_is_the_inverse():
    a = symmetric(np.geomspace(1.0, 1e-2, 8))
    m = dense(sketched(a, 8), 0.1)
    np.testing.assert_allclose(m, np.linalg.inv(a + 0.1 * np.eye(8)), rtol=1e-8)


def test_what_is_not_seen_counts_as_the_least_that_is_seen():
    spectrum = np.r_[[9.0, 4.0, 2.0], np.zeros(N - 3)]
    m = dense(sketched(symmetric(spectrum), 3), 0.5)
    expected = symmetric(1 / (np.r_[[9.0, 4.0, 2.0], np.full(N - 3, 2.0)] + 0.5))
    np.testing.assert_allclose(m, expected, atol=1e-10)


@pytest.mark.parametrize("damping", [0.0, 0.3])
def test_the_zero_operator_leaves_the_damping(damping):
    m = dense(sketched(np.zeros((N, N)), 3), damping)
    np.testing.assert_allclose(m, np.eye(N) / (damping or 1.0), rtol=1e-14)


def test_the_approximation_is_below_the_operator_and_near_it():
    a = symmetric(DECAYING)
    state = sketched(a, 20)
    lowest = np.linalg.eigvalsh(a - approximation(state))
    assert lowest[0] > -1e-12
    # Frangella, Tropp and Udell 2023, proposition 2.2, with 10 for the best rank.
    assert lowest[-1] < 5 * (DECAYING[10] + DECAYING[10:].sum())


@jax.jit
def solve(a, state):
    return ncg.solvers.conjugate_gradient(
        lambda v: a @ v,
        jnp.asarray(vector(len(a))),
        1e-5,
        maxiter=300,
        tolerance=1e-8,
        precondition=lambda r: applied(state, r, jnp.float64(1e-5)),
    )


def test_conjugate_gradients_take_fewer_iterations():
    a = symmetric(DECAYING)
    nothing = sketched(np.zeros((N, N)), 20)  # M = I / damping
    counts = []
    for state in (nothing, *(sketched(a, rank) for rank in (5, 10, 20))):
        result = solve(a, state)
        assert result.status == ncg.Status.RESIDUAL_CONVERGED
        counts.append(int(result.iterations))
    assert counts == sorted(counts, reverse=True)
    assert counts[0] > 3 * counts[-1]


INDEFINITE = {
    "a little": np.r_[[100.0, 50.0, 10.0], np.ones(30), np.full(N - 33, -0.5)],
    "decaying": np.r_[np.geomspace(100, 0.01, 25), -np.geomspace(10, 0.01, N - 25)],
    "half": np.linspace(-1, 1, N),
    "negative": -DECAYING,
    "one": np.r_[np.zeros(N - 1), [-3.0]],
}


@pytest.mark.parametrize("spectrum", INDEFINITE.values(), ids=INDEFINITE)
@pytest.mark.parametrize("seed", range(2))
def test_an_indefinite_operator_is_safe(spectrum, seed):
    state = sketched(symmetric(spectrum, seed), 12)
    largest = np.abs(spectrum).max()
    # A core shifted just to zero loses -3 in "one", and finds 3.5 in "half".
    assert 0.3 * largest < state.values[-1] < 3 * largest
    for damping in (0.0, 0.1):
        m = dense(state, damping)
        np.testing.assert_allclose(m, m.T, atol=1e-12 * np.abs(m).max())
        assert np.linalg.eigvalsh(m)[0] > 0.1 / (3 * largest + damping)


@pytest.mark.parametrize("damping", [0.0, 1e-4])
def test_float32_keeps_the_preconditioner_definite(damping):
    a = symmetric(np.geomspace(1.0, 1e-12, N))
    m = dense(sketched(a, 30, jnp.float32), damping, jnp.float32)
    lowest, *_, highest = np.linalg.eigvalsh((m + m.T) / 2)
    assert 0.5 < lowest < highest < 1e7
    inverse = np.linalg.eigvals(m @ (a + damping * np.eye(N))).real
    assert inverse.max() < 2


@pytest.mark.parametrize("scale", [1e-8, 1e8])
def test_it_does_not_know_the_scale(scale):
    a = symmetric(INDEFINITE["decaying"])
    m, scaled = (
        dense(sketched(c * a, 12, jnp.float32), c * 0.1, jnp.float32)
        for c in (1.0, scale)
    )
    np.testing.assert_allclose(scale * scaled, m, atol=1e-3 * np.abs(m).max())


def test_leaves_are_sketched_together():
    a = symmetric(np.r_[[5.0, 3.0, 2.0], np.zeros(5)])
    params = {"w": jnp.zeros((2, 3)), "b": jnp.zeros(()), "c": jnp.zeros(1)}
    flat, unravel = jax.flatten_util.ravel_pytree(params)
    product = lambda v: unravel(a @ jax.flatten_util.ravel_pytree(v)[0])  # noqa: E731
    state = first_sketch(ncg.nystrom(3), product, params)
    assert {k: x.shape for k, x in state.vectors.items()} == {
        "w": (3, 2, 3),
        "b": (3,),
        "c": (3, 1),
    }
    m = as_matrix(lambda p: lambda v: ncg.nystrom(3).apply(state, v, 0.5), params)
    expected = symmetric(1 / (np.r_[[5.0, 3.0, 2.0], np.full(5, 2.0)] + 0.5))
    np.testing.assert_allclose(m, expected, atol=1e-10)


def test_a_hermitian_operator():
    rng = np.random.default_rng(0)
    half = rng.normal(size=(6, 2)) + 1j * rng.normal(size=(6, 2))
    a = jnp.asarray(half @ half.conj().T)
    # Over the reals an eigenvector u brings along i u.
    state = first_sketch(ncg.nystrom(4), lambda v: a @ v, jnp.zeros(6, complex))
    assert state.vectors.dtype == jnp.complex128
    assert state.values.dtype == jnp.float64
    r = jnp.asarray(rng.normal(size=6) + 1j * rng.normal(size=6))
    image = a @ r  # in the span of the eigenvectors
    np.testing.assert_allclose(
        applied(state, a @ image + 0.2 * image, 0.2), image, rtol=1e-9
    )


def test_products_are_counted_when_spent():
    preconditioner, params = ncg.nystrom(3, refresh=2), jnp.zeros(6)
    calls = []

    def product(v):
        jax.debug.callback(lambda _: calls.append(1), v[0])
        return 2.0 * v

    @jax.jit
    def update(state, key):
        return preconditioner.update(state, product, params, jnp.zeros(()), key, 0)

    state, counted = preconditioner.init(params), []
    for seed in range(5):
        state, products = update(state, jax.random.key(seed))
        jax.effects_barrier()
        counted.append((int(products), len(calls)))
    assert counted == [(3, 3), (0, 3), (3, 6), (0, 6), (3, 9)]


@partial(jax.jit, static_argnums=0)
def of_multiple(preconditioner, factor, state, seed=0):
    """State and products after an update with ``factor`` times the identity."""
    params, key = jnp.zeros(6), jax.random.key(seed)
    product = lambda v: factor * v  # noqa: E731
    return preconditioner.update(state, product, params, jnp.zeros(()), key, 0)


def test_a_new_sketch_follows_the_operator():
    preconditioner = ncg.nystrom(3, refresh=1)
    state, _ = of_multiple(preconditioner, 2.0, preconditioner.init(jnp.zeros(6)))
    state, _ = of_multiple(preconditioner, 5.0, state, seed=1)
    np.testing.assert_allclose(state.values, np.full(3, 5.0), rtol=1e-8)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_products_that_are_not_finite_keep_the_sketch(bad):
    preconditioner = ncg.nystrom(3, refresh=1)
    state, _ = of_multiple(preconditioner, 2.0, preconditioner.init(jnp.zeros(6)))
    kept, products = of_multiple(preconditioner, bad, state)
    assert (int(kept.steps), int(products)) == (2, 3)
    np.testing.assert_array_equal(kept.values, state.values)
    np.testing.assert_array_equal(kept.vectors, state.vectors)


def test_a_first_sketch_that_failed_is_tried_again():
    preconditioner = ncg.nystrom(3, refresh=10)
    state, _ = of_multiple(preconditioner, np.nan, preconditioner.init(jnp.zeros(6)))
    r = vector(6)
    np.testing.assert_allclose(applied(state, r, 0.5), r / 0.5)
    state, products = of_multiple(preconditioner, 2.0, state)
    assert (int(state.steps), int(products)) == (1, 3)
    np.testing.assert_allclose(state.values, np.full(3, 2.0))


def test_a_rank_above_the_number_of_parameters():
    message = "nystrom: rank must be at most .* parameters, 5 .*, got 6"
    params = {"w": jnp.zeros(3), "c": jnp.zeros(1, complex)}
    ncg.nystrom(5).init(params)
    with pytest.raises(ValueError, match=message):
        ncg.nystrom(6).init(params)
    with pytest.raises(ValueError, match="got 4"):
        ncg.newton_cg(preconditioner=ncg.nystrom(4)).init(jnp.zeros(3))


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"rank": 0}, ValueError, "nystrom: rank must be .* at least 1, got 0"),
        ({"rank": 2.0}, TypeError, "nystrom: rank must be an integer"),
        ({"refresh": 0}, ValueError, "nystrom: refresh must be .* got 0"),
    ],
)
def test_errors(settings, error, message):
    with pytest.raises(error, match=message):
        ncg.nystrom(**settings)
