import dataclasses

import hypothesis
import hypothesis.extra.numpy
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import (
    constant_preconditioner,
    krylov,
    outcome,
    solve_model,
    symmetric,
    vector,
)

import ncg_optax as ncg
from ncg_optax._utils import pytree

pytestmark = pytest.mark.usefixtures("x64")

SPECTRUM = np.array([0.5, 1.0, 2.0, 3.0, 5.0, 8.0])
SPD = symmetric(SPECTRUM)
RHS, D, LAST = vector(6), vector(6, seed=2), vector(6, seed=3)


@dataclasses.dataclass(frozen=True)
class Given(ncg.solvers.KrylovSolver):
    """A solver whose direction is its state; ``damping`` is one that it chooses."""

    damping: float | None = None

    def init(self, params):
        return pytree.zeros_like(params)

    def solve(self, model, state):
        chosen = None
        if self.damping is not None:
            chosen = jnp.asarray(self.damping)
            model = model._replace(damping=chosen)
        ad = model.damped_product(state)
        decrease = pytree.vdot(model.rhs, state) - 0.5 * pytree.vdot(state, ad)
        zero, none = jnp.zeros_like(decrease), jnp.zeros((), jnp.int32)
        result = ncg.solvers.SolverResult(
            state, none, none, zero, decrease, zero, model.rhs, zero, none, chosen
        )
        return result, state


@jax.jit
def combine(a, b, d, last, damping=0.0, fault=0.0):
    """The combination of two given directions; ``fault`` spoils some products."""
    solver = ncg.quadratic_momentum(Given())
    state = ncg.solvers.QuadraticMomentumState(solver=d, step=last)
    product = lambda v: a @ v + jnp.where(v[0] != 0, fault, 0)  # noqa: E731
    result, state = solve_model(solver, product, b, damping, None, state)
    return result, state.step


def decrease(a, b, x):
    return (b.conj() @ x - x.conj() @ a @ x / 2).real


def best_in_plane(a, b, d, last):
    p = np.column_stack([d, last])
    gram = (p.conj().T @ a @ p).real
    return p @ np.linalg.solve(gram, (p.conj().T @ b).real)


def assert_is_the_direction(result, d, products):
    np.testing.assert_array_equal(result.solution, d)
    assert result.products == products


@pytest.mark.parametrize("damping", [0.0, 0.7])
@pytest.mark.parametrize("seed", range(3))
def test_the_step_is_the_best_of_the_plane(damping, seed):
    b, d, last = (vector(6, seed=10 * seed + i) for i in range(3))
    result, step = combine(SPD, b, d, last, damping)
    a = SPD + damping * np.eye(6)
    best = best_in_plane(a, b, d, last)
    np.testing.assert_allclose(result.solution, best, rtol=1e-9)
    np.testing.assert_allclose(result.model_decrease, decrease(a, b, best), rtol=1e-10)
    assert result.products == 1
    np.testing.assert_array_equal(step, result.solution)


def test_an_indefinite_matrix_with_a_convex_plane():
    a = symmetric([-1.0, 1.0, 2.0, 3.0, 5.0, 8.0])
    directions = np.linalg.eigh(a)[1][:, 2:4]
    d, last = directions @ [1.0, 0.3], directions @ [0.2, 1.0]
    result, _ = combine(a, RHS, d, last)
    best = best_in_plane(a, RHS, d, last)
    np.testing.assert_allclose(result.solution, best, rtol=1e-9)


def test_a_hermitian_matrix_and_real_factors():
    half = SPD + 1j * symmetric(SPECTRUM, seed=4)
    a = half @ half.conj().T
    b, d, last = RHS + 1j * D, D + 1j * LAST, LAST - 2j * RHS
    result, _ = combine(a, b, d, last)
    best = best_in_plane(a, b, d, last)
    np.testing.assert_allclose(result.solution, best, rtol=1e-9)
    np.testing.assert_allclose(result.model_decrease, decrease(a, b, best), rtol=1e-10)
    assert result.model_decrease.dtype == jnp.float64


def test_a_damping_that_the_solver_chose_counts():
    @jax.jit
    def solve(b, d, last):
        solver = ncg.quadratic_momentum(Given(damping=0.7))
        state = ncg.solvers.QuadraticMomentumState(d, last)
        return solve_model(solver, lambda v: SPD @ v, b, 0.0, None, state)[0]

    result = solve(RHS, D, LAST)
    best = best_in_plane(SPD + 0.7 * np.eye(6), RHS, D, LAST)
    np.testing.assert_allclose(result.solution, best, rtol=1e-9)
    assert result.damping == 0.7


# The cost, and what is left as the solver has it.


@jax.jit
def after_cg(last):
    inner = ncg.cg(maxiter=2, rtol=0.0, forcing=None)
    outer = ncg.quadratic_momentum(inner)
    product = lambda v: SPD @ v  # noqa: E731
    state = inner.init(last)
    alone, _ = solve_model(inner, product, RHS, 0.3, None, state)
    state = ncg.solvers.QuadraticMomentumState(state, last)
    together, _ = solve_model(outer, product, RHS, 0.3, None, state)
    return alone, together


def test_it_costs_one_product_and_none_without_a_last_step():
    alone, together = after_cg(LAST)
    assert (int(alone.products), int(together.products)) == (2, 3)
    assert together.model_decrease > alone.model_decrease
    alone, first = after_cg(jnp.zeros(6))
    assert_is_the_direction(first, alone.solution, products=2)


def test_the_rest_of_the_result_is_that_of_the_solver():
    alone, together = after_cg(LAST)
    a = SPD + 0.3 * np.eye(6)
    best = best_in_plane(a, RHS, np.asarray(alone.solution), LAST)
    np.testing.assert_allclose(together.solution, best, rtol=1e-9)
    changed = dict(solution=0, products=0, model_decrease=0)
    jax.tree.map(
        np.testing.assert_array_equal,
        together._replace(**changed),
        alone._replace(**changed),
    )


def product_calls(last):
    """How many products are really made."""
    calls = []

    def product(v):
        jax.debug.callback(lambda: calls.append(1))
        return SPD @ v

    solver = ncg.quadratic_momentum(ncg.cg(maxiter=2, rtol=0.0, forcing=None))
    state = solver.init(jnp.zeros(6))._replace(step=last)
    run = jax.jit(lambda s: solve_model(solver, product, RHS, 0.0, None, s))
    result, _ = run(state)
    jax.block_until_ready(result)
    jax.effects_barrier()
    return len(calls), int(result.products)


def test_the_products_are_counted_as_made():
    assert product_calls(LAST) == (3, 3)
    assert product_calls(jnp.zeros(6)) == (2, 2)


# Safety.


@pytest.mark.parametrize("other", [0.0, 1e-12, 1e-9])
@pytest.mark.parametrize("factor", [3.0, -1e-5])
def test_a_last_step_parallel_to_the_direction(factor, other):
    result, _ = combine(SPD, RHS, D, factor * (D + other * LAST))
    assert_is_the_direction(result, D, products=1)


def test_a_last_step_a_little_off_the_direction():
    last = D + 1e-2 * LAST
    result, _ = combine(SPD, RHS, D, last)
    best = best_in_plane(SPD, RHS, D, last)
    np.testing.assert_allclose(result.solution, best, rtol=1e-6)


@pytest.mark.parametrize("d", [np.eye(6)[0], np.zeros(6)], ids=["negative", "zero"])
def test_no_product_without_positive_curvature_along_the_direction(d):
    a = np.diag([-1.0, 1, 2, 3, 4, 5])
    result, _ = combine(a, RHS, d, LAST)
    assert_is_the_direction(result, d, products=0)
    np.testing.assert_allclose(result.model_decrease, decrease(a, RHS, d))


@pytest.mark.parametrize("curvature", [-1.0, 0.0])
def test_no_positive_curvature_along_the_last_step(curvature):
    a = np.diag([curvature, 1, 2, 3, 4, 5])
    result, _ = combine(a, RHS, np.eye(6)[1], np.eye(6)[0])
    assert_is_the_direction(result, np.eye(6)[1], products=1)


def test_negative_curvature_elsewhere_in_the_plane():
    a = np.diag([-1.0, 2, 3, 4, 5, 6])
    d, last = np.eye(6)[1] + np.eye(6)[0], np.eye(6)[1] - np.eye(6)[0]
    assert d @ a @ d > 0 and last @ a @ last > 0
    result, _ = combine(a, RHS, d, last)
    assert_is_the_direction(result, d, products=1)


def test_a_singular_matrix():
    result, _ = combine(np.outer(D, D), RHS, D, LAST)
    assert_is_the_direction(result, D, products=1)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_product_that_is_not_finite(bad):
    d = D * (np.arange(6) > 0)  # products are fine where the first entry is zero
    result, _ = combine(SPD, RHS, d, LAST, fault=bad)
    assert_is_the_direction(result, d, products=1)
    np.testing.assert_allclose(result.model_decrease, decrease(SPD, RHS, d))


@pytest.mark.parametrize("factor", [-1.0, 1e-8, 1e8])
def test_only_the_direction_of_the_last_step_matters(factor):
    reference, _ = combine(SPD, RHS, D, LAST)
    result, _ = combine(SPD, RHS, D, factor * LAST)
    np.testing.assert_allclose(result.solution, reference.solution, rtol=1e-10)


def test_squares_of_small_numbers_do_not_underflow():
    single = [np.float32(x) for x in (SPD, RHS, D, 1e-30 * LAST)]
    result, _ = combine(*single, np.float32(0))
    best = best_in_plane(SPD, RHS, D, LAST)
    np.testing.assert_allclose(result.solution, best, rtol=1e-4)


@pytest.mark.parametrize("scale", [1e-8, 1e8])
@pytest.mark.parametrize("spectrum", [SPECTRUM, SPECTRUM - 2.2])
@pytest.mark.parametrize("last", [LAST, D + 1e-4 * LAST], ids=["distinct", "parallel"])
def test_the_step_does_not_know_the_scale(scale, spectrum, last):
    def scaled(factor):
        numbers = factor * symmetric(spectrum), factor * RHS, D, last, 0.1 * factor
        return combine(*map(np.float32, numbers))[0]

    reference, result = scaled(1.0), scaled(scale)
    assert result.solution.dtype == jnp.float32
    assert result.products == reference.products
    error = np.linalg.norm(result.solution - reference.solution)
    assert error <= 1e-5 * np.linalg.norm(reference.solution)
    np.testing.assert_allclose(
        result.model_decrease / scale, reference.model_decrease, rtol=1e-4
    )


symmetric_matrices = hypothesis.extra.numpy.arrays(
    np.int64, (4, 4), elements=st.integers(-9, 9)
).map(lambda half: (half + half.T).astype(float))
vectors = hypothesis.extra.numpy.arrays(np.int64, 4, elements=st.integers(-9, 9)).map(
    lambda b: b.astype(float)
)


@hypothesis.given(symmetric_matrices, vectors, vectors, vectors)
@hypothesis.settings(max_examples=150)
def test_the_model_never_falls_less_than_with_the_direction_alone(a, b, d, last):
    result, _ = combine(a, b, d, last)
    x = np.asarray(result.solution)
    assert np.isfinite(x).all()
    size = abs(b) @ abs(x) + abs(x) @ abs(a) @ abs(x) + 1
    np.testing.assert_allclose(
        result.model_decrease, decrease(a, b, x), atol=1e-9 * size
    )
    assert result.model_decrease >= decrease(a, b, d) - 1e-9 * size


# The state.


@pytest.mark.parametrize(
    ("accepted", "step_size", "factor"),
    [(True, 1.0, 1.0), (True, 0.25, 0.25), (False, 0.0, 0.0), (False, 1.0, 0.0)],
)
def test_the_last_step_is_the_one_taken(accepted, step_size, factor):
    solver = ncg.quadratic_momentum(ncg.cg(warm_start=0.9))
    state = solver.init(jnp.zeros(6))._replace(step=jnp.asarray(LAST))
    state = state._replace(solver=state.solver._replace(previous=jnp.asarray(D)))
    after = solver.update(state, outcome(1.0, step_size=step_size, accepted=accepted))
    np.testing.assert_array_equal(after.step, factor * LAST)
    # The solver inside learns of it as well.
    np.testing.assert_array_equal(after.solver.previous, D if accepted else 0 * D)


def test_a_rejected_step_that_is_not_finite_is_forgotten():
    solver = ncg.quadratic_momentum()
    state = solver.init(jnp.zeros(6))._replace(step=jnp.full(6, jnp.nan))
    after = solver.update(state, outcome(0.0, step_size=0.0, accepted=False))
    np.testing.assert_array_equal(after.step, np.zeros(6))


def test_the_last_step_is_the_gradient_where_the_direction_does_not_descend():
    uphill = -RHS
    result, step = combine(SPD, RHS, uphill, np.zeros(6))
    np.testing.assert_array_equal(result.solution, uphill)
    np.testing.assert_array_equal(step, RHS)


def test_the_state_is_as_wide_as_the_vectors_of_the_solver():
    params = {"a": jnp.zeros(2, jnp.bfloat16), "b": jnp.zeros(3, jnp.complex64)}
    state = ncg.quadratic_momentum().init(params)
    assert [x.dtype for x in jax.tree.leaves(state.step)] == ["float32", "complex64"]


def test_the_descent_threshold_is_that_of_the_solver():
    solver = ncg.quadratic_momentum(ncg.cg(descent_threshold=0.5))
    assert solver.descent_threshold == 0.5
    assert not solver.needs_outcome and not solver.may_ascend


# In the optimizer.


def quadratic(w):
    return 0.5 * w @ SPD @ w - RHS @ w


def trajectory(tx, loss, w, steps):
    @jax.jit
    def run(w):
        def step(carry, _):
            w, state = carry
            grads = jnp.conj(jax.grad(loss)(w))
            updates, state = tx.update(grads, state, w, value_fn=loss)
            return (w + updates, state), (w + updates, ncg.get_info(state))

        return jax.lax.scan(step, (w, tx.init(w)), length=steps)[1]

    return run(w)


@pytest.mark.parametrize("m", [np.eye(6), np.diag(1 / np.diag(SPD))], ids=["I", "M"])
@pytest.mark.parametrize("linesearch", [None, ncg.armijo()], ids=["None", "armijo"])
def test_single_iterations_add_up_to_conjugate_gradients(m, linesearch):
    tx = ncg.newton_cg(
        damping=0.0,
        solver=ncg.quadratic_momentum(ncg.cg(maxiter=1)),
        preconditioner=constant_preconditioner(m),
        linesearch=linesearch,
    )
    iterates, info = trajectory(tx, quadratic, jnp.zeros(6), 6)
    for k, w in enumerate(iterates, start=1):
        v = krylov(m @ SPD, m @ RHS, k)
        best = v @ np.linalg.solve(v.T @ SPD @ v, v.T @ RHS)
        np.testing.assert_allclose(w, best, rtol=1e-7)
    np.testing.assert_array_equal(info.products, [1, 2, 2, 2, 2, 2])
    np.testing.assert_array_equal(info.step_size, np.ones(6))
    assert np.all(np.diff(info.loss) < 0)
    np.testing.assert_allclose(
        info.predicted_reduction[:-1], -np.diff(info.loss), rtol=1e-7
    )


def test_complex_parameters():
    rng = np.random.default_rng(0)
    half = rng.normal(size=(3, 3)) + 1j * rng.normal(size=(3, 3))
    a, b = half @ half.conj().T + np.eye(3), vector(3) + 1j * vector(3, seed=2)
    loss = lambda z: jnp.real(0.5 * z.conj() @ a @ z - b.conj() @ z)  # noqa: E731
    tx = ncg.newton_cg(
        damping=0.0,
        solver=ncg.quadratic_momentum(ncg.cg(maxiter=1)),
        linesearch=None,
    )
    iterates, _ = trajectory(tx, loss, jnp.zeros(3, jnp.complex128), 3)
    # The matrix is complex-linear: three steps do for three complex unknowns.
    np.testing.assert_allclose(iterates[-1], np.linalg.solve(a, b), rtol=1e-7)


def test_after_a_rejected_step_there_is_no_momentum():
    # Not finite a little before the end of the first step along the gradient.
    near = lambda w: w @ RHS < 0.1 * RHS @ RHS  # noqa: E731
    wall = lambda w: jnp.where(near(w), quadratic(w), jnp.nan)  # noqa: E731
    tx = ncg.newton_cg(
        damping=ncg.levenberg_marquardt(initial=1.0),
        solver=ncg.quadratic_momentum(ncg.cg(maxiter=1)),
        linesearch=None,
    )
    _, info = trajectory(tx, wall, jnp.zeros(6), 6)
    accepted = info.step_size > 0
    assert not accepted[0] and accepted.any()
    np.testing.assert_array_equal(info.products[1:], 1 + accepted[:-1])
