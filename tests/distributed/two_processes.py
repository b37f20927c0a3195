"""One of two processes with two devices each: python two_processes.py port index."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from mappings import AXIS, largest_difference, make_loss, mesh, problem, run_steps

import ncg_optax as ncg
from ncg_optax import parallel


def main(port, index):
    jax.distributed.initialize(f"127.0.0.1:{port}", num_processes=2, process_id=index)
    assert jax.device_count() == 4
    assert jax.local_device_count() == 2
    devices, loss = mesh(), make_loss()
    problem_here = jax.tree.map(np.asarray, problem())

    def place(a, spec):
        sharding = NamedSharding(devices, spec)
        return jax.make_array_from_callback(a.shape, sharding, lambda i: a[i])

    params = jax.tree.map(lambda a: place(a, P()), problem_here[0])
    batch = [place(a, P(AXIS)) for a in problem_here[1:]]

    def steps(axis_name):
        tx = optimizer(axis_name)
        return lambda *args: run_steps(tx, loss, *args, axis_name, steps=3)[0]

    def local(tree):
        return jax.tree.map(lambda a: np.asarray(a.addressable_data(0)), tree)

    expected = jax.jit(steps(None))(*problem_here)
    found = {"automatic sharding": jax.jit(steps(None))(params, *batch)}
    found["make_train_step"] = train_steps(loss, problem_here)
    for check_vma in (True, False):
        mapped = jax.shard_map(
            steps(AXIS),
            mesh=devices,
            in_specs=(P(), P(AXIS), P(AXIS)),
            out_specs=P(),
            check_vma=check_vma,
        )
        found[f"shard_map {check_vma=}"] = jax.jit(mapped)(params, *batch)
    for name, trajectory in found.items():
        difference = largest_difference(local(trajectory), expected)
        assert difference < 1e-12, (name, difference)
        print(f"{name}: {difference:.1e}")
    differing_parameters_are_refused(devices)
    jax.distributed.shutdown()


def optimizer(axis_name=None):
    return ncg.newton_cg(
        curvature=ncg.gauss_newton(),
        solver=ncg.cg(maxiter=8, warm_start=0.9),
        axis_name=axis_name,
    )


def train_steps(loss, problem_here):
    """Each process passes its own rows."""
    params, x, y = problem_here
    mine = slice(8 * jax.process_index(), 8 * (jax.process_index() + 1))
    step, state, trajectory = ncg.make_train_step(loss, optimizer()), None, []
    for _ in range(3):
        state = optimizer().init(params) if state is None else state
        params, state, metrics = step(params, state, {"x": x[mine], "y": y[mine]})
        # The next step takes their memory.
        trajectory.append((jax.tree.map(jnp.copy, params), metrics.loss))
    return jax.tree.map(lambda *a: jnp.stack(a), *trajectory)


def differing_parameters_are_refused(devices):
    for number in (jax.process_index(), np.ones(1 + jax.process_index())):
        try:
            parallel.replicate({"w": number}, devices)
        except ValueError as error:
            assert "process(es) 1 differ from process 0" in str(error)
            print("refused")


if __name__ == "__main__":
    main(port=int(sys.argv[1]), index=int(sys.argv[2]))
