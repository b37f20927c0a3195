"""A growing curvature sample over devices, against one device with the whole batch."""

import jax
import numpy as np
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
            solver=ncg.cg(maxiter=3),
            # One step on the sample, the others on the whole batch.
            sampling=ncg.sampling(1 / 4, min_examples=4, grow_below=1.0),
            axis_name=axis_name,
        )
        return lambda p, x, y: run_steps(tx, loss, p, x, y, axis_name)

    params, x, y = problem()
    found, info = MAPPINGS[mapping](steps(make_loss(reduce_over), AXIS))(params, x, y)
    expected, expected_info = jax.jit(steps(make_loss(), None))(params, x, y)
    assert largest_difference(found, expected) < 1e-10
    assert expected_info.curvature_share == 1
    np.testing.assert_array_equal(info.curvature_share, 1)
