"""Where `kronecker_adam` begins if the loss does not depend on lengths of weights."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import ncg_optax as ncg
from ncg_optax.minibatch.distance import FIRST_ANGLE, FIRST_DISTANCE, first_estimate

pytestmark = pytest.mark.usefixtures("x64")

X = jax.random.normal(jax.random.key(0), (64, 12))
Y = jnp.sin(X[:, :1])


def network(out_first=False, scale=1.0, dtype=float):
    """Weights of two normalised layers and of a last one that is not normalised."""
    keys = jax.random.split(jax.random.key(1), 3)
    shapes = [(12, 16), (16, 8), (8, 1)]
    first, second, last = (
        jax.random.normal(key, shape, dtype) / np.sqrt(shape[0])
        for key, shape in zip(keys, shapes, strict=True)
    )
    hidden = [scale * first, scale * second]
    hidden = [w.T for w in hidden] if out_first else hidden
    return {"hidden": hidden, "gain": jnp.ones(8), "last": last}


def normalised(x):
    return (x - x.mean(0)) / jnp.sqrt(jnp.mean(jnp.abs(x - x.mean(0)) ** 2, 0))


def loss(params, out_first=False, normalise=normalised):
    x = X
    for w in params["hidden"]:
        x = normalise(x @ (w.T if out_first else w))
        x = jnp.tanh(x.real)
    return jnp.mean(jnp.abs(x * params["gain"] @ params["last"] - Y) ** 2)


def root_mean_square(leaves):
    flat = jnp.concatenate([leaf.ravel() for leaf in leaves])
    return jnp.sqrt(jnp.mean(jnp.abs(flat) ** 2))


@pytest.mark.parametrize("out_first", [False, True], ids=["in-out", "out-in"])
@pytest.mark.parametrize("dtype", [float, complex])
def test_it_is_relative_to_the_weights_that_are_normalised(out_first, dtype):
    params = network(out_first, dtype=dtype)
    grads = jax.tree.map(jnp.conj, jax.grad(loss)(params, out_first))
    expected = FIRST_ANGLE * root_mean_square(params["hidden"])
    assert expected > 10 * FIRST_DISTANCE
    np.testing.assert_allclose(first_estimate(grads, params), expected, rtol=1e-12)


@pytest.mark.parametrize(
    "normalise",
    [lambda x: x, lambda x: normalised(x) + 0.3 * x],
    ids=["not at all", "beside a branch that is not"],
)
@pytest.mark.parametrize("seed", range(3))
def test_it_is_absolute_without_normalisation(normalise, seed):
    noise = jax.random.normal(jax.random.key(seed), (12, 16))
    params = network()
    params["hidden"][0] += 0.1 * noise
    grads = jax.grad(loss)(params, normalise=normalise)
    assert first_estimate(grads, params) == FIRST_DISTANCE


def test_most_of_the_weights_count():
    params = network()
    grads = jax.grad(loss)(params)
    wide = jax.random.normal(jax.random.key(2), (20, 20))
    other = jax.random.normal(jax.random.key(3), (20, 20))
    assert first_estimate([grads, other], [params, wide]) == FIRST_DISTANCE
    unused = jnp.zeros((20, 20))
    assert first_estimate([grads, unused], [params, wide]) > 10 * FIRST_DISTANCE


def test_few_units_may_be_orthogonal_by_chance():
    w, g = jnp.eye(4)[:2].reshape(4, 2), jnp.eye(4)[2:].reshape(4, 2)
    assert first_estimate([g], [w]) == FIRST_DISTANCE
    assert first_estimate([jnp.zeros((9, 9))], [jnp.ones((9, 9))]) == FIRST_DISTANCE
    assert first_estimate([jnp.ones((9, 9))], [jnp.zeros((9, 9))]) == FIRST_DISTANCE
    assert first_estimate([jnp.ones(9)], [jnp.ones(9)]) == FIRST_DISTANCE


def test_short_weights_do_not_shorten_it():
    params = network(scale=1e-4)
    assert first_estimate(jax.grad(loss)(params), params) == FIRST_DISTANCE


def steps(tx, params, count=30):
    @jax.jit
    def step(params, state):
        updates, state = tx.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    state, rates = tx.init(params), []
    for _ in range(count):
        params, state = step(params, state)
        rates.append(float(ncg.get_info(state).learning_rate))
    return params, rates


def test_the_second_step_has_the_rate():
    params = network()
    _, rates = steps(ncg.kronecker_adam(), params, 2)
    expected = FIRST_ANGLE * root_mean_square(params["hidden"]) / np.sqrt(1.01)
    np.testing.assert_allclose(rates[0], FIRST_DISTANCE, rtol=1e-6)
    np.testing.assert_allclose(rates[1], expected, rtol=1e-6)


def test_longer_weights_make_longer_steps():
    rates = [
        steps(ncg.kronecker_adam(), network(scale=scale), 2)[1][1] for scale in (1, 5)
    ]
    assert rates[1] == pytest.approx(5 * rates[0], rel=0.05)


def test_a_learning_rate_of_ones_own_stays():
    _, rates = steps(ncg.kronecker_adam(1e-3), network(), 30)
    assert rates[-1] == pytest.approx(1e-3)


def test_every_member_of_an_ensemble_has_its_own():
    tx = ncg.kronecker_adam()
    params = jax.tree.map(lambda *x: jnp.stack(x), network(), network(scale=5))

    def second_rate(params):
        state = tx.init(params)
        for _ in range(2):
            updates, state = tx.update(jax.grad(loss)(params), state, params)
            params = optax.apply_updates(params, updates)
        return ncg.get_info(state).learning_rate

    found = jax.jit(jax.vmap(second_rate))(params)
    alone = [steps(tx, network(scale=scale), 2)[1][1] for scale in (1, 5)]
    np.testing.assert_allclose(found, alone, rtol=1e-6)
