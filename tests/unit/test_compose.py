"""Compositions, and what every preconditioner promises."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from oracles import make_step, symmetric, tiny_net, vector

import ncg_optax as ncg
from ncg_optax.curvature import SampledProduct

pytestmark = pytest.mark.usefixtures("x64")

N = 40
SCALES = np.random.default_rng(4).permutation(np.geomspace(1e-2, 1e2, N))
INNER = symmetric(np.r_[np.geomspace(1e4, 1e2, 6), np.linspace(1, 2, N - 6)])
BADLY_SCALED = np.sqrt(SCALES)[:, None] * INNER * np.sqrt(SCALES)


@partial(jax.jit, static_argnums=0)
def updated(preconditioner, a, damping=0.0):
    """State and products after the first update, with the matrix ``a``."""
    params = jnp.ones(len(a))
    return preconditioner.update(
        preconditioner.init(params),
        lambda v: a @ v,
        params,
        jnp.asarray(damping),
        jax.random.key(0),
        0,
    )


@partial(jax.jit, static_argnums=(0, 1))
def _columns(preconditioner, method, state, damping):
    prepared = preconditioner.prepare(state, damping)
    function = getattr(preconditioner, method)
    return jax.vmap(lambda v: function(prepared, v, damping))(jnp.eye(N))


def dense(preconditioner, state, damping, method="apply"):
    """A method of a preconditioner as a matrix."""
    damping = jnp.asarray(damping)
    return np.asarray(_columns(preconditioner, method, state, damping)).T


class diagonal(ncg.preconditioners.Preconditioner):  # noqa: N801
    """A known diagonal, with a square root."""

    has_sqrt = True

    def __init__(self, d):
        self.d = d

    def apply(self, state, r, damping):
        return r / (self.d + damping)

    def sqrt(self, state, r, damping):
        return r / jnp.sqrt(self.d + damping)


def test_the_product_is_that_of_the_parts():
    composed = ncg.compose(diagonal(SCALES), ncg.nystrom(N))
    state, products = updated(composed, BADLY_SCALED, damping=0.3)
    assert products == N
    m = dense(composed, state, 0.3)
    # The sketch of everything is the inverse, whatever came before.
    expected = np.linalg.inv(BADLY_SCALED + 0.3 * np.eye(N))
    np.testing.assert_allclose(m, expected, atol=1e-7 * np.abs(expected).max())


def test_the_outer_one_knows_the_share_of_the_examples():
    counted = ncg.compose(diagonal(1.0), ncg.kronecker(fraction=1 / 8, first_probes=64))
    params, key = jnp.zeros((3, 2)), jax.random.key(0)

    def probes(share):
        product = SampledProduct(lambda v: 2.0 * v, share)
        return counted.update(counted.init(params), product, params, 0.0, key, 0)[1]

    assert jax.jit(lambda: (probes(1.0), probes(1 / 4)))() == (8, 32)


def test_the_outer_one_sees_the_scaled_and_damped_operator():
    seen = []

    class Spy(ncg.identity):
        def update(self, state, product, grads, damping, key, count):
            seen.append((product(jnp.ones(N)), grads, damping))
            return state, 0

    spy = Spy()
    composed = ncg.compose(diagonal(SCALES), spy)
    composed.update(
        composed.init(jnp.zeros(N)),
        lambda v: BADLY_SCALED @ v,
        jnp.ones(N),
        jnp.asarray(0.3),
        jax.random.key(0),
        0,
    )
    s = np.diag(1 / np.sqrt(SCALES + 0.3))
    ((product, grads, damping),) = seen
    expected = s @ (BADLY_SCALED + 0.3 * np.eye(N)) @ s @ np.ones(N)
    np.testing.assert_allclose(product, expected, rtol=1e-10)
    np.testing.assert_allclose(grads, s @ np.ones(N), rtol=1e-12)
    assert damping == 0


@pytest.mark.parametrize("first", [True, False])
def test_the_identity_changes_nothing(first):
    plain = ncg.jacobi(damping=0.0)
    pair = (ncg.identity(), plain) if first else (plain, ncg.identity())
    composed = ncg.compose(*pair)
    state, products = updated(composed, np.diag(SCALES), damping=0.5)
    assert products == 20
    r, damping = vector(N), jnp.asarray(0.5)
    image = composed.apply(composed.prepare(state, damping), r, damping)
    np.testing.assert_allclose(image, r / (SCALES + 0.5), rtol=1e-12)


class spy(ncg.identity):  # noqa: N801
    """Its prepared state is its name with the damping and the axes that it got."""

    def __init__(self, name, axes=None):
        object.__setattr__(self, "name", name)
        object.__setattr__(self, "axes", axes)

    def over(self, axes):
        return spy(self.name, axes)

    def prepare(self, state, damping):
        return self.name, self.axes, float(damping)


def test_both_prepare_and_share_their_work():
    """The damping is in the operator of the outer one."""
    composed = ncg.compose(spy("inner"), spy("outer")).over(("data",))
    prepared = composed.prepare(composed.init(jnp.ones(2)), jnp.asarray(0.3))
    assert prepared == (("inner", ("data",), 0.3), ("outer", ("data",), 0.0))


def test_by_default_nothing_is_prepared_or_shared():
    plain = diagonal(SCALES)
    assert plain.over(("data",)) is plain
    assert plain.prepare("state", jnp.asarray(0.3)) == "state"


@partial(jax.jit, static_argnums=0)
def solve(preconditioner, a, damping):
    state, _ = updated(preconditioner, a, damping)
    prepared = preconditioner.prepare(state, damping)
    return ncg.solvers.conjugate_gradient(
        lambda v: a @ v,
        jnp.asarray(vector(N)),
        damping,
        maxiter=2000,
        tolerance=1e-6,
        precondition=lambda r: preconditioner.apply(prepared, r, damping),
    )


def iterations(preconditioner):
    """Of CG on the badly scaled matrix with a few large eigenvalues."""
    result = solve(preconditioner, BADLY_SCALED, 1e-3)
    assert result.status == ncg.Status.RESIDUAL_CONVERGED
    return int(result.iterations)


def test_a_scaled_sketch_beats_its_parts():
    scaling, sketch = diagonal(SCALES), ncg.nystrom(10)
    plain, scaled, sketched, both = map(
        iterations,
        (ncg.identity(), scaling, sketch, ncg.compose(scaling, sketch)),
    )
    assert both < min(scaled, sketched) < plain
    assert both < plain / 3


def test_compositions_nest_on_the_right():
    composed = ncg.compose(
        diagonal(SCALES), ncg.compose(ncg.nystrom(5), ncg.jacobi(first_probes=3))
    )
    state, products = updated(composed, BADLY_SCALED)
    assert products == 8
    m = dense(composed, state, 0.0)
    assert np.linalg.eigvalsh(m)[0] > 0


def test_errors():
    with pytest.raises(TypeError, match="compose: inner must have a square root"):
        ncg.compose(ncg.kronecker(), ncg.jacobi())
    with pytest.raises(TypeError, match=r"kronecker\(with_sqrt=True\) has one"):
        ncg.compose(ncg.kronecker(), ncg.nystrom())
    with pytest.raises(TypeError, match="nest on the right"):
        ncg.compose(ncg.compose(ncg.jacobi(), ncg.jacobi()), ncg.jacobi())
    with pytest.raises(TypeError, match="compose: inner must be a Preconditioner"):
        ncg.compose(ncg.jacobi, ncg.nystrom())
    with pytest.raises(TypeError, match="compose: outer must be a Preconditioner"):
        ncg.compose(ncg.jacobi(), None)


# What every preconditioner promises.

PRECONDITIONERS = {
    "hutchinson": ncg.jacobi(refresh=2),
    "gradient": ncg.jacobi("gradient", exponent=0.75),
    "nystrom": ncg.nystrom(4, refresh=2),
    "composed": ncg.compose(ncg.jacobi(refresh=2), ncg.nystrom(4, refresh=3)),
    "kronecker": ncg.kronecker(refresh=2, with_sqrt=True),
    "on kronecker": ncg.compose(ncg.kronecker(with_sqrt=True), ncg.nystrom(4)),
}
each = pytest.mark.parametrize(
    "preconditioner", PRECONDITIONERS.values(), ids=PRECONDITIONERS
)


def types(tree):
    return jax.tree.map(lambda x: (x.shape, x.dtype, x.weak_type), tree)


@each
def test_a_scan_keeps_the_types_of_the_state(preconditioner):
    params = {"w": jnp.ones((2, 3), jnp.bfloat16), "c": jnp.ones((2, 2), jnp.complex64)}

    def loss(p):
        squares = jax.tree.map(lambda x: jnp.sum(jnp.abs(x - 2) ** 2), p)
        return squares["w"].astype(jnp.float32) + 3 * squares["c"]

    tx = ncg.newton_cg(preconditioner=preconditioner, damping=0.1)

    @jax.jit
    def run(params, state):
        def step(carry, _):
            params, state = carry
            grads = jax.tree.map(jnp.conj, jax.grad(loss)(params))
            updates, state = tx.update(grads, state, params, value_fn=loss)
            return (optax.apply_updates(params, updates), state), ()

        return jax.lax.scan(step, (params, state), length=3)[0]

    state = tx.init(params)
    new_params, new_state = run(params, state)
    assert types(new_state) == types(state)
    assert types(new_params) == types(params)
    assert loss(new_params) < 0.01 * loss(params)


@each
def test_init_takes_shapes(preconditioner):
    params = {"w": jnp.ones((2, 3), jnp.bfloat16), "c": jnp.ones(2, complex)}
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), params)
    state = preconditioner.init(shapes)
    assert types(state) == types(preconditioner.init(params))


@each
def test_the_tree_of_the_state_is_known_to_optax(preconditioner):
    tx = ncg.newton_cg(preconditioner=preconditioner)
    params = tiny_net()[0]
    doubled = optax.tree.map_params(tx, lambda x: 2 * x, tx.init(params))
    assert jax.tree.structure(doubled) == jax.tree.structure(tx.init(params))


@each
def test_it_is_symmetric_positive_definite_and_has_a_root(preconditioner):
    a = symmetric(np.r_[np.linspace(-1, 1, N - 2), [10.0, -5.0]])
    state, _ = updated(preconditioner, a, 0.1)
    for damping in (0.0, 0.1):
        m = dense(preconditioner, state, damping)
        close = {"atol": 1e-12 * np.abs(m).max()}
        np.testing.assert_allclose(m, m.T, **close)
        assert np.linalg.eigvalsh(m)[0] > 0
        if not preconditioner.has_sqrt:
            continue
        s = dense(preconditioner, state, damping, method="sqrt")
        np.testing.assert_allclose(s, s.T, **close)
        np.testing.assert_allclose(s @ s, m, **close)
        assert np.linalg.eigvalsh(s)[0] > 0


@each
def test_a_loss_that_turns_nan_leaves_no_trace(preconditioner):
    tx = ncg.newton_cg(preconditioner=preconditioner, damping=0.1)

    def loss(w, factor):
        return factor * jnp.sum((w - 1.0) ** 2 * jnp.arange(1.0, 7.0))

    w = jnp.zeros(6)
    step, state = make_step(tx, loss), tx.init(w)
    for factor in (np.nan, np.nan, 1.0, np.nan, 1.0, 1.0, 1.0):
        w, state = step(w, state, {"factor": factor})
    for leaf in jax.tree.leaves(state[0].preconditioner):
        assert np.isfinite(leaf).all()
    assert loss(w, 1.0) < 1e-2 * loss(jnp.zeros(6), 1.0)


def test_a_mapped_axis_changes_nothing():
    x, y = vector(24).reshape(8, 3), vector(8, seed=2)
    params = {"in": jnp.ones((3, 2)) * jnp.arange(2), "out": jnp.ones(2)}

    def run(x, y, axis_name=None):
        tx = ncg.newton_cg(
            preconditioner=PRECONDITIONERS["composed"],
            damping=0.01,
            axis_name=axis_name,
        )

        def loss(w):
            return jnp.mean((jnp.tanh(x @ w["in"]) @ w["out"] - y) ** 2)

        def step(carry, _):
            params, state = carry
            grads = jax.grad(loss)(params)
            updates, state = tx.update(grads, state, params, value_fn=loss)
            return (optax.apply_updates(params, updates), state), ()

        carry, _ = jax.lax.scan(step, (params, tx.init(params)), length=3)
        return carry[0]["in"]

    fold = lambda a: a.reshape(2, 4, *a.shape[1:])  # noqa: E731
    mapped = jax.vmap(lambda x, y: run(x, y, "d"), axis_name="d")
    expected, replicas = jax.jit(lambda: (run(x, y), mapped(fold(x), fold(y))))()
    for replica in replicas:
        np.testing.assert_allclose(replica, expected, rtol=1e-8)
