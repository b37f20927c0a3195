"""A state that an optimizer did not make itself is refused in one sentence."""

import jax
import jax.numpy as jnp
import optax
import pytest

import ncg_optax as ncg

W = jnp.zeros(3)
BARE = ncg.scale_by_newton_cg()
OWN = BARE.init(W)
MOMENTUM = ncg.scale_by_newton_cg(solver=ncg.quadratic_momentum(ncg.cg(maxiter=1)))


def loss(w):
    return jnp.sum(jnp.square(w))


def update(tx, state):
    """One update, traced only."""
    return jax.eval_shape(lambda w: tx.update(w, state, w, value_fn=loss), W)


@pytest.mark.parametrize(
    ("state", "sentence"),
    [
        (None, "got NoneType"),
        (optax.adam(0.1).init(W), "got a tuple of ScaleByAdamState, EmptyState"),
        (ncg.newton_cg().init(W), "the state of a chain"),
        (
            OWN._asdict(),
            r"got dict \(was it restored from a checkpoint without a target\?\)",
        ),
    ],
)
def test_the_state_of_another_optimizer(state, sentence):
    with pytest.raises(TypeError, match=f"must be the ScaleBy.*{sentence}"):
        update(BARE, state)


@pytest.mark.parametrize(
    ("tx", "state", "sentence"),
    [
        (
            MOMENTUM,
            OWN,
            "state.solver .* got CGState .*expected QuadraticMom",
        ),
        (MOMENTUM, MOMENTUM.init(jnp.zeros(4)), r"got .*step \(4,\).*\.step \(3,\)"),
        (MOMENTUM, MOMENTUM.init({"a": W}), r"\.step\['a'\] \(3,\).*\.step \(3,\)"),
        (
            BARE,
            OWN._replace(damping=OWN.damping._asdict()),
            r"state.damping .* got dict with \['damping'\] \(\), \['unit'\] \(\)",
        ),
        (BARE, OWN._replace(count=None), "state.count .* got NoneType"),
        (BARE, OWN._replace(info=OWN.info._asdict()), "state.info .* got dict"),
    ],
)
def test_a_state_of_other_settings_or_parameters(tx, state, sentence):
    with pytest.raises(ValueError, match=sentence):
        update(tx, state)


def test_a_message_names_few_leaves():
    with pytest.raises(ValueError) as error:
        update(ncg.scale_by_newton_cg(solver=ncg.quasi_newton()), OWN)
    assert str(error.value).count("()") + str(error.value).count(",)") < 12
    assert ", .pairs.changes (5, 3), .... Was" in str(error.value)  # the fourth leaf


def test_no_two_leaves_share_their_memory():
    # A jitted step that donates the state could not donate it twice.
    solver, preconditioner = ncg.cg(warm_start=0.5), ncg.kronecker()
    tx = ncg.newton_cg(solver=solver, preconditioner=preconditioner)
    leaves = jax.tree.leaves(tx.init({"a": W, "b": W}))
    addresses = {x.unsafe_buffer_pointer() for x in leaves}
    assert len(addresses) == len(leaves)


def test_switch_after():
    tx = ncg.switch_after(3, optax.sgd(0.1), ncg.newton_cg())
    with pytest.raises(TypeError, match="state must be the Switch.* tuple"):
        update(tx, optax.sgd(0.1).init(W))
