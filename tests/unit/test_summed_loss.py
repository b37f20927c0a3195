"""A loss that was summed over devices is told from one that was averaged."""

import jax
import jax.numpy as jnp
import pytest

from ncg_optax._utils import reductions

DEVICES = 4


def is_sum(value, mean_loss=2.0):
    """The same value on each of the devices, which `jax.vmap` stands for."""
    found = jax.vmap(
        lambda x: reductions.is_sum_of(x, jnp.asarray(mean_loss), ("data",)),
        axis_name="data",
    )(jnp.full(DEVICES, value))
    assert len(set(found.tolist())) == 1
    return bool(found[0])


@pytest.mark.parametrize("off", [0.0, 5e-4, -5e-4])
def test_a_sum_up_to_a_thousandth(off):
    assert is_sum(DEVICES * 2.0 * (1 + off))
    assert is_sum(-DEVICES * 2.0 * (1 + off), mean_loss=-2.0)


@pytest.mark.parametrize("off", [2e-3, -2e-3, 0.05, -0.05])
def test_further_off_it_is_another_loss(off):
    assert not is_sum(DEVICES * 2.0 * (1 + off))


def test_a_mean_and_a_loss_of_zero_are_no_sums():
    assert not is_sum(2.0)
    assert not is_sum(0.0, mean_loss=0.0)


def test_one_device_has_no_sum():
    assert not reductions.is_sum_of(jnp.asarray(2.0), jnp.asarray(2.0), ())
    assert not reductions.is_sum_of(None, jnp.asarray(2.0), ())
