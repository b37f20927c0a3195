"""SOAP, which the benchmarks carry themselves because no package has it for JAX."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from benchmarks.peers import COMPETITORS
from benchmarks.peers.soap import scale_by_soap, soap


def descend(tx, value, params, steps):
    """All iterates of an optimizer, first to last."""

    @jax.jit
    def run(params):
        def body(carry, _):
            params, state = carry
            updates, state = tx.update(jax.grad(value)(params), state, params)
            params = optax.apply_updates(params, updates)
            return (params, state), params

        return jax.lax.scan(body, (params, tx.init(params)), length=steps)[1]

    return run(params)


def orthogonal(seed, size):
    return jnp.linalg.qr(jax.random.normal(jax.random.key(seed), (size, size)))[0]


def quadratic(left, right, minimum):
    """``tr(E^T A E B) / 2`` with ``E = W - minimum``."""

    def value(w):
        error = w - minimum
        return 0.5 * jnp.sum(error * (left @ error @ right))

    return value


def ill_conditioned(seed, size):
    q = orthogonal(seed, size)
    return (q * jnp.logspace(-2, 0, size)) @ q.T


def assert_like_adam_one_step_later(tx, params, gradients, rate=0.1):
    adam = optax.adam(rate, b1=0.95, b2=0.95)
    state, expected_state = tx.init(params), adam.init(params)
    updates, state = tx.update(gradients[0], state, params)
    assert all(jnp.all(u == 0) for u in jax.tree.leaves(updates))
    for grads in gradients[1:]:
        updates, state = tx.update(grads, state, params)
        expected, expected_state = adam.update(grads, expected_state, params)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7),
            updates,
            expected,
        )


def random_like(seed, params):
    return optax.tree.random_like(jax.random.key(seed), params)


def test_vectors_and_sides_that_are_too_long_get_adam():
    vectors = {"b": jnp.zeros(5), "c": jnp.zeros(())}
    gradients = [random_like(seed, vectors) for seed in range(4)]
    assert_like_adam_one_step_later(soap(0.1), vectors, gradients)
    matrices = {"w": jnp.zeros((4, 3)), "kernel": jnp.zeros((2, 2, 3))}
    gradients = [random_like(seed, matrices) for seed in range(4)]
    assert_like_adam_one_step_later(soap(0.1, max_size=2), matrices, gradients)


def test_it_is_adam_where_the_eigenbases_are_the_axes():
    first = jnp.diag(jnp.array([3.0, 2.0, 1.0]))
    gradients = [first, *(random_like(seed, first) for seed in range(3))]
    tx = soap(0.1, precondition_frequency=1000)
    assert_like_adam_one_step_later(tx, jnp.zeros((3, 3)), gradients)


def test_one_side_can_be_too_long():
    # Rotated from the left alone: what rotates the gradients there rotates the updates.
    q = orthogonal(0, 3)
    gradients = [random_like(seed, jnp.zeros((3, 5))) for seed in range(4)]
    tx = scale_by_soap(precondition_frequency=1, max_size=3)
    state, turned_state = (tx.init(gradients[0]) for _ in range(2))
    assert state.sides.right is None and state.sides.left.basis.shape == (3, 3)
    for g in gradients:
        updates, state = tx.update(g, state)
        turned, turned_state = tx.update(q @ g, turned_state)
        np.testing.assert_allclose(turned, q @ updates, atol=1e-3)


def test_bases_are_eigenvectors_and_follow_the_gradients():
    tx = scale_by_soap(b2=0.5, precondition_frequency=3)
    state = tx.init(jnp.zeros((6, 4)))
    update = jax.jit(tx.update)

    def off_diagonal(side):
        rotated = side.basis.T @ side.gram @ side.basis
        return float(jnp.linalg.norm(rotated - jnp.diag(jnp.diag(rotated))))

    scales = jnp.array([8.0, 4.0, 2.0, 1.0])
    left, right = orthogonal(0, 6)[:, :4], orthogonal(1, 4)
    before = None
    for count in range(40):
        # The same singular vectors throughout, the order of the values changes once.
        values = scales if count < 10 else scales[::-1]
        _, state = update(left * values @ right.T, state)
        basis = state.sides.left.basis
        eye = np.eye(6)
        np.testing.assert_allclose(basis.T @ basis, eye, atol=1e-5)
        if count % 3:
            np.testing.assert_array_equal(basis, before)
        before = basis
    for side in state.sides:
        assert off_diagonal(side) < 1e-3 * float(jnp.linalg.norm(side.gram))
        kept = jnp.diag(side.basis.T @ side.gram @ side.basis)
        assert jnp.all(jnp.diff(kept) < 1e-3)  # sorted


def test_second_moments_go_along_when_vectors_change_places():
    tx = scale_by_soap(b1=0.0, b2=0.5, precondition_frequency=2)
    state = tx.init(jnp.zeros((2, 2)))
    # The first gradient sorts the axes as (0, 1), the later ones as (1, 0).
    gradients = [jnp.diag(jnp.array(d)) for d in ([2.0, 1.0], [0.1, 9.0], [0.1, 9.0])]
    for g in gradients:
        _, state = tx.update(g, state)
    np.testing.assert_allclose(jnp.abs(state.sides.left.basis), [[0, 1], [1, 0]])
    expected = 0.75 * jnp.diag(jnp.array([81.0, 0.01]))
    np.testing.assert_allclose(state.nu, expected, rtol=1e-5)


def test_it_does_not_see_a_rotation_that_adam_sees():
    with jax.enable_x64(True):
        size = 5
        left, right = ill_conditioned(0, size), ill_conditioned(1, size)
        u, v = orthogonal(2, size), orthogonal(3, size)
        minimum = jax.random.normal(jax.random.key(4), (size, size))
        value = quadratic(left, right, minimum)

        def turned(w):
            return value(u.T @ w @ v)

        start = jnp.zeros((size, size))
        for tx, same in ((soap(0.03), True), (optax.adam(0.03), False)):
            path = descend(tx, value, start, 60)
            other = descend(tx, turned, u @ start @ v.T, 60)
            assert jnp.allclose(u @ path @ v.T, other, atol=1e-6) == same


def test_it_outruns_adam_on_a_rotated_ill_conditioned_quadratic():
    size = 8
    left, right = ill_conditioned(0, size), ill_conditioned(1, size)
    minimum = jax.random.normal(jax.random.key(2), (size, size))
    value = quadratic(left, right, minimum)
    start = jnp.zeros((size, size))

    def best(make):
        rates = jnp.array([0.01, 0.03, 0.1, 0.3, 1.0])
        schedules = (optax.cosine_decay_schedule(rate, 300) for rate in rates)
        ends = (descend(make(s), value, start, 300)[-1] for s in schedules)
        return min(float(value(end)) for end in ends)

    assert best(soap) < 0.1 * best(optax.adam)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_types_stay_as_they_are(dtype):
    shapes = {"w": (4, 3), "b": (3,), "kernel": (2, 2, 3), "scalar": ()}
    params = {n: jnp.ones(shape, dtype) for n, shape in shapes.items()}
    tx = soap(optax.constant_schedule(0.1))
    state = tx.init(params)
    described = jax.tree.map(lambda x: (x.shape, x.dtype), state)
    abstract = tx.init(jax.eval_shape(lambda: params))
    assert jax.tree.map(lambda x: (x.shape, x.dtype), abstract) == described
    for _ in range(2):  # the first and a later update
        updates, state = jax.jit(tx.update)(params, state)
        assert jax.tree.map(lambda x: (x.shape, x.dtype), state) == described
        assert jax.tree.map(jnp.shape, updates) == shapes
        assert all(leaf.dtype == dtype for leaf in jax.tree.leaves(updates))


def test_a_leaf_without_gradient_stays_finite():
    path = descend(soap(0.1), lambda w: 0.0 * jnp.sum(w), jnp.ones((3, 2)), 25)
    np.testing.assert_array_equal(path[-1], jnp.ones((3, 2)))


def test_it_competes_on_the_full_batch_and_on_mini_batches():
    full, small = COMPETITORS["soap"], COMPETITORS["soap_minibatch"]
    assert small.minibatch and not full.minibatch
    assert full.exponents == small.exponents == range(-7, -1)
    assert "in the seconds only" in full.description
