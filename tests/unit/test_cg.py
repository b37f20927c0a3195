from functools import partial

import hypothesis
import hypothesis.extra.numpy
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from oracles import krylov, outcome, solve_model, symmetric, vector

import ncg_optax as ncg
from ncg_optax import Status
from ncg_optax._utils import pytree

pytestmark = pytest.mark.usefixtures("x64")

SPECTRUM = np.array([0.5, 1.0, 2.0, 3.0, 5.0, 8.0])
SPD = symmetric(SPECTRUM)
RHS = vector(6)
DIAGONAL = np.diag(1 / np.diag(SPD))


@partial(
    jax.jit,
    static_argnames=(
        "maxiter",
        "tolerance",
        "progress_tol",
        "ignore_negative_curvature",
    ),
)
def solve(
    a, b, damping=0.0, x0=None, m=None, radius=None, maxiter=50, tolerance=1e-11, **kw
):
    return ncg.solvers.conjugate_gradient(
        lambda v: a @ v,
        b,
        damping,
        maxiter=maxiter,
        tolerance=tolerance,
        x0=x0,
        precondition=None if m is None else lambda r: m @ r,
        radius=radius,
        **kw,
    )


def decrease(a, b, x):
    return b @ x - x @ a @ x / 2


def assert_consistent(result, a, b):
    """The recurrences say what a direct computation says."""
    x, p = np.asarray(result.solution), np.asarray(result.last_direction)
    np.testing.assert_allclose(result.residual, np.linalg.norm(b - a @ x), atol=1e-10)
    np.testing.assert_allclose(result.model_decrease, decrease(a, b, x), rtol=1e-10)
    return x, p


@pytest.mark.parametrize("damping", [0.0, 0.7])
@pytest.mark.parametrize("m", [None, DIAGONAL], ids=["plain", "preconditioned"])
@pytest.mark.parametrize("x0", [None, vector(6, seed=9)], ids=["cold", "warm"])
def test_solves_a_definite_system(damping, m, x0):
    result = solve(SPD, RHS, damping, x0, m)
    damped = SPD + damping * np.eye(6)
    x, _ = assert_consistent(result, damped, RHS)
    np.testing.assert_allclose(x, np.linalg.solve(damped, RHS), rtol=1e-9)
    assert result.status == Status.RESIDUAL_CONVERGED
    assert result.iterations <= 7
    assert result.products == result.iterations + (x0 is not None)


@pytest.mark.parametrize("maxiter", [1, 3])
def test_a_truncated_solve_is_the_best_of_the_krylov_space(maxiter):
    result = solve(SPD, RHS, maxiter=maxiter)
    x, p = assert_consistent(result, SPD, RHS)
    v = krylov(SPD, RHS, maxiter)
    best = v @ np.linalg.solve(v.T @ SPD @ v, v.T @ RHS)
    np.testing.assert_allclose(x, best, rtol=1e-10)
    assert result.status == Status.MAX_ITERATIONS
    assert result.iterations == maxiter


def test_a_damped_preconditioned_warm_truncated_solve_is_consistent():
    result = solve(SPD, RHS, 0.3, vector(6, seed=9), DIAGONAL, maxiter=3)
    assert_consistent(result, SPD + 0.3 * np.eye(6), RHS)
    assert (int(result.iterations), int(result.products)) == (3, 4)


def test_the_curvature_is_that_of_the_undamped_matrix_along_the_last_direction():
    result = solve(SPD, RHS, 0.3, maxiter=1)
    np.testing.assert_allclose(
        result.curvature, RHS @ SPD @ RHS / (RHS @ RHS), rtol=1e-12
    )


def test_the_length_is_that_of_the_way_from_the_start():
    x0 = vector(6, seed=9)
    cold, warm = solve(SPD, RHS, maxiter=3), solve(SPD, RHS, 0.0, x0, maxiter=3)
    np.testing.assert_allclose(cold.length, np.linalg.norm(cold.solution), rtol=1e-10)
    np.testing.assert_allclose(
        warm.length, np.linalg.norm(warm.solution - x0), rtol=1e-10
    )


def test_the_length_is_in_the_norm_of_the_inverse_preconditioner():
    result = solve(SPD, RHS, m=DIAGONAL, maxiter=3)
    x = np.asarray(result.solution)
    expected = np.sqrt(x @ np.linalg.solve(DIAGONAL, x))
    np.testing.assert_allclose(result.length, expected, rtol=1e-10)


@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_k_distinct_eigenvalues_take_k_iterations(k):
    eigenvalues = np.resize([1.0, 2.0, 4.0, 9.0][:k], 6)
    result = solve(symmetric(eigenvalues), RHS)
    assert result.iterations == k
    assert result.status == Status.RESIDUAL_CONVERGED


def test_the_exact_preconditioner_takes_one_iteration():
    damped = SPD + 0.5 * np.eye(6)
    result = solve(SPD, RHS, 0.5, m=np.linalg.inv(damped))
    assert result.iterations == 1
    np.testing.assert_allclose(
        result.solution, np.linalg.solve(damped, RHS), rtol=1e-10
    )


def test_the_exact_start_takes_no_iteration():
    exact = np.linalg.solve(SPD, RHS)
    result = solve(SPD, RHS, 0.0, exact)
    assert (int(result.iterations), int(result.products)) == (0, 1)
    assert result.status == Status.RESIDUAL_CONVERGED
    np.testing.assert_array_equal(result.solution, exact)


def test_the_tolerance_is_on_the_residual_norm():
    loose = solve(SPD, RHS, tolerance=0.3)
    assert loose.residual <= 0.3
    before = solve(SPD, RHS, maxiter=int(loose.iterations) - 1)
    assert before.residual > 0.3


def first_stall(a, b, epsilon):
    """Martens' test on the model values of a plain dense CG."""
    phi, x, r, p = [0.0], np.zeros_like(b), b, b
    for i in range(1, 200):
        alpha = r @ r / (p @ a @ p)
        x, new = x + alpha * p, r - alpha * a @ p
        p, r = new + new @ new / (r @ r) * p, new
        phi.append(-decrease(a, b, x))
        k = max(10, i // 10)
        if i > k and (phi[i] - phi[i - k]) / phi[i] < k * epsilon:
            return i, x
    raise AssertionError("never stalled")


@pytest.mark.parametrize("epsilon", [5e-3, 5e-4])
def test_the_progress_test_is_that_of_martens(epsilon):
    a, b = symmetric(np.geomspace(1e-2, 1.0, 60)), vector(60)
    result = solve(a, b, maxiter=60, progress_tol=epsilon)
    iterations, x = first_stall(a, b, epsilon)
    assert result.status == Status.PROGRESS_STALLED
    assert result.iterations == iterations > 11
    np.testing.assert_allclose(result.solution, x, rtol=1e-8)
    assert solve(a, b, maxiter=60).iterations > iterations


def assert_descends(result, a, b):
    assert np.isfinite(result.solution).all()
    assert b @ result.solution > 0
    assert result.model_decrease > 0
    np.testing.assert_allclose(
        result.model_decrease, decrease(a, b, np.asarray(result.solution)), rtol=1e-9
    )


@pytest.mark.parametrize("a", [-SPD, symmetric([-1.0, -2, -3, 0.1, 0.1, 0.1])])
@pytest.mark.parametrize("m", [None, DIAGONAL], ids=["plain", "preconditioned"])
def test_negative_curvature_in_the_first_iteration(a, m):
    direction = RHS if m is None else m @ RHS
    assert direction @ a @ direction < 0
    result = solve(a, RHS, m=m)
    assert result.status == Status.NEGATIVE_CURVATURE
    assert (int(result.iterations), result.curvature < 0) == (1, True)
    assert_descends(result, a, RHS)


@pytest.mark.parametrize("seed", range(4))
def test_negative_curvature_later_on(seed):
    a, b = symmetric([-0.5, 1.0, 2.0, 3.0, 5.0, 8.0], seed), vector(6, seed)
    assert b @ a @ b > 0
    result = solve(a, b)
    assert result.status == Status.NEGATIVE_CURVATURE
    assert result.iterations > 1
    assert_descends(result, a, b)
    p = np.asarray(result.last_direction)
    assert p @ a @ p < 0
    np.testing.assert_allclose(result.curvature, p @ a @ p / (p @ p), rtol=1e-8)


def test_enough_damping_hides_the_negative_curvature():
    a = symmetric([-0.5, 1.0, 2.0, 3.0, 5.0, 8.0])
    result = solve(a, RHS, 1.0)
    assert result.status == Status.RESIDUAL_CONVERGED
    np.testing.assert_allclose(
        result.solution, np.linalg.solve(a + np.eye(6), RHS), rtol=1e-9
    )


def test_ignored_negative_curvature_is_divided_by():
    a = symmetric([-0.5, 1.0, 2.0, 3.0, 5.0, 8.0])
    result = solve(a, RHS, ignore_negative_curvature=True, tolerance=1e-9)
    assert result.status == Status.RESIDUAL_CONVERGED
    np.testing.assert_allclose(result.solution, np.linalg.solve(a, RHS), rtol=1e-7)


def test_a_zero_right_hand_side_costs_nothing():
    result = solve(SPD, np.zeros(6))
    assert result.status == Status.ZERO_RIGHT_HAND_SIDE
    assert (int(result.iterations), int(result.products)) == (0, 0)
    assert not result.solution.any()
    assert result.model_decrease == 0


@pytest.mark.parametrize("damping", [0.0, 0.5])
def test_a_zero_operator(damping):
    result = solve(np.zeros((6, 6)), RHS, damping)
    assert result.status == Status.ZERO_CURVATURE
    assert (int(result.iterations), float(result.curvature)) == (1, 0.0)
    assert_descends(result, damping * np.eye(6), RHS)
    if damping:
        np.testing.assert_allclose(result.solution, RHS / damping, rtol=1e-12)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_non_finite_operator(bad):
    result = solve(np.full((6, 6), bad), RHS)
    assert result.status == Status.SOLVER_NON_FINITE
    assert np.isfinite(result.solution).all() and np.isfinite(result.model_decrease)


def test_a_product_that_turns_nan_ends_with_the_last_finite_iterate():
    a = np.array([[2.0, 1.0, 0.0], [1.0, 3.0, 1.0], [0.0, 1.0, 2.0]])
    b = np.array([1.0, 0.0, 0.0])
    turning = jax.jit(
        lambda b: ncg.solvers.conjugate_gradient(
            lambda v: jnp.where(v[1] != 0, jnp.nan, a @ v), b, maxiter=5, tolerance=0.0
        )
    )
    result = turning(b)
    assert result.status == Status.SOLVER_NON_FINITE
    assert result.iterations == 2
    np.testing.assert_allclose(result.solution, [0.5, 0.0, 0.0])
    assert result.model_decrease == 0.25


def test_a_non_finite_right_hand_side():
    result = solve(SPD, np.full(6, np.nan))
    assert result.status == Status.SOLVER_NON_FINITE
    assert (int(result.iterations), result.solution.any()) == (0, False)


def test_an_indefinite_preconditioner_is_seen_at_once():
    result = solve(SPD, RHS, m=-np.eye(6))
    assert result.status == Status.INDEFINITE_PRECONDITIONER
    assert (int(result.iterations), result.solution.any()) == (0, False)


def test_an_indefinite_preconditioner_is_seen_later():
    m = symmetric([-0.3, 1.0, 1.0, 1.0, 1.0, 1.0], seed=5)
    assert RHS @ m @ RHS > 0
    result = solve(SPD, RHS, m=m)
    assert result.status == Status.INDEFINITE_PRECONDITIONER
    assert result.iterations >= 1
    assert np.isfinite(result.solution).all()
    assert result.model_decrease > 0


@pytest.mark.parametrize("scale", [1e-8, 1e8])
@pytest.mark.parametrize("spectrum", [SPECTRUM, SPECTRUM - 1.2, -SPECTRUM])
def test_the_solve_does_not_know_the_scale(scale, spectrum):
    def scaled(factor):
        a, b = np.float32(factor * symmetric(spectrum)), np.float32(factor * RHS)
        return jitted(a, b, np.float32(0.1 * factor), np.float32(1e-3 * factor))

    @jax.jit
    def jitted(a, b, damping, tolerance):
        return ncg.solvers.conjugate_gradient(
            lambda v: jnp.matmul(a, v, precision="highest"),
            b,
            damping,
            maxiter=6,
            tolerance=tolerance,
        )

    reference, result = scaled(1.0), scaled(scale)
    assert result.status == reference.status
    assert result.iterations == reference.iterations
    error = np.linalg.norm(result.solution - reference.solution)
    assert error <= 1e-4 * np.linalg.norm(reference.solution)


def test_squares_of_small_numbers_do_not_underflow():
    a, b = np.float32(1e-8 * SPD), np.float32(1e-15 * RHS)
    result = solve(a, b, maxiter=12, tolerance=np.float32(1e-20))
    assert result.status == Status.RESIDUAL_CONVERGED
    np.testing.assert_allclose(
        1e7 * result.solution, np.linalg.solve(SPD, RHS), rtol=1e-3, atol=1e-4
    )


def test_a_hermitian_system():
    rng = np.random.default_rng(0)
    half = rng.normal(size=(4, 4)) + 1j * rng.normal(size=(4, 4))
    a, b = (
        half @ half.conj().T + np.eye(4),
        rng.normal(size=4) + 1j * rng.normal(size=4),
    )
    result = solve(a, b)
    np.testing.assert_allclose(result.solution, np.linalg.solve(a, b), rtol=1e-9)
    assert result.status == Status.RESIDUAL_CONVERGED
    assert result.iterations <= 5
    assert result.model_decrease.dtype == jnp.float64


def test_trees_of_mixed_dtypes():
    d32, d64 = np.float32([1.0, 2.0]), np.float64([4.0, 5.0])
    b = {"a": jnp.ones(2, jnp.float32), "b": jnp.ones(2, jnp.float64)}
    product = lambda v: {"a": d32 * v["a"], "b": d64 * v["b"]}  # noqa: E731
    result = jax.jit(
        lambda b: ncg.solvers.conjugate_gradient(product, b, maxiter=4, tolerance=1e-6)
    )(b)
    assert [x.dtype for x in jax.tree.leaves(result.solution)] == ["float32", "float64"]
    assert result.residual.dtype == jnp.float64
    np.testing.assert_allclose(result.solution["a"], 1 / d32, rtol=1e-6)
    np.testing.assert_allclose(result.solution["b"], 1 / d64, rtol=1e-6)


def test_products_in_bfloat16():
    a = jnp.asarray(SPD, jnp.bfloat16)
    like = jnp.zeros(6, jnp.bfloat16)
    product = pytree.in_dtypes_of(like, lambda v: a @ v)
    result = jax.jit(
        lambda b: ncg.solvers.conjugate_gradient(product, b, maxiter=12, tolerance=0.02)
    )(jnp.asarray(RHS, jnp.float32))
    assert result.solution.dtype == jnp.float32
    exact = np.linalg.solve(np.asarray(a, np.float64), RHS)
    error = np.linalg.norm(result.solution - exact) / np.linalg.norm(exact)
    assert error < 0.05


@pytest.mark.parametrize("radius", [0.1, 0.5, 0.9])
def test_steihaug_stops_exactly_on_the_boundary(radius):
    assert np.linalg.norm(np.linalg.solve(SPD, RHS)) > 0.9
    result = solve(SPD, RHS, radius=radius)
    assert result.status == Status.TRUST_REGION_BOUNDARY
    np.testing.assert_allclose(np.linalg.norm(result.solution), radius, rtol=1e-12)
    np.testing.assert_allclose(result.length, radius, rtol=1e-12)
    assert_consistent(result, SPD, RHS)


def test_steihaug_takes_the_newton_step_inside():
    result = solve(SPD, RHS, radius=100.0)
    assert result.status == Status.RESIDUAL_CONVERGED
    np.testing.assert_allclose(result.solution, np.linalg.solve(SPD, RHS), rtol=1e-9)


@pytest.mark.parametrize("spectrum", [-SPECTRUM, SPECTRUM - 0.9, SPECTRUM - 2.5])
def test_steihaug_follows_negative_curvature_to_the_boundary(spectrum):
    a = symmetric(spectrum)
    result = solve(a, RHS, radius=50.0)
    assert result.status == Status.NEGATIVE_CURVATURE
    np.testing.assert_allclose(np.linalg.norm(result.solution), 50.0, rtol=1e-12)
    assert_descends(result, a, RHS)


def test_the_boundary_of_a_preconditioned_trust_region_is_in_its_norm():
    result = solve(SPD, RHS, m=DIAGONAL, radius=0.5)
    x = np.asarray(result.solution)
    assert result.status == Status.TRUST_REGION_BOUNDARY
    np.testing.assert_allclose(x @ np.linalg.solve(DIAGONAL, x), 0.25, rtol=1e-10)


def best_in_disc(a, b, radius):
    """The largest model decrease in a 2-D trust region, by a fine polar grid."""
    angles, lengths = np.meshgrid(
        np.linspace(0, 2 * np.pi, 721), np.linspace(0, radius, 201)
    )
    d = np.stack([lengths * np.cos(angles), lengths * np.sin(angles)])
    return np.max(np.einsum("i,i...", b, d) - np.einsum("i...,ij,j...", d, a, d) / 2)


def cauchy(a, b, radius):
    slope, bend = np.linalg.norm(b), b @ a @ b / (b @ b)
    step = min(radius, slope / bend) if bend > 0 else radius
    return slope * step - bend * step**2 / 2


@pytest.mark.parametrize(
    "eigenvalues", [(1.0, 3.0), (-1.0, 3.0), (-1.0, -3.0), (0.0, 2.0)]
)
@pytest.mark.parametrize("seed", range(4))
def test_steihaug_lies_between_cauchy_and_the_best_step(eigenvalues, seed):
    a, b = symmetric(eigenvalues, seed), vector(2, seed)
    result = solve(a, b, radius=0.7)
    assert np.linalg.norm(result.solution) <= 0.7 * (1 + 1e-12)
    assert result.model_decrease >= cauchy(a, b, 0.7) * (1 - 1e-10)
    assert result.model_decrease <= best_in_disc(a, b, 0.7) * (1 + 1e-3)


symmetric_matrices = hypothesis.extra.numpy.arrays(
    np.int64, (5, 5), elements=st.integers(-9, 9)
).map(lambda half: (half + half.T).astype(float))
nonzero_vectors = (
    hypothesis.extra.numpy.arrays(np.int64, 5, elements=st.integers(-9, 9))
    .map(lambda b: b.astype(float))
    .filter(np.any)
)


@hypothesis.given(
    symmetric_matrices, nonzero_vectors, st.sampled_from([0.0, 0.5, 20.0])
)
@hypothesis.settings(max_examples=80)
def test_every_direction_descends(a, b, damping):
    result = solve(a, b, damping, maxiter=5)
    assert np.isfinite(result.solution).all()
    assert b @ result.solution > 0
    assert result.model_decrease >= 0


@hypothesis.given(symmetric_matrices, nonzero_vectors, st.sampled_from([0.1, 10.0]))
@hypothesis.settings(max_examples=80)
def test_every_trust_region_direction_beats_cauchy_within_the_radius(a, b, radius):
    result = solve(a, b, radius=radius, maxiter=5)
    assert np.linalg.norm(result.solution) <= radius * (1 + 1e-9)
    assert b @ result.solution > 0
    assert result.model_decrease >= cauchy(a, b, radius) * (1 - 1e-9)


def solver_run(solver, *gradient_scales):
    """States and results of successive solves with gradients of these lengths."""

    @jax.jit
    def step(rhs, state):
        return solve_model(solver, lambda v: SPD @ v, rhs, 0.0, lambda r: r, state)

    unit, state, history = RHS / np.linalg.norm(RHS), solver.init(jnp.zeros(6)), []
    for scale in gradient_scales:
        result, state = step(jnp.asarray(scale * unit), state)
        history.append((result, state))
    return history


@pytest.mark.parametrize("make", [ncg.cg, ncg.steihaug])
def test_the_forcing_sequence_is_that_of_eisenstat_and_walker(make):
    norms = 1.0, 0.5, 0.3, 0.01, 0.02
    history = solver_run(make(rtol=0.5, forcing="eisenstat_walker"), *norms)
    alpha = (1 + np.sqrt(5)) / 2
    expected = [0.5]
    for previous, norm in zip(norms, norms[1:], strict=False):
        eta = 0.9 * (norm / previous) ** alpha
        safeguard = 0.9 * expected[-1] ** alpha
        eta = max(eta, safeguard) if safeguard > 0.1 else eta
        expected.append(min(eta, 0.5))
    tolerances = [float(state.forcing.tolerance) for _, state in history]
    np.testing.assert_allclose(tolerances, expected, rtol=1e-12)
    for (result, _), norm, eta in zip(history, norms, expected, strict=True):
        assert result.residual <= eta * norm
    ((_, state),) = solver_run(make(), 1.0)
    assert float(state.forcing.tolerance) == 0.1


def test_a_gradient_that_overflowed_does_not_tighten_the_next_solve():
    history = solver_run(ncg.cg(rtol=0.5), 1.0, np.inf, 1.0)
    assert float(history[-1][1].forcing.tolerance) == 0.5


def test_a_fixed_tolerance_is_relative():
    (coarse, _), (tiny, _) = solver_run(ncg.cg(rtol=0.2, forcing=None), 1.0, 1e-6)
    assert coarse.iterations == tiny.iterations
    assert coarse.residual <= 0.2


def test_the_number_of_iterations_follows_a_schedule():
    exact = {"rtol": 0.0, "forcing": None}
    solver = ncg.cg(maxiter=optax.linear_schedule(0.5, 3.5, 3), **exact)
    history = solver_run(solver, *[1.0] * 5)
    assert [int(result.iterations) for result, _ in history] == [1, 1, 2, 3, 3]
    assert [int(state.count) for _, state in history] == [1, 2, 3, 4, 5]
    for result, _ in history:
        ((fixed, state),) = solver_run(
            ncg.cg(maxiter=int(result.iterations), **exact), 1.0
        )
        assert state.count is None
        np.testing.assert_allclose(result.solution, fixed.solution, rtol=1e-12)


def test_a_schedule_counts_solves_that_were_rejected_too():
    solver = ncg.cg(maxiter=lambda count: 1 + count, warm_start=0.5)
    ((_, state),) = solver_run(solver, 1.0)
    rejected = solver.update(state, outcome(1.0, accepted=False))
    assert rejected.count == 1 and not rejected.previous.any()


def test_a_schedule_and_the_progress_test_exclude_each_other():
    with pytest.raises(ValueError, match="progress_tol must be None .* got 0.001"):
        ncg.cg(maxiter=lambda count: 5, progress_tol=1e-3)
    with pytest.raises(TypeError, match="maxiter .*schedule.* got '5' of type str"):
        ncg.cg(maxiter="5")


def test_an_absolute_tolerance_is_absolute():
    (large, _), (tiny, _) = solver_run(
        ncg.cg(rtol=0.0, atol=0.1, forcing=None), 1.0, 0.01
    )
    assert 0 < large.residual <= 0.1
    assert tiny.iterations == 0


def test_a_warm_start_begins_at_its_share_of_the_last_solution():
    solver = ncg.cg(rtol=1e-12, forcing=None, warm_start=0.9)
    (first, state), (second, _) = solver_run(solver, 1.0, 0.9)
    np.testing.assert_array_equal(state.previous, first.solution)
    assert (int(second.iterations), int(second.products)) == (0, 1)
    np.testing.assert_allclose(second.solution, 0.9 * first.solution, rtol=1e-14)


@pytest.mark.parametrize("accepted", [True, False])
def test_a_rejected_step_resets_the_warm_start(accepted):
    solver = ncg.cg(warm_start=0.9)
    ((result, state),) = solver_run(solver, 1.0)
    kept = solver.update(state, outcome(1.0, accepted=accepted)).previous
    np.testing.assert_array_equal(kept, result.solution if accepted else np.zeros(6))


def radius_after(ratio, length, accepted=True, **settings):
    solver = ncg.steihaug(radius=2.0, **settings)
    state = solver.init(jnp.zeros(6))._replace(length=jnp.float64(length))
    return float(solver.update(state, outcome(ratio, accepted=accepted)).radius)


def test_the_trust_radius_follows_the_reduction_ratio():
    assert radius_after(0.9, length=2.0) == 4.0
    assert radius_after(0.9, length=1.0) == 2.0
    assert radius_after(0.5, length=2.0) == 2.0
    assert radius_after(0.1, length=1.0) == 0.25
    assert radius_after(0.0, length=2.0, accepted=False) == 0.5
    assert radius_after(0.9, length=2.0, max_radius=3.0) == 3.0


def test_the_trust_radius_survives_a_direction_of_length_zero():
    assert radius_after(0.0, length=0.0, accepted=False) > 0


@pytest.mark.parametrize("maxiter, iterations", [(3, 3), (20, 6)])
def test_no_preconditioner_is_applied_to_the_last_residual(maxiter, iterations):
    """One application an iteration: nothing comes after the last residual."""
    applied = []

    def precondition(r):
        jax.debug.callback(lambda: applied.append(1))
        return r / 2

    diagonal = jnp.arange(1.0, 7.0)
    result = ncg.solvers.conjugate_gradient(
        lambda v: diagonal * v,
        jnp.ones(6),
        maxiter=maxiter,
        tolerance=1e-4,
        precondition=precondition,
    )
    jax.effects_barrier()
    assert result.iterations == iterations == len(applied)
