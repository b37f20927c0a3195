"""The plane search over devices, against one device with the whole batch."""

import jax
import pytest
from mappings import AXIS, MAPPINGS, largest_difference, make_loss, problem, run_steps

import ncg_optax as ncg


@pytest.mark.parametrize(
    ("mapping", "reduce_over"),
    [
        ("pmap", ()),
        ("shard_map checked", ()),
        ("shard_map checked", (AXIS,)),
        ("shard_map unchecked", ()),
        ("jit(vmap)", (AXIS,)),
    ],
)
def test_steps(mapping, reduce_over):
    def steps(loss, axis_name):
        tx = ncg.newton_cg(
            curvature=ncg.gauss_newton(),
            solver=ncg.quadratic_momentum(ncg.cg(maxiter=2)),
            linesearch=None,
            axis_name=axis_name,
        )
        return lambda p, x, y: run_steps(tx, loss, p, x, y, axis_name)

    params, x, y = problem()
    found, info = MAPPINGS[mapping](steps(make_loss(reduce_over), AXIS))(params, x, y)
    expected, expected_info = jax.jit(steps(make_loss(), None))(params, x, y)
    assert largest_difference(found, expected) < 1e-10
    # Two iterations, and the product with the last step.
    assert (info.products == 3).all() and expected_info.products == 3
