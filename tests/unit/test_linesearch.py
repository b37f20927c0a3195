import jax.numpy as jnp
import numpy as np
import pytest

import ncg_optax as ncg
from ncg_optax.globalization.base import rounding_level
from ncg_optax.globalization.fixed_steps import full_step, single_trial


def search(along, slope, start=1.0, line_search=None, bend=1.0):
    line_search = line_search or ncg.armijo()
    start, slope, bend = map(jnp.float32, (start, slope, bend))
    return line_search.search(ncg.globalization.Line(start, slope, bend, along))


def test_the_full_step_costs_one_evaluation():
    result = search(lambda s: 1.0 - s + 0.5 * s**2, slope=-1.0)
    assert result.accepted
    assert (float(result.step_size), int(result.evaluations)) == (1.0, 1)
    assert result.loss == 0.5


def test_a_step_too_long_is_shortened_to_the_minimiser_of_the_parabola():
    result = search(lambda s: 1.0 - s + 2.0 * s**2, slope=-1.0)
    assert result.accepted
    assert float(result.step_size) == pytest.approx(0.25)
    assert float(result.loss) == pytest.approx(1.0 - 0.25 + 0.125)
    assert result.evaluations == 2


def test_the_next_trial_is_at_least_a_tenth_of_the_last():
    result = search(lambda s: 1.0 - s + 200.0 * s**2, slope=-1.0)
    trials = [1.0, 0.1, 0.01, 0.0025]
    assert result.accepted
    assert float(result.step_size) == pytest.approx(trials[-1], rel=1e-4)
    assert result.evaluations == len(trials)


@pytest.mark.parametrize("shrink", [0.2, 0.5, 0.9])
def test_the_next_trial_is_at_most_shrink_times_the_last(shrink):
    barely_uphill = lambda s: jnp.where(s == 1.0, 1.0 + 1e-3, 1.0 - 0.4 * s)  # noqa: E731
    result = search(barely_uphill, -1e-3, line_search=ncg.armijo(shrink=shrink))
    assert float(result.step_size) == pytest.approx(min(0.25, shrink), rel=1e-3)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_non_finite_trials_are_backed_away_from(bad):
    result = search(lambda s: jnp.where(s > 0.05, bad, 1.0 - s), slope=-1.0)
    assert result.accepted
    assert float(result.step_size) == pytest.approx(0.01)
    assert result.evaluations == 3


def test_armijo_asks_for_its_share_of_the_slope():
    def accepts(c):
        line_search = ncg.armijo(c=c, maxiter=1)
        return search(lambda s: 1.0 - 0.3 * s, -1.0, line_search=line_search).accepted

    assert accepts(c=0.29)
    assert not accepts(c=0.31)


NOISE = 40 * np.finfo(np.float32).eps  # of a loss of 1, more than its last place


def rounded(change, full=1.0):
    """A loss near 1 with a rounding error of NOISE; at the full step another one."""
    return lambda s: 1.0 + change(s) + jnp.where(s == 1, full, 1.0) * NOISE


@pytest.mark.parametrize("full", [3.0, 0.9])  # in units of NOISE
@pytest.mark.parametrize("slope", [-1e-2, -1.0])
def test_the_full_step_is_taken_if_the_loss_shows_nothing_but_rounding(slope, full):
    slope *= NOISE
    along = rounded(lambda s: slope * (s - 0.5 * s**2), full)
    result = search(along, slope, bend=-slope)
    assert result.accepted
    assert (float(result.step_size), int(result.evaluations)) == (1.0, 20)
    assert result.loss == along(1.0) > 1.0
    assert float(result.rounding) == pytest.approx(4 * NOISE, rel=0.03)


def test_the_full_step_is_taken_if_no_step_changes_the_loss():
    result = search(jnp.zeros_like, slope=-1e-9, start=0.0, bend=1e-9)
    assert result.accepted
    assert (float(result.step_size), float(result.loss)) == (1.0, 0.0)
    short = search(jnp.zeros_like, slope=-1e-9, start=0.0, bend=1e-12)
    assert not short.accepted


@pytest.mark.parametrize(
    "fault",
    [
        {"bend": 1e-3 * NOISE},  # made short by damping: the slope has to show
        {"along": lambda s: 1.0 + 8 * NOISE * s + NOISE},  # rises by more than that
        {"along": lambda s: 1.0 + NOISE * s},  # the slope of another loss
        {"along": lambda s: jnp.full_like(s, 1.0001)},  # the loss of another batch
        {"along": lambda s: jnp.where(s < 1, 1.0 + NOISE, jnp.nan)},
    ],
    ids=["short", "rises", "slope", "batch", "NaN"],
)
def test_rounding_is_no_excuse_for(fault):
    case = {"along": rounded(lambda s: 0.0), "slope": -NOISE, "bend": NOISE} | fault
    assert not search(**case).accepted


@pytest.mark.parametrize("maxiter", [1, 3])
def test_a_step_is_rejected_after_maxiter_trials(maxiter):
    result = search(lambda s: 1.0 + s, -1.0, line_search=ncg.armijo(maxiter=maxiter))
    assert not result.accepted
    assert (float(result.step_size), float(result.loss)) == (0.0, 1.0)
    assert result.evaluations == maxiter


def test_a_good_step_along_negative_curvature_is_doubled_while_the_loss_falls():
    along = lambda s: 1.0 + (s - 5.0) ** 2 - 25.0  # noqa: E731
    result = search(along, slope=-10.0, bend=-1.0)
    assert result.accepted
    assert float(result.step_size) == 4.0
    assert float(result.loss) == along(4.0)
    # 1, 2, 4 and 8, which is too far.
    assert result.evaluations == 4


def test_the_doubling_ends_with_maxiter():
    result = search(
        lambda s: 1.0 - s, slope=-1.0, bend=-1.0, line_search=ncg.armijo(maxiter=3)
    )
    assert (float(result.step_size), int(result.evaluations)) == (4.0, 3)


@pytest.mark.parametrize("bad", [np.nan, -np.inf])
def test_the_doubling_stops_before_the_loss_is_no_number(bad):
    along = lambda s: jnp.where(s > 3.0, bad, 1.0 - s)  # noqa: E731
    result = search(along, slope=-1.0, bend=-1.0)
    assert result.accepted
    assert (float(result.step_size), float(result.loss)) == (2.0, -1.0)


@pytest.mark.parametrize("bend", [1.0, -1.0])
def test_a_bad_full_step_is_shortened_whatever_the_curvature(bend):
    result = search(lambda s: 1.0 - s + 2.0 * s**2, slope=-1.0, bend=bend)
    assert float(result.step_size) == pytest.approx(0.25)


@pytest.mark.parametrize("start", [np.nan, np.inf])
def test_nothing_is_tried_from_a_non_finite_loss(start):
    result = search(lambda s: 0.0 * s, slope=-1.0, start=start)
    assert not result.accepted
    assert (float(result.step_size), int(result.evaluations)) == (0.0, 0)


def test_the_safeguard_gives_up_at_once_from_a_non_finite_loss():
    result = guarded(lambda s: 0.0 * s, start=np.nan)
    assert not result.accepted
    assert (float(result.step_size), int(result.evaluations)) == (0.0, 0)


def test_a_non_finite_slope_accepts_nothing():
    assert not search(lambda s: 1.0 - s, slope=np.nan).accepted


def test_only_a_rise_at_rounding_level_is_accepted():
    ulp = np.finfo(np.float32).eps
    assert search(lambda s: 1.0 + ulp, slope=-1e-9).step_size == 1.0
    assert not search(lambda s: 1.0 + 1e3 * ulp, slope=-1e-9).accepted


@pytest.mark.parametrize("scale", [1e-8, 1e8])
def test_the_search_does_not_know_the_scale(scale):
    along = lambda s: 1.0 - s + 7.0 * s**2  # noqa: E731
    reference = search(along, slope=-1.0)
    scaled = search(lambda s: scale * along(s), slope=-scale, start=scale)
    np.testing.assert_allclose(scaled.step_size, reference.step_size, rtol=1e-6)
    assert scaled.evaluations == reference.evaluations


@pytest.mark.parametrize(
    ("end", "accepted"), [(0.9, True), (1.0, True), (1.1, False), (np.nan, False)]
)
def test_a_single_trial_takes_what_does_not_rise(end, accepted):
    result = search(lambda s: end * s, slope=-1.0, line_search=single_trial())
    assert bool(result.accepted) == accepted
    assert float(result.step_size) == accepted
    assert float(result.loss) == pytest.approx(end if accepted else 1.0)
    assert result.evaluations == 1


def test_a_full_step_is_taken_blindly():
    def never(step):
        raise AssertionError("the loss must not be evaluated")

    result = search(never, slope=-1.0, line_search=full_step())
    assert result.accepted
    assert (float(result.step_size), int(result.evaluations)) == (1.0, 0)


def test_the_rounding_level_scales_with_the_loss():
    levels = [float(rounding_level(jnp.float32(x))) for x in (0.0, -1.0, 1e8)]
    assert levels[0] == 0.0
    assert 1e-7 < levels[1] < 1e-5
    assert levels[2] == pytest.approx(1e8 * levels[1])


# The safeguard.


def guarded(along, slope=-1.0, bend=1.0, **settings):
    line_search = ncg.safeguard(
        **{k: settings.pop(k) for k in ("rise", "maxiter") if k in settings}
    )
    return search(along, slope, line_search=line_search, bend=bend, **settings)


@pytest.mark.parametrize("slope", [-1.0, 1.0])
@pytest.mark.parametrize("bend", [-2.0, 2.0])
@pytest.mark.parametrize("rise", [0.5, 1.0, 2.0])
def test_a_rise_by_the_terms_of_the_model_is_borne(slope, bend, rise):
    below = guarded(lambda s: 1.0 + 2.99 * rise * s, slope, bend, rise=rise)
    assert (float(below.step_size), int(below.evaluations)) == (1.0, 1)
    assert float(below.loss) == pytest.approx(1 + 2.99 * rise)
    above = guarded(lambda s: 1.0 + 3.01 * rise * s, slope, bend, rise=rise)
    assert above.step_size != 1.0


def test_too_steep_a_rise_is_cut_to_what_is_allowed():
    result = guarded(lambda s: 1.0 + 4.0 * s**2, bend=0.0)  # 4 s^2 <= s
    assert result.accepted
    assert float(result.step_size) == pytest.approx(0.25, rel=1e-4)
    assert float(result.loss) == pytest.approx(1.25, rel=1e-4)
    assert result.evaluations == 2


@pytest.mark.parametrize(
    ("along", "trials"),
    [
        (lambda s: 1.0 + 100.0 * s**2, [1, 0.1, 0.01]),
        (lambda s: jnp.where(s > 0.3, 2.2, 1.0), [1, 0.5, 0.25 / 1.2]),
        (lambda s: jnp.where(s > 0.05, np.nan, 1.0), [1, 0.1, 0.01]),
        (lambda s: jnp.where(s > 0.05, np.inf, 1.0), [1, 0.1, 0.01]),
        (lambda s: jnp.where(s > 0.05, -np.inf, 1.0), [1, 0.1, 0.01]),
    ],
)
def test_the_next_trial_is_between_a_tenth_and_half_of_the_last(along, trials):
    result = guarded(along, bend=0.0)
    assert result.accepted
    assert float(result.step_size) == pytest.approx(trials[-1], rel=1e-4)
    assert result.evaluations == len(trials)


@pytest.mark.parametrize("maxiter", [1, 3])
def test_the_safeguard_gives_up_after_maxiter_trials(maxiter):
    result = guarded(lambda s: 10.0 + 0 * s, maxiter=maxiter)
    assert not result.accepted
    assert (float(result.step_size), float(result.loss)) == (0.0, 1.0)
    assert result.evaluations == maxiter


@pytest.mark.parametrize("broken", [{"start": np.nan}, {"slope": np.nan}])
def test_the_safeguard_accepts_nothing_of_a_broken_model(broken):
    assert not guarded(lambda s: 1.0 + 0 * s, **broken).accepted


def test_the_safeguard_takes_any_fall_and_rounding():
    ulp = np.finfo(np.float32).eps
    assert guarded(lambda s: 1.0 - s, slope=0.0, bend=0.0).step_size == 1.0
    assert guarded(lambda s: 1.0 + ulp, slope=0.0, bend=0.0).step_size == 1.0
    assert not guarded(lambda s: 1.0 + 1e3 * ulp, slope=0.0, bend=0.0).accepted


@pytest.mark.parametrize("scale", [1e-8, 1e8])
def test_the_safeguard_does_not_know_the_scale(scale):
    along = lambda s: 1.0 - s + 7.0 * s**2  # noqa: E731
    reference = guarded(along)
    scaled = guarded(lambda s: scale * along(s), slope=-scale, bend=scale, start=scale)
    np.testing.assert_allclose(scaled.step_size, reference.step_size, rtol=1e-6)
    assert scaled.evaluations == reference.evaluations
