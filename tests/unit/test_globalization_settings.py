"""Intervals and defaults of the settings of damping rules and line searches."""

import jax.numpy as jnp
import pytest
from oracles import outcome

import ncg_optax as ncg

WITHIN = [
    dict(initial=1e-30),
    dict(calibration=1e-30),
    dict(decrease=1e-30),
    dict(decrease=1.0),
    dict(increase=1.0),
    dict(low=0.0),
    dict(low=1.0, high=1.0),
    dict(low=0.3, high=0.3),
    dict(minimum=0.0),
    dict(minimum=1.0),
    dict(maximum=1.0),
]
OUTSIDE = [
    dict(initial=0.0),
    dict(calibration=0.0),
    dict(decrease=0.0),
    dict(decrease=1.01),
    dict(increase=0.99),
    dict(low=-0.01),
    dict(low=1.01),
    dict(low=0.3, high=0.29),
    dict(high=1.01),
    dict(minimum=-0.01),
    dict(minimum=1.01),
    dict(maximum=0.99),
]


@pytest.mark.parametrize("settings", WITHIN, ids=str)
def test_ends_of_the_intervals_of_levenberg_marquardt(settings):
    ncg.levenberg_marquardt(**settings)


@pytest.mark.parametrize("settings", OUTSIDE, ids=str)
def test_settings_of_levenberg_marquardt_outside_their_intervals(settings):
    name = list(settings)[-1]
    with pytest.raises(ValueError, match=f"levenberg_marquardt: {name} must be"):
        ncg.levenberg_marquardt(**settings)


@pytest.mark.parametrize(
    "settings", [dict(c=0.0), dict(c=0.99), dict(shrink=0.1), dict(maxiter=1)], ids=str
)
def test_ends_of_the_intervals_of_armijo(settings):
    ncg.armijo(**settings)


@pytest.mark.parametrize(
    "settings",
    [
        dict(c=-0.01),
        dict(c=1.0),
        dict(shrink=0.09),
        dict(shrink=1.0),
        dict(maxiter=0),
    ],
    ids=str,
)
def test_settings_of_armijo_outside_their_intervals(settings):
    with pytest.raises(ValueError, match=f"armijo: {list(settings)[0]} must be"):
        ncg.armijo(**settings)


def test_the_default_factors_are_those_of_the_documentation():
    rule = ncg.levenberg_marquardt(initial=1.0)
    state = rule.init(jnp.float32)
    for ratio, factor in [(0.76, 0.1), (0.74, 1.0), (0.26, 1.0), (0.24, 4.0)]:
        damping = rule.update(state, outcome(actual=ratio)).damping
        assert float(damping) == pytest.approx(factor)
    assert (rule.minimum, rule.maximum) == (1e-20, 1e12)
    search = ncg.armijo()
    assert (search.c, search.shrink, search.maxiter) == (1e-4, 0.5, 20)


def test_only_a_measured_damping_is_a_unit():
    given, measured = ncg.levenberg_marquardt(initial=2.0), ncg.levenberg_marquardt()
    assert given.unit(given.init(jnp.float32)) is None
    _, state, _ = measured.value(
        measured.init(jnp.float32), 0, lambda: jnp.float32(3e4)
    )
    assert float(measured.unit(state)) == pytest.approx(3.0)


def test_a_damping_that_is_not_finite_becomes_the_first_one():
    rule = ncg.levenberg_marquardt()
    _, state, _ = rule.value(rule.init(jnp.float32), 0, lambda: jnp.float32(3e4))
    broken = state._replace(damping=jnp.float32(jnp.nan))
    damping, repaired, products = rule.value(broken, 1, lambda: jnp.float32(1.0))
    assert float(damping) == float(repaired.damping) == pytest.approx(3.0)
    assert int(products) == 0
