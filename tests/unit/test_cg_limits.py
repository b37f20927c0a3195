"""Where the tests that end a solve by conjugate gradients begin to hold."""

import jax.numpy as jnp
import numpy as np
import pytest

import ncg_optax as ncg
from ncg_optax import Status


def along_the_ones(curvature):
    """One iteration whose direction ``p`` is all ones, with ``p.Bp = curvature``."""
    # The difference of the two entries is exact in float32.
    diagonal = jnp.array([1.0, -(1.0 - curvature)], jnp.float32)
    return ncg.solvers.conjugate_gradient(
        lambda v: diagonal * v, jnp.ones(2, jnp.float32), maxiter=1, tolerance=0.0
    )


def test_a_curvature_below_rounding_is_none():
    # |p| |Bp| = 2, and eps = 2^-23: rounding is 2^-22.
    result = along_the_ones(curvature=2.0**-24)
    assert result.status == Status.NEGATIVE_CURVATURE
    # A step of 1, not of 2 / 2^-24.
    np.testing.assert_array_equal(result.solution, jnp.ones(2))


def test_a_curvature_above_rounding_is_divided_by():
    result = along_the_ones(curvature=2.0**-20)
    assert result.status == Status.MAX_ITERATIONS
    np.testing.assert_allclose(result.solution, 2.0**21 * np.ones(2), rtol=1e-6)


@pytest.mark.parametrize("progress_tol", [0.2, 1.0])
def test_progress_is_looked_at_after_more_than_ten_iterations(progress_tol):
    # With such tolerances every iteration counts as slow, so the first that is tested
    # ends the solve.
    diagonal = jnp.geomspace(1e-3, 1.0, 40)
    result = ncg.solvers.conjugate_gradient(
        lambda v: diagonal * v,
        jnp.ones(40),
        maxiter=30,
        tolerance=0.0,
        progress_tol=progress_tol,
    )
    assert result.status == Status.PROGRESS_STALLED
    assert result.iterations == 11


def test_without_a_product_a_preconditioned_step_is_that_of_the_damping_alone():
    result = ncg.solvers.conjugate_gradient(
        lambda v: jnp.nan * v,
        jnp.ones(1, jnp.float32),
        damping=4.0,
        maxiter=3,
        tolerance=0.0,
        precondition=lambda r: 0.4 * r,
    )
    assert result.status == Status.SOLVER_NON_FINITE
    np.testing.assert_allclose(result.solution, [0.25], rtol=1e-6)
