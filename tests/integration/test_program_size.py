"""How a step's program grows with the network: compilers take their time by it."""

import jax
import jax.numpy as jnp
import pytest

import ncg_optax as ncg
from ncg_optax._utils import pytree

NEWTON = ncg.newton_cg(
    preconditioner=ncg.kronecker(), solver=ncg.cg(maxiter=2, forcing=None)
)


def loss(params, x):
    for w in params:
        x = jnp.tanh(x @ w)
    return jnp.mean((x - 1) ** 2)


def program(shapes):
    """A step on a network of layers of these shapes, one after the other."""
    params = [jnp.ones(shape) for shape in shapes]
    x = jnp.ones((5, shapes[0][0]))

    def step(params, state):
        grads = jax.grad(loss)(params, x)
        return NEWTON.update(grads, state, params, value_fn=loss, x=x)

    compiled = jax.jit(step).lower(params, NEWTON.init(params)).compile()
    return compiled.as_text()


def squared_norm(v):
    return pytree.vdot(v, v)


@pytest.mark.parametrize("number", [squared_norm, pytree.max_norm, pytree.all_finite])
def test_a_number_of_all_leaves_is_not_repeated_for_each(number):
    def lines(leaves):
        v = leaves * [jnp.ones(3)]
        scaled = jax.jit(lambda v: pytree.scale(v, number(v)))
        return scaled.lower(v).compile().as_text().count("\n")

    assert lines(64) < 5 * lines(16)  # quadratic: sixteen times


def test_leaves_of_a_shape_share_their_decompositions():
    few, many = (program(n * [(3, 2), (2, 3)]).count("geqrf") for n in (2, 5))
    assert few == many > 0
