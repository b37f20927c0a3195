"""The covariance at a minimum, against scipy's curve_fit and dense inverses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
from oracles import symmetric

import ncg_optax as ncg

pytestmark = pytest.mark.usefixtures("x64")

X = np.linspace(0, 2, 25)
Y = 2 * np.exp(-1.3 * X) + 0.1 * np.random.default_rng(0).normal(size=X.size)

DECAY = ncg.CompositeLoss(
    lambda w, x: w["a"] * jnp.exp(-w["b"] * x),
    lambda outputs, y: jnp.mean((outputs - y) ** 2),
)


def test_agrees_with_curve_fit():
    start = {"a": jnp.array(1.0), "b": jnp.array(1.0)}
    w, _, result = ncg.minimize(DECAY, start, gtol=1e-10, x=X, y=Y)
    scale = 2 * result.value / (X.size - 2)
    found = ncg.covariance(
        DECAY, w, scale=scale, curvature=ncg.gauss_newton(), x=X, y=Y
    )
    mine, theirs = scipy.optimize.curve_fit(
        lambda x, a, b: a * np.exp(-b * x), X, Y, [1, 1]
    )
    np.testing.assert_allclose([w["a"], w["b"]], mine, rtol=1e-6)
    np.testing.assert_allclose(found.dense(), theirs, rtol=1e-4)


@pytest.fixture(scope="module")
def quadratic(x64):
    matrix = jnp.asarray(symmetric(np.geomspace(0.5, 20, 6), seed=4))
    params = {"u": jnp.ones(2), "v": jnp.ones((2, 2))}

    def loss(w):
        flat = jax.flatten_util.ravel_pytree(w)[0]
        return flat @ matrix @ flat / 2

    return ncg.covariance(loss, params, scale=3.0), 3 * np.linalg.inv(matrix)


def test_the_dense_matrix_and_products(quadratic):
    found, expected = quadratic
    np.testing.assert_allclose(found.dense(), expected, rtol=1e-9, atol=1e-12)
    v = jax.tree.map(
        lambda x: jnp.cos(jnp.arange(x.size)).reshape(x.shape), found.params
    )
    flat = jax.flatten_util.ravel_pytree
    np.testing.assert_allclose(
        flat(found.times(v))[0], expected @ flat(v)[0], rtol=1e-8
    )


def test_the_diagonal_is_estimated(quadratic):
    found, expected = quadratic
    few, many = (
        np.abs(
            jax.flatten_util.ravel_pytree(found.diagonal(samples))[0]
            - np.diag(expected)
        ).max()
        for samples in (4, 400)
    )
    assert many < 0.15 * np.diag(expected).max()
    assert many < few
    other = found.diagonal(4, seed=1)
    assert not np.allclose(other["u"], found.diagonal(4)["u"])


def test_what_the_data_do_not_determine_is_nan():
    found = ncg.covariance(lambda w: (w[0] - 1) ** 2, jnp.ones(2))
    assert np.isnan(found.dense()).any()


def test_wrong_arguments(quadratic):
    with pytest.raises(TypeError, match="curvature"):
        ncg.covariance(lambda w: w @ w, jnp.ones(2), curvature="hessian")
    with pytest.raises(ValueError, match="samples"):
        quadratic[0].diagonal(0)


def test_dtypes():
    found = ncg.covariance(lambda w: 2 * w @ w, jnp.ones(2, jnp.bfloat16))
    np.testing.assert_allclose(found.dense(), np.eye(2) / 4)
    with pytest.raises(TypeError, match="real"):
        ncg.covariance(lambda z: jnp.sum(jnp.abs(z) ** 2), jnp.ones(2, complex))


def test_products_with_what_the_data_do_not_determine_are_nan():
    undetermined = ncg.covariance(lambda w: w[0] ** 2 + 0 * w[1], jnp.zeros(2))
    saddle = ncg.covariance(lambda w: w[0] ** 2 - w[1] ** 2, jnp.zeros(2))
    target = np.arange(3.0)
    double = ncg.covariance(
        lambda w: jnp.mean((w[0] + w[1] - target) ** 2), jnp.full(2, 0.5)
    )
    assert np.isnan(undetermined.times(jnp.ones(2))).all()
    for found in (undetermined, saddle, double):
        assert np.isnan(found.dense()).all()
    assert np.isnan(double.diagonal(10)).all()
