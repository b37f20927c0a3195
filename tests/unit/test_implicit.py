"""Derivatives of minima against closed forms and finite differences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import symmetric, vector

import ncg_optax as ncg

pytestmark = pytest.mark.usefixtures("x64")

MATRIX = np.asarray(symmetric(np.geomspace(0.1, 10, 4), seed=3))
SIZE = 4


def problem(w, c, scales, directions, weights):
    """A smooth function whose minimum moves with ``c`` in several ways.

    Its Hessian depends on ``c`` and on ``w``; ``weights`` may make it nearly singular.
    """
    z = directions @ w - c * scales
    valley = weights[0] * (w[1] - c * w[0] ** 2) ** 2
    bowl = jnp.exp(c) * w @ w / 50 + weights[1] * jnp.sum(w**4)
    return jnp.sum(scales**2 * jnp.logaddexp(z, -z)) + valley + bowl


@pytest.fixture(scope="module")
def derivatives(x64):
    """A minimum and both derivatives of it, compiled once for all problems."""

    def solve(c, *data):
        names = ("scales", "directions", "weights")
        data = dict(zip(names, data, strict=True))
        start = jnp.full(SIZE, 0.5)
        w, _, result = ncg.minimize(problem, start, gtol=1e-11, c=c, **data)
        return w, result.value

    return [jax.jit(f) for f in (solve, jax.jacfwd(solve), jax.jacrev(solve))]


@pytest.mark.parametrize("seed", range(20))
def test_both_modes_agree_with_finite_differences(derivatives, seed):
    solve, forward, reverse = derivatives
    rng = np.random.default_rng(seed)
    data = (
        np.exp(rng.normal(size=6)),
        rng.normal(size=(6, SIZE)),
        10 ** rng.uniform(-3, 1, size=2),
    )
    c, h = rng.uniform(0.3, 1.5), 1e-5
    found = reverse(c, *data)
    for a, b in zip(forward(c, *data), found, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-7, atol=1e-9)
    high, low = solve(c + h, *data), solve(c - h, *data)
    for derivative, a, b in zip(found, high, low, strict=True):
        np.testing.assert_allclose(derivative, (a - b) / (2 * h), rtol=1e-6, atol=1e-6)
    assert np.abs(found[0]).max() > 1e-3


def test_a_map_over_data_and_a_pytree():
    def loss(w, data):
        return jnp.sum((w["a"] * data["x"] - data["y"]) ** 2) + (w["b"] - w["a"]) ** 2

    def a(x, y):
        start = {"a": jnp.zeros(()), "b": jnp.zeros(())}
        data = {"x": x, "y": y}
        return ncg.minimize(loss, start, gtol=1e-12, data=data)[0]["b"]

    xs, ys = vector(6, seed=0).reshape(2, 3), vector(6, seed=1).reshape(2, 3)
    found = jax.jit(jax.vmap(jax.grad(a, argnums=(0, 1))))(xs, ys)
    closed = jax.vmap(jax.grad(lambda x, y: x @ y / (x @ x), argnums=(0, 1)))(xs, ys)
    for mine, expected in zip(found, closed, strict=True):
        np.testing.assert_allclose(mine, expected, rtol=1e-8, atol=1e-9)


def test_integers_among_the_data_and_the_start_have_no_derivative():
    def loss(w, power, c):
        return jnp.sum((w - c) ** 2) + 0.0 * power

    def solve(start, c):
        return ncg.minimize(loss, start, power=jnp.int32(2), c=c)[0].sum()

    start, c = jax.grad(solve, argnums=(0, 1))(jnp.zeros(2), 3.0)
    np.testing.assert_array_equal(start, 0)
    np.testing.assert_allclose(c, 2)


def test_parameters_at_a_bound_move_with_it():
    def loss(w, c):
        return w @ MATRIX[:2, :2] @ w / 2 - c * jnp.sum(w)

    def solve(c, high):
        bounds = (None, jnp.stack([high, jnp.inf]))
        return ncg.minimize(loss, jnp.zeros(2), bounds=bounds, gtol=1e-12, c=c)[0]

    c, high, h = 1.0, 0.05, 1e-6
    w = solve(c, high)
    assert w[0] == high
    for argnum in (0, 1):
        found = jax.jacobian(solve, argnums=argnum)(c, high)
        step = [h if k == argnum else 0.0 for k in (0, 1)]
        plus, minus = (
            solve(c + step[0], high + step[1]),
            solve(c - step[0], high - step[1]),
        )
        np.testing.assert_allclose(found, (plus - minus) / (2 * h), atol=1e-6)


def test_a_composite_loss():
    loss = ncg.CompositeLoss(
        lambda w, x: x @ w, lambda outputs, y: jnp.sum((outputs - y) ** 2)
    )
    x = vector(12, seed=0).reshape(6, 2)
    y = vector(6, seed=1)

    def solve(y):
        return ncg.minimize(loss, jnp.zeros(2), gtol=1e-12, x=x, y=y)[0]

    np.testing.assert_allclose(jax.jacobian(solve)(y), np.linalg.pinv(x), atol=1e-9)


def test_complex_parameters():
    def square(z):
        return z.real**2 + z.imag**2

    def loss(w, t):
        weights = np.array([1.0, 3.0])
        target = np.array([1 + 1j, 2 - 1j]) * t
        return jnp.sum(weights * square(w - target)) + square(w[0] * w[1]) / 100

    def size(t):
        start = jnp.zeros(2, complex)
        w = ncg.minimize(loss, start, gtol=1e-11, t=t)[0]
        return jnp.abs(w[0]) + w[1].imag

    h = 1e-5
    expected = (size(1 + h) - size(1 - h)) / (2 * h)
    np.testing.assert_allclose(jax.grad(size)(1.0), expected, rtol=1e-6)
    np.testing.assert_allclose(jax.jacfwd(size)(1.0), expected, rtol=1e-6)
