"""Where Martens' test of the progress ends a solve, against a loop in NumPy."""

import jax.numpy as jnp
import numpy as np
import pytest

import ncg_optax as ncg
from ncg_optax import Status

pytestmark = pytest.mark.usefixtures("x64")

DIAGONAL = np.geomspace(1e1, 1e4, 60)
RHS = np.cos(np.arange(60.0))


def decreases(x, count):
    """The decreases of the model at the iterates of conjugate gradients from ``x``."""
    r = RHS - DIAGONAL * x
    p, found = r, []
    for _ in range(count):
        found.append(RHS @ x - x @ (DIAGONAL * x) / 2)
        alpha = (r @ r) / (p @ (DIAGONAL * p))
        x, last = x + alpha * p, r
        r = r - alpha * DIAGONAL * p
        p = r + (r @ r) / (last @ last) * p
    return np.array(found)


def iterations_by_definition(x, epsilon):
    phi = decreases(x, 80)
    for i in range(80):
        k = max(10, i // 10)
        if i > k and phi[i] > 0 and phi[i] - phi[i - k] < k * epsilon * phi[i]:
            return i
    raise AssertionError("the solve does not stall")


@pytest.mark.parametrize("epsilon", [1e-2, 1e-3])
@pytest.mark.parametrize("scale", [0.0, 0.5, 2.0, np.nan])
def test_progress_is_relative_to_the_decrease_of_the_model(scale, epsilon):
    start = scale * RHS / DIAGONAL
    result = ncg.solvers.conjugate_gradient(
        lambda v: DIAGONAL * v,
        jnp.asarray(RHS),
        maxiter=80,
        tolerance=0.0,
        x0=jnp.asarray(start),
        progress_tol=epsilon,
    )
    # A start that is not finite is replaced by zero.
    expected = iterations_by_definition(np.nan_to_num(start), epsilon)
    assert result.status == Status.PROGRESS_STALLED
    assert int(result.iterations) == expected
