import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from oracles import assert_trees_close, assert_trees_equal, make_step, train

import ncg_optax as ncg
from ncg_optax import Status
from ncg_optax.scientific_preset import CHEAP, EXACT, _judged

pytestmark = pytest.mark.usefixtures("x64")

X = jnp.linspace(-2.0, 2.0, 12)[:, None]
Y = jnp.tanh(2 * X - 1) + 0.3 * jnp.sin(3 * X)
LOSS = ncg.CompositeLoss(
    lambda p, x: jnp.tanh(x @ p["w"] + p["b"]) @ p["v"],
    lambda outputs, y: jnp.mean((outputs - y) ** 2),
)
PARAMS = {
    "w": jnp.linspace(0.5, 1.5, 5)[None],
    "b": jnp.linspace(-1.0, 1.0, 5),
    "v": jnp.ones((5, 1)) * jnp.array([[1.0], [-1], [1], [-1], [1]]),
}
DATA = {"x": X, "y": Y}


def info(loss, after, cost=1.0):
    """The measurements of a step."""
    return ncg.get_info(ncg.newton_cg().init(jnp.zeros(1)))._replace(
        loss=jnp.array(loss),
        actual_reduction=jnp.array(loss - after),
        gradient_equivalents=jnp.array(cost),
    )


def walk(rates, stages, stage=1.0, cost=1.0):
    """The kinds of steps if steps of kind k always multiply the loss by exp(-rate)."""
    state, kinds = ncg.scientific().init(PARAMS), []
    judged = jax.jit(_judged, static_argnums=1)
    for _ in range(stages):
        kind = int(state.kind)
        kinds.append(kind)
        measured = info(1.0, float(np.exp(-rates[kind])), cost)
        state = judged(state._replace(info=measured), stage)
    return kinds, state


def runs(kinds):
    """The kinds that follow each other, each with its number of stages."""
    return [(kind, len(list(group))) for kind, group in itertools.groupby(kinds)]


def test_the_faster_kind_is_used_and_exact_steps_are_tried_more_and_more_rarely():
    kinds, _ = walk({CHEAP: 0.1, EXACT: 0.5}, 36)
    assert runs(kinds) == [(0, 1), (1, 35)]
    # After a change one step is not measured.
    kinds, _ = walk({CHEAP: 0.5, EXACT: 0.1}, 34)
    assert runs(kinds) == [(0, 1), (1, 2), (0, 7), (1, 2), (0, 9), (1, 2), (0, 11)]


@pytest.mark.parametrize(("rate", "length"), [(0.26, 12), (0.24, 6), (0.0, 6)])
def test_a_trial_that_is_clearly_lost_ends_early(rate, length):
    # A stage is eight steps, and four are not measured after a change.
    kinds, _ = walk({CHEAP: 0.5, EXACT: rate}, 30, stage=160.0, cost=20.0)
    assert runs(kinds)[:2] == [(CHEAP, 8), (EXACT, length)]
    # A quarter of a stage of sixteen steps is four, after eight that are not measured.
    kinds, _ = walk({CHEAP: 0.5, EXACT: rate}, 60, stage=320.0, cost=20.0)
    assert runs(kinds)[:2] == [(CHEAP, 16), (EXACT, 2 * length)]
    # A trial of fewer than 40 gradients is not ended.
    kinds, _ = walk({CHEAP: 0.5, EXACT: rate}, 30, stage=8.0)
    assert runs(kinds)[:2] == [(CHEAP, 8), (EXACT, 12)]


def test_a_kind_that_is_no_trial_keeps_its_stage():
    kinds, _ = walk({CHEAP: 0.0, EXACT: 0.0}, 20, stage=160.0, cost=20.0)
    assert runs(kinds)[0] == (CHEAP, 8)


def test_a_trial_may_turn_out_hopeless_later():
    state = ncg.scientific().init(PARAMS)
    # Cheap steps are tried because exact ones have become slower than these once were.
    state = state._replace(is_trial=jnp.array(True), rates=jnp.array([0.5, 0.1]))
    kinds = []
    for after in (0.01, 1.0, 1.0, 1.0, 1.0):  # one good step, and no other
        measured = info(1.0, after, cost=20.0)
        state = _judged(state._replace(info=measured), 160.0)
        kinds.append(int(state.kind))
    # 4.6 / 100 falls below half of 0.1.
    assert kinds == [CHEAP, CHEAP, CHEAP, CHEAP, EXACT]
    np.testing.assert_allclose(state.rates, [np.log(100) / 100, 0.1])


def test_a_rate_that_falls_below_the_other_one_ends_the_kind():
    state = ncg.scientific().init(PARAMS)
    rates = jnp.array([0.2, 0.5])
    state = state._replace(kind=jnp.array(EXACT, jnp.int32), rates=rates)
    slow = _judged(state._replace(info=info(1.0, 0.9)), 1.0)
    assert (slow.kind, bool(slow.is_trial)) == (CHEAP, True)
    fast = _judged(state._replace(info=info(1.0, 0.6)), 1.0)
    assert (fast.kind, bool(fast.is_trial)) == (EXACT, False)


def test_a_stage_is_a_sum_of_work():
    state, kinds = ncg.scientific().init(PARAMS), []
    for _ in range(4):
        state = _judged(state._replace(info=info(1.0, 0.5, cost=2.0)), 5.0)
        kinds.append(int(state.kind))
    assert kinds == [CHEAP, CHEAP, EXACT, EXACT]
    np.testing.assert_allclose(state.rates[CHEAP], np.log(2) / 2)
    assert np.isinf(state.rates[EXACT])


@pytest.mark.parametrize(
    ("loss", "after"), [(1.0, 1.0), (-1.0, -2.0), (np.nan, 1.0), (1.0, 0.0)]
)
def test_what_is_no_progress(loss, after):
    state = ncg.scientific().init(PARAMS)
    state = _judged(state._replace(info=info(loss, after)), 1.0)
    assert (state.rates[CHEAP], state.kind) == (0, EXACT)


def test_it_goes_over_to_exact_steps_and_the_loss_never_rises():
    tx = ncg.scientific()
    params, data = jax.tree.map(lambda a: a.astype(jnp.float64), (PARAMS, DATA))
    step, state = make_step(tx, LOSS), tx.init(params)
    kinds, losses = [], [float(LOSS(params, **data))]
    for _ in range(120):
        kinds.append(int(state.kind))
        params, state = step(params, state, data)
        measured = ncg.get_info(state)
        assert measured.status in (
            Status.ACCEPTED,
            Status.SHORTENED,
            Status.REJECTED_NO_DECREASE,
        )
        # Outputs are near 1, so rounding is that of residuals, not of their squares.
        rounding = 2e-15 * losses[-1] ** 0.5
        np.testing.assert_allclose(measured.loss, losses[-1], rtol=1e-9, atol=rounding)
        losses.append(float(LOSS(params, **data)))
    assert kinds[0] == CHEAP and EXACT in kinds
    assert np.all(np.diff(losses) <= 2e-15 * np.sqrt(losses[:-1]) + 1e-28)
    assert losses[-1] < 1e-12


def test_systems_that_are_too_large_get_the_steps_of_hessian_free(monkeypatch):
    monkeypatch.setattr("ncg_optax.scientific_preset.MAX_SIZE", 11)
    monkeypatch.setattr("ncg_optax.scientific_preset.STAGE", 0)
    expected, _ = train(ncg.hessian_free(seed=3), LOSS, PARAMS, 3, **DATA)
    found, state = train(ncg.scientific(seed=3), LOSS, PARAMS, 3, **DATA)
    assert state.kind == CHEAP and np.isinf(state.rates).all()
    assert_trees_close(found, expected, rtol=1e-5)


@pytest.mark.slow
def test_a_mask():
    tx = ncg.scientific(mask={"w": True, "b": True, "v": False})
    params, _ = train(tx, LOSS, PARAMS, 12, **DATA)
    assert_trees_equal(params["v"], PARAMS["v"])
    assert LOSS(params, **DATA) < LOSS(PARAMS, **DATA)


def test_frozen_leaves_that_have_no_gradient():
    params = PARAMS | {"k": jnp.arange(3), "on": jnp.ones(2, bool)}
    mask = dict.fromkeys(PARAMS, True) | {"k": False, "on": False}
    tx = ncg.scientific(mask=mask)
    state = tx.init(params)
    grads = jax.grad(lambda p: LOSS(p, **DATA), allow_int=True)(params)

    def step(params, state):
        updates, state = tx.update(grads, state, params, value_fn=LOSS, **DATA)
        return optax.apply_updates(params, updates), state

    shapes = jax.tree.map(lambda x: (x.shape, x.dtype), (params, state))
    found = jax.tree.map(
        lambda x: (x.shape, x.dtype), jax.eval_shape(step, params, state)
    )
    assert found == shapes


def test_what_it_refuses():
    tx = ncg.scientific()
    state = tx.init(PARAMS)
    with pytest.raises(ValueError, match="scientific needs params"):
        tx.update(PARAMS, state)
    with pytest.raises(TypeError, match="ScientificState"):
        tx.update(PARAMS, ncg.hessian_free().init(PARAMS), PARAMS, value_fn=LOSS)
    with pytest.raises(TypeError, match="CompositeLoss"):
        tx.update(PARAMS, state, PARAMS, value_fn=lambda p: jnp.sum(p["v"]))
