"""All parts run under JAX's own checks of types, shapes, numbers and tracers."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import ncg_optax as ncg

# The value of each option. Two optimizers run in each mode without an error if they are
# as strict as optax.lbfgs.
MODES = {
    "jax_numpy_rank_promotion": "raise",
    "jax_numpy_dtype_promotion": "strict",
    "jax_debug_nans": True,
    "jax_enable_checks": True,
    "jax_check_tracer_leaks": True,
    "jax_disable_jit": True,
}
GAUSS_NEWTON = ncg.gauss_newton()
FEW = ncg.cg(maxiter=2)
OPTIMIZERS = {
    "newton_cg": ncg.newton_cg(),
    "hessian_free": ncg.hessian_free(),
    "stochastic_hessian_free": ncg.stochastic_hessian_free(),
    "minres": ncg.newton_cg(solver=ncg.minres(maxiter=2)),
    "steihaug": ncg.newton_cg(
        solver=ncg.steihaug(maxiter=2), damping=0.0, linesearch=None
    ),
    "warm start": ncg.newton_cg(solver=ncg.cg(maxiter=2, warm_start=0.5)),
    "progress": ncg.newton_cg(solver=ncg.cg(maxiter=2, progress_tol=1e-3)),
    "schedules": ncg.newton_cg(
        optax.linear_schedule(1.0, 0.5, 10),
        solver=ncg.cg(maxiter=optax.linear_schedule(1, 3, 2), forcing=None),
        damping=optax.linear_schedule(1.0, 0.5, 10),
    ),
    "quadratic_momentum": ncg.newton_cg(solver=ncg.quadratic_momentum(FEW)),
    "quasi_newton": ncg.newton_cg(solver=ncg.quasi_newton(FEW, memory_size=2)),
    "averaged_gradient": ncg.newton_cg(
        solver=ncg.averaged_gradient(), linesearch=ncg.safeguard()
    ),
    "residual_space": ncg.newton_cg(
        solver=ncg.residual_space(momentum=0.5), curvature=GAUSS_NEWTON
    ),
    "reverse": ncg.newton_cg(solver=FEW, curvature=ncg.hessian("reverse_over_reverse")),
    "empirical_fisher": ncg.newton_cg(solver=FEW, curvature=ncg.empirical_fisher()),
    "double_vjp": ncg.newton_cg(solver=FEW, curvature=ncg.gauss_newton("double_vjp")),
    "jacobi": ncg.newton_cg(solver=FEW, preconditioner=ncg.jacobi()),
    "squared gradients": ncg.newton_cg(
        solver=FEW, preconditioner=ncg.jacobi("gradient")
    ),
    "nystrom": ncg.newton_cg(solver=FEW, preconditioner=ncg.nystrom(2)),
    "kronecker": ncg.newton_cg(solver=FEW, preconditioner=ncg.kronecker()),
    "compose": ncg.newton_cg(
        solver=FEW,
        preconditioner=ncg.compose(
            ncg.kronecker(with_sqrt=True), ncg.nystrom(2, refresh=1)
        ),
    ),
    "sampling": ncg.newton_cg(
        solver=FEW,
        sampling=ncg.sampling(1 / 2, min_examples=1, grow_below=0.5, microbatch_size=2),
    ),
    "kronecker_adam": ncg.kronecker_adam(),
    "kronecker_adam with curvature": ncg.kronecker_adam(0.1, curvature=GAUSS_NEWTON),
    "mask": ncg.newton_cg(solver=FEW, mask={"w": True, "b": False}),
    "scientific": ncg.scientific(),
    "switch_after": ncg.switch_after(1, optax.sgd(0.1), ncg.newton_cg(solver=FEW)),
}

X = jnp.sin(jnp.arange(24.0)).reshape(8, 3)
Y = jnp.cos(jnp.arange(8.0))
LOSS = ncg.CompositeLoss(
    lambda params, x: jnp.tanh(
        jnp.sum(x @ params["w"] + jnp.expand_dims(params["b"], 0), axis=1)
    ),
    lambda outputs, y: jnp.mean(jnp.square(outputs - y)),
)


def start():
    return {"w": jnp.cos(jnp.arange(6.0)).reshape(3, 2), "b": jnp.zeros(2)}


def two_steps(tx):
    def step(params, state):
        value, grads = jax.value_and_grad(LOSS)(params, x=X, y=Y)
        updates, state = tx.update(
            grads, state, params, value=value, value_fn=LOSS, x=X, y=Y
        )
        return optax.apply_updates(params, updates), state

    params = start()
    state = tx.init(params)
    step = jax.jit(step)
    for _ in range(2):
        params, state = step(params, state)
    return params


QUICK = ("jax_numpy_rank_promotion", "jax_numpy_dtype_promotion")
SLOW = [pytest.param(m, marks=pytest.mark.slow) for m in MODES if m not in QUICK]


@pytest.fixture(params=[*QUICK, *SLOW])
def mode(request):
    before = getattr(jax.config, request.param)
    jax.config.update(request.param, MODES[request.param])
    yield request.param
    jax.config.update(request.param, before)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_part_runs(mode, name):
    params = two_steps(OPTIMIZERS[name])
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(params))
    assert LOSS(params, x=X, y=Y) < LOSS(start(), x=X, y=Y)


def test_bayesian_fit_runs(mode):
    if mode == "jax_disable_jit":
        pytest.skip("The loop of a fit would take minutes.")
    fit = ncg.bayesian_fit(LOSS.model_fn, start(), Y, maxiter=3, x=X)
    outputs, std = fit.predict(x=X)
    assert np.isfinite(fit.log_evidence) and np.isfinite(std).all()
    assert outputs.shape == std.shape == Y.shape


def test_minimize_runs(mode):
    def saddle(w):
        return w[0] ** 2 - w[1] ** 2 + w[1] ** 4

    _, _, result = ncg.minimize(saddle, jnp.zeros(2), maxiter=20)
    assert result.converged
    np.testing.assert_allclose(result.value, -0.25, atol=1e-4)


def test_minimize_with_bounds_and_covariance_run(mode):
    def loss(w):
        return jnp.sum(jnp.square(w - jnp.asarray([0.5, 2.0]))) + w[0] * w[1]

    w, _, result = ncg.minimize(loss, jnp.zeros(2), bounds=(0.0, 1.0), maxiter=20)
    assert result.converged
    np.testing.assert_allclose(w, [0.0, 1.0], atol=1e-4)
    covariance = ncg.covariance(loss, w)
    np.testing.assert_allclose(
        covariance.dense(), np.linalg.inv([[2.0, 1.0], [1.0, 2.0]]), rtol=1e-5
    )
    assert np.isfinite(covariance.diagonal(2)).all()


def test_a_derivative_of_minimize_runs(mode):
    if mode == "jax_disable_jit":
        pytest.skip("JAX differentiates no while loop without jit.")

    def solution(t):
        return ncg.minimize(lambda w, t: jnp.square(w - t), jnp.zeros(()), t=t)[0]

    np.testing.assert_allclose(jax.grad(solution)(2.0), 1.0, rtol=1e-5)


def test_make_train_step_runs(mode):
    tx, params = ncg.hessian_free(), start()
    step = ncg.make_train_step(LOSS, tx, microbatch_size=4)
    params, _, metrics = step(params, tx.init(params), {"x": X, "y": Y})
    assert LOSS(params, x=X, y=Y) < metrics.loss
