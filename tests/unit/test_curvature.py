import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from oracles import as_matrix, dense_gradient, dense_hessian, tiny_net

import ncg_optax as ncg
from ncg_optax.curvature import curvature_product as product_of
from ncg_optax.losses.objective import as_objective

pytestmark = pytest.mark.usefixtures("x64")

HESSIAN_MODES = ["forward_over_reverse", "reverse_over_reverse"]
MODEL_MODES = ["auto", "forward", "double_vjp"]


def net():
    return tiny_net(jnp.float64)


def dense_jacobian(fn, params):
    vec, unravel = ravel_pytree(params)
    return np.asarray(
        jax.jit(jax.jacobian(lambda v: ravel_pytree(fn(unravel(v)))[0]))(vec)
    )


def dense_gauss_newton(loss, params):
    j = dense_jacobian(loss.model, params)
    return j.T @ dense_hessian(loss.loss, loss.model(params)) @ j


def matrix_of(curvature, loss, params):
    return as_matrix(lambda p: product_of(curvature, loss, p), params)


def assert_same_matrix(curvature, loss, params, expected):
    matrix = matrix_of(curvature, loss, params)
    np.testing.assert_allclose(matrix, expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("mode", HESSIAN_MODES)
def test_hessian(mode):
    params, loss = net()
    assert_same_matrix(ncg.hessian(mode), loss, params, dense_hessian(loss, params))


@pytest.mark.parametrize("mode", MODEL_MODES)
def test_gauss_newton(mode):
    params, loss = net()
    expected = dense_gauss_newton(loss, params)
    assert_same_matrix(ncg.gauss_newton(mode), loss, params, expected)
    assert np.abs(expected - dense_hessian(loss, params)).max() > 0.1


def cross_entropy():
    """A softmax regression, whose outputs are a tree of two heads."""
    rng = np.random.default_rng(0)
    x, labels = jnp.asarray(rng.normal(size=(5, 2))), jnp.array([0, 1, 2, 1, 0])
    params = {
        "a": jnp.asarray(rng.normal(size=(2, 3))),
        "b": jnp.asarray(rng.normal(size=2)),
    }

    def model(params):
        return {"logits": jnp.tanh(x @ params["a"]), "offset": x @ params["b"]}

    def loss(outputs):
        logs = jax.nn.log_softmax(outputs["logits"])
        picked = jnp.take_along_axis(logs, labels[:, None], axis=1)
        return -jnp.mean(picked) + jnp.mean(jnp.cosh(outputs["offset"]))

    return params, ncg.CompositeLoss(model, loss)


def test_gauss_newton_of_another_convex_loss_and_a_tree_of_outputs():
    params, loss = cross_entropy()
    expected = dense_gauss_newton(loss, params)
    assert_same_matrix(ncg.gauss_newton(), loss, params, expected)


@pytest.mark.parametrize(
    ("mode", "make"), [("auto", net), ("double_vjp", net), ("forward", cross_entropy)]
)
def test_empirical_fisher(mode, make):
    params, loss = make()
    outputs, unravel = loss.model(params), ravel_pytree(params)[1]
    examples = jax.tree.leaves(outputs)[0].shape[0]
    cotangent = jax.grad(loss.loss)(outputs)

    def loss_of_example(vec, i):
        changed = loss.model(unravel(vec))
        terms = jax.tree.map(lambda c, o: jnp.sum(c[i] * o[i]), cotangent, changed)
        return examples * sum(jax.tree.leaves(terms))

    vec = ravel_pytree(params)[0]
    gradient = jax.jit(jax.grad(loss_of_example))
    gradients = [np.asarray(gradient(vec, i)) for i in range(examples)]
    np.testing.assert_allclose(
        np.mean(gradients, 0), dense_gradient(loss, params), rtol=1e-9
    )
    expected = np.mean([np.outer(g, g) for g in gradients], axis=0)
    assert_same_matrix(ncg.empirical_fisher(mode), loss, params, expected)


@pytest.mark.parametrize(
    ("make", "semidefinite"),
    [(ncg.hessian, False), (ncg.gauss_newton, True), (ncg.empirical_fisher, True)],
)
def test_products_are_symmetric_and_semidefinite_where_they_must_be(make, semidefinite):
    params, loss = net()
    matrix = matrix_of(make(), loss, params)
    np.testing.assert_allclose(matrix, matrix.T, rtol=1e-10, atol=1e-13)
    smallest = np.linalg.eigvalsh(matrix).min()
    assert smallest > -1e-12 if semidefinite else smallest < -1e-3


@pytest.mark.parametrize("make", [ncg.hessian, ncg.gauss_newton, ncg.empirical_fisher])
def test_linearize_returns_the_loss_along_the_way(make):
    params, loss = net()
    objective = as_objective(loss, {})
    value = jax.jit(lambda p: make().linearize(objective, p)[0])(params)
    np.testing.assert_allclose(value, jax.jit(loss)(params), rtol=1e-12)


COMPLEX = {"w": np.array([0.3 - 0.7j, 1.1 + 0.2j]), "r": np.array([0.4])}


def complex_model(p):
    x = jnp.array([[1.0, -0.5], [0.3, 0.8], [-1.2, 0.1]])
    z = x @ p["w"]
    return jnp.sin(z) + p["r"] * z**2


def complex_loss(z):
    return jnp.mean(jnp.abs(z - (0.5 + 0.1j)) ** 2 + 0.1 * jnp.real(z) ** 4)


def as_reals(p):
    return np.concatenate([np.real(p["w"]), np.imag(p["w"]), p["r"]])


def as_params(v):
    return {"w": v[:2] + 1j * v[2:4], "r": v[4:]}


def real_outputs(v):
    z = complex_model(as_params(v))
    return jnp.concatenate([jnp.real(z), jnp.imag(z)])


def real_loss(u):
    return complex_loss(u[:3] + 1j * u[3:])


def matrix_over_the_reals(curvature):
    loss = ncg.CompositeLoss(complex_model, complex_loss)

    @jax.jit
    @partial(jax.vmap, in_axes=(None, 0), out_axes=1)
    def columns(params, e):
        product = product_of(curvature, loss, params)(as_params(e))
        return jnp.concatenate([product["w"].real, product["w"].imag, product["r"]])

    return columns(jax.tree.map(jnp.asarray, COMPLEX), jnp.eye(5))


@pytest.mark.parametrize("mode", HESSIAN_MODES)
def test_hessian_of_complex_parameters_follows_optax(mode):
    v = jnp.asarray(as_reals(COMPLEX))
    expected = jax.jit(jax.hessian(lambda v: real_loss(real_outputs(v))))(v)
    matrix = matrix_over_the_reals(ncg.hessian(mode))
    np.testing.assert_allclose(matrix, expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("mode", ["forward", "double_vjp"])
def test_gauss_newton_of_complex_parameters_and_outputs(mode):
    v = jnp.asarray(as_reals(COMPLEX))
    j = jax.jit(jax.jacobian(real_outputs))(v)
    h = jax.jit(jax.hessian(real_loss))(real_outputs(v))
    matrix = matrix_over_the_reals(ncg.gauss_newton(mode))
    np.testing.assert_allclose(matrix, j.T @ h @ j, rtol=1e-9, atol=1e-11)


def test_empirical_fisher_of_complex_parameters_and_outputs():
    v = jnp.asarray(as_reals(COMPLEX))
    j = jax.jit(jax.jacobian(real_outputs))(v)
    slope = jax.jit(jax.grad(real_loss))(real_outputs(v))
    per_example = 3 * (slope[:, None] * j).reshape(2, 3, 5).sum(axis=0)
    expected = per_example.T @ per_example / 3
    matrix = matrix_over_the_reals(ncg.empirical_fisher())
    np.testing.assert_allclose(matrix, expected, rtol=1e-9, atol=1e-11)


@jax.custom_vjp
def cube(x):
    return x**3


cube.defvjp(lambda x: (x**3, x), lambda x, g: (3 * x**2 * g,))


@jax.custom_vjp
def square(x):
    return x**2


square.defvjp(lambda x: (x**2, x), lambda x, g: (2 * x * g,))


@jax.custom_vjp
def opaque_cube(x):
    return x**3


# The backward pass goes through another custom_vjp: it has no forward mode.
opaque_cube.defvjp(lambda x: (x**3, x), lambda x, g: (3 * square(x) * g,))


def layered(layer):
    x = jnp.array([[1.0, 0.5], [-0.3, 0.8], [0.2, -1.0]])
    return ncg.CompositeLoss(
        lambda w: layer(x @ w), lambda out: jnp.mean((out - 1.0) ** 4)
    )


W = np.array([0.7, -0.4])


@pytest.mark.parametrize(
    ("make", "layer"),
    [
        (ncg.gauss_newton, cube),
        (ncg.gauss_newton, opaque_cube),
        (ncg.empirical_fisher, cube),
    ],
)
@pytest.mark.parametrize("mode", ["auto", "double_vjp"])
def test_models_with_a_custom_vjp_need_no_forward_mode(make, mode, layer):
    expected = matrix_of(make(), layered(lambda x: x**3), jnp.asarray(W))
    assert_same_matrix(make(mode), layered(layer), jnp.asarray(W), expected)


@pytest.mark.parametrize("make", [ncg.gauss_newton, ncg.empirical_fisher])
def test_forward_mode_does_not_fall_back(make):
    with pytest.raises(TypeError, match="custom_vjp"):
        product_of(make("forward"), layered(cube), jnp.asarray(W))(jnp.asarray(W))


def test_errors_of_the_model_itself_are_not_mistaken_for_a_custom_vjp():
    def broken(w):
        raise TypeError("no such thing")

    loss = ncg.CompositeLoss(broken, jnp.sum)
    with pytest.raises(TypeError, match="no such thing"):
        product_of(ncg.gauss_newton(), loss, jnp.asarray(W))


def test_hessian_of_a_custom_vjp_with_a_differentiable_backward_pass():
    expected = dense_hessian(layered(lambda x: x**3), jnp.asarray(W))
    assert_same_matrix(ncg.hessian(), layered(cube), jnp.asarray(W), expected)


def test_hessian_of_a_custom_vjp_without_forward_mode_needs_reverse_over_reverse():
    loss, w = layered(opaque_cube), jnp.asarray(W)
    with pytest.raises(TypeError, match="custom_vjp"):
        product_of(ncg.hessian(), loss, w)(w)
    expected = dense_hessian(layered(lambda x: x**3), w)
    assert_same_matrix(ncg.hessian("reverse_over_reverse"), loss, w, expected)


@pytest.mark.parametrize("mode", HESSIAN_MODES)
def test_none_leaves(mode):
    params = {"w": jnp.array([1.0, 2.0]), "unused": None}
    product = product_of(ncg.hessian(mode), lambda p: jnp.sum(p["w"] ** 3), params)
    out = product({"w": jnp.ones(2), "unused": None})
    assert out["unused"] is None
    np.testing.assert_allclose(out["w"], [6.0, 12.0])


def test_data_is_routed_by_name():
    product = product_of(
        ncg.hessian(), lambda w, a: jnp.sum(a * w**2), W, a=3.0, b=None
    )
    np.testing.assert_allclose(product(np.ones(2)), [6.0, 6.0])


def test_products_take_and_give_the_dtypes_of_the_parameters():
    w = jnp.ones(2, jnp.bfloat16)
    loss = ncg.CompositeLoss(lambda w: w, lambda out: jnp.sum(out**2))
    for curvature in (ncg.hessian(), ncg.gauss_newton()):
        assert product_of(curvature, loss, w)(w).dtype == jnp.bfloat16


@pytest.mark.parametrize("make", [ncg.hessian, ncg.gauss_newton, ncg.empirical_fisher])
@pytest.mark.parametrize(
    ("backend", "precision", "expected"),
    [
        ("gpu", "highest", {"HIGHEST"}),
        ("tpu", "high", {"HIGH"}),
        ("gpu", None, set()),
        ("cpu", "high", {"HIGH"}),
    ],
)
def test_products_run_at_the_precision_asked_for(
    make, backend, precision, expected, monkeypatch
):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    params, loss = net()
    curvature = make(precision=precision)
    jaxpr = jax.make_jaxpr(lambda p: product_of(curvature, loss, p)(p))(params)
    assert "dot_general" in str(jaxpr)
    assert set(re.findall(r"Precision\.(\w+)", str(jaxpr))) == expected


@pytest.mark.parametrize(
    "outputs", [jnp.zeros(()), {"a": jnp.zeros(2), "b": jnp.zeros(3)}]
)
def test_empirical_fisher_needs_one_axis_of_examples(outputs):
    loss = ncg.CompositeLoss(
        lambda w: jax.tree.map(lambda x: x + jnp.sum(w), outputs),
        lambda out: sum(jnp.sum(x) for x in jax.tree.leaves(out)),
    )
    with pytest.raises(ValueError, match="first axis runs over the examples"):
        product_of(ncg.empirical_fisher(), loss, jnp.asarray(W))
