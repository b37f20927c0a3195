"""Residual space over devices, against one device with the whole batch."""

import jax
import pytest
from mappings import AXIS, MAPPINGS, largest_difference, make_loss, problem, run_steps

import ncg_optax as ncg

LOCAL, AVERAGED = make_loss(), make_loss((AXIS,))


# 22 parameters, and two outputs an example: 8 have fewer residuals, 16 have more.
@pytest.mark.parametrize(
    ("mapping", "loss", "examples"),
    [
        ("shard_map checked", LOCAL, 8),
        ("shard_map checked", AVERAGED, 16),
        ("shard_map unchecked", AVERAGED, 8),
        ("vmap", LOCAL, 16),
    ],
)
def test_steps(mapping, loss, examples):
    def steps(loss, axis_name):
        tx = ncg.newton_cg(
            curvature=ncg.gauss_newton(),
            solver=ncg.residual_space(trials=3, momentum=0.3),
            axis_name=axis_name,
        )
        return lambda p, x, y: run_steps(tx, loss, p, x, y, axis_name, steps=3)

    params, x, y = problem(examples)
    (trajectory, values), info = MAPPINGS[mapping](steps(loss, AXIS))(params, x, y)
    expected = jax.jit(steps(make_loss(), None))(params, x, y)
    found = (trajectory, values), (info.damping, info.products, info.residual)
    (trajectory, values), info = expected
    wanted = (trajectory, values), (info.damping, info.products, info.residual)
    assert largest_difference(found, wanted) < 1e-9
