"""A minimisation that is watched, stopped, limited in time, and repeated."""

import logging

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from oracles import rosenbrock

import ncg_optax as ncg
from ncg_optax import Status
from ncg_optax.minimization.minimize import _programs

pytestmark = pytest.mark.usefixtures("x64")

START = np.array([-1.2, 1.0])


def shifted(w, shift):
    return rosenbrock(w - shift)


def test_a_callback_sees_each_step_and_the_solve_is_the_same():
    seen = []

    def callback(params, state, result):
        seen.append((rosenbrock(params), ncg.get_info(state), result))

    params, _, result = ncg.minimize(rosenbrock, START, callback=callback)
    alone, _, expected = ncg.minimize(rosenbrock, START)
    assert len(seen) == result.iterations + 1  # the last checks the curvature
    for value, info, partial in seen[:-1]:
        np.testing.assert_allclose(partial.value, value)
        np.testing.assert_allclose(info.next_loss, value)
        assert partial.status == Status.RUNNING and not partial.converged
    assert seen[-1][2].converged
    np.testing.assert_allclose(params, alone, rtol=1e-12)
    for mine, theirs in zip(result, expected, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-6, atol=1e-12)


def test_a_callback_stops():
    def callback(params, state, result):
        return result.iterations >= 6

    _, _, result = ncg.minimize(rosenbrock, START, callback=callback, every=3)
    assert result.iterations == 6
    assert result.status == Status.STOPPED and not result.converged


def test_every_is_the_number_of_steps_between_calls():
    seen = []
    ncg.minimize(
        rosenbrock,
        START,
        callback=lambda p, s, r: seen.append(int(r.iterations)),
        every=5,
        maxiter=12,
    )
    assert seen == [5, 10, 12]


def test_the_time_is_limited():
    _, _, result = ncg.minimize(rosenbrock, START, max_seconds=0.0)
    assert result.iterations == 1
    assert result.status == Status.OUT_OF_TIME and not result.converged
    assert ncg.minimize(rosenbrock, START, max_seconds=1e6)[2].converged


def test_a_solved_problem_is_not_stopped():
    """The callback is asked after the last step, too, but too late."""
    _, _, result = ncg.minimize(
        lambda w: jnp.sum(w**2), jnp.ones(3), callback=lambda p, s, r: r.converged
    )
    assert result.status == Status.CONVERGED_GRADIENT


def test_progress_is_shown_in_the_terminal(capsys):
    ncg.minimize(rosenbrock, START, progress=True)
    shown = capsys.readouterr().out
    assert shown.startswith("step ") and "value" in shown and shown.endswith("\n")


def test_progress_is_logged(caplog, monkeypatch):
    monkeypatch.setattr("ncg_optax.minimization.steering.LOG_PERIOD", 0.0)
    caplog.set_level(logging.INFO, "ncg_optax")
    ncg.minimize(rosenbrock, START, maxiter=2, max_seconds=100)
    lines = [r.getMessage() for r in caplog.records]
    assert sum(line.startswith("minimize: step 2: value") for line in lines) == 1


def test_steering_needs_the_host():
    solve = jax.jit(lambda w: ncg.minimize(rosenbrock, w, max_seconds=1.0)[0])
    with pytest.raises(ValueError, match="not traced"):
        solve(START)


@pytest.mark.parametrize(
    "settings, error, sentence",
    [
        ({"callback": 3}, TypeError, "callback must be a function"),
        ({"max_seconds": -1}, ValueError, "max_seconds"),
        ({"every": 0}, ValueError, "every"),
        ({"progress": "yes"}, TypeError, "progress must be True or False"),
        ({"xtol": -1}, ValueError, "xtol"),
        ({"gtol_relative": np.nan}, ValueError, "gtol_relative"),
        ({"max_iter": 3}, TypeError, "did you mean maxiter"),
        ({"tol": 1e-3}, TypeError, "gtol, gtol_relative, ftol and xtol"),
        ({"method": "BFGS"}, TypeError, "pass an optimizer"),
        ({"jac": True}, TypeError, "JAX computes the gradient"),
        ({"options": {"maxiter": 3}}, TypeError, "by name, such as maxiter"),
    ],
)
def test_wrong_settings(settings, error, sentence):
    with pytest.raises(error, match=sentence):
        ncg.minimize(rosenbrock, START, **settings)


def test_calls_with_the_same_function_compile_once(caplog):
    caplog.set_level(logging.INFO, "ncg_optax")

    def messages():
        found = [r.getMessage() for r in caplog.records]
        caplog.clear()
        return [line for line in found if line == "minimize: compiling"]

    for shift, settings in [(0.5, {}), (0.7, {"maxiter": 30}), (0.1, {"gtol": 1e-3})]:
        w, _, _ = ncg.minimize(shifted, START, shift=shift, **settings)
        np.testing.assert_allclose(w, 1 + shift, atol=1e-2)
    assert len(messages()) == 1
    ncg.minimize(shifted, jnp.zeros(3), shift=0.0)
    assert len(messages()) == 1
    # Another function, and another optimizer.
    ncg.minimize(lambda w, shift: shifted(w, shift), START, shift=0.0)
    ncg.minimize(shifted, START, optax.adam(1e-2), maxiter=3, shift=0.0)
    assert len(messages()) == 2


def test_a_function_that_cannot_be_a_key_is_minimised():
    class Unhashable:
        __hash__ = None

        def __call__(self, w):
            return jnp.sum((w - 2) ** 2)

    for _ in range(2):
        np.testing.assert_allclose(ncg.minimize(Unhashable(), jnp.zeros(2))[0], 2)


def test_the_best_point_is_returned():
    """Momentum swings out of the minimum that it has passed."""
    seen = []
    w, _, result = ncg.minimize(
        rosenbrock,
        START,
        optax.sgd(2e-3, momentum=0.95),
        maxiter=60,
        callback=lambda p, s, r: seen.append(float(rosenbrock(p))),
    )
    assert min(seen) < seen[-1]
    np.testing.assert_allclose(result.value, min(rosenbrock(START), *seen))
    np.testing.assert_allclose(result.value, rosenbrock(w))
    gradient = jax.grad(rosenbrock)(w)
    np.testing.assert_allclose(result.gradient_norm, jnp.abs(gradient).max())


def test_divergence_returns_the_best_point():
    w, _, result = ncg.minimize(rosenbrock, START, optax.sgd(1.0), maxiter=50)
    assert result.status == Status.DIVERGED
    assert result.value == rosenbrock(w) <= rosenbrock(START)


def test_a_stationary_point_above_another_point_is_not_converged():
    """The optimizer jumps from a low point to a local minimum that is higher."""

    def double_well(w):
        return jnp.sum((w**2 - 1) ** 2 + 0.5 * w)

    jump = optax.stateless(lambda g, p: jax.tree.map(lambda p: 0.9304029 - p, p))
    w, _, result = ncg.minimize(
        double_well, jnp.array([-1.0]), jump, maxiter=50, gtol=1e-4
    )
    assert not result.converged and result.status == Status.STALLED
    np.testing.assert_allclose(w, -1)
    assert result.value == double_well(w)


def test_xtol_bounds_the_length_of_a_step():
    steps = []
    w, _, result = ncg.minimize(
        rosenbrock,
        START,
        xtol=1e-2,
        gtol=0.0,
        callback=lambda p, s, r: steps.append(np.asarray(p)),
    )
    assert result.status == Status.CONVERGED_STEP and result.converged
    lengths = [
        np.linalg.norm(b - a) / (0.01 + np.linalg.norm(b))
        for a, b in zip([START, *steps[:-1]], steps, strict=True)
    ]
    moved = [x for x in lengths if x > 0]
    assert moved[-1] <= 1e-2 < min(moved[:-1])


def test_a_tolerance_relative_to_the_first_gradient():
    first = jnp.abs(jax.grad(rosenbrock)(START)).max()
    _, _, result = ncg.minimize(rosenbrock, START, gtol=0.0, gtol_relative=1e-3)
    assert result.converged
    assert 0 < result.gradient_norm <= 1e-3 * first
    _, _, strict = ncg.minimize(rosenbrock, START, gtol=1.0, gtol_relative=1e-9)
    assert 1e-9 * first < strict.gradient_norm <= 1.0


def test_constants_of_another_type_are_others():
    def f(w, settings):
        exact = settings["exact"] is True
        return jnp.sum((w - (2.0 if exact else 1.0)) ** 2) * settings["scale"]

    for exact, expected in ((True, 2), ("True", 1), (True, 2)):
        settings = {"exact": exact, "scale": jnp.array(3.0)}
        w, _, _ = ncg.minimize(f, np.zeros(2), settings=settings)
        np.testing.assert_allclose(w, expected, atol=1e-6)


def test_arrays_beside_constants_are_no_constants(caplog):
    def f(w, settings):
        return jnp.sum((w - settings["target"]) ** 2) * (1 + settings["double"])

    def solution(target):
        settings = {"target": target, "double": True}
        return ncg.minimize(f, np.zeros(()), settings=settings)[0]

    caplog.set_level(logging.INFO, "ncg_optax")
    for target in (1.0, 2.0):
        np.testing.assert_allclose(solution(target), target, atol=1e-6)
    assert len([r for r in caplog.records if "compiling" in r.getMessage()]) == 1
    np.testing.assert_allclose(jax.grad(solution)(3.0), 1.0, rtol=1e-6)


def test_a_function_of_traced_values_is_not_kept():
    def nearest(t):
        return ncg.minimize(lambda w: (w - t) ** 2, np.zeros(()))[0]

    _programs.cache_clear()
    np.testing.assert_allclose(jax.jit(nearest)(3.0), 3.0, atol=1e-6)
    assert _programs.cache_info().currsize == 0
    np.testing.assert_allclose(
        jax.vmap(nearest)(np.array([1.0, 2.0])), [1, 2], atol=1e-6
    )


def test_updates_that_are_not_finite_diverge():
    broken = optax.stateless(lambda g, p: jax.tree.map(lambda p: p * jnp.nan, p))
    w, _, result = ncg.minimize(rosenbrock, START, broken)
    assert result.status == Status.DIVERGED and result.iterations == 1
    np.testing.assert_array_equal(w, START)


def test_measurements_are_found_in_what_minimize_returns():
    found = ncg.minimize(rosenbrock, START, maxiter=3)
    assert ncg.get_info(found).loss == ncg.get_info(found[1]).loss


def test_a_dtype_is_a_constant():
    def f(w, dtype):
        return jnp.sum((w.astype(dtype) - 2) ** 2)

    np.testing.assert_allclose(ncg.minimize(f, np.zeros(2), dtype=np.float64)[0], 2)
