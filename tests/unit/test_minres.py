import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import krylov, solve_model, symmetric, vector

import ncg_optax as ncg
from ncg_optax import Status

pytestmark = pytest.mark.usefixtures("x64")

SPD = symmetric([0.5, 1.0, 2.0, 3.0, 5.0, 8.0])
INDEFINITE = symmetric([-2.0, -0.4, 1.0, 3.0, 5.0, 8.0])
RHS = vector(6)
M = np.diag(1 / np.diag(SPD))


# maxiter is only compared with: it may be traced, and one compilation serves all.
@jax.jit
def solve(a, b, damping=0.0, m=None, maxiter=50, tolerance=1e-11):
    return ncg.solvers.minimum_residual(
        lambda v: a @ v,
        b,
        damping,
        maxiter=maxiter,
        tolerance=tolerance,
        precondition=None if m is None else lambda r: m @ r,
    )


def least_squares(a, b, k):
    v = krylov(a, b, k)
    return v @ np.linalg.lstsq(a @ v, b, rcond=None)[0]


def first_non_positive(a, b):
    """The first k whose residual has non-positive curvature, and the iterate there."""
    x = np.zeros_like(b)
    for k in range(len(b)):
        r = b - a @ x
        if r @ a @ r <= 0:
            return k, x
        x = least_squares(a, b, k + 1)
    raise AssertionError("the curvature stays positive")


def assert_consistent(result, a, b):
    x = np.asarray(result.solution)
    r = b - a @ x
    np.testing.assert_allclose(result.residual, np.linalg.norm(r), atol=1e-10)
    np.testing.assert_allclose(result.last_direction, r, atol=1e-10)
    np.testing.assert_allclose(result.model_decrease, b @ x - x @ a @ x / 2, rtol=1e-9)
    np.testing.assert_allclose(result.length, np.linalg.norm(x), rtol=1e-12)
    assert result.products == result.iterations


@pytest.mark.parametrize("damping", [0.0, 0.7])
def test_solves_a_definite_system(damping):
    a = SPD + damping * np.eye(6)
    result = solve(SPD, RHS, damping)
    assert result.status == Status.RESIDUAL_CONVERGED
    assert result.iterations <= 7
    np.testing.assert_allclose(result.solution, np.linalg.solve(a, RHS), rtol=1e-9)
    assert_consistent(result, a, RHS)


@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_each_iterate_has_the_least_residual_of_its_krylov_space(k):
    result = solve(SPD, RHS, maxiter=k)
    assert result.status == Status.MAX_ITERATIONS
    assert result.iterations == k
    np.testing.assert_allclose(result.solution, least_squares(SPD, RHS, k), rtol=1e-9)
    assert_consistent(result, SPD, RHS)


@pytest.mark.parametrize("seed", range(6))
def test_an_indefinite_system_is_solved_until_the_curvature_turns(seed):
    a, b = symmetric([-0.4, 0.7, 1.0, 3.0, 5.0, 8.0], seed), vector(6, seed)
    k, x = first_non_positive(a, b)
    assert k > 0
    result = solve(a, b)
    assert result.status == Status.NEGATIVE_CURVATURE
    assert result.iterations == k + 1
    np.testing.assert_allclose(result.solution, x, rtol=1e-8, atol=1e-12)
    assert_consistent(result, a, b)
    r = np.asarray(result.last_direction)
    np.testing.assert_allclose(result.curvature, r @ a @ r / (r @ r), rtol=1e-8)


@pytest.mark.parametrize("a", [-SPD, symmetric([-3.0, -2.0, -1.0, -1.0, 0.1, 0.1])])
def test_non_positive_curvature_at_once_gives_a_step_along_the_right_hand_side(a):
    assert RHS @ a @ RHS < 0
    result = solve(a, RHS)
    assert result.status == Status.NEGATIVE_CURVATURE
    assert result.iterations == 1
    x = np.asarray(result.solution)
    assert x @ RHS / np.linalg.norm(x) / np.linalg.norm(RHS) == pytest.approx(1.0)
    np.testing.assert_allclose(
        result.model_decrease, RHS @ x - x @ a @ x / 2, rtol=1e-9
    )
    assert result.model_decrease > 0


@pytest.mark.parametrize("scale", [1e-8, 1e8])
@pytest.mark.parametrize(
    "a", [SPD, INDEFINITE, -SPD], ids=["spd", "indefinite", "negative"]
)
def test_the_solve_does_not_know_the_scale(scale, a):
    def scaled(factor):
        numbers = factor * a, factor * RHS, 0.1 * factor
        return solve(*map(np.float32, numbers), None, 6, np.float32(1e-3 * factor))

    reference, result = scaled(1.0), scaled(scale)
    assert result.status == reference.status
    assert result.iterations == reference.iterations
    error = np.linalg.norm(result.solution - reference.solution)
    assert error <= 1e-4 * np.linalg.norm(reference.solution)


def test_every_iterate_descends():
    rng = np.random.default_rng(0)
    for _ in range(50):
        a = symmetric(rng.normal(size=6), seed=int(rng.integers(1e6)))
        b = rng.normal(size=6)
        result = solve(a, b, maxiter=int(rng.integers(1, 7)))
        assert np.isfinite(result.solution).all()
        assert b @ result.solution > 0
        assert result.model_decrease > 0


def test_the_residual_never_grows():
    residuals = [float(solve(SPD, RHS, maxiter=k).residual) for k in range(1, 7)]
    assert residuals == sorted(residuals, reverse=True)
    assert residuals[0] < np.linalg.norm(RHS)


def test_a_singular_consistent_system_is_solved():
    a = symmetric([0.0, 0.0, 1.0, 3.0, 5.0, 8.0])
    b = a @ RHS
    result = solve(a, b, tolerance=1e-10)
    assert result.status == Status.RESIDUAL_CONVERGED
    assert result.iterations <= 5
    np.testing.assert_allclose(
        result.solution, np.linalg.pinv(a) @ b, rtol=1e-8, atol=1e-9
    )


def test_a_preconditioned_system_is_solved():
    result = solve(SPD, RHS, m=M)
    assert result.status == Status.RESIDUAL_CONVERGED
    np.testing.assert_allclose(result.solution, np.linalg.solve(SPD, RHS), rtol=1e-9)


@pytest.mark.parametrize("k", [1, 3])
def test_a_preconditioned_iterate_is_that_of_the_transformed_system(k):
    half = np.sqrt(M)
    a, b = half @ SPD @ half, half @ RHS
    expected = half @ least_squares(a, b, k)
    result = solve(SPD, RHS, m=M, maxiter=k)
    np.testing.assert_allclose(result.solution, expected, rtol=1e-9)
    r = RHS - SPD @ expected
    np.testing.assert_allclose(result.residual, np.sqrt(r @ M @ r), rtol=1e-9)
    np.testing.assert_allclose(result.last_direction, M @ r, rtol=1e-7, atol=1e-10)


def test_the_exact_preconditioner_takes_one_iteration():
    result = solve(SPD, RHS, m=np.linalg.inv(SPD))
    assert result.iterations == 1
    np.testing.assert_allclose(result.solution, np.linalg.solve(SPD, RHS), rtol=1e-10)


def test_an_indefinite_preconditioner():
    result = solve(SPD, RHS, m=-np.eye(6))
    assert result.status == Status.INDEFINITE_PRECONDITIONER
    assert not result.solution.any()


def test_a_preconditioner_that_turns_indefinite_is_not_reported_as_convergence():
    m = symmetric([-0.3, 1.0, 1.0, 1.0, 1.0, 1.0], seed=5)
    assert RHS @ m @ RHS > 0
    result = solve(SPD, RHS, m=m)
    assert np.isfinite(result.solution).all()
    assert result.status == Status.INDEFINITE_PRECONDITIONER


def test_a_zero_right_hand_side_costs_nothing():
    result = solve(SPD, np.zeros(6))
    assert result.status == Status.ZERO_RIGHT_HAND_SIDE
    assert (int(result.products), result.solution.any()) == (0, False)


@pytest.mark.parametrize("damping", [0.0, 0.5])
def test_a_zero_operator(damping):
    result = solve(np.zeros((6, 6)), RHS, damping)
    assert result.status == Status.ZERO_CURVATURE
    np.testing.assert_allclose(result.solution, RHS / (damping or 1), rtol=1e-12)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_non_finite_operator(bad):
    result = solve(np.full((6, 6), bad), RHS)
    assert result.status == Status.SOLVER_NON_FINITE
    assert np.isfinite(result.solution).all()


def test_a_non_finite_right_hand_side():
    result = solve(SPD, np.full(6, np.nan))
    assert result.status == Status.SOLVER_NON_FINITE
    assert not result.solution.any()


def test_a_hermitian_system():
    rng = np.random.default_rng(0)
    half = rng.normal(size=(4, 4)) + 1j * rng.normal(size=(4, 4))
    a, b = (
        half @ half.conj().T + np.eye(4),
        rng.normal(size=4) + 1j * rng.normal(size=4),
    )
    result = solve(a, b)
    assert result.status == Status.RESIDUAL_CONVERGED
    np.testing.assert_allclose(result.solution, np.linalg.solve(a, b), rtol=1e-8)


@pytest.mark.parametrize("settings, rtol", [({"rtol": 0.2}, 0.2), ({}, 0.1)])
@pytest.mark.parametrize("m", [None, 1e-4])
def test_the_solver_stops_at_its_relative_tolerance(settings, rtol, m):
    solver = ncg.minres(**settings)
    rhs = jnp.asarray(RHS)
    precondition = None if m is None else lambda r: m * r
    result, _ = solve_model(solver, lambda v: SPD @ v, rhs, 0.0, precondition, ())
    assert result.status == Status.RESIDUAL_CONVERGED
    # With a preconditioner norms are in the inner product of M.
    norm = (1 if m is None else m**0.5) * np.linalg.norm(RHS)
    assert 0 < result.residual <= rtol * norm
