"""Line searches where the curvature along the direction is zero, or alone there is."""

import jax.numpy as jnp

import ncg_optax as ncg


def search(line_search, loss_at, slope, bend):
    numbers = map(jnp.float32, (1.0, slope, bend))
    return line_search.search(ncg.globalization.Line(*numbers, loss_at))


def test_armijo_does_not_double_without_negative_curvature():
    result = search(ncg.armijo(), lambda s: 1.0 - s, slope=-1.0, bend=0.0)
    assert (float(result.step_size), int(result.evaluations)) == (1.0, 1)


def test_the_safeguard_allows_the_square_of_the_step_times_the_curvature():
    def rise(s):
        # At 1/2 more than 1/4, the square, and less than 1/2.
        return jnp.where(s > 0.6, 2.0, jnp.where(s > 0.3, 0.4, 0.0))

    result = search(ncg.safeguard(), lambda s: 1.0 + rise(s), slope=0.0, bend=1.0)
    assert result.accepted
    assert (float(result.step_size), int(result.evaluations)) == (0.25, 3)
