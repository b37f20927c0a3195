"""Which examples and which random key a preconditioner is updated with."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ncg_optax as ncg

X = jnp.linspace(-1.0, 1.0, 256)[:, None]


def loss(w, x):
    return jnp.mean((x @ w - 1.0) ** 2)


@dataclasses.dataclass(frozen=True)
class recorder(ncg.preconditioners.Preconditioner):  # noqa: N801
    """Keeps the key of its last update."""

    fraction: float = 1.0

    def init(self, params):
        return jnp.zeros(2, jnp.uint32)

    def update(self, state, product, grads, damping, key, count):
        return jax.random.key_data(key), 0

    def apply(self, state, r, damping):
        return r


def states(steps=3, seed=0, **settings):
    """The optimizer's state after each step."""
    tx = ncg.scale_by_newton_cg(damping=0.1, seed=seed, **settings)
    w, found = jnp.zeros(1), []
    update = jax.jit(
        lambda state: tx.update(jax.grad(loss)(w, X), state, w, value_fn=loss, x=X)[1]
    )
    state = tx.init(w)
    for _ in range(steps):
        state = update(state)
        found.append(state)
    return found


def keys(**settings):
    found = states(preconditioner=recorder(), **settings)
    return [tuple(np.asarray(state.preconditioner)) for state in found]


def test_the_key_is_another_at_each_step_and_for_each_seed():
    first, second = keys(), keys(seed=1)
    assert len({*first, *second}) == 6
    assert keys() == first


@pytest.mark.parametrize(
    ("sampled", "fraction", "extra"),
    [
        # The preconditioner's examples are those of the curvature: linearised once.
        (1.0, 1.0, 0.0),
        (0.25, 1.0, 0.25),
        (0.25, 0.25, 0.25),
        # Fewer are linearised on their own.
        (1.0, 0.25, 0.25),
        (0.25, 0.125, 0.25 + 0.125),
    ],
)
def test_examples_are_linearised_once_if_the_curvature_has_no_more(
    sampled, fraction, extra
):
    (state,) = states(
        steps=1,
        preconditioner=recorder(fraction),
        sampling=ncg.sampling(sampled, min_examples=32),
        linesearch=None,
    )
    info = ncg.get_info(state)
    assert info.evaluations == 0
    assert info.batch_evaluations == pytest.approx(extra)
