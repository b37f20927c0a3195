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
ZERO = np.zeros((N, N))
C = vector(N)


@jax.jit
def shifted(gram, damping, c):
    return dense_solve.solve_shifted(gram, jnp.asarray(damping), c)


@pytest.mark.parametrize("damping", [0.0, 1e-9, 1e-3, 10.0])
def test_by_factorisation(damping):
    expected = np.linalg.solve(FULL + damping * np.eye(N), C)
    np.testing.assert_allclose(shifted(FULL, damping, C), expected, rtol=1e-8)


@pytest.mark.parametrize("gram", [SINGULAR, INDEFINITE, ZERO])
def test_the_solution_of_least_norm_if_the_factorisation_fails(gram):
    y = shifted(gram, 0.0, C)
    values, vectors = np.linalg.eigh(gram)
    kept = values > 1e-9
    expected = vectors[:, kept] @ (vectors[:, kept].T @ C / values[kept])
    np.testing.assert_allclose(y, expected, rtol=1e-7, atol=1e-9)


def test_several_right_hand_sides_with_one_factorisation():
    solve = dense_solve.factorised(FULL, jnp.asarray(1e-3))
    for c in (C, 2 * C[::-1]):
        expected = np.linalg.solve(FULL + 1e-3 * np.eye(N), c)
        np.testing.assert_allclose(solve(c), expected, rtol=1e-8)


def test_a_factorisation_that_fails_gives_nothing_finite():
    assert not np.isfinite(dense_solve.factorised(INDEFINITE, jnp.zeros(()))(C)).any()
