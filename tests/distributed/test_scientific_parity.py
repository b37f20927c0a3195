"""The preset of cheap and exact steps over devices, against one device."""

import jax
import pytest
from mappings import AXIS, MAPPINGS, largest_difference, make_loss, problem, run_steps

import ncg_optax as ncg


# The second of two stages of one step is of exact steps, whatever the first one was.
@pytest.mark.parametrize(
    "mapping",
    ["shard_map checked", pytest.param("shard_map unchecked", marks=pytest.mark.slow)],
)
def test_a_step_of_each_kind(mapping, monkeypatch):
    monkeypatch.setattr("ncg_optax.scientific_preset.STAGE", 0)

    def steps(axis_name):
        tx = ncg.scientific(axis_name=axis_name)
        return lambda p, x, y: run_steps(tx, make_loss(), p, x, y, axis_name, steps=2)

    params, x, y = problem(16)
    found, info = MAPPINGS[mapping](steps(AXIS))(params, x, y)
    expected, wanted = jax.jit(steps(None))(params, x, y)
    assert largest_difference(found, expected) < 1e-9
    assert largest_difference(info.damping, wanted.damping) < 1e-9
    assert wanted.solver_status == ncg.Status.RESIDUAL_CONVERGED
