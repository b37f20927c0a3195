"""A run that is resumed from a checkpoint continues bit for bit."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import ncg_optax as ncg

serialization = pytest.importorskip("flax.serialization")

X = jax.random.normal(jax.random.key(0), (10, 3))
LOSS = ncg.CompositeLoss(
    lambda params: jnp.tanh(X @ params["w"]) + params["b"],
    lambda outputs: jnp.mean((outputs - jnp.sin(X[:, 0])) ** 2),
)
TX = {
    "newton_cg": ncg.newton_cg(),
    "warm start": ncg.hessian_free(mask={"w": True, "b": False}),
    "steihaug": ncg.newton_cg(damping=0.0, linesearch=None, solver=ncg.steihaug()),
    "momentum": ncg.newton_cg(solver=ncg.quadratic_momentum(ncg.cg(maxiter=1))),
    "quasi_newton": ncg.newton_cg(solver=ncg.quasi_newton(ncg.cg(maxiter=1))),
    "averaged": ncg.newton_cg(solver=ncg.averaged_gradient(), linesearch=None),
    "kronecker_adam": ncg.kronecker_adam(),
}


@functools.cache
def make_step(tx):
    @jax.jit
    def step(carry):
        params, state = carry
        grads = jax.grad(LOSS)(params)
        updates, state = tx.update(grads, state, params, value_fn=LOSS)
        return optax.apply_updates(params, updates), state

    return step


def start(tx):
    params = {"w": jnp.full(3, 0.1), "b": jnp.zeros(())}
    return params, tx.init(params)


def run(step, carry, steps):
    for _ in range(steps):
        carry = step(carry)
    return carry


def through_orbax(carry, target, folder):
    checkpoint = pytest.importorskip("orbax.checkpoint")
    with checkpoint.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder / "state", carry)
        checkpointer.wait_until_finished()
        return checkpointer.restore(folder / "state", target)


def through_flax(carry, target, folder):
    path = folder / "state.msgpack"
    path.write_bytes(serialization.to_bytes(carry))
    return serialization.from_bytes(target, path.read_bytes())


@pytest.mark.parametrize("through", [through_orbax, through_flax])
@pytest.mark.parametrize("tx", TX.values(), ids=TX.keys())
def test_resumed_run_is_bit_identical(tx, through, tmp_path):
    step = make_step(tx)
    middle = run(step, start(tx), 3)
    restored = through(middle, start(tx), tmp_path)
    assert jax.tree.structure(restored) == jax.tree.structure(middle)
    assert ncg.get_info(restored[1]).products == ncg.get_info(middle[1]).products

    straight, resumed = run(step, middle, 3), run(step, restored, 3)
    for a, b in zip(jax.tree.leaves(straight), jax.tree.leaves(resumed), strict=True):
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()
    moved = jax.tree.leaves(straight[0])[1] != jax.tree.leaves(middle[0])[1]
    assert np.all(moved)


def test_orbax_without_a_target_is_explained(tmp_path):
    checkpoint = pytest.importorskip("orbax.checkpoint")
    tx = ncg.newton_cg()
    with checkpoint.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", start(tx))
        checkpointer.wait_until_finished()
        restored = checkpointer.restore(tmp_path / "state")
    with pytest.raises(ValueError, match="restored with a target"):
        ncg.get_info(restored)
