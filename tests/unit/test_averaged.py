import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from oracles import constant_preconditioner, solve_model, symmetric, vector

import ncg_optax as ncg

pytestmark = pytest.mark.usefixtures("x64")

SPD = symmetric(np.array([0.5, 1.0, 2.0, 3.0, 5.0, 8.0]))
M = np.diag(1 / np.diag(SPD))
GRADIENTS = np.stack([vector(6, seed=seed) for seed in range(4)])
DAMPING = 0.3
DECAY = 0.8


def solve(rhs, state=None, matrix=SPD, m=M, damping=DAMPING, **settings):
    solver = ncg.averaged_gradient(DECAY, **settings)
    rhs = jnp.asarray(rhs)
    state = solver.init(rhs) if state is None else state
    apply = None if m is None else lambda r: jnp.asarray(m) @ r
    return solve_model(solver, lambda v: matrix @ v, rhs, damping, apply, state)


def run(tx, losses, w):
    """Updates and infos of a step for each loss, all at the same parameters."""
    state, found = tx.init(w), []
    for loss in losses:
        updates, state = tx.update(jax.grad(loss)(w), state, w, value_fn=loss)
        found.append((updates, ncg.get_info(state)))
    return found


def linear(slope):
    """A loss of this gradient at 0 and the Hessian SPD."""
    return lambda w: 0.5 * w @ SPD @ w + w @ jnp.asarray(slope)


def test_it_is_the_first_iteration_of_cg_on_the_mean_of_the_gradients():
    state = None
    for k in range(len(GRADIENTS)):
        result, state = solve(GRADIENTS[k], state, longest=math.inf)
        weights = DECAY ** np.arange(k, -1.0, -1.0)
        mean = weights @ GRADIENTS[: k + 1] / weights.sum()
        expected = ncg.solvers.conjugate_gradient(
            lambda v: SPD @ v,
            jnp.asarray(mean),
            DAMPING,
            maxiter=1,
            tolerance=0.0,
            precondition=lambda r: M @ r,
        )
        np.testing.assert_allclose(result.solution, expected.solution, rtol=1e-10)
        np.testing.assert_allclose(result.length, expected.length, rtol=1e-10)
        np.testing.assert_allclose(result.curvature, expected.curvature, rtol=1e-9)
        assert result.status == ncg.Status.ONE_STEP
        assert result.products == 1


def test_the_model_is_that_of_the_present_batch():
    _, state = solve(GRADIENTS[0])
    result, _ = solve(GRADIENTS[1], state)
    d, a = np.asarray(result.solution), SPD + DAMPING * np.eye(6)
    decrease = GRADIENTS[1] @ d - 0.5 * d @ a @ d
    np.testing.assert_allclose(result.model_decrease, decrease, rtol=1e-10)
    residual = np.linalg.norm(GRADIENTS[1] - a @ d)
    np.testing.assert_allclose(result.residual, residual, rtol=1e-10)


@pytest.mark.parametrize("longest", [0.5, 1.0])
def test_a_curvature_that_is_not_seen_makes_no_long_step(longest):
    result, _ = solve(GRADIENTS[0], matrix=1e-6 * SPD, damping=0.0, longest=longest)
    np.testing.assert_allclose(result.solution, longest * M @ GRADIENTS[0], rtol=1e-10)
    assert result.status == ncg.Status.LONGEST_STEP


@pytest.mark.parametrize(
    ("matrix", "alpha", "status"),
    [
        (-4.0 * np.eye(6), 0.25, ncg.Status.NEGATIVE_CURVATURE),
        (-0.1 * np.eye(6), 1.0, ncg.Status.NEGATIVE_CURVATURE),
        (np.zeros((6, 6)), 1.0, ncg.Status.ZERO_CURVATURE),
    ],
)
def test_without_positive_curvature_it_goes_downhill(matrix, alpha, status):
    result, _ = solve(GRADIENTS[0], matrix=matrix, m=None, damping=0.0)
    np.testing.assert_allclose(result.solution, alpha * GRADIENTS[0], rtol=1e-10)
    assert result.status == status


def test_a_zero_gradient_makes_no_step_at_first():
    result, _ = solve(np.zeros(6))
    np.testing.assert_array_equal(result.solution, np.zeros(6))
    assert result.status == ncg.Status.ZERO_RIGHT_HAND_SIDE


def test_a_preconditioner_that_is_not_positive_is_reported():
    result, _ = solve(GRADIENTS[0], m=-M)
    assert result.status == ncg.Status.INDEFINITE_PRECONDITIONER
    assert GRADIENTS[0] @ result.solution > 0


@pytest.mark.parametrize("factor", [1e-8, 1.0, 1e8])
def test_the_scale_of_the_loss_does_not_matter(factor):
    one, _ = solve(GRADIENTS[0], damping=0.0)
    other, _ = solve(
        factor * GRADIENTS[0], matrix=factor * SPD, m=M / factor, damping=0.0
    )
    np.testing.assert_allclose(other.solution, one.solution, rtol=1e-10)


def test_it_goes_uphill_on_a_batch_if_the_mean_does():
    tx = ncg.newton_cg(
        solver=ncg.averaged_gradient(0.9),
        preconditioner=constant_preconditioner(M),
        damping=0.0,
        linesearch=None,
    )
    g = GRADIENTS[0]
    down, up = run(tx, (linear(g), linear(-0.1 * g)), jnp.zeros(6))
    assert down[0] @ g < 0 and up[0] @ g < 0  # against the gradient of this batch
    assert up[1].status == ncg.Status.NOT_EVALUATED
    assert up[1].predicted_reduction < 0 < down[1].predicted_reduction
    np.testing.assert_allclose(
        up[1].predicted_reduction,
        -(-0.1 * g @ up[0] + 0.5 * up[0] @ SPD @ up[0]),
        rtol=1e-9,
    )


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_bad_gradient_makes_no_step_and_is_forgotten(bad):
    _, state = solve(GRADIENTS[0])
    result, after = solve(np.where(np.arange(6) == 2, bad, 1.0), state)
    assert result.status == ncg.Status.SOLVER_NON_FINITE
    np.testing.assert_array_equal(result.solution, np.zeros(6))
    jax.tree.map(np.testing.assert_array_equal, after, state)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_the_info_of_a_step_with_a_bad_gradient(bad):
    def loss(w):
        return jnp.sum(jnp.square(w))

    tx = ncg.newton_cg(solver=ncg.averaged_gradient(), linesearch=None)
    w, grads = jnp.ones(2), jnp.array([1.0, bad])
    _, state = jax.jit(lambda g: tx.update(g, tx.init(w), w, value_fn=loss))(grads)
    info = ncg.get_info(state)
    assert info.status == ncg.Status.REJECTED_NON_FINITE
    assert info.curvature == 0 and info.step_size == 0


def test_a_bad_product_makes_no_step():
    result, state = solve(GRADIENTS[0], matrix=np.full((6, 6), np.nan))
    assert result.status == ncg.Status.SOLVER_NON_FINITE
    np.testing.assert_array_equal(result.solution, np.zeros(6))
    assert np.isfinite(state.ema).all()


def test_complex_parameters():
    hermitian = np.array([[2.0, 0.5j], [-0.5j, 1.0]])
    rhs = np.array([1.0 + 2j, -0.5j])
    result, _ = solve(rhs, matrix=hermitian, m=None, damping=0.0, longest=math.inf)
    alpha = np.vdot(rhs, rhs).real / np.vdot(rhs, hermitian @ rhs).real
    np.testing.assert_allclose(result.solution, alpha * rhs, rtol=1e-10)


def test_the_mean_of_narrow_parameters_is_wide():
    state = ncg.averaged_gradient().init(jnp.zeros(3, jnp.bfloat16))
    assert state.ema.dtype == jnp.float32


def test_the_noise_of_the_batches_averages_out():
    """Steps for single gradients end as far away as these gradients are wrong."""
    noise = np.random.default_rng(5).normal(size=(400, 6))

    def distance(decay):
        tx = ncg.newton_cg(
            0.1,
            solver=ncg.averaged_gradient(decay),
            preconditioner=constant_preconditioner(np.linalg.inv(SPD)),
            damping=0.0,
            linesearch=None,
        )

        def step(carry, noise):
            w, state = carry
            value_fn = linear(noise)
            updates, state = tx.update(
                jax.grad(value_fn)(w), state, w, value_fn=value_fn
            )
            w = optax.apply_updates(w, updates)
            return (w, state), jnp.linalg.norm(updates)

        w = jnp.ones(6)
        _, lengths = jax.lax.scan(step, (w, tx.init(w)), jnp.asarray(noise))
        return np.mean(lengths[-200:])

    assert distance(0.95) < 0.5 * distance(0.0)
