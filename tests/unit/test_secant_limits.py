"""By how much the losses of a secant pair may disagree with its gradients."""

import jax.numpy as jnp
import pytest
from oracles import outcome

import ncg_optax as ncg

SOLVER = ncg.quasi_newton(ncg.cg(maxiter=1))
WIDTH = 3.0


def model(w, excess=0.0):
    """Of the loss ``w^2 / 2``, whose value is too large by ``excess``."""
    return ncg.solvers.Model(
        gradient=w,
        damping=jnp.zeros(()),
        product=lambda v: v,
        params=w,
        loss=0.5 * jnp.sum(w**2) + excess,
    )


@pytest.mark.parametrize(
    ("share", "kept"),
    [(0.0, True), (0.45, True), (-0.45, True), (0.55, False), (-0.55, False)],
)
def test_a_pair_is_kept_up_to_half_of_the_curvature_part(share, kept):
    # The curvature's part of the change of the loss is WIDTH^2 / 2.
    excess = share * 0.5 * WIDTH**2
    first, second = jnp.full(1, 1.0), jnp.full(1, 1.0 + WIDTH)
    _, state = SOLVER.solve(model(first), SOLVER.init(first))
    state = SOLVER.update(state, outcome(actual=1.0))
    _, state = SOLVER.solve(model(second, excess), state)
    assert (state.pairs.bends[-1] > 0) == kept
