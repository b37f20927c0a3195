"""Gradients and single curvature products over devices, against two oracles."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P
from mappings import (
    AXIS,
    MAPPINGS,
    largest_difference,
    make_loss,
    mean_squares,
    mesh,
    model_fn,
    problem,
)

import ncg_optax as ncg
from ncg_optax._utils import reductions
from ncg_optax.losses.objective import as_objective

TOLERANCE = 1e-12
CURVATURES = {
    "hessian": ncg.hessian(),
    "hessian, reverse": ncg.hessian("reverse_over_reverse"),
    "gauss_newton": ncg.gauss_newton(),
    "gauss_newton, double vjp": ncg.gauss_newton("double_vjp"),
    "empirical_fisher": ncg.empirical_fisher(),
}


def root(averaged):
    """A loss with a nonlinearity behind the user's average."""

    def loss_fn(outputs, y):
        local = mean_squares(outputs, y)
        return jnp.sqrt(jax.lax.pmean(local, AXIS) if averaged else local)

    return ncg.CompositeLoss(model_fn, loss_fn)


LOSSES = {"local loss": make_loss(), "averaged loss": make_loss((AXIS,))}

by_mapping = pytest.mark.parametrize("mapping", MAPPINGS)
by_loss = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES.keys())


def direction(params):
    return jax.tree.map(lambda p: jnp.cos(3 * p + 1), params)


def product(curvature, loss, params, x, y, axes=(AXIS,)):
    """A product as the transform computes it."""
    objective = as_objective(loss.bind(x=x, y=y), {}, axes)
    value, matvec = curvature.linearize(objective, reductions.to_varying(params, axes))
    return reductions.reduced_operator(value, matvec, axes)(direction(params))


def averaged(tree):
    return jax.lax.pmean(tree, AXIS)


def hessian_by_recipe_a(loss, params, x, y):
    """Differentiates only an averaged scalar, and averages the result."""
    scalar = lambda p: averaged(loss(p, x=x, y=y))  # noqa: E731
    return averaged(jax.jvp(jax.grad(scalar), (params,), (direction(params),))[1])


def gauss_newton_by_recipe_a(params, x, y):
    model = lambda p: model_fn(p, x)  # noqa: E731
    local = lambda outputs: mean_squares(outputs, y)  # noqa: E731
    outputs, tangent = jax.jvp(model, (params,), (direction(params),))
    bent = jax.lax.stop_gradient(jax.jvp(jax.grad(local), (outputs,), (tangent,))[1])
    return averaged(jax.grad(lambda p: averaged(jnp.vdot(model(p), bent)))(params))


@by_mapping
@by_loss
def test_products(mapping, loss):
    def products(params, x, y):
        return {
            name: product(curvature, loss, params, x, y)
            for name, curvature in CURVATURES.items()
        }

    params, x, y = problem()
    found = MAPPINGS[mapping](products)(params, x, y)
    full_batch = {
        name: product(curvature, make_loss(), params, x, y, axes=())
        for name, curvature in CURVATURES.items()
    }
    assert largest_difference(found, full_batch) < TOLERANCE


@by_mapping
@by_loss
def test_products_by_recipe_a(mapping, loss):
    def both(params, x, y):
        ours = (
            product(CURVATURES["hessian"], loss, params, x, y),
            product(CURVATURES["gauss_newton"], loss, params, x, y),
        )
        theirs = (
            hessian_by_recipe_a(loss, params, x, y),
            gauss_newton_by_recipe_a(params, x, y),
        )
        return ours, theirs

    ours, theirs = MAPPINGS[mapping](both)(*problem())
    assert largest_difference(ours, theirs) < TOLERANCE


@by_mapping
def test_a_nonlinearity_behind_the_average(mapping):
    params, x, y = problem()
    found = MAPPINGS[mapping](
        lambda p, x, y: (
            product(ncg.hessian(), root(averaged=True), p, x, y),
            ncg.value_and_grad(root(averaged=True), AXIS)(p, x=x, y=y),
        )
    )(params, x, y)
    expected = (
        product(ncg.hessian(), root(averaged=False), params, x, y, axes=()),
        jax.value_and_grad(root(averaged=False))(params, x=x, y=y),
    )
    assert largest_difference(found, expected) < TOLERANCE


@by_mapping
@by_loss
def test_value_and_grad(mapping, loss):
    params, x, y = problem()
    found = MAPPINGS[mapping](
        lambda p, x, y: ncg.value_and_grad(loss, AXIS)(p, x=x, y=y)
    )(params, x, y)
    expected = jax.value_and_grad(make_loss())(params, x=x, y=y)
    assert largest_difference(found, expected) < TOLERANCE


@by_mapping
def test_value_and_grad_with_aux(mapping):
    def loss(params, x, y):
        outputs = model_fn(params, x)
        return mean_squares(outputs, y), averaged(jnp.mean(outputs))

    def value_aux_and_grad(params, x, y):
        return ncg.value_and_grad(loss, AXIS, has_aux=True)(params, x, y)

    params, x, y = problem()
    (value, aux), grads = MAPPINGS[mapping](value_aux_and_grad)(params, x, y)
    expected = jax.value_and_grad(make_loss())(params, x=x, y=y)
    assert largest_difference((value, grads), expected) < TOLERANCE
    assert largest_difference(aux, jnp.mean(model_fn(params, x))) < TOLERANCE


def test_one_all_reduce_per_product():
    """Of one vector the size of the parameters, fused, for a local loss."""
    params, x, y = problem()

    def count(check_vma):
        mapped = jax.shard_map(
            lambda p, x, y: product(ncg.hessian(), make_loss(), p, x, y),
            mesh=mesh(),
            in_specs=(P(), P(AXIS), P(AXIS)),
            out_specs=P(),
            check_vma=check_vma,
        )
        text = jax.jit(mapped).lower(params, x, y).compile().as_text()
        return text.count(" all-reduce(") + text.count(" all-reduce-start(")

    assert count(check_vma=True) == 1
    assert count(check_vma=False) == 1
