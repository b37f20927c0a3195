"""What the presets promise in their docstrings: that for mini-batches first."""

import inspect
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree
from oracles import solve_model

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


def steps(tx, batches=(0, 1), params=PARAMS):
    """Updates and infos of consecutive steps, all at the same parameters."""

    @jax.jit
    def step(state, data):
        value, grads = jax.value_and_grad(LOSS)(params, **data)
        return tx.update(grads, state, params, value=value, value_fn=LOSS, **data)

    state, found = tx.init(params), []
    for seed in batches:
        updates, state = step(state, batch(seed))
        found.append((updates, ncg.get_info(state)))
    return found


def minimum():
    """Near that of the loss over all batches."""
    many = jax.tree.map(lambda *x: jnp.concatenate(x), *map(batch, range(20)))
    loss, tx = LOSS.bind(**many), ncg.hessian_free()

    @jax.jit
    def step(params, state):
        grads = jax.grad(loss)(params)
        updates, state = tx.update(grads, state, params, value_fn=loss)
        return optax.apply_updates(params, updates), state

    params, state = PARAMS, tx.init(PARAMS)
    for _ in range(40):
        params, state = step(params, state)
    return params


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


def test_a_step_costs_about_one_and_a_half_gradients(default):
    info = default[1][1]
    assert info.cg_iterations == 1
    assert info.evaluations == 1  # of the curvature's quarter
    assert info.gradient_equivalents < 1.8


def test_directions_of_little_curvature_are_not_blown_up():
    """Newton's step is as long in all of them, where the error is."""
    scales = 10.0 ** -jnp.arange(6)
    x = scales * jax.random.normal(jax.random.key(2), (EXAMPLES, 6))
    loss = ncg.CompositeLoss(
        lambda w, x: x @ w, lambda outputs, y: jnp.mean((outputs - y) ** 2)
    ).bind(x=x, y=x @ jnp.ones(6))

    w = jnp.zeros(6)
    ours, _ = first_step(loss, w)
    exact = ncg.cg(maxiter=12, rtol=1e-6, forcing=None)
    newton, _ = first_step(loss, w, preconditioner=None, solver=exact)
    assert ours[0] > 0.2 and newton[0] > 0.2
    assert ours[1] < 0.05 < 0.1 < newton[1]


def test_the_curvature_sees_a_quarter_of_the_batch(default):
    whole = steps(ncg.stochastic_hessian_free(sampling=ncg.sampling()))
    products = [float(run[1][1].batch_products) for run in (default, whole)]
    assert products[0] < 0.5 * products[1]


def test_steps_are_cut_to_the_learning_rate(default):
    full = steps(ncg.stochastic_hessian_free(1.0), batches=(0,))[0][0]
    for ours, theirs in zip(*map(jax.tree.leaves, (default[0][0], full)), strict=True):
        np.testing.assert_allclose(ours, 0.4 * theirs, rtol=1e-5)
    assert default[0][1].step_size == 1


def test_consecutive_steps_agree_more_than_their_gradients(default):
    """At a minimum a gradient is all noise: a step is the mean of some ten of them."""

    def cosines(trees):
        flat = [np.asarray(ravel_pytree(tree)[0]) for tree in trees]
        unit = [x / np.linalg.norm(x) for x in flat]
        return [a @ b for a, b in itertools.pairwise(unit)]

    batches = range(20)
    params = minimum()
    gradients = [jax.grad(LOSS)(params, **batch(seed)) for seed in batches]
    updates = [u for u, _ in steps(ncg.stochastic_hessian_free(), batches, params)]
    assert np.mean(cosines(gradients[10:])) < 0.5
    assert np.mean(cosines(updates[10:])) > 0.7


def test_what_the_curvature_does_not_see_makes_no_step_go_far_wrong():
    """Gauss-Newton curvature is zero where the loss is linear in the outputs."""
    hidden = ncg.CompositeLoss(lambda w: jnp.cosh(3 * w), lambda outputs: outputs[0])

    def end(**settings):
        tx = ncg.stochastic_hessian_free(**settings)

        @jax.jit
        def step(w, state):
            updates, state = tx.update(jax.grad(hidden)(w), state, w, value_fn=hidden)
            return optax.apply_updates(w, updates), state

        w = jnp.ones(1)
        state = tx.init(w)
        for _ in range(30):
            w, state = step(w, state)
        return float(hidden(w))

    start = float(hidden(jnp.ones(1)))  # 10, with a slope of 30
    assert end() < 1.1
    assert not end(linesearch=None, damping=0.0) < 100 * start


def test_a_damping_that_looks_at_the_loss_leaves_averaged_steps_alone():
    """Without a line search as well: a step uphill on one batch is no bad one."""
    loss = lambda w, slope: jnp.sum(w**2) / 2 + slope * w[0]  # noqa: E731
    tx = ncg.newton_cg(
        0.1,
        solver=ncg.averaged_gradient(),
        damping=ncg.levenberg_marquardt(calibration=0.01),
        linesearch=None,
    )
    w = jnp.ones(1)
    state = tx.init(w)
    step = jax.jit(
        lambda s, a: tx.update(jax.grad(loss)(w, a), s, w, value_fn=loss, slope=a)
    )
    for slope in (0.0, 0.0, 0.0, -1.3):  # the mean still says to go down
        updates, state = step(state, slope)
    info = ncg.get_info(state)
    assert updates[0] < 0 and jax.grad(loss)(w, -1.3)[0] < 0
    assert info.next_loss > info.loss and info.step_size == 1


@pytest.mark.parametrize(("solved", "most"), [(0, 4), (41, 6), (300, 20), (9999, 20)])
def test_the_solves_of_hessian_free_grow_longer(solved, most):
    solver = inspect.signature(ncg.hessian_free).parameters["solver"].default
    spectrum = jnp.logspace(0, 6, 60)  # 20 iterations come nowhere near the tolerance
    state = solver.init(spectrum)
    state = state._replace(solver=state.solver._replace(count=jnp.int32(solved)))
    result, _ = jax.jit(
        lambda rhs, state: solve_model(
            solver,
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
