import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import symmetric, tiny_net

import ncg_optax as ncg

pytestmark = pytest.mark.usefixtures("x64")

N = 50
SPECTRUM = np.geomspace(1.0, 1e-3, N)


def check(a, dtype=jnp.float64, **settings):
    return ncg.check_operator(
        lambda v: jnp.asarray(a, v.dtype) @ v, jnp.zeros(len(a), dtype), **settings
    )


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_semidefinite_matrix_passes(dtype):
    spectrum = np.r_[SPECTRUM[:20], np.zeros(N - 20)]
    report = check(symmetric(spectrum), dtype, positive=True)
    rounding = 100 * float(jnp.finfo(dtype).eps)
    assert 0 < report.asymmetry < rounding
    assert 0 < report.nonlinearity < rounding
    assert -rounding < report.lowest_curvature < 0.1


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_gauss_newton_passes(dtype):
    params, loss = tiny_net(jnp.dtype(dtype))
    product = ncg.curvature.curvature_product(ncg.gauss_newton(), loss, params)
    ncg.check_operator(product, params, positive=True)


def test_a_hermitian_matrix_passes():
    a = np.array([[2.0, 1j], [-1j, 2.0]])
    report = ncg.check_operator(lambda v: a @ v, jnp.zeros(2, complex), positive=True)
    assert report.asymmetry < 1e-14


def test_the_asymmetry_is_measured():
    a = symmetric(SPECTRUM)
    skew = np.triu(np.random.default_rng(0).normal(size=(N, N)), 1)
    skew = 1e-3 * np.linalg.norm(a) * (skew - skew.T) / np.linalg.norm(2 * skew)
    exact = np.linalg.norm(2 * skew) / np.linalg.norm(a + skew)
    found = check(a + skew, trials=200, tolerance=1.0).asymmetry
    np.testing.assert_allclose(found, exact, rtol=0.3)
    message = r"not symmetric: \|B - B\^T\| / \|B\| is about .*e-0., with a toler.*1.5e"
    with pytest.raises(ValueError, match=message):
        check(a + skew)


def test_a_missing_conjugate_is_found():
    a = np.array([[2.0, 1j], [-1j, 2.0]])
    with pytest.raises(ValueError, match="not symmetric"):
        ncg.check_operator(
            lambda v: jnp.conj(a) @ jnp.conj(v) * 1j, jnp.zeros(2, complex)
        )


def test_one_small_negative_eigenvalue_is_found():
    a = symmetric(np.r_[np.linspace(1.0, 0.5, N - 1), [-0.01]])
    report = check(a)
    assert -0.0101 <= report.lowest_curvature < -1e-4
    with pytest.raises(ValueError, match="not positive semidefinite: .* times its"):
        check(a, positive=True)


@pytest.mark.parametrize(
    "product",
    [lambda v: v + 1.0, lambda v: v * jnp.abs(v), lambda v: v + 1e-6 * jnp.sin(v)],
    ids=["affine", "quadratic", "a little"],
)
def test_what_is_not_linear_is_found(product):
    with pytest.raises(ValueError, match="not linear: .* of its size"):
        ncg.check_operator(product, jnp.zeros(N))


def test_the_zero_operator_passes():
    report = check(np.zeros((N, N)), positive=True)
    assert report == ncg.check_operator(jnp.zeros_like, jnp.zeros(3)) == (0, 0, 0)


def test_products_that_are_not_finite():
    with pytest.raises(ValueError, match="not finite"):
        check(np.full((N, N), np.nan))


def test_errors():
    zeros, product = jnp.zeros(3), lambda v: v
    with pytest.raises(TypeError, match=r"function v -> B v.*got hessian"):
        ncg.check_operator(ncg.hessian(), zeros)
    with pytest.raises(TypeError, match="outside of jit"):
        jax.jit(lambda p: ncg.check_operator(product, p).asymmetry)(zeros)
    with pytest.raises(ValueError, match=r"matvec\(params\).* has shape \(2,\)"):
        ncg.check_operator(lambda v: v[1:], zeros)
    with pytest.raises(ValueError, match="trials must be an integer of at least 1"):
        ncg.check_operator(product, zeros, trials=0)
    with pytest.raises(ValueError, match="tolerance must be a number"):
        ncg.check_operator(product, zeros, tolerance=-1.0)
    with pytest.raises(TypeError, match="dtype int64"):
        ncg.check_operator(product, jnp.zeros(3, int))
