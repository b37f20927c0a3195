import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from oracles import outcome

import ncg_optax as ncg
from ncg_optax.globalization.damping import as_damping

RULE = dict(initial=1.0, decrease=0.25, increase=3.0, low=0.2, high=0.8)


def no_measurement():
    raise AssertionError("the curvature must not be measured")


def after(rule, **kwargs):
    return float(rule.update(rule.init(jnp.float32), outcome(**kwargs)).damping)


@pytest.mark.parametrize(
    ("ratio", "factor"),
    [(1.0, 0.25), (0.81, 0.25), (0.5, 1.0), (0.21, 1.0), (0.1, 3.0)],
)
def test_damping_follows_the_reduction_ratio(ratio, factor):
    rule = ncg.levenberg_marquardt(**RULE)
    assert after(rule, actual=ratio) == factor


def test_a_shortened_step_counts_as_a_bad_ratio():
    rule = ncg.levenberg_marquardt(**RULE)
    assert after(rule, actual=1.0, step_size=0.5) == 3.0


def test_a_rejected_step_counts_twice():
    rule = ncg.levenberg_marquardt(**RULE)
    assert after(rule, actual=0.0, step_size=0.0, accepted=False) == 9.0


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_non_finite_outcome_raises_the_damping(bad):
    rule = ncg.levenberg_marquardt(**RULE)
    damping = after(rule, actual=0.0, predicted=bad, step_size=0.0, accepted=False)
    assert damping == 9.0


@pytest.mark.parametrize("ratio", [0.0, 1.0])
def test_the_damping_stays_within_multiples_of_the_first(ratio):
    rule = ncg.levenberg_marquardt(
        **{**RULE, "initial": 5.0}, minimum=0.1, maximum=10.0
    )
    state = rule.init(jnp.float32)
    for _ in range(10):
        state = rule.update(state, outcome(actual=ratio))
    assert float(state.damping) == pytest.approx(0.5 if ratio else 50.0)


@pytest.mark.parametrize("scale", [1e-30, 1e-8, 1.0, 1e8, 1e30])
@pytest.mark.parametrize("ratio", [0.0, 0.5, 1.0])
def test_the_ratio_test_does_not_know_the_scale(scale, ratio):
    rule = ncg.levenberg_marquardt(**RULE)
    assert after(rule, actual=scale * ratio, predicted=scale) == after(
        rule, actual=ratio
    )


def test_nothing_predicted_and_nothing_gained_is_a_good_step():
    assert outcome(actual=0.0, predicted=0.0).ratio_at_least(0.75)


def test_a_difference_at_rounding_level_speaks_for_the_step():
    worse = outcome(actual=-1e-7, predicted=1e-8, rounding=2e-7)
    clearly_worse = outcome(actual=-1e-6, predicted=1e-8, rounding=2e-7)
    assert worse.ratio_at_least(0.75)
    assert not clearly_worse.ratio_at_least(0.25)


def test_a_rejected_step_has_no_good_ratio():
    assert not outcome(actual=1.0, accepted=False).ratio_at_least(0.0)


def test_a_given_start_costs_no_product():
    rule = ncg.levenberg_marquardt(initial=0.5)
    damping, state, products = rule.value(rule.init(jnp.float32), 0, no_measurement)
    assert (float(damping), products) == (0.5, 0)


def calibrated(scale):
    rule = ncg.levenberg_marquardt()
    first = rule.value(rule.init(jnp.float32), 0, lambda: jnp.float32(scale))
    second = rule.value(first[1], 1, lambda: jnp.float32(1e3 * scale))
    return first, second


def test_the_first_damping_is_calibrated_once_for_one_product():
    (damping, _, products), (later, _, later_products) = calibrated(4.0)
    assert damping > 0 and damping == later
    assert (int(products), int(later_products)) == (1, 0)


@pytest.mark.parametrize("scale", [1e-8, 1e8])
def test_calibration_is_proportional_to_the_curvature(scale):
    reference, _ = calibrated(1.0)
    scaled, _ = calibrated(scale)
    np.testing.assert_allclose(scaled[0], scale * reference[0], rtol=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_calibration_waits_for_a_finite_curvature(bad):
    (damping, state, _), _ = calibrated(bad)
    assert damping == 0.0
    rule = ncg.levenberg_marquardt()
    damping, _, products = rule.value(state, 1, lambda: jnp.float32(2.0))
    assert damping > 0 and products == 1


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_state_keeps_its_dtype(dtype):
    with jax.enable_x64(True):
        rule = ncg.levenberg_marquardt()
        state = rule.init(jnp.dtype(dtype))
        _, after_value, _ = rule.value(state, 0, lambda: jnp.ones((), dtype))
        after_update = rule.update(after_value, outcome(actual=1.0))
    for s in (state, after_value, after_update):
        assert {x.dtype for x in jax.tree.leaves(s)} == {jnp.dtype(dtype)}


def test_numbers_and_schedules_are_rules_without_state():
    schedule = optax.linear_schedule(1.0, 0.0, 4)
    for damping, expected in ((0.5, 0.5), (jnp.float32(0.5), 0.5), (schedule, 0.75)):
        rule = as_damping(damping)
        value, state, products = rule.value(rule.init(jnp.float32), 1, no_measurement)
        assert (float(value), state, products) == (expected, (), 0)
        assert not rule.needs_outcome


def test_a_rule_is_passed_through():
    rule = ncg.levenberg_marquardt()
    assert as_damping(rule) is rule
    assert rule.needs_outcome
