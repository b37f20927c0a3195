"""A curvature sample that becomes the whole batch when model and loss disagree."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import ncg_optax as ncg
from ncg_optax import _growth


def outcome(ratio=1.0, step_size=1.0, accepted=True, predicted=2.0, rounding=0.0):
    return ncg.Outcome(
        predicted_reduction=jnp.array(predicted),
        actual_reduction=jnp.array(ratio * predicted),
        rounding=jnp.array(rounding),
        step_size=jnp.array(step_size),
        accepted=jnp.array(accepted),
    )


@pytest.mark.parametrize(
    ("step", "agreement"),
    [
        (outcome(), 1.0),
        (outcome(ratio=0.3), 0.3),
        (outcome(ratio=1.7), 1.0),
        (outcome(ratio=-0.5), 0.0),
        (outcome(step_size=0.25), 0.25),
        (outcome(ratio=0.1, step_size=0.25), 0.1),
        (outcome(step_size=2.0), 1.0),  # longer, on negative curvature
        (outcome(accepted=False), 0.0),
        (outcome(ratio=jnp.nan, accepted=False), 0.0),
        (outcome(ratio=0.5, rounding=0.4), 0.7),
        (outcome(predicted=0.0, rounding=1.0), 1.0),
    ],
)
def test_agreement_of_a_step(step, agreement):
    first = _growth.first(0.5, jnp.float32)
    after = _growth.after_step(first, step, 0.5)
    np.testing.assert_allclose(after.agreement, 0.8 + 0.2 * agreement, rtol=1e-6)
    assert not after.grown


def test_grows_once_the_mean_is_low_and_for_good():
    state = _growth.first(0.5, jnp.float32)
    grown = []
    for ratio in [0.1] * 4 + [1.0] * 10:
        state = _growth.after_step(state, outcome(ratio), 0.5)
        grown.append(bool(state.grown))
    # 0.1 + 0.9 * 0.8^n is less than 0.5 from the fourth step on.
    assert grown == [False] * 3 + [True] * 11
    assert state.agreement > 0.8


N = 64
X = jax.random.normal(jax.random.key(0), (N, 6)) * jnp.exp(
    jax.random.normal(jax.random.key(1), (N, 1))
)
Y = jnp.sin(X @ jnp.arange(1.0, 7.0))
LOSS = ncg.CompositeLoss(
    lambda w, x: jnp.tanh(x @ w), lambda z, y: jnp.mean((z - y) ** 2)
).bind(x=X, y=Y)
START = jnp.linspace(-0.3, 0.3, 6)


def optimizer(fraction=1 / 4, grow_below=None, **settings):
    sampling = ncg.sampling(fraction, min_examples=1, grow_below=grow_below)
    return ncg.newton_cg(
        curvature=ncg.gauss_newton(), damping=0.01, sampling=sampling, **settings
    )


def step_from(tx, params=START, grown=None, loss=LOSS, **extra):
    state = tx.init(params)
    if grown is not None:
        sample = state[0].sample._replace(grown=jnp.array(grown))
        state = (state[0]._replace(sample=sample), *state[1:])
    updates, state = jax.jit(
        lambda s: tx.update(jax.grad(loss)(params), s, params, value_fn=loss, **extra)
    )(state)
    return updates, state[0]


@pytest.mark.parametrize("grown", [False, True])
def test_steps_are_those_of_the_sample_and_then_of_the_batch(grown):
    updates, state = step_from(optimizer(grow_below=0.5), grown=grown)
    expected, reference = step_from(optimizer(1.0 if grown else 1 / 4))
    np.testing.assert_allclose(updates, expected, rtol=1e-5)
    share = 1.0 if grown else 0.25
    info = state.info
    assert info.curvature_share == reference.info.curvature_share == share
    assert info.batch_products == share * info.products
    # Linearising the sample is paid for, linearising the batch comes with the gradient.
    np.testing.assert_allclose(info.batch_evaluations, info.evaluations + 0.25)


def test_the_step_that_disagrees_is_the_last_of_the_sample():
    tx = optimizer(grow_below=1.0)
    params, state = START, tx.init(START)
    shares = []
    for _ in range(3):
        grads = jax.grad(LOSS)(params)
        updates, state = tx.update(grads, state, params, value_fn=LOSS)
        params = optax.apply_updates(params, updates)
        shares.append(float(ncg.get_info(state).curvature_share))
    assert shares == [0.25, 1.0, 1.0]


def run(tx, steps=30):
    def step(carry, _):
        params, state = carry
        updates, state = tx.update(jax.grad(LOSS)(params), state, params, value_fn=LOSS)
        return (optax.apply_updates(params, updates), state), None

    (params, state), _ = jax.jit(
        lambda: jax.lax.scan(step, (START, tx.init(START)), length=steps)
    )()
    return float(LOSS(params)), state[0]


def test_near_the_minimum_the_whole_batch_is_needed():
    gap = {}
    for name, tx in {
        "sample": optimizer(),
        "growing": optimizer(grow_below=0.4),
        "batch": optimizer(1.0),
    }.items():
        gap[name], state = run(tx)
        if name == "growing":
            assert state.sample.grown
    assert gap["growing"] < gap["sample"]
    np.testing.assert_allclose(gap["growing"], gap["batch"], rtol=1e-3)


def test_without_a_line_search_a_trial_value_tells():
    tx = optimizer(grow_below=1.0, linesearch=None)
    _, state = step_from(tx)
    assert state.info.evaluations == 1
    assert state.sample.grown


@pytest.mark.parametrize(
    "case", ["no data to be seen", "curvature_batch", "small batch"]
)
def test_what_does_not_grow(case):
    tx, loss, extra = optimizer(grow_below=0.5), LOSS, {}
    share = 1.0
    if case == "no data to be seen":
        loss = lambda w: LOSS(w)  # noqa: E731
        tx = ncg.newton_cg(sampling=ncg.sampling(1 / 4, min_examples=1, grow_below=0.5))
    if case == "curvature_batch":
        extra["curvature_batch"] = {"x": X[:8], "y": Y[:8]}
        share = 1 / 8
    if case == "small batch":
        sampling = ncg.sampling(1 / 4, min_examples=N, grow_below=0.5)
        tx = ncg.newton_cg(curvature=ncg.gauss_newton(), sampling=sampling)
    for grown in (False, True):
        _, state = step_from(tx, grown=grown, loss=loss, **extra)
        assert state.info.curvature_share == share


def test_the_state_has_nothing_more_if_the_sample_stays():
    assert ncg.newton_cg().init(START)[0].sample == ()


def test_an_ensemble_under_vmap():
    tx = optimizer(grow_below=1.0)
    starts = jnp.stack([START, 2 * START])

    def two_steps(params):
        state = tx.init(params)
        for _ in range(2):
            grads = jax.grad(LOSS)(params)
            updates, state = tx.update(grads, state, params, value_fn=LOSS)
            params = optax.apply_updates(params, updates)
        return params

    together = jax.jit(jax.vmap(two_steps))(starts)
    alone = jnp.stack([jax.jit(two_steps)(p) for p in starts])
    np.testing.assert_allclose(together, alone, rtol=1e-3)


def test_errors():
    with pytest.raises(ValueError, match="grow_below must be"):
        ncg.sampling(grow_below=1.5)
    with pytest.raises(TypeError, match="grow_below"):
        ncg.sampling(grow_below="soon")
    with pytest.raises(ValueError, match="grow_below=None"):
        ncg.newton_cg(
            curvature=ncg.gauss_newton(),
            solver=ncg.residual_space(),
            sampling=ncg.sampling(1 / 4, grow_below=0.5),
        )
