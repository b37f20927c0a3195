import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from oracles import assert_trees_equal, make_step, rosenbrock, train

import ncg_optax as ncg

pytestmark = pytest.mark.usefixtures("x64")

START = np.array([-1.2, 1.0])


def pair():
    return optax.adam(0.05), ncg.newton_cg()


@pytest.fixture(scope="module")
def switched(x64):
    """The step of the switch after three, its initial state."""
    tx = ncg.switch_after(3, *pair())
    return make_step(tx, rosenbrock), tx.init(START)


def run(step, params, state, steps):
    for _ in range(steps):
        params, state = step(params, state, {})
    return params, state


def test_equals_the_two_run_by_hand(switched):
    first, then = pair()
    by_hand, first_state = train(first, rosenbrock, START, 3)
    by_hand, then_state = train(then, rosenbrock, by_hand, 4)

    step, state = switched
    params, state = run(step, START, state, 7)
    np.testing.assert_allclose(params, by_hand, rtol=1e-9)
    assert state.steps_done == 7
    np.testing.assert_allclose(
        optax.tree.get(state.first, "count"), optax.tree.get(first_state, "count")
    )
    info, expected = ncg.get_info(state), ncg.get_info(then_state)
    assert info.products == expected.products
    np.testing.assert_allclose(info.damping, expected.damping, rtol=1e-9)


def test_scan_gives_the_same(switched):
    step, state = switched
    expected, _ = run(step, START, state, 5)
    (params, end), _ = jax.lax.scan(
        lambda carry, _: (step(*carry, {}), None), (START, state), length=5
    )
    assert end.steps_done == 5
    np.testing.assert_allclose(params, expected, rtol=1e-9)


def counting(name, calls):
    def update(updates, state, params=None, **extra):
        jax.debug.callback(lambda: calls.append(name))
        return jax.tree.map(lambda g: -0.1 * g, updates), state + 1

    def init(params):
        return jnp.sum(params)

    return optax.GradientTransformationExtraArgs(init, update)


@pytest.mark.parametrize("steps", [0, 2, 9])
def test_only_the_active_one_runs(steps):
    calls = []
    tx = ncg.switch_after(steps, counting("first", calls), counting("then", calls))
    train(tx, lambda w: jnp.sum(w**2), START, 4)
    jax.effects_barrier()
    first = min(steps, 4)
    assert calls == ["first"] * first + ["then"] * (4 - first)


def test_the_second_one_starts_fresh_at_the_parameters_of_the_switch():
    tx = ncg.switch_after(2, optax.sgd(0.5), counting("then", []))
    step, state = make_step(tx, lambda w: jnp.sum(w)), tx.init(jnp.full(2, 10.0))
    assert state.then == 20.0
    _, state = run(step, jnp.full(2, 10.0), state, 3)
    assert state.then == 18.0 + 1
    _, state = run(step, jnp.zeros(2), state, 1)
    assert state.then == 18.0 + 2


def test_the_updates_keep_the_dtype_of_the_gradients():
    tx = ncg.switch_after(1, optax.sgd(0.1), ncg.newton_cg())
    w = jnp.ones(2, jnp.bfloat16)
    loss = lambda w: jnp.sum(w.astype(jnp.float32) ** 2)  # noqa: E731
    state = tx.init(w)
    update = jax.jit(lambda g, s, w: tx.update(g, s, w, value_fn=loss))
    for _ in range(2):
        updates, state = update(jax.grad(loss)(w), state, w)
        assert updates.dtype == jnp.bfloat16


def test_the_number_of_steps_may_be_an_array():
    tx = optax.inject_hyperparams(ncg.switch_after, static_args=("first", "then"))(
        steps=2, first=optax.sgd(0.1), then=optax.sgd(0.2)
    )
    params, _ = train(tx, lambda w: jnp.sum(w), jnp.zeros(1), 3)
    np.testing.assert_allclose(params, -0.4, rtol=1e-6)


def test_the_state_keeps_its_types(switched):
    step, state = switched
    _, after = run(step, START, state, 1)
    assert jax.eval_shape(lambda: state) == jax.eval_shape(lambda: after)
    assert_trees_equal(
        jax.tree.map(jnp.zeros_like, state), jax.tree.map(jnp.zeros_like, after)
    )


@pytest.mark.parametrize(
    ("args", "error", "sentence"),
    [
        ((-1, optax.sgd(0.1), optax.sgd(0.1)), ValueError, "switch_after: steps"),
        ((1.5, optax.sgd(0.1), optax.sgd(0.1)), TypeError, "switch_after: steps"),
        ((1, "sgd", optax.sgd(0.1)), TypeError, "switch_after: first"),
        ((1, optax.sgd(0.1), None), TypeError, "switch_after: then"),
        (
            (1, optax.sgd(0.1), ncg.newton_cg),
            TypeError,
            "switch_after: then.*forget to call",
        ),
    ],
)
def test_wrong_settings(args, error, sentence):
    with pytest.raises(error, match=sentence):
        ncg.switch_after(*args)


def test_params_are_needed():
    tx = ncg.switch_after(1, optax.sgd(0.1), optax.sgd(0.1))
    with pytest.raises(ValueError, match="switch_after needs params"):
        tx.update(START, tx.init(START))
