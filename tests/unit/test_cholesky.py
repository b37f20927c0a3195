import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import symmetric, vector

from ncg_optax.solvers.residual_space import dense_solve

pytestmark = pytest.mark.usefixtures("x64")

N = 12
FULL = symmetric(np.logspace(0, -6, N))
SINGULAR = symmetric(np.concatenate([np.ones(N // 2), np.zeros(N // 2)]))
INDEFINITE = symmetric(np.concatenate([np.ones(N - 1), [-1e-3]]))  # as by rounding
C = vector(N)


@jax.jit
def shifted(gram, damping, c):
    return dense_solve.solve_shifted(gram, jnp.asarray(damping), c)


@jax.jit
def ladder(gram, dampings, c):
    target = lambda damping: c * (1 + damping)  # noqa: E731
    return dense_solve.solve_for_dampings(gram, jnp.asarray(dampings), target, 100.0)


@pytest.mark.parametrize("damping", [0.0, 1e-9, 1e-3, 10.0])
def test_by_factorisation(damping):
    expected = np.linalg.solve(FULL + damping * np.eye(N), C)
    np.testing.assert_allclose(shifted(FULL, damping, C), expected, rtol=1e-8)


@pytest.mark.parametrize("gram", [SINGULAR, INDEFINITE])
def test_the_solution_of_least_norm_if_the_factorisation_fails(gram):
    y = shifted(gram, 0.0, C)
    values, vectors = np.linalg.eigh(gram)
    kept = values > 1e-9
    expected = vectors[:, kept] @ (vectors[:, kept].T @ C / values[kept])
    np.testing.assert_allclose(y, expected, rtol=1e-7, atol=1e-9)


def test_several_dampings():
    dampings = np.array([1e-6, 1e-3, 1.0])
    found, ys = ladder(FULL, dampings, C)
    np.testing.assert_array_equal(found, dampings)
    for y, x in zip(ys, dampings, strict=True):
        expected = np.linalg.solve(FULL + x * np.eye(N), C * (1 + x))
        np.testing.assert_allclose(y, expected, rtol=1e-8)


def test_dampings_are_not_raised_if_one_factorisation_succeeds():
    found, ys = ladder(INDEFINITE, np.array([1e-6, 1e-4, 1e-2]), C)
    np.testing.assert_array_equal(found, [1e-6, 1e-4, 1e-2])
    assert np.isfinite(ys[2]).all() and not np.isfinite(ys[:2]).any()


def test_dampings_are_raised_if_all_factorisations_fail():
    found, ys = ladder(INDEFINITE, np.array([1e-9, 1e-8, 1e-7]), C)
    np.testing.assert_allclose(found, [1e-3, 1e-2, 1e-1], rtol=1e-12)
    expected = np.linalg.solve(INDEFINITE + 0.1 * np.eye(N), C * 1.1)
    np.testing.assert_allclose(ys[2], expected, rtol=1e-8)


@pytest.mark.parametrize(
    ("gram", "c"), [(SINGULAR * np.nan, C), (SINGULAR, C * np.nan), (SINGULAR * 0, C)]
)
def test_dampings_are_not_raised_if_that_cannot_help(gram, c):
    dampings = np.array([1e-9, 1e-8]) if gram.any() else np.zeros(2)
    found, ys = ladder(gram, dampings, c)
    np.testing.assert_array_equal(found, dampings)
    assert not np.isfinite(ys).any()
