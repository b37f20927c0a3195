"""The cost of matrix algebra, in gradients."""

import jax
import jax.numpy as jnp
import pytest

from ncg_optax.solvers.residual_space import cost

A = jax.ShapeDtypeStruct((6, 5), jnp.float32)
X = jax.ShapeDtypeStruct((5,), jnp.float32)


@pytest.mark.parametrize(
    ("function", "args", "expected"),
    [
        (lambda a, x: a @ x, (A, X), 2 * 6 * 5),
        (lambda x: 3 * x, (X,), 5),
        (jax.jit(lambda x: 3 * x), (X,), 5),
        (jax.vmap(lambda x: x @ x), (A,), 2 * 6 * 5),
        (lambda x: jax.lax.fori_loop(0, 7, lambda _, x: 3 * x, x), (X,), 7 * (5 + 1)),
        (
            lambda x: jax.lax.cond(x[0] > 0, lambda x: x, lambda x: 2 * (x + 1), x),
            (X,),
            None,
        ),
    ],
    ids=["product", "scale", "jit", "vmap", "loop", "branches"],
)
def test_counts(function, args, expected):
    found = cost.operations(function, *args)
    if expected is None:  # the larger branch, and the comparison
        assert 10 <= found < 20
    else:
        assert found == expected


def test_a_convolution():
    image = jax.ShapeDtypeStruct((2, 8, 8, 3), jnp.float32)
    kernel = jax.ShapeDtypeStruct((3, 3, 3, 4), jnp.float32)

    def convolve(x, k):
        axes = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(
            x, k, (1, 1), "SAME", dimension_numbers=axes
        )

    assert cost.operations(convolve, image, kernel) == 2 * (2 * 64 * 4) * (9 * 3)


def test_the_gradient_of_a_network_is_near_the_count_of_the_compiler():
    def loss(params):
        x = jnp.ones((100, 2))
        for w in params:
            x = jnp.tanh(x @ w)
        return jnp.mean(x**2)

    params = [jnp.ones((2, 30)), jnp.ones((30, 30)), jnp.ones((30, 1))]
    compiled = jax.jit(jax.grad(loss)).lower(params).compile()
    found = cost.operations(jax.grad(loss), params)
    assert found == pytest.approx(compiled.cost_analysis()["flops"], rel=0.2)
