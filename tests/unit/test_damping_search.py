import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import rosenbrock

from ncg_optax.losses.objective import as_objective
from ncg_optax.solvers.residual_space import damping_search
from ncg_optax.solvers.residual_space.damping_search import Step

DOWN, UP = damping_search.DOWN, damping_search.UP


def search(losses, promised=0.5, ratio=0.1, tries=10, hopeful=True, large=np.inf):
    """The result where trial k has loss ``losses[k]``; the loss at the start is 1.

    The first damping is 1 and a trial is known by its damping.
    """
    factors = np.cumprod([1.0, *(UP ** (1 + 0.5 * k) for k in range(len(losses) - 1))])
    losses = jnp.array(losses)

    def attempt(damping):
        k = jnp.argmin(jnp.abs(jnp.log(damping) - jnp.log(jnp.array(factors))))
        return Step(
            direction=k,
            damping=damping,
            slope=jnp.array(0.0),
            bend=jnp.array(0.0),
            promised=jnp.array(promised),
            loss=losses[k],
        )

    found = jax.jit(
        lambda: damping_search.find_step(
            attempt,
            jnp.array(1.0),
            jnp.array(1.0),
            ratio,
            tries,
            jnp.array(hopeful),
            jnp.array(large),
        )
    )()
    np.testing.assert_allclose(found.step.damping, factors[found.step.direction])
    assert found.trials == found.step.direction + 1
    return int(found.step.direction), bool(found.passed), float(found.next_damping)


def test_a_step_that_passes_is_taken_and_the_next_damping_is_smaller():
    assert search([0.6, 0.0]) == (0, True, pytest.approx(1 / DOWN))


def test_the_damping_rises_until_a_step_passes():
    assert search([0.97, 0.96, 0.5]) == (2, True, pytest.approx(UP**2.5))


def test_after_three_trials_any_reduction_is_taken():
    assert search([3.0, 0.99, 0.99, 0.5])[:2] == (2, False)
    assert search([3.0, 2.0, 1.5, 1.2, 0.99, 0.5])[:2] == (4, False)


@pytest.mark.parametrize("bad", [np.inf, np.nan])
def test_what_is_not_finite_is_not_taken(bad):
    assert search([bad, bad, 0.8])[:2] == (2, True)


def test_the_number_of_trials_is_bounded():
    assert search([2.0] * 8, tries=4) == (3, False, UP**2)
    assert search([2.0] * 8, tries=1)[:2] == (0, False)


@pytest.mark.parametrize("large, following", [(np.inf, UP**2), (2.0, 2.0), (0.5, 1.0)])
def test_losses_that_are_not_finite_do_not_raise_a_large_damping(large, following):
    assert search([np.inf] * 8, tries=4, large=large)[2] == following
    assert search([2.0] * 8, tries=4, large=large)[2] == UP**2


def test_one_trial_if_more_cannot_help():
    assert search([np.nan, 0.5], hopeful=False)[:2] == (0, False)


def test_the_rounding_of_the_loss():
    expected = 0, True, pytest.approx(1 / DOWN)
    assert search([1.0 + 5e-7, 0.5], promised=1e-9) == expected


def test_a_predicted_increase_does_not_pass():
    assert search([1.05, 0.9, 0.9, 0.9], promised=-1.0)[:2] == (2, False)


def test_the_loss_along_a_step():
    objective = as_objective(rosenbrock, {})
    w = jnp.array([1.0, 2.0], jnp.bfloat16)
    loss = damping_search.loss_after_step(objective, w, like=w.astype(jnp.float32))
    d = jnp.array([0.5, -1.0])
    assert loss(d).dtype == jnp.float32
    np.testing.assert_allclose(loss(d), rosenbrock(jnp.array([1.5, 1.0])), rtol=1e-2)


def test_the_loss_along_a_complex_step():
    objective = as_objective(lambda z: jnp.abs(z[0] - 1j) ** 2, {})
    z = jnp.array([1.0 + 0.0j])
    loss = damping_search.loss_after_step(objective, z, like=z)
    np.testing.assert_allclose(loss(jnp.array([[-1.0, 0.5]])), 0.25)
