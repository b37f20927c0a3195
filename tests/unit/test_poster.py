"""The method of the poster in dense NumPy, against our solver set to it."""

from functools import cache
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree
from oracles import as_matrix, dense_hessian, flat, tiny_net

import ncg_optax as ncg

pytestmark = pytest.mark.usefixtures("x64")

MAX_ITERATIONS, CG_TOLERANCE = 20, 1e-5
# Powers of two: the updates are divided by it without rounding.
LEARNING_RATE = optax.piecewise_constant_schedule(0.25, {10: 0.5})


class Step(NamedTuple):
    params: np.ndarray
    learning_rate: float
    direction: np.ndarray
    negative_curvature: bool
    fell_back: bool


def poster_cg(a, b):
    """CG from zero that divides by p.Ap whatever its sign."""
    x, r, p = np.zeros_like(b), b, b
    negative, iterations = False, 0
    while np.linalg.norm(r) > CG_TOLERANCE and iterations < MAX_ITERATIONS:
        ap = a @ p
        negative |= p @ ap <= 0
        alpha = (r @ r) / (p @ ap)
        x = x + alpha * p
        shorter = r - alpha * ap
        p = shorter + (shorter @ shorter) / (r @ r) * p
        r = shorter
        iterations += 1
    return x, bool(negative)


def poster_steps(gradient, hessian, params, tau, steps):
    for k in range(steps):
        g = gradient(params)
        d, negative = poster_cg(hessian(params) + tau * np.eye(g.size), -g)
        fell_back = bool(g @ d >= -tau)
        d = -g if fell_back else d
        learning_rate = float(LEARNING_RATE(k))
        yield Step(params, learning_rate, d, negative, fell_back)
        params = params + learning_rate * d


@cache
def transcribed(tau, width, seed, steps=20):
    tree, loss = tiny_net(jnp.float64, seed, inputs=1, width=width)
    unravel = ravel_pytree(tree)[1]
    gradient, hessian = (
        jax.jit(d(lambda v: loss(unravel(v)))) for d in (jax.grad, jax.hessian)
    )
    steps = poster_steps(
        lambda v: np.asarray(gradient(v)),
        lambda v: np.asarray(hessian(v)),
        flat(tree),
        tau,
        steps,
    )
    return list(steps), loss, unravel


def our_directions(steps, loss, unravel, tau, **solver):
    """Our direction at each of the transcription's points, states passed on."""
    tx = ncg.newton_cg(
        LEARNING_RATE,
        curvature=ncg.hessian(),
        damping=tau,
        solver=ncg.cg(
            maxiter=MAX_ITERATIONS,
            rtol=0.0,
            atol=CG_TOLERANCE,
            progress_tol=None,
            warm_start=0.0,
            forcing=None,
            **solver,
        ),
        linesearch=None,
    )

    @jax.jit
    def update(params, state):
        return tx.update(jax.grad(loss)(params), state, params, value_fn=loss)

    state = tx.init(unravel(jnp.asarray(steps[0].params)))
    for step in steps:
        updates, state = update(unravel(jnp.asarray(step.params)), state)
        yield flat(updates) / step.learning_rate


def relative_difference(ours, theirs):
    return np.linalg.norm(ours - theirs) / np.linalg.norm(theirs)


def test_pearlmutters_product_is_our_hessian_product():
    params, loss = tiny_net(jnp.float64)

    def pearlmutter(params):
        def slope(p, s):
            products = jax.tree.map(
                lambda g, v: jnp.vdot(g, jax.lax.stop_gradient(v)), jax.grad(loss)(p), s
            )
            return sum(jax.tree.leaves(products))

        return lambda s: jax.grad(slope)(params, s)

    theirs = as_matrix(pearlmutter, params)
    ours = as_matrix(
        lambda p: ncg.curvature.curvature_product(ncg.hessian(), loss, p), params
    )
    np.testing.assert_allclose(ours, theirs, rtol=1e-10, atol=1e-13)
    np.testing.assert_allclose(
        theirs, dense_hessian(loss, params), rtol=1e-10, atol=1e-13
    )


def both_happen(flags):
    return any(flags) and not all(flags)


# Networks and damping at which both happen, and that amplify rounding little enough.
MET_ONLY = dict(tau=0.02, width=1, seed=8)
FALLING_BACK = [dict(tau=0.3, width=1, seed=18), dict(tau=1.0, width=2, seed=9)]


@pytest.mark.parametrize("case", [MET_ONLY, *FALLING_BACK])
def test_the_poster_is_reached_exactly(case):
    steps, loss, unravel = transcribed(**case)
    tau = case["tau"]
    assert both_happen([s.negative_curvature for s in steps])
    assert both_happen([s.fell_back for s in steps]) == (case is not MET_ONLY)
    ours = our_directions(
        steps, loss, unravel, tau, negative_curvature="ignore", descent_threshold=tau
    )
    for direction, step in zip(ours, steps, strict=True):
        assert relative_difference(direction, step.direction) <= 1e-10


def test_our_defaults_agree_wherever_no_negative_curvature_is_met():
    steps, loss, unravel = transcribed(**MET_ONLY)
    tau = MET_ONLY["tau"]
    assert both_happen([s.negative_curvature for s in steps])
    compared = 0
    ours = our_directions(
        steps, loss, unravel, tau, negative_curvature="truncate", descent_threshold=0.0
    )
    for direction, step in zip(ours, steps, strict=True):
        assert flat(jax.grad(loss)(unravel(jnp.asarray(step.params)))) @ direction < 0
        if not (step.negative_curvature or step.fell_back):
            assert relative_difference(direction, step.direction) <= 1e-10
            compared += 1
    assert compared >= 10
