"""The ways to spread a batch over devices, and the problem that is spread."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import ncg_optax as ncg

DEVICES = 4
AXIS = "data"


def mesh(shape=(DEVICES,), names=(AXIS,)):
    return jax.make_mesh(shape, names, axis_types=(AxisType.Auto,) * len(names))


def fold(a):
    """The batch as a leading axis over the devices and one over their examples."""
    return a.reshape(DEVICES, -1, *a.shape[1:])


# Each mapping turns fn(params, x, y) -> out, which reduces over AXIS, into a function
# of the whole batch whose output has a leading axis over the devices.


def pmap(fn):
    mapped = jax.pmap(fn, axis_name=AXIS, in_axes=(None, 0, 0))
    return lambda params, x, y: mapped(params, fold(x), fold(y))


def shard_map(fn, check_vma):
    # The replicas are only looked at one by one where types do not promise equality.
    out_specs = P() if check_vma else P(AXIS)

    def add_axis(params, x, y):
        out = fn(params, x, y)
        return out if check_vma else jax.tree.map(lambda a: a[None], out)

    mapped = jax.jit(
        jax.shard_map(
            add_axis,
            mesh=mesh(),
            in_specs=(P(), P(AXIS), P(AXIS)),
            out_specs=out_specs,
            check_vma=check_vma,
        )
    )

    def run(params, x, y):
        out = mapped(params, x, y)
        return jax.tree.map(lambda a: a[None], out) if check_vma else out

    return run


def vmap(fn, jitted):
    mapped = jax.vmap(fn, axis_name=AXIS, in_axes=(None, 0, 0))
    mapped = jax.jit(mapped) if jitted else mapped
    return lambda params, x, y: mapped(params, fold(x), fold(y))


MAPPINGS = {
    "pmap": pmap,
    "shard_map checked": functools.partial(shard_map, check_vma=True),
    "shard_map unchecked": functools.partial(shard_map, check_vma=False),
    "vmap": functools.partial(vmap, jitted=False),
    "jit(vmap)": functools.partial(vmap, jitted=True),
}


def problem(examples=16):
    """Parameters, inputs and targets of a small network."""
    keys = jax.random.split(jax.random.key(1), 4)
    params = {
        "w1": 0.7 * jax.random.normal(keys[0], (3, 4)),
        "w2": 0.7 * jax.random.normal(keys[1], (4, 2)),
        "b2": jnp.zeros(2),
    }
    x = jax.random.normal(keys[2], (examples, 3))
    y = jnp.sin(x[:, :2]) + 0.1 * jax.random.normal(keys[3], (examples, 2))
    return params, x, y


def model_fn(params, x):
    return jnp.tanh(x @ params["w1"]) @ params["w2"] + params["b2"]


def mean_squares(outputs, y):
    # Not a plain square: the curvature of the loss depends on the outputs.
    return jnp.mean(jnp.sum(jnp.log(jnp.cosh(outputs - y)), axis=1))


def make_loss(reduce_over=()):
    """A CompositeLoss, averaged by the user over ``reduce_over``."""

    def loss_fn(outputs, y):
        local = mean_squares(outputs, y)
        return jax.lax.pmean(local, reduce_over) if reduce_over else local

    return ncg.CompositeLoss(model_fn, loss_fn)


def run_steps(tx, loss, params, x, y, axis_name=None, steps=4):
    """The parameters after each step, and what the last one measured."""
    bound = loss.bind(x=x, y=y)

    def step(carry, _):
        params, state = carry
        value, grads = ncg.value_and_grad(bound, axis_name)(params)
        updates, state = tx.update(
            grads, state, params, value=value, grad=grads, value_fn=bound
        )
        params = jax.tree.map(jnp.add, params, updates)
        return (params, state), (params, value)

    (_, state), trajectory = jax.lax.scan(step, (params, tx.init(params)), length=steps)
    return trajectory, ncg.get_info(state)


by_mapping_and_loss = pytest.mark.parametrize(
    ("mapping", "reduce_over"),
    [
        ("pmap", ()),
        ("shard_map checked", ()),
        ("shard_map checked", (AXIS,)),
        ("shard_map unchecked", ()),
        ("jit(vmap)", (AXIS,)),
    ],
)


def on_devices_and_alone(mapping, reduce_over, **settings):
    """Steps of Gauss-Newton under a mapping, and on one device with the whole batch."""

    def steps(loss, axis_name):
        tx = ncg.newton_cg(
            curvature=ncg.gauss_newton(), axis_name=axis_name, **settings
        )
        return lambda p, x, y: run_steps(tx, loss, p, x, y, axis_name)

    mapped = MAPPINGS[mapping](steps(make_loss(reduce_over), AXIS))(*problem())
    return mapped, jax.jit(steps(make_loss(), None))(*problem())


def assert_replicas_are_identical(mapping, tx, steps):
    """Trains on each device with gradients of its own share, which ``tx`` averages."""

    def run(params, x, y):
        bound = make_loss().bind(x=x, y=y)

        def step(carry, _):
            params, state = carry
            grads = jax.grad(bound)(params)
            updates, state = tx.update(grads, state, params, value_fn=bound)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (params, tx.init(params)), length=steps)[0]

    for leaf in jax.tree.leaves(MAPPINGS[mapping](run)(*problem())):
        replicas = np.asarray(leaf)
        assert replicas.shape[0] == DEVICES
        assert all(replica.tobytes() == replicas[0].tobytes() for replica in replicas)


def largest_difference(tree, reference):
    """Over all leaves; a leaf of ``tree`` may have a leading axis over devices."""
    return max(
        float(np.max(np.abs(np.asarray(a) - np.asarray(b)), initial=0))
        for a, b in zip(jax.tree.leaves(tree), jax.tree.leaves(reference), strict=True)
    )


def place(tree, mesh, spec):
    return jax.device_put(tree, NamedSharding(mesh, spec))
