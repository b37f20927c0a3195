"""A curvature sample that becomes the whole batch when model and loss disagree."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import ncg_optax as ncg
from ncg_optax.curvature.sampling import growth

DIAGONAL = jnp.array([1.0, 4.0])
D = jnp.array([1.0, 0.5])  # d.Bd = 2


def measure(bend, count=0, state=None, below=0.5, diagonal=DIAGONAL):
    state = state or growth.first_state(below, jnp.float32)
    return jax.jit(
        lambda: growth.measure_agreement(
            state, jnp.array(count), D, jnp.array(bend), lambda v: diagonal * v, below
        )
    )()


@pytest.mark.parametrize(
    ("bend", "agreement", "grown"), [(2.0, 1, False), (1.1, 0.55, False), (0.8, 0.4, 1)]
)
def test_the_curvature_of_the_sample_is_compared_along_the_step(bend, agreement, grown):
    state, products = measure(bend)
    np.testing.assert_allclose(state.agreement, agreement, rtol=1e-6)
    assert state.grown == grown
    assert products == 1


@pytest.mark.parametrize(
    ("bend", "diagonal"),
    [
        (0.0, DIAGONAL),  # steepest descent: not known
        (jnp.nan, DIAGONAL),
        (1.0, -DIAGONAL),  # an indefinite Hessian
        (1.0, jnp.nan * DIAGONAL),
    ],
)
def test_an_unusable_measurement_changes_nothing(bend, diagonal):
    state, _ = measure(bend, diagonal=diagonal)
    assert state == (1.0, False)


def test_every_fourth_step_is_measured_until_it_has_grown():
    assert [int(measure(2.0, count)[1]) for count in range(9)] == [1, 0, 0, 0] * 2 + [1]
    grown = growth.GrowthState(jnp.array(0.4), jnp.array(True))
    state, products = measure(2.0, state=grown)
    assert state == (jnp.float32(0.4), True)
    assert products == 0


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
    measured = 0 if grown else 1
    assert info.products == reference.info.products + measured
    assert info.batch_products == reference.info.batch_products + measured
    # Linearising the sample is paid for, linearising the batch comes with the gradient.
    np.testing.assert_allclose(info.batch_evaluations, info.evaluations + 0.25)


def test_the_step_that_disagrees_is_the_last_of_the_sample():
    tx = optimizer(1 / 2, grow_below=1.0)
    params, state = START, tx.init(START)
    shares, agreements = [], []
    for _ in range(6):
        grads = jax.grad(LOSS)(params)
        updates, state = tx.update(grads, state, params, value_fn=LOSS)
        params = optax.apply_updates(params, updates)
        shares.append(float(ncg.get_info(state).curvature_share))
        agreements.append(float(state[0].sample.agreement))
    first = next(i for i, a in enumerate(agreements) if a < 1)
    assert shares == [0.5] * (first + 1) + [1.0] * (5 - first)
    assert first % 4 == 0


def test_agreement_is_that_of_products_outside():
    updates, state = step_from(optimizer(grow_below=0.5))
    along = [
        ncg.curvature.curvature_product(
            ncg.gauss_newton(), LOSS, START, x=X[::k], y=Y[::k]
        )
        for k in (4, 1)
    ]
    sample, batch = (updates @ product(updates) for product in along)
    np.testing.assert_allclose(state.sample.agreement, sample / batch, rtol=1e-3)


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
        "growing": optimizer(grow_below=0.5),
        "batch": optimizer(1.0),
    }.items():
        gap[name], state = run(tx)
        if name == "growing":
            assert state.sample.grown
    assert gap["growing"] < gap["sample"]
    np.testing.assert_allclose(gap["growing"], gap["batch"], rtol=1e-3)


@pytest.mark.parametrize(
    "case", ["no data to be seen", "curvature_batch", "small batch", "residual_space"]
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
    if case == "residual_space":
        tx, share = optimizer(grow_below=0.5, solver=ncg.residual_space()), 1 / 4
        assert tx.init(START)[0].sample == ()
    for grown in (False, True) if case != "residual_space" else (None,):
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
