"""A compilation is announced on the logger "ncg_optax" at level INFO."""

import logging
import re

import jax
import jax.numpy as jnp
import optax
import pytest

import ncg_optax as ncg


def messages(caplog):
    """The messages since the last call, with the seconds left out."""
    found = [r.getMessage() for r in caplog.records if r.name == "ncg_optax"]
    caplog.clear()
    return [re.sub(r"\d+\.\d s", "# s", message) for message in found]


def loss(w, x):
    return jnp.mean((x * w - 1.0) ** 2)


@pytest.fixture
def info(caplog):
    caplog.set_level(logging.INFO, "ncg_optax")
    return caplog


def both(who):
    return [f"{who}: compiling", f"{who}: compiled in # s"]


def test_a_train_step_says_when_it_compiles_and_only_then(info):
    tx = optax.sgd(0.1)
    step = ncg.make_train_step(loss, tx)
    w = jnp.zeros(())
    state = tx.init(w)
    w, state, _ = step(w, state, {"x": jnp.ones(4)})
    assert messages(info) == both("make_train_step")
    w, state, _ = step(w, state, {"x": jnp.ones(4)})
    assert messages(info) == []
    step(w, state, {"x": jnp.ones(8)})  # another shape
    assert messages(info) == both("make_train_step")


def test_a_step_that_fails_while_it_is_traced_can_be_called_again(info):
    tx = optax.sgd(0.1)
    step = ncg.make_train_step(lambda w, x, y: loss(w, x) + jnp.mean(y), tx)
    w = jnp.zeros(())
    with pytest.raises(TypeError, match="y"):
        step(w, tx.init(w), {"x": jnp.ones(4)})
    messages(info)
    step(w, tx.init(w), {"x": jnp.ones(4), "y": jnp.ones(4)})
    assert messages(info) == both("make_train_step")


def test_a_train_step_that_is_lowered_or_traced_says_nothing(info):
    tx = optax.sgd(0.1)
    step = ncg.make_train_step(loss, tx, donate=False)
    w = jnp.zeros(())
    batch = {"x": jnp.ones(4)}
    step.lower(w, tx.init(w), batch)
    jax.jit(lambda w: step(w, tx.init(w), batch)[0])(w)
    assert messages(info) == []


def test_minimize_says_that_it_compiles(info):
    _, _, result = ncg.minimize(lambda w: jnp.sum((w - 1.0) ** 2), jnp.zeros(3))
    assert result.converged
    assert messages(info) == both("minimize")


def test_minimize_within_a_traced_function_compiles_with_it(info):
    solve = jax.jit(lambda w: ncg.minimize(lambda w: jnp.sum((w - 1.0) ** 2), w)[0])
    assert jnp.allclose(solve(jnp.zeros(3)), 1.0)
    assert messages(info) == []


def test_nothing_is_printed_by_default(capfd):
    ncg.minimize(lambda w: jnp.sum((w - 1.0) ** 2), jnp.zeros(3))
    assert "compil" not in "".join(capfd.readouterr())
