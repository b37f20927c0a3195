"""A jitted step is traced once, whatever the settings."""

import jax
import jax.numpy as jnp
import optax
import pytest

import ncg_optax as ncg

pytestmark = pytest.mark.usefixtures("empty_jit_caches")

X = jax.random.normal(jax.random.key(0), (10, 3))
LOSS = ncg.CompositeLoss(
    lambda params, x: jnp.tanh(x @ params["w"]) + params["b"],
    lambda outputs, y: jnp.mean((outputs - y) ** 2),
).bind(y=jnp.sin(X[:, 0]))

OPTIMIZERS = {
    "newton_cg": ncg.newton_cg(),
    "hessian_free": ncg.hessian_free(),
    "stochastic_hessian_free": ncg.stochastic_hessian_free(),
    "kronecker_adam": ncg.kronecker_adam(curvature=ncg.gauss_newton()),
    "steihaug": ncg.newton_cg(
        damping=0.0, linesearch=None, solver=ncg.steihaug(maxiter=5)
    ),
    "minres": ncg.newton_cg(solver=ncg.minres(maxiter=5)),
    "momentum": ncg.newton_cg(solver=ncg.quadratic_momentum(ncg.cg(maxiter=2))),
    "quasi_newton": ncg.newton_cg(solver=ncg.quasi_newton(ncg.cg(maxiter=2))),
    "switch_after": ncg.switch_after(2, optax.adam(0.1), ncg.newton_cg()),
    "scientific": ncg.scientific(),
    "schedules": ncg.newton_cg(
        optax.linear_schedule(1.0, 0.5, 3), damping=optax.linear_schedule(1.0, 0.1, 3)
    ),
    "inject_hyperparams": optax.inject_hyperparams(ncg.newton_cg)(damping=0.1),
}


# In float32 the others are in tests/unit/test_transform.py.
@pytest.mark.parametrize(
    ("name", "dtype"),
    [(name, "bfloat16") for name in OPTIMIZERS]
    + [("switch_after", "float32"), ("inject_hyperparams", "float32")],
)
def test_one_trace(name, dtype):
    tx, traces = OPTIMIZERS[name], []

    @jax.jit
    def step(params, state, x):
        traces.append(params)
        loss = LOSS.bind(x=x)
        value, grads = jax.value_and_grad(loss)(params)
        updates, state = tx.update(
            grads, state, params, value=value, grad=grads, value_fn=loss
        )
        return optax.apply_updates(params, updates), state

    # Strongly typed, as arrays that come out of a model's initialisation are.
    params = {"w": jnp.full(3, 0.1, dtype), "b": jnp.zeros((), dtype)}
    state = tx.init(params)
    before = jax.tree.map(jax.typeof, state)
    for i in range(4):
        params, state = step(params, state, X + 0.01 * i)
    assert len(traces) == 1
    assert step._cache_size() == 1
    assert jax.tree.map(jax.typeof, state) == before
    assert jax.tree.map(lambda p: p.dtype, params) == {"w": dtype, "b": dtype}
