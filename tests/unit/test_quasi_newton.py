import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import constant_preconditioner, krylov, solve_model, symmetric, vector

import ncg_optax as ncg
from ncg_optax.solvers import secant_pairs as _quasi_newton

pytestmark = pytest.mark.usefixtures("x64")

SPD = symmetric(np.array([0.5, 1.0, 2.0, 3.0, 5.0, 8.0]))
RHS = vector(6)
M = np.diag(1 / np.diag(SPD))


class Captured(ncg.solvers.KrylovSolver):
    """Its direction is the preconditioner times the right-hand side."""

    def solve(self, model, state):
        result = ncg.solvers.conjugate_gradient(
            model.product, model.rhs, maxiter=1, tolerance=0.0
        )
        return result._replace(solution=model.precondition(model.rhs)), state


def quadratic(w):
    return 0.5 * w @ SPD @ w - RHS @ w


def trajectory(tx, loss, w, steps):
    @jax.jit
    def run(w):
        def step(carry, i):
            w, state = carry
            value_fn = lambda w: loss(w, i)  # noqa: E731
            grads = jnp.conj(jax.grad(value_fn)(w))
            updates, state = tx.update(grads, state, w, value_fn=value_fn)
            return (w + updates, state), (w + updates, ncg.get_info(state), state)

        return jax.lax.scan(step, (w, tx.init(w)), jnp.arange(steps))[1]

    return run(w)


def pairs_of(state):
    return state[0].solver.pairs


def random_pairs(number, memory_size=4, seed=0):
    """So many pairs of a random positive definite matrix, the older places empty."""
    s = np.stack([vector(6, seed=seed + i) for i in range(memory_size)])
    s /= np.linalg.norm(s, axis=1, keepdims=True)
    s[: memory_size - number] = 0
    y = s @ SPD
    return ncg.solvers.SecantPairs(*map(jnp.asarray, (s, y, np.sum(s * y, axis=1))))


def dense(pairs, damping, m):
    """The BFGS matrix by its definition, from the oldest pair to the newest."""
    there = [
        (s, y + damping * s)
        for s, y, bend in zip(*map(np.asarray, pairs), strict=True)
        if bend
    ]
    h = m
    if there:
        s, y = there[-1]
        h = (s @ y) / (y @ m @ y) * m
    for s, y in there:
        rho = 1 / (s @ y)
        left = np.eye(len(s)) - rho * np.outer(s, y)
        h = left @ h @ left.T + rho * np.outer(s, s)
    return h


@pytest.mark.parametrize("damping", [0.0, 0.7])
@pytest.mark.parametrize("number", [0, 1, 3, 4])
def test_the_matrix_is_that_of_bfgs(number, damping):
    pairs = random_pairs(number)
    improved = _quasi_newton._improved(pairs, damping, lambda r: M @ r)
    found = jnp.stack([improved(e) for e in jnp.eye(6)])
    np.testing.assert_allclose(found, dense(pairs, damping, M), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("damping", [0.0, 0.7])
def test_it_meets_the_newest_secant_equation(damping):
    pairs = random_pairs(4)
    improved = _quasi_newton._improved(pairs, damping, lambda r: M @ r)
    s, y = pairs.steps[-1], pairs.changes[-1]
    np.testing.assert_allclose(improved(y + damping * s), s, rtol=1e-9, atol=1e-12)


@hypothesis.settings(deadline=None, max_examples=25)
@hypothesis.given(seed=st.integers(0, 10_000), number=st.integers(0, 4))
def test_it_is_symmetric_and_positive_definite(seed, number):
    improved = _quasi_newton._improved(
        random_pairs(number, seed=seed), 0.0, lambda r: r
    )
    h = np.array([improved(e) for e in jnp.eye(6)])
    np.testing.assert_allclose(h, h.T, rtol=1e-6, atol=1e-8 * np.abs(h).max())
    assert np.linalg.eigvalsh(h).min() > 0


@pytest.mark.parametrize("m", [np.eye(6), M], ids=["I", "M"])
def test_single_iterations_add_up_to_conjugate_gradients(m):
    tx = ncg.newton_cg(
        damping=0.0,
        solver=ncg.quasi_newton(ncg.cg(maxiter=1), memory_size=6),
        preconditioner=constant_preconditioner(m),
    )
    iterates, info, _ = trajectory(tx, lambda w, i: quadratic(w), jnp.zeros(6), 6)
    for k, w in enumerate(iterates, start=1):
        v = krylov(m @ SPD, m @ RHS, k)
        best = v @ np.linalg.solve(v.T @ SPD @ v, v.T @ RHS)
        np.testing.assert_allclose(w, best, rtol=1e-7)
    np.testing.assert_array_equal(info.products, np.ones(6))


def test_a_pair_is_the_curvature_along_the_step_whatever_its_length():
    tx = ncg.newton_cg(0.3, solver=ncg.quasi_newton(ncg.cg(maxiter=1), memory_size=3))
    _, _, states = trajectory(tx, lambda w, i: quadratic(w), jnp.zeros(6), 5)
    pairs = jax.tree.map(lambda x: x[-1], pairs_of(states))
    np.testing.assert_allclose(np.linalg.norm(pairs.steps, axis=1), np.ones(3))
    np.testing.assert_allclose(pairs.changes, pairs.steps @ SPD, rtol=1e-8)
    bends = np.sum(pairs.steps * (pairs.steps @ SPD), axis=1)
    np.testing.assert_allclose(pairs.bends, bends, rtol=1e-8)


def test_there_is_one_pair_less_than_steps_and_no_more_than_fit():
    tx = ncg.newton_cg(solver=ncg.quasi_newton(ncg.cg(maxiter=1), memory_size=3))
    _, _, states = trajectory(tx, lambda w, i: quadratic(w), jnp.zeros(6), 5)
    number = np.sum(np.asarray(pairs_of(states).bends) > 0, axis=1)
    np.testing.assert_array_equal(number, [0, 1, 2, 3, 3])


def count_pairs(loss, steps=4, w=None):
    tx = ncg.newton_cg(
        1e-3, damping=10.0, linesearch=None, solver=ncg.quasi_newton(ncg.cg(maxiter=1))
    )
    w = jnp.zeros(6) if w is None else w
    _, _, states = trajectory(tx, loss, w, steps)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(pairs_of(states)))
    return int(np.sum(np.asarray(pairs_of(states).bends)[-1] > 0))


def test_pairs_of_negative_curvature_are_dropped():
    concave = lambda w, i: -quadratic(w)  # noqa: E731
    assert count_pairs(concave, w=jnp.ones(6)) == 0


def test_pairs_of_two_losses_are_dropped():
    # The same curvature, but another level and slope for every batch.
    batches = lambda w, i: quadratic(w) + i * (1.0 + w[0])  # noqa: E731
    assert count_pairs(batches) == 0
    assert count_pairs(lambda w, i: quadratic(w)) == 3


def test_a_loss_that_hardly_changes_keeps_its_pairs():
    nearly = lambda w, i: quadratic(w) * (1 + 1e-6 * i)  # noqa: E731
    assert count_pairs(nearly) == 3


def test_a_batch_that_is_not_finite_costs_no_pair():
    hole = lambda w, i: jnp.where(i == 2, jnp.nan, quadratic(w))  # noqa: E731
    # Those from 0 to 1, from 1 to 3, from 3 to 4 and from 4 to 5.
    assert count_pairs(hole, steps=6) == 4


def test_a_rejected_step_leaves_no_pair():
    tx = ncg.newton_cg(solver=ncg.quasi_newton(ncg.cg(maxiter=1)))
    # A step away from the start there is nothing.
    island = lambda w: jnp.where(jnp.all(w == 0), quadratic(w), jnp.nan)  # noqa: E731
    _, info, states = trajectory(tx, lambda w, i: island(w), jnp.zeros(6), 3)
    assert not info.step_size.any()
    assert not pairs_of(states).bends.any()


@pytest.mark.parametrize("exponent", [-12, -8, 8, 12])
def test_the_scale_of_the_loss_changes_nothing(exponent):
    tx = ncg.newton_cg(damping=0.0, solver=ncg.quasi_newton(ncg.cg(maxiter=1)))
    scale = jnp.float32(10.0**exponent)
    a, b = jnp.asarray(SPD, jnp.float32), jnp.asarray(RHS, jnp.float32)
    loss = lambda w, i: scale * (0.5 * w @ a @ w - b @ w)  # noqa: E731
    found, _, _ = trajectory(tx, loss, jnp.zeros(6, jnp.float32), 4)
    np.testing.assert_allclose(
        found[-1],
        trajectory(tx, lambda w, i: quadratic(w), jnp.zeros(6), 4)[0][-1],
        rtol=1e-4,
    )


def test_steps_too_short_to_be_squared():
    w = jnp.asarray(1e-30 * vector(6), jnp.float32)
    a = jnp.asarray(SPD, jnp.float32)
    tx = ncg.newton_cg(damping=0.0, solver=ncg.quasi_newton(ncg.cg(maxiter=1)))
    _, _, states = trajectory(tx, lambda w, i: 0.5 * w @ (a @ w), w, 3)
    pairs = jax.tree.map(lambda x: x[-1], pairs_of(states))
    np.testing.assert_allclose(pairs.changes[-1], SPD @ pairs.steps[-1], rtol=1e-3)


def test_complex_parameters():
    rng = np.random.default_rng(0)
    half = rng.normal(size=(3, 3)) + 1j * rng.normal(size=(3, 3))
    a, b = half @ half.conj().T + np.eye(3), vector(3) + 1j * vector(3, seed=2)
    loss = lambda z, i: jnp.real(0.5 * z.conj() @ a @ z - b.conj() @ z)  # noqa: E731
    tx = ncg.newton_cg(
        damping=0.0, solver=ncg.quasi_newton(ncg.cg(maxiter=1)), linesearch=None
    )
    iterates, _, _ = trajectory(tx, loss, jnp.zeros(3, jnp.complex128), 3)
    # The matrix is complex-linear: three steps do for three complex unknowns.
    np.testing.assert_allclose(iterates[-1], np.linalg.solve(a, b), rtol=1e-7)


def test_the_solver_inside_gets_the_improved_preconditioner():
    solver = ncg.quasi_newton(Captured(), memory_size=4)
    pairs = random_pairs(4)
    state = solver.init(jnp.zeros(6))._replace(pairs=pairs)
    rhs, loss = jnp.asarray(RHS), jnp.ones(())
    result, following = solve_model(
        solver,
        lambda v: SPD @ v,
        rhs,
        0.5,
        lambda r: M @ r,
        state,
        params=2 * rhs,
        loss=loss,
    )
    np.testing.assert_allclose(result.solution, dense(pairs, 0.5, M) @ RHS, rtol=1e-9)
    # Nothing is known of the step before the first.
    np.testing.assert_array_equal(following.pairs.steps, pairs.steps)
    np.testing.assert_array_equal(following.last.params, 2 * RHS)


def test_what_the_solver_inside_needs_is_needed():
    assert ncg.quasi_newton(ncg.steihaug()).needs_outcome
    assert ncg.quasi_newton(ncg.cg(descent_threshold=0.5)).descent_threshold == 0.5
    assert ncg.quasi_newton(ncg.averaged_gradient()).may_ascend
    assert not ncg.quasi_newton(ncg.quadratic_momentum()).needs_outcome


def test_the_state_is_as_wide_as_the_vectors_of_the_solver():
    params = {"a": jnp.zeros(2, jnp.bfloat16), "b": jnp.zeros(3, jnp.complex64)}
    state = ncg.quasi_newton(memory_size=2).init(params)
    for vectors in (state.pairs.steps, state.last.params):
        assert [x.dtype for x in jax.tree.leaves(vectors)] == ["float32", "complex64"]
    assert state.pairs.changes["b"].shape == (2, 3)
