"""Parts as values, and what is taken for a part."""

import dataclasses
import pickle

import jax
import jax.numpy as jnp
import pytest

import ncg_optax as ncg

W = jnp.ones(2)


def loss(w):
    return jnp.sum(w**2)


def traced_update(tx, state):
    return jax.eval_shape(lambda s: tx.update(W, s, W, value_fn=loss), state)


def test_a_part_need_not_be_a_subclass():
    class Ours:
        needs_outcome = may_ascend = False
        descent_threshold = 0.0

        def init(self, params):
            return ()

        def solve(self, model, state):
            solver = ncg.cg(maxiter=3)
            return solver.solve(model, solver.init(model.gradient))[0], state

        def update(self, state, outcome):
            return state

    tx = ncg.newton_cg(solver=Ours(), damping=0.0)
    updates, _ = traced_update(tx, tx.init(W))
    assert updates.shape == W.shape


def test_a_part_with_some_of_the_methods_is_refused():
    class Half:
        def solve(self, model, state):
            raise AssertionError("not called")

    with pytest.raises(TypeError, match="solver must be a Solver.* of type Half"):
        ncg.newton_cg(solver=Half())


@pytest.mark.parametrize(
    "part",
    [
        ncg.cg(maxiter=5),
        ncg.quasi_newton(ncg.minres()),
        ncg.compose(ncg.jacobi(), ncg.nystrom()),
        ncg.levenberg_marquardt(),
        ncg.sampling(1 / 4),
        *(part for table in ncg.presets.DEFAULTS.values() for part in table.values()),
    ],
    ids=repr,
)
def test_parts_are_values(part):
    again = pickle.loads(pickle.dumps(part))
    assert again == part
    assert hash(again) == hash(part)


def test_parts_are_static_arguments_and_are_checked_when_replaced():
    times = jax.jit(lambda solver, x: solver.maxiter * x, static_argnums=0)
    assert times(ncg.cg(maxiter=3), 2.0) == 6.0
    assert dataclasses.replace(ncg.cg(rtol=0.5), maxiter=3) == ncg.cg(3, 0.5)
    with pytest.raises(ValueError, match="cg: maxiter must be"):
        dataclasses.replace(ncg.cg(), maxiter=0)
    with pytest.raises(dataclasses.FrozenInstanceError):
        ncg.cg().maxiter = 3


class Tolerant(ncg.globalization.LineSearch):
    """The full step, with the loss of the whole batch at its end."""

    tolerates_rise = True

    def search(self, line):
        one = jnp.ones((), line.loss.dtype)
        return ncg.globalization.SearchResult(
            one, line.loss_at(one), jnp.array(1), jnp.array(True)
        )


class StrictOnSample(ncg.globalization.LineSearch):
    """Refuses a rise, which it measures on the sample of the curvature."""

    def search(self, line):
        loss_at = line.sample_loss_at or line.loss_at
        return ncg.armijo().search(line._replace(loss_at=loss_at))


def test_a_search_may_meet_uphill_directions_if_it_tolerates_a_rise():
    uphill = ncg.averaged_gradient()
    tx = ncg.newton_cg(solver=uphill, linesearch=Tolerant())
    _, state = traced_update(tx, tx.init(W))
    assert ncg.get_info(state).evaluations.shape == ()
    # Where it evaluates the loss does not matter.
    for refused in (StrictOnSample(), ncg.armijo()):
        with pytest.raises(ValueError, match="one that tolerates a rise.*; got"):
            ncg.newton_cg(solver=uphill, linesearch=refused)
    ncg.newton_cg(linesearch=StrictOnSample())


def test_a_mask_of_values_is_resolved_once_and_outside_of_a_trace():
    calls = []

    def mask(params):
        calls.append(params)
        return {k: bool(jnp.any(x > 0)) for k, x in params.items()}

    params = {"a": W, "b": jnp.zeros(2)}
    tx = ncg.scale_by_newton_cg(mask=mask, damping=1.0, solver=ncg.cg(maxiter=1))
    state = tx.init(params)
    calls.clear()
    updates, _ = tx.update(
        params, state, params, value_fn=lambda p: loss(p["a"]) + loss(p["b"])
    )
    assert len(calls) == 1
    assert jnp.any(updates["a"] != 0) and not jnp.any(updates["b"])
