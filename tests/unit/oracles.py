"""Small problems and dense counterparts that the unit tests share."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree

import ncg_optax as ncg


def symmetric(eigenvalues, seed=0):
    n = len(eigenvalues)
    q, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(n, n)))
    return q @ np.diag(eigenvalues) @ q.T


def vector(n, seed=1):
    return np.random.default_rng(seed).normal(size=n)


def krylov(a, b, k):
    basis = b[:, None] / np.linalg.norm(b)
    for _ in range(k - 1):
        basis, _ = np.linalg.qr(np.column_stack([basis, a @ basis[:, -1]]))
    return basis


def tiny_net(dtype=jnp.float32, seed=3, inputs=2, width=3):
    """A tanh network on 6 examples with a nonconvex squared loss: 13 parameters."""
    rng = np.random.default_rng(seed)
    params = {
        "hidden": {"w": rng.normal(size=(inputs, width)), "b": rng.normal(size=width)},
        "out": {"w": rng.normal(size=(width, 1)), "b": np.zeros(1)},
    }
    x = jnp.asarray(rng.normal(size=(6, inputs)), dtype)
    y = jnp.asarray(rng.normal(size=(6, 1)), dtype)

    def model(params, x):
        hidden = jnp.tanh(x @ params["hidden"]["w"] + params["hidden"]["b"])
        return hidden @ params["out"]["w"] + params["out"]["b"]

    def squared_error(outputs, y):
        return jnp.mean((outputs - y) ** 2)

    params = jax.tree.map(lambda p: jnp.asarray(p, dtype), params)
    return params, ncg.CompositeLoss(model, squared_error).bind(x=x, y=y)


def rosenbrock(w):
    return 100 * (w[1] - w[0] ** 2) ** 2 + (1 - w[0]) ** 2


def flat(tree):
    return np.asarray(ravel_pytree(tree)[0])


@partial(jax.jit, static_argnums=0)
def _columns(make_product, params):
    vec, unravel = ravel_pytree(params)
    product = make_product(params)
    columns = jax.vmap(lambda e: ravel_pytree(product(unravel(e)))[0])
    return columns(jnp.eye(vec.size, dtype=vec.dtype))


def as_matrix(make_product, params):
    """The columns ``B e_i`` of the operator ``make_product(params)``."""
    return np.asarray(_columns(make_product, params)).T


def dense_gradient(loss, params):
    return flat(jax.jit(jax.grad(loss))(params))


def dense_hessian(loss, params):
    vec, unravel = ravel_pytree(params)
    return np.asarray(jax.jit(jax.hessian(lambda v: loss(unravel(v))))(vec))


def make_step(tx, loss):
    """A jitted step; ``data`` goes to the loss and to ``update``."""

    @jax.jit
    def step(params, state, data):
        value, grads = jax.value_and_grad(loss)(params, **data)
        grads = jax.tree.map(jnp.conj, grads)
        updates, state = tx.update(
            grads, state, params, value=value, grad=grads, value_fn=loss, **data
        )
        return optax.apply_updates(params, updates), state

    return step


def train(tx, loss, params, steps, **data):
    step, state = make_step(tx, loss), tx.init(params)
    for _ in range(steps):
        params, state = step(params, state, data)
    return params, state


def assert_trees_equal(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(x, y)


def assert_trees_close(a, b, **tolerances):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, **tolerances)


def outcome(actual, predicted=1.0, step_size=1.0, accepted=True, rounding=0.0):
    numbers = dict(
        predicted_reduction=predicted,
        actual_reduction=actual,
        rounding=rounding,
        step_size=step_size,
    )
    numbers = {name: jnp.float32(x) for name, x in numbers.items()}
    return ncg.globalization.Outcome(**numbers, accepted=jnp.asarray(accepted))


class constant_preconditioner(ncg.preconditioners.Preconditioner):  # noqa: N801
    """The matrix ``m``, whatever the curvature is."""

    def __init__(self, m):
        self.m = m

    def apply(self, state, r, damping):
        return self.m @ r


def solve_model(solver, product, rhs, damping, precondition, state, **more):
    """The solver's result for the right-hand side ``rhs``, and its next state."""
    gradient = jax.tree.map(lambda x: -x, rhs)
    model = ncg.solvers.Model(gradient, damping, product, precondition, **more)
    return solver.solve(model, state)
