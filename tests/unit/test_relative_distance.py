"""The distance of `kronecker_adam` where lengths of weights are arbitrary."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import ncg_optax as ncg
from ncg_optax.minibatch.distance import (
    CHECKED_STEPS,
    FIRST_DISTANCE,
    MAX_RELATIVE,
    RELATIVE_DISTANCE,
    relative_distance,
)

pytestmark = pytest.mark.usefixtures("x64")

FALL = (1 + 1 / 300) ** -0.5  # of the rate, from the first step to the second

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
    expected = RELATIVE_DISTANCE * root_mean_square(params["hidden"])
    assert expected > 10 * FIRST_DISTANCE
    np.testing.assert_allclose(relative_distance(grads, params), expected, rtol=1e-12)


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
    assert relative_distance(grads, params) == 0


def test_nearly_all_weights_count():
    params = network()
    grads = jax.grad(loss)(params)
    found = relative_distance(grads, params)
    assert found > 10 * FIRST_DISTANCE
    wide, other = (jax.random.normal(jax.random.key(seed), (10, 10)) for seed in (2, 3))
    assert relative_distance([grads, other], [params, wide]) == 0
    unused = jnp.zeros((10, 10))
    assert relative_distance([grads, unused], [params, wide]) == found
    vectors = [other.ravel(), other[:0]]
    assert relative_distance([grads, *vectors], [params, *vectors]) == found


def orthogonal(w, g):
    """The gradient without its part along the weights of each unit, the columns."""
    return g - w * jnp.sum(w * g, 0) / jnp.sum(w * w, 0)


def test_few_units_or_weights_are_orthogonal_by_chance():
    w, g = (jax.random.normal(jax.random.key(seed), (9, 9)) for seed in (2, 3))
    g = orthogonal(w, g)
    assert relative_distance([g], [w]) > 0
    assert relative_distance([g[:, :7]], [w[:, :7]]) == 0
    used = jnp.arange(9) < 7  # an embedding of which few rows are in the batch
    assert relative_distance([g * used], [w]) == 0
    assert relative_distance([orthogonal(w[:7], g[:7])], [w[:7]]) == 0
    for leaf in (w, jnp.zeros((9, 9)), w[0], w[:0], w[:, :0]):
        assert relative_distance([jnp.zeros_like(leaf)], [leaf]) == 0
        assert relative_distance([jnp.ones_like(leaf)], [0 * leaf]) == 0
    assert relative_distance([], []) == 0


def test_parameters_in_different_units_have_a_length():
    """Of 64 curves: where a parameter is large its derivative is small."""
    keys = jax.random.split(jax.random.key(2), 3)
    units = jnp.array([[0.1], [100.0], [60.0], [1.0], [1e3], [1e-2], [1e-3], [10.0]])
    w = units * (1 + 0.1 * jax.random.normal(keys[0], (8, 64)))
    g = jax.random.normal(keys[1], (8, 64)) / units
    size = jnp.sum(w * w, 0) * jnp.sum(g * g, 0)
    assert jnp.mean(8 * jnp.sum(w * g, 0) ** 2 / size) < 1e-4
    assert relative_distance([g], [w]) == 0


def test_equal_weights_have_a_length():
    g = jax.random.normal(jax.random.key(2), (16, 16))
    g -= g.mean(0)  # as of a softmax
    w = jnp.full((16, 16), -np.log(16))
    assert relative_distance([g], [w]) == 0
    noise = 1e-3 * jax.random.normal(jax.random.key(3), (16, 16))
    assert relative_distance([g], [w + noise]) == 0


@pytest.mark.parametrize("scale", [1e-30, 1e-15, 1e17, 1e30])
@pytest.mark.parametrize("is_free", [False, True])
def test_gradients_of_any_size(scale, is_free):
    w, g = (
        jax.random.normal(jax.random.key(seed), (64, 32), jnp.float32)
        for seed in (2, 3)
    )
    g = orthogonal(w, g) if is_free else g
    found = relative_distance([jnp.float32(scale) * g], [w])
    assert (found > 0) == is_free and found.dtype == jnp.float32


def test_it_has_an_upper_bound():
    params = network(scale=1e3)
    assert relative_distance(jax.grad(loss)(params), params) == MAX_RELATIVE


def test_no_dtype_is_promoted_and_any_size_has_a_shape():
    leaf = jax.ShapeDtypeStruct((70_000, 40_000), jnp.float32)
    with jax.numpy_dtype_promotion("strict"):
        found = jax.eval_shape(relative_distance, [leaf], [leaf])
    assert found.shape == () and found.dtype == jnp.float32


def rates_of(tx, params, steps):
    """The learning rate of each step."""

    @jax.jit
    def step(params, state):
        updates, state = tx.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    state, rates = tx.init(params), []
    for _ in range(steps):
        params, state = step(params, state)
        rates.append(float(ncg.get_info(state).learning_rate))
    return rates


def test_the_second_step_has_the_rate():
    params = network()
    rates = rates_of(ncg.kronecker_adam(), params, 2)
    expected = RELATIVE_DISTANCE * root_mean_square(params["hidden"]) * FALL
    np.testing.assert_allclose(rates[0], FIRST_DISTANCE, rtol=1e-6)
    np.testing.assert_allclose(rates[1], expected, rtol=1e-6)


@pytest.mark.parametrize("zero", ["gain", "last"])
def test_it_is_found_later_if_the_first_gradients_are_zero(zero):
    params = network()
    params[zero] = jnp.zeros_like(params[zero])
    rates = rates_of(ncg.kronecker_adam(), params, CHECKED_STEPS)
    expected = RELATIVE_DISTANCE * root_mean_square(params["hidden"])
    assert rates[1] < 0.3 * expected
    assert max(rates) > 0.9 * expected


def test_longer_weights_make_longer_steps():
    tx = ncg.kronecker_adam()
    rates = [rates_of(tx, network(scale=scale), 2)[1] for scale in (0.2, 1)]
    assert rates[1] == pytest.approx(5 * rates[0], rel=0.05)


def test_short_weights_do_not_shorten_the_steps():
    params = network(scale=1e-4)
    assert 0 < relative_distance(jax.grad(loss)(params), params) < FIRST_DISTANCE
    rates = rates_of(ncg.kronecker_adam(), params, 2)
    assert rates[1] >= FIRST_DISTANCE * FALL * (1 - 1e-6)


def test_a_learning_rate_of_ones_own_stays():
    rates = rates_of(ncg.kronecker_adam(1e-3), network(), 30)
    assert rates[-1] == pytest.approx(1e-3)


def test_every_member_of_an_ensemble_has_its_own():
    tx = ncg.kronecker_adam()
    params = jax.tree.map(lambda *x: jnp.stack(x), network(), network(scale=0.5))

    def second_rate(params):
        state = tx.init(params)
        for _ in range(2):
            updates, state = tx.update(jax.grad(loss)(params), state, params)
            params = optax.apply_updates(params, updates)
        return ncg.get_info(state).learning_rate

    found = jax.jit(jax.vmap(second_rate))(params)
    alone = [rates_of(tx, network(scale=scale), 2)[1] for scale in (1, 0.5)]
    np.testing.assert_allclose(found, alone, rtol=1e-6)
