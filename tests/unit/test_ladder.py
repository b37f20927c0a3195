import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import rosenbrock

from ncg_optax.losses.objective import as_objective
from ncg_optax.solvers.residual_space import candidates
from ncg_optax.solvers.residual_space.candidates import Steps


def choose(losses, reductions, bends=0.0, ratio=0.1, start=1.0):
    """The index of the step, and whether it passed; the direction is the loss."""
    losses, reductions = jnp.array(losses), jnp.array(reductions)
    bend = jnp.broadcast_to(jnp.array(bends), losses.shape)
    steps = Steps(losses - start, jnp.arange(len(losses)), reductions + bend / 2, bend)
    step, passed = candidates.choose_step(steps, lambda d: start + d, ratio)
    return int(step.damping), bool(passed)


def test_geometric_dampings():
    np.testing.assert_allclose(
        candidates.geometric_dampings(2.0, 3, 10.0), [0.2, 2.0, 20.0], rtol=1e-6
    )


@pytest.mark.parametrize(
    ("losses", "reductions", "expected"),
    [
        ([0.9, 0.5, 0.8], [0.5, 0.5, 0.2], (0, True)),  # not the best: the largest
        ([0.96, 0.5, 0.8], [0.5, 0.5, 0.2], (1, True)),
        ([0.97, 0.96, 0.98], [0.5, 0.5, 0.5], (1, False)),  # the best
        ([3.0, 2.0, 1.5], [0.5, 0.5, 0.5], (2, False)),  # the shortest
        ([np.nan, np.inf, 0.8], [0.5, 0.5, 0.2], (2, True)),
        ([np.nan, np.nan, np.nan], [0.5, 0.5, 0.5], (2, False)),
        ([1.0 + 5e-7, 1.0, 1.0], [1e-9, 0.0, 0.0], (0, True)),  # rounding of the loss
    ],
)
def test_the_choice(losses, reductions, expected):
    assert choose(losses, reductions) == expected


def test_a_step_whose_model_is_not_finite_is_not_taken():
    assert choose([0.1, 0.9], [0.5, 0.5], bends=[np.nan, 0.0]) == (1, True)


def test_a_predicted_increase_does_not_pass():
    assert choose([1.05, 1.5], [-1.0, -1.0]) == (1, False)
    assert choose([1.05, 0.9], [-1.0, 0.5]) == (1, True)


def test_the_loss_along_a_step():
    objective = as_objective(rosenbrock, {})
    w = jnp.array([1.0, 2.0], jnp.bfloat16)
    loss = candidates.loss_after_step(objective, w, like=w.astype(jnp.float32))
    d = jnp.array([0.5, -1.0])
    assert loss(d).dtype == jnp.float32
    np.testing.assert_allclose(loss(d), rosenbrock(jnp.array([1.5, 1.0])), rtol=1e-2)


def test_the_loss_along_a_complex_step():
    objective = as_objective(lambda z: jnp.abs(z[0] - 1j) ** 2, {})
    z = jnp.array([1.0 + 0.0j])
    loss = candidates.loss_after_step(objective, z, like=z)
    np.testing.assert_allclose(loss(jnp.array([[-1.0, 0.5]])), 0.25)


def test_many_steps_at_once():
    objective = as_objective(rosenbrock, {})
    w = jnp.zeros(2)
    steps = jnp.array([[0.1, 0.0], [1.0, 1.0]])
    losses = jax.vmap(candidates.loss_after_step(objective, w, like=w))(steps)
    np.testing.assert_allclose(losses, [rosenbrock(d) for d in steps], rtol=1e-6)
