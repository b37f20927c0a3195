"""Steps of `kronecker_adam` on several devices are those on one."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P
from mappings import (
    AXIS,
    MAPPINGS,
    by_mapping_and_loss,
    largest_difference,
    make_loss,
    mesh,
    place,
    problem,
    run_steps,
)

import ncg_optax as ncg

TOLERANCE = 1e-12
# Long enough for three refreshes of the bases.
STEPS = 5
CURVATURES = {"gradients": None, "and curvature": ncg.gauss_newton()}


@by_mapping_and_loss
@pytest.mark.parametrize("curvature", CURVATURES)
def test_mappings(mapping, reduce_over, curvature):
    def steps(loss, axis_name):
        tx = ncg.kronecker_adam(curvature=CURVATURES[curvature], axis_name=axis_name)
        return lambda p, x, y: run_steps(tx, loss, p, x, y, axis_name, STEPS)

    mapped = MAPPINGS[mapping](steps(make_loss(reduce_over), AXIS))(*problem())
    (trajectory, values), info = mapped
    (expected, losses), alone = jax.jit(steps(make_loss(), None))(*problem())
    assert largest_difference(trajectory, expected) < TOLERANCE
    assert largest_difference(values, losses) < TOLERANCE
    assert largest_difference(info, alone) < TOLERANCE
    assert expected["w1"].shape[0] == STEPS and np.all(info.status == alone.status)
    moved = jnp.abs(expected["w1"][-1] - expected["w1"][0])
    assert jnp.min(moved) > 1e-6


@pytest.mark.parametrize("curvature", CURVATURES)
def test_train_step(curvature):
    """`make_train_step` on four devices, and on one device by hand."""
    params, x, y = problem()
    loss = make_loss()
    tx = ncg.kronecker_adam(curvature=CURVATURES[curvature])
    step = ncg.make_train_step(loss, tx)

    @jax.jit
    def by_hand(params, state):
        value, grads = jax.value_and_grad(loss)(params, x=x, y=y)
        bound = loss.bind(x=x, y=y)
        updates, state = tx.update(grads, state, params, value=value, value_fn=bound)
        return optax.apply_updates(params, updates), state

    alone, alone_state = params, tx.init(params)
    state = tx.init(params)
    for _ in range(STEPS):
        params, state, metrics = step(params, state, {"x": x, "y": y})
        alone, alone_state = by_hand(alone, alone_state)
    assert largest_difference(params, alone) < TOLERANCE
    assert largest_difference(
        ncg.averaged_params(state, params), ncg.averaged_params(alone_state, alone)
    ) < TOLERANCE  # fmt: skip
    assert metrics.info.status == ncg.Status.NOT_EVALUATED
    np.testing.assert_allclose(metrics.info.loss, metrics.loss)


@pytest.mark.parametrize("block_size", [None, 3], ids=["whole sides", "blocks"])
def test_sharded_parameters_keep_their_sharding(block_size):
    params, x, y = problem()
    bases = ncg.minibatch.eigenbases(block_size=block_size)
    tx, loss = ncg.kronecker_adam(bases=bases), make_loss().bind(x=x, y=y)
    devices = mesh()
    specs = {"w1": P(None, AXIS), "w2": P(AXIS), "b2": P()}
    sharded = {k: place(p, devices, specs[k]) for k, p in params.items()}

    @jax.jit
    def step(params, state):
        updates, state = tx.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    state, alone_state = tx.init(sharded), tx.init(params)
    for _ in range(STEPS):
        sharded, state = step(sharded, state)
        params, alone_state = step(params, alone_state)
    assert largest_difference(sharded, params) < TOLERANCE
    assert all(sharded[k].sharding.spec == specs[k] for k in specs)
    gram = state.bases.right.gram["w1"]
    assert gram.shape == ((2, 2, 2) if block_size else (4, 4))
