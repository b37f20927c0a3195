import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ncg_optax as ncg
from ncg_optax import watch

DEVICES = 4


@pytest.fixture(scope="module")
def info():
    numbers = ncg.get_info(ncg.newton_cg().init(jnp.ones(2)))
    return numbers._replace(
        status=jnp.asarray(ncg.Status.ACCEPTED, jnp.int32),
        loss=jnp.asarray(2.0),
        damping=jnp.asarray(jnp.nan),
    )


def on_all_devices(tree):
    return jax.pmap(lambda _: tree)(jnp.zeros(DEVICES))


def test_what_pmap_returns_is_one_step(info):
    state = on_all_devices(info)
    assert state.loss.shape == (DEVICES,)
    assert ncg.diagnose(state) == ncg.diagnose(info)
    assert ncg.diagnose([state, state]).steps == 2
    assert watch.to_dict(state)["loss"] == 2.0


def test_a_scan_inside_of_pmap_is_its_steps(info):
    stacked = jax.tree.map(lambda x: jnp.stack([x, x + 1]), info)
    assert ncg.diagnose(on_all_devices(stacked)).steps == 2


def test_what_is_replicated_is_one_step(info):
    mesh = jax.make_mesh((DEVICES,), ("data",))
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    state = jax.device_put(info, everywhere)
    assert len(state.loss.sharding.device_set) == DEVICES
    assert ncg.diagnose(state) == ncg.diagnose(info)
    assert watch.to_dict(state)["loss"] == 2.0


def test_devices_that_disagree_are_refused(info):
    ensemble = on_all_devices(info)
    different = jax.pmap(lambda x, k: x + k)(ensemble.loss, jnp.arange(4.0))
    ensemble = ensemble._replace(loss=different)
    for read in (ncg.diagnose, watch.to_dict):
        with pytest.raises(ValueError, match=r"4 devices.*different values.*x\[0\]"):
            read(ensemble)
    member = jax.tree.map(lambda x: np.asarray(x)[1], ensemble)
    assert watch.to_dict(member)["loss"] == 3.0
