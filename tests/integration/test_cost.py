"""What a step costs, in floating-point operations as XLA counts them.

The unit is a gradient of the 784-512-512-10 network of the cost model. Nothing runs:
the programs are compiled for shapes alone. XLA counts the body of a loop once.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
import pytest

import ncg_optax as ncg

SIZES = (784, 512, 512, 10)
EXAMPLES = 256
LAYERS = range(len(SIZES) - 1)

# Gradients per product: what a dense network permits once the primal pass is shared.
IDEAL = {"hessian": 1.50, "gauss_newton": 1.17, "empirical_fisher": 1.17}
CURVATURES = {
    "hessian": ncg.hessian(),
    "gauss_newton": ncg.gauss_newton(),
    "empirical_fisher": ncg.empirical_fisher(),
}

by_curvature = pytest.mark.parametrize("name", CURVATURES)


def model_fn(params, x):
    for i in LAYERS:
        x = x @ params[f"w{i}"] + params[f"b{i}"]
        x = jnp.tanh(x) if i < LAYERS[-1] else x
    return x


def loss_fn(outputs, y):
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(outputs, y))


LOSS = ncg.CompositeLoss(model_fn, loss_fn)
PARAMS = {
    **{f"w{i}": jax.ShapeDtypeStruct(SIZES[i : i + 2], jnp.float32) for i in LAYERS},
    **{
        f"b{i}": jax.ShapeDtypeStruct(SIZES[i + 1 : i + 2], jnp.float32) for i in LAYERS
    },
}
BATCH = (
    jax.ShapeDtypeStruct((EXAMPLES, SIZES[0]), jnp.float32),
    jax.ShapeDtypeStruct((EXAMPLES,), jnp.int32),
)


def value(params, x, y):
    return LOSS(params, x=x, y=y)


def flops(fn, *shapes):
    return jax.jit(fn).lower(*shapes).compile().cost_analysis()["flops"]


@functools.cache
def gradient_flops():
    return flops(jax.value_and_grad(value), PARAMS, *BATCH)


def gradients(fn, *shapes):
    """What ``fn`` costs, in gradients."""
    return flops(fn, *shapes) / gradient_flops()


class Costs(NamedTuple):
    set_up: float  # the linearisation
    product: float  # one product, given the linearisation
    iteration: float  # a whole solve with its loop body once, likewise


@functools.cache
def costs(name):
    product = None

    def linearize(params, x, y):
        nonlocal product
        matvec = ncg.curvature.curvature_product(
            CURVATURES[name], LOSS, params, x=x, y=y
        )
        product, residuals = jax.closure_convert(matvec, params)
        return residuals

    def solve(rhs, residuals):
        return ncg.solvers.conjugate_gradient(
            lambda v: product(v, *residuals), rhs, 1.0, maxiter=10, tolerance=0.0
        )

    set_up = gradients(linearize, PARAMS, *BATCH)
    residuals = jax.eval_shape(linearize, PARAMS, *BATCH)
    return Costs(
        set_up=set_up,
        product=gradients(lambda v, r: product(v, *r), PARAMS, residuals),
        iteration=gradients(solve, PARAMS, residuals),
    )


@functools.cache
def step_cost(name, **settings):
    tx = ncg.newton_cg(curvature=CURVATURES[name], **settings)

    def step(params, state, x, y):
        loss, grads = jax.value_and_grad(value)(params, x, y)
        updates, state = tx.update(
            grads, state, params, value=loss, grad=grads, value_fn=LOSS, x=x, y=y
        )
        return optax.apply_updates(params, updates), state

    return gradients(step, PARAMS, jax.eval_shape(tx.init, PARAMS), *BATCH)


@by_curvature
def test_product(name):
    cost = costs(name).product
    assert cost <= 1.05 * IDEAL[name], f"{name}: {cost:.4f} gradients a product"


@by_curvature
def test_iteration(name):
    cost = costs(name).iteration
    assert cost <= 1.05 * IDEAL[name], f"{name}: {cost:.4f} gradients an iteration"


@by_curvature
def test_nothing_is_computed_beside_products(name):
    cost = costs(name)
    overhead = cost.iteration / cost.product
    assert overhead <= 1.05, f"{name}: an iteration costs {overhead:.4f} products"


@by_curvature
def test_set_up_is_no_more_than_a_gradient(name):
    cost = costs(name).set_up
    assert cost <= 1.0, f"{name}: linearising costs {cost:.4f} gradients"


@by_curvature
def test_step(name):
    """With a fixed damping: no product but those of the solver."""
    parts = costs(name)
    trial = gradients(value, PARAMS, *BATCH)
    expected = 1 + parts.set_up + parts.product + trial
    cost = step_cost(name, damping=1e-2)
    assert cost <= 1.10 * expected, (
        f"{name}: a step costs {cost:.4f} gradients; gradient 1 + set-up "
        f"{parts.set_up:.4f} + product {parts.product:.4f} + trial {trial:.4f} "
        f"= {expected:.4f}"
    )


@by_curvature
def test_calibration_is_one_more_product(name):
    """The default damping compiles it into a branch, taken at the first step only."""
    fixed, default = step_cost(name, damping=1e-2), step_cost(name)
    product = costs(name).product
    assert default <= fixed + 1.05 * product, (
        f"{name}: {default:.4f} gradients with the default damping, {fixed:.4f} with a "
        f"fixed one, {product:.4f} a product"
    )


def test_rule_of_thumb_for_accounting():
    for name, curvature in CURVATURES.items():
        cost = costs(name).product
        assert abs(curvature.cost - cost) <= 0.05, f"{name}: {cost:.4f}"


def in_last_layer(path, leaf):
    return path[-1].key.endswith(str(LAYERS[-1]))


def test_a_mask_saves_products():
    """Training the last layer only costs forward and backward passes through it."""
    mask = functools.partial(jax.tree_util.tree_map_with_path, in_last_layer)
    full = step_cost("gauss_newton", damping=1e-2, linesearch=None)
    last = step_cost("gauss_newton", damping=1e-2, linesearch=None, mask=mask)
    assert last <= full - 0.95 * costs("gauss_newton").product, (
        f"{last:.4f}, {full:.4f}"
    )
