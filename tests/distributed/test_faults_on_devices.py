"""Numbers that are not finite on one of four devices: all devices go on alike."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P
from mappings import AXIS, make_loss, mesh, problem

import ncg_optax as ncg
from ncg_optax import Status

STEPS, CLEAN = 48, 12
OPTIMIZERS = {
    "newton_cg": ncg.newton_cg,
    "hessian_free": ncg.hessian_free,
    "steihaug": lambda **axis: ncg.newton_cg(
        solver=ncg.steihaug(), damping=0.0, linesearch=None, **axis
    ),
}
TIMES = {"never": (0, 0), "first": (0, 1), "later": (7, 1), "ten": (7, 10)}


def faults(time):
    """What is added to the third shard of ``x`` at each step."""
    first, number = TIMES[time]
    values = np.zeros(STEPS)
    values[first : first + number] = np.nan
    return values


def with_fault(x, value):
    return x.at[9].add(value)  # of 16 examples on 4 devices


def shard_map(name):
    """The parameters, losses and statuses of a run under shard_map."""
    tx, loss = OPTIMIZERS[name](axis_name=AXIS), make_loss()

    def run(params, xs, y):
        def step(carry, x):
            params, state = carry
            bound = loss.bind(x=x, y=y)
            value, grads = ncg.value_and_grad(bound, AXIS)(params)
            updates, state = tx.update(
                grads, state, params, value=value, value_fn=bound
            )
            params = optax.apply_updates(params, updates)
            return (params, state), (params, value, ncg.get_info(state).status)

        return jax.lax.scan(step, (params, tx.init(params)), xs)[1]

    specs = P(), P(None, AXIS), P(AXIS)
    mapped = jax.jit(
        jax.shard_map(run, mesh=mesh(), in_specs=specs, out_specs=P(), check_vma=True)
    )

    def from_faults(values):
        params, x, y = problem()
        return mapped(params, jax.vmap(with_fault, (None, 0))(x, values), y)

    return from_faults


def train_step(name):
    """The same by make_train_step, which splits the batch itself."""
    step = ncg.make_train_step(make_loss(), OPTIMIZERS[name]())

    def from_faults(values):
        params, x, y = problem()
        state, records = OPTIMIZERS[name]().init(params), []
        for value in values:
            batch = {"x": with_fault(x, value), "y": y}
            params, state, metrics = step(params, state, batch)
            status = ncg.get_info(state).status
            records.append(
                jax.device_get((jax.tree.map(jnp.copy, params), metrics.loss, status))
            )
        return jax.tree.map(lambda *x: np.stack(x), *records)

    return from_faults


WAYS = {"shard_map": shard_map, "make_train_step": train_step}


@functools.cache
def prepared(way, name):
    run = WAYS[way](name)
    losses = run(faults("never"))[1]
    return run, losses[CLEAN] + 0.05 * (losses[0] - losses[CLEAN])


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    "name",
    [
        "newton_cg",
        pytest.param("hessian_free", marks=pytest.mark.slow),
        pytest.param("steihaug", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("time", list(TIMES)[1:])
def test_all_devices_go_on_after_a_fault_on_one(way, name, time):
    run, target = prepared(way, name)
    params, losses, statuses = run(faults(time))
    first, number = TIMES[time]
    assert all(np.isfinite(p).all() for p in jax.tree.leaves(params))
    during = slice(first, first + number)
    assert np.isnan(losses[during]).all()
    assert set(np.asarray(statuses[during])) == {Status.REJECTED_NON_FINITE}
    end = first + number
    assert np.min(losses[end : end + 2 * CLEAN + 1]) <= target
