"""What the presets promise in their docstrings: that for mini-batches first."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ncg_optax as ncg

EXAMPLES = 1024
LOSS = ncg.CompositeLoss(
    lambda p, x: jnp.tanh(x @ p["w"]) @ p["v"],
    lambda outputs, y: jnp.mean((outputs - y) ** 2),
)
PARAMS = {
    "w": jax.random.normal(jax.random.key(0), (6, 8)) / 2,
    "v": jax.random.normal(jax.random.key(1), (8,)) / 3,
}


def batch(seed):
    x = jax.random.normal(jax.random.key(seed), (EXAMPLES, 6))
    noise = jax.random.normal(jax.random.key(1000 + seed), (EXAMPLES,))
    return {"x": x, "y": jnp.sin(x[:, 0]) + x[:, 1] ** 2 / 4 + 0.3 * noise}


def steps(tx, batches=(0, 1)):
    """Updates and infos of consecutive steps, all at the same parameters."""

    @jax.jit
    def step(state, data):
        value, grads = jax.value_and_grad(LOSS)(PARAMS, **data)
        return tx.update(grads, state, PARAMS, value=value, value_fn=LOSS, **data)

    state, found = tx.init(PARAMS), []
    for seed in batches:
        updates, state = step(state, batch(seed))
        found.append((updates, ncg.get_info(state)))
    return found


def first_step(loss, w, **settings):
    """Updates and info of the first step of the preset on another loss."""
    tx = ncg.stochastic_hessian_free(**settings)

    @jax.jit
    def step(w):
        return tx.update(jax.grad(loss)(w), tx.init(w), w, value_fn=loss)

    updates, state = step(w)
    return updates, ncg.get_info(state)


@pytest.fixture(scope="module")
def default():
    return steps(ncg.stochastic_hessian_free())


def test_a_step_costs_about_two_and_a_half_gradients(default):
    info = default[1][1]
    assert info.cg_iterations <= 2
    assert info.evaluations == 1  # at the end of the step: it was not too long
    assert info.gradient_equivalents < 2.6


def test_directions_of_little_curvature_are_not_blown_up():
    """Newton's step is as long in all of them, where the error is."""
    scales = 10.0 ** -jnp.arange(6)
    x = scales * jax.random.normal(jax.random.key(2), (EXAMPLES, 6))
    loss = ncg.CompositeLoss(
        lambda w, x: x @ w, lambda outputs, y: jnp.mean((outputs - y) ** 2)
    ).bind(x=x, y=x @ jnp.ones(6))

    w = jnp.zeros(6)
    ours, _ = first_step(loss, w)
    newton, _ = first_step(loss, w, preconditioner=ncg.kronecker(damping=0.0))
    assert ours[0] > 0.2 and newton[0] > 0.2
    assert ours[1] < 0.03 < 0.1 < newton[1]


def test_a_step_that_is_too_long_is_shortened():
    """Near a saddle the outputs bend so much that their slope says nothing."""
    loss = ncg.CompositeLoss(lambda w: w**3, lambda z: jnp.mean((z - 1) ** 2))
    w = jnp.full(3, 0.1)
    updates, info = first_step(loss, w)
    assert 0 < info.step_size < 1 and info.actual_reduction > 0
    assert loss(w + updates) < loss(w)


def test_the_curvature_sees_a_quarter_of_the_batch(default):
    whole = steps(ncg.stochastic_hessian_free(sampling=ncg.sampling()))
    products = [float(run[1][1].batch_products) for run in (default, whole)]
    assert products[0] < 0.5 * products[1]


def test_steps_are_cut_to_the_learning_rate(default):
    full = steps(ncg.stochastic_hessian_free(1.0), batches=(0,))[0][0]
    for ours, theirs in zip(*map(jax.tree.leaves, (default[0][0], full)), strict=True):
        np.testing.assert_allclose(ours, 0.3 * theirs, rtol=1e-5)
    assert default[0][1].step_size == 1


def test_a_solve_begins_at_the_last_solution():
    """On the same batch again it takes less to get as far as before."""
    fixed = {"sampling": ncg.sampling(), "preconditioner": None, "damping": 0.01}
    forgets = ncg.cg(maxiter=2, rtol=0.2, forcing=None)
    remembers, anew = (
        [int(info.cg_iterations) for _, info in steps(tx, batches=(0, 0))]
        for tx in (
            ncg.stochastic_hessian_free(**fixed),
            ncg.stochastic_hessian_free(**fixed, solver=forgets),
        )
    )
    assert remembers[1] < remembers[0]
    assert anew[1] == anew[0] == remembers[0]


@pytest.mark.parametrize(("solved", "most"), [(0, 4), (41, 6), (300, 20), (9999, 20)])
def test_the_solves_of_hessian_free_grow_longer(solved, most):
    solver = inspect.signature(ncg.hessian_free).parameters["solver"].default
    spectrum = jnp.logspace(0, 6, 60)  # 20 iterations come nowhere near the tolerance
    state = solver.init(spectrum)
    state = state._replace(solver=state.solver._replace(count=jnp.int32(solved)))
    result, _ = jax.jit(
        lambda rhs, state: solver.solve(
            lambda v: spectrum * v,
            rhs,
            0.0,
            lambda r: r,
            state,
            params=rhs,
            loss=jnp.zeros(()),
        )
    )(jnp.sqrt(spectrum) / spectrum, state)
    assert result.iterations == most
