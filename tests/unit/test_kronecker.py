from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree
from oracles import assert_trees_close, assert_trees_equal, krylov, symmetric, vector

import ncg_optax as ncg
from ncg_optax._utils import pytree
from ncg_optax.curvature import SampledProduct

pytestmark = pytest.mark.usefixtures("x64")

M, N = 4, 3
SIZE = M * N
DAMPING = 0.01
# Of plain functions: four products at the first step, then two.
SETTINGS = dict(
    decay=0.75,
    refresh=3,
    probes=8,
    first_probes=16,
    fraction=1 / 4,
    damping=DAMPING,
    max_size=4,
)
KRONECKER = ncg.kronecker(**SETTINGS)
ROOTED = ncg.kronecker(**SETTINGS, with_sqrt=True)


def affine_update(preconditioner, state, a, y, damping, key):
    """An update at a leaf shaped like ``y`` with the product ``v -> a v + y``."""

    def product(v):
        return (a @ v.ravel()).reshape(y.shape) + y

    count = jnp.zeros((), jnp.int32)
    return preconditioner.update(state, product, jnp.zeros_like(y), damping, key, count)


affine_step = jax.jit(affine_update, static_argnums=0)


def updated(
    a=0.0, y=0.0, state=None, seed=0, dtype=jnp.float64, damping=0.0, of=KRONECKER
):
    """State and products after an update at a matrix of shape (M, N)."""
    state = of.init(jnp.zeros((M, N), dtype)) if state is None else state
    a = jnp.asarray(np.broadcast_to(a, (SIZE, SIZE)), dtype)
    y = jnp.asarray(np.broadcast_to(y, (M, N)), dtype)
    damping = jnp.asarray(damping, dtype)
    return affine_step(of, state, a, y, damping, jax.random.key(seed))


@partial(jax.jit, static_argnums=0)
def columns(of, state, like):
    vec, unravel = ravel_pytree(like)
    # The damping is in the inverses: that of an application makes no difference.
    image = lambda e: ravel_pytree(of(state, unravel(e), jnp.nan))[0]  # noqa: E731
    return jax.vmap(image, out_axes=1)(jnp.eye(vec.size, dtype=vec.dtype))


def dense(state, like=None, of=KRONECKER.apply):
    """``M``, or whatever ``of`` applies, as a matrix."""
    like = jnp.zeros((M, N)) if like is None else like
    return np.asarray(columns(of, state, like))


def matrix(seed, shape=(M, N)):
    return np.random.default_rng(seed).normal(size=shape)


def expected_sides(y, max_size=np.inf):
    """Eigenvalues and eigenvectors of both sides from the one product ``y``."""

    def side(y):
        gram = y @ y.conj().T
        if len(y) > max_size:
            return np.sqrt(np.diag(gram).real), np.eye(len(y))
        values, basis = np.linalg.eigh(gram)
        return np.sqrt(values.clip(0)), basis

    (left, u), (right, v) = side(y), side(y.conj().T)
    return (left, u), (right / np.linalg.norm(y), v)


def expected_image(y, r, damping, max_size=np.inf, own=DAMPING):
    y, matrix = (x.reshape(-1, x.shape[-1] if x.ndim > 1 else 1) for x in (y, r))
    (left, u), (right, v) = expected_sides(y, max_size)
    shared = damping / (left.mean() * right.mean())
    if 1 in y.shape:
        c, d = (0, own + shared) if len(left) == 1 < len(right) else (own + shared, 0)
    else:
        c = d = np.sqrt(own**2 + shared)
    divisor = np.outer(left + c * left.mean(), right + d * right.mean())
    return (u @ ((u.conj().T @ matrix @ v) / divisor) @ v.conj().T).reshape(r.shape)


# What it estimates.

PROBES = 4000


def product_matrix(left, right):
    """The matrix of ``V -> L V R`` on raveled ``V``."""
    return np.kron(left, right.T)


def by_leaf(factors, i):
    """The factor of the i-th leaf."""
    return type(factors)(*(jax.tree.leaves(tree)[i] for tree in factors))


def recovery(operator, like, probes=PROBES):
    """Eigenvalues of ``M B``: 1 if it is recovered. And those with B's diagonal."""
    vec, unravel = ravel_pytree(like)
    preconditioner = ncg.kronecker(first_probes=probes, fraction=1.0, damping=1e-9)
    b = jnp.asarray(operator)
    state, _ = jax.jit(
        lambda key: preconditioner.update(
            preconditioner.init(like),
            lambda v: unravel(b @ ravel_pytree(v)[0]),
            like,
            jnp.zeros(()),
            key,
            0,
        )
    )(jax.random.key(0))
    m = dense(state, like, preconditioner.apply)
    diagonal = np.diag(1 / np.diag(operator))
    return (np.linalg.eigvals(x @ operator) for x in (m, diagonal))


def assert_recovered(ours, diagonals, side):
    # With P products the Gram matrix of a side k is within a factor 1 -+ e of its mean,
    # e = 2 sqrt(k / P) + k / P (Davidson and Szarek, for one column; more are better).
    # Its square root is then within e / 2, and so is each of the three in the spectrum.
    bound = 1.5 * (2 * np.sqrt(side / PROBES) + side / PROBES)
    assert np.abs(ours - 1).max() < bound < 0.1
    assert np.abs(diagonals - 1).max() > 8 * bound


def test_a_kronecker_product_in_each_leaf_is_recovered():
    like = {"kernel": jnp.zeros((2, 1, 2, 3)), "s": jnp.zeros(()), "v": jnp.zeros(3)}
    operator = np.zeros((16, 16))
    operator[:12, :12] = product_matrix(
        symmetric(np.geomspace(10, 0.1, 4)), symmetric(np.geomspace(3, 0.1, 3), 1)
    )
    operator[12, 12] = 0.7
    operator[13:, 13:] = symmetric(np.geomspace(1, 1e-2, 3), 2)
    assert_recovered(*recovery(operator, like), side=4)


def test_a_complex_kronecker_product_is_recovered():
    def hermitian(values, seed):
        z = matrix(seed, (len(values),) * 2) + 1j * matrix(seed + 1, (len(values),) * 2)
        q, _ = np.linalg.qr(z)
        return q @ np.diag(values) @ q.conj().T

    left, right = hermitian([5.0, 1.0, 0.1], 0), hermitian([3.0, 0.2], 2)
    like = jnp.zeros((3, 2), complex)
    assert_recovered(*recovery(product_matrix(left, right), like), side=3)


@pytest.mark.parametrize("damping", [0.0, 0.1, 10.0])
def test_the_factors_of_one_product(damping):
    y = matrix(0)
    factor = updated(y=y, damping=damping)[0].factors
    np.testing.assert_allclose(factor.left, y @ y.T, rtol=1e-12)
    np.testing.assert_allclose(factor.right, y.T @ y, rtol=1e-12)
    (left, u), (right, v) = expected_sides(y)
    c = np.sqrt(DAMPING**2 + damping / (left.mean() * right.mean()))
    left_inverse = (u / (left + c * left.mean())) @ u.T
    right_inverse = (v / (right + c * right.mean())) @ v.T
    # Which of the two sides has a common factor, nobody sees.
    np.testing.assert_allclose(
        np.kron(factor.left_inverse, factor.right_inverse),
        np.kron(left_inverse, right_inverse),
        rtol=1e-6,
        atol=1e-6 * np.abs(left_inverse).max() * np.abs(right_inverse).max(),
    )


def test_running_means_move_each_step_and_inverses_at_each_refresh():
    ys = [matrix(seed) for seed in range(5)]
    left, right, state = ys[0] @ ys[0].T, ys[0].T @ ys[0], None
    for count, y in enumerate(ys):
        old = state
        state, _ = updated(y=y, state=old)
        share = 0.25 if count else 1.0
        left = (1 - share) * left + share * y @ y.T
        right = (1 - share) * right + share * y.T @ y
        factor = state.factors
        np.testing.assert_allclose(factor.left, left, rtol=1e-10)
        np.testing.assert_allclose(factor.right, right, rtol=1e-10)
        stale = count % 3 != 0
        for name in ("left_inverse", "right_inverse"):
            if old is not None:
                same = getattr(factor, name) == getattr(old.factors, name)
                assert bool(jnp.all(same)) == stale, (count, name)
        if count == 3:  # the second refresh, with less of the own damping
            values = [np.sqrt(np.linalg.eigvalsh(x).clip(0)) for x in (left, right)]
            own = DAMPING / (1 + 3 / 20)
            a, b = (x + own * x.mean() for x in values)
            np.testing.assert_allclose(
                np.linalg.eigvalsh(dense(state)),
                np.sort(np.sqrt(np.trace(left)) / np.outer(a, b).ravel()),
                rtol=1e-6,
            )
        assert state.steps == count + 1


@pytest.mark.parametrize(
    ("schedule", "due"),
    [
        (optax.linear_schedule(1, 10, 20), [0, 1, 2, 4, 6, 8, 10, 12]),
        (lambda steps: 0.5, range(13)),  # every step at most
        (lambda steps: jnp.where(steps < 5, 2, 5), [0, 2, 4, 5, 10]),
    ],
)
def test_inverses_move_when_a_schedule_says(schedule, due):
    preconditioner = ncg.kronecker(refresh=schedule)

    @jax.jit
    def step(state, y):
        zero = jnp.zeros(())
        return preconditioner.update(
            state, lambda v: y, y, zero, jax.random.key(0), zero
        )[0]

    states = [preconditioner.init(jnp.zeros((M, N)))]
    for seed in range(13):
        states.append(step(states[-1], jnp.asarray(matrix(seed))))
    kept = [np.asarray(state.factors.left_inverse) for state in states]
    moved = [k for k in range(13) if not np.array_equal(kept[k], kept[k + 1])]
    assert moved == list(due)


def test_probes_differ_within_a_step_and_from_step_to_step():
    a = np.eye(SIZE)
    state, products = updated(a)
    # One probe has as many eigenvalues above 0 as its shorter side.
    assert products == 4
    assert np.linalg.eigvalsh(state.factors.left)[0] > 1e-3
    again, other = updated(a)[0], updated(a, seed=1)[0]
    assert_trees_equal(again, state)
    assert np.abs(other.factors.left - state.factors.left).max() > 0.1


# Safety.

NULL_ROWS = product_matrix(
    np.diag([2.0, 0.0, 1.0, 0.0]), symmetric([3.0, 1.0, 0.5], seed=1)
)
OPERATORS = {
    "indefinite": symmetric(np.linspace(-1, 1, SIZE)),
    "negative": -symmetric(np.linspace(0.1, 1, SIZE)),
    "one": symmetric(np.r_[np.zeros(SIZE - 1), [-3.0]]),
    "null rows": NULL_ROWS,
    "zero": np.zeros((SIZE, SIZE)),
}


@pytest.mark.parametrize("a", OPERATORS.values(), ids=OPERATORS)
@pytest.mark.parametrize("damping", [0.0, 0.1])
def test_it_is_symmetric_and_positive_definite(a, damping):
    state, _ = updated(a, damping=damping)
    m = dense(state)
    np.testing.assert_allclose(m, m.T, atol=1e-12 * np.abs(m).max())
    lowest, *_, highest = np.linalg.eigvalsh(m)
    (left, right) = (np.linalg.eigvalsh(x) for x in state.factors[:2])
    total = max(left.sum(), 1e-300)
    mean = np.sqrt(left.clip(0)).mean() * np.sqrt(right.clip(0) / total).mean()
    assert lowest > 0.03
    assert highest < 1.001 / ((damping + DAMPING**2 * mean) or 1.0)


def test_a_negative_operator_counts_as_a_positive_one():
    a = OPERATORS["indefinite"]
    assert_trees_equal(updated(-a)[0], updated(a)[0])


def test_the_zero_operator_leaves_the_damping():
    np.testing.assert_allclose(
        dense(updated(damping=0.3)[0]), np.eye(SIZE) / 0.3, rtol=1e-12
    )
    np.testing.assert_allclose(dense(updated()[0]), np.eye(SIZE), rtol=1e-12)


def test_without_any_damping_it_is_still_definite():
    undamped = ncg.kronecker(**SETTINGS | {"damping": 0.0})
    state, _ = updated(NULL_ROWS, of=undamped)
    assert np.linalg.eigvalsh(dense(state))[0] > 0


def test_dead_inputs_are_divided_by_the_own_damping():
    dead = jnp.zeros((M, N)).at[1].set(vector(N)).at[3].set(vector(N, 2))

    def stretch(own, damping=0.0):
        """By how much dead inputs are stretched more than the others, at most."""
        of = ncg.kronecker(**SETTINGS | {"damping": own})
        state, _ = updated(NULL_ROWS, damping=damping, of=of)
        image = of.apply(state, dead, 0.0)
        assert not image[0].any() and not image[2].any()
        live = of.apply(state, jnp.zeros((M, N)).at[0].set(1.0), 0.0)
        return float(pytree.norm(image) / pytree.norm(dead)), live

    sizes = [stretch(own)[0] for own in (0.4, 0.04, 0.004)]
    # In units of the curvature, which is about 1, of the dead side alone.
    assert 0.5 < sizes[0] < 5
    assert 7 < sizes[1] / sizes[0] < 30 and 7 < sizes[2] / sizes[1] < 30
    # What the operator shares makes little difference where it is small.
    np.testing.assert_allclose(stretch(0.04, 1e-12)[0], sizes[1], rtol=1e-6)


@pytest.mark.parametrize(("halving", "left"), [(4, 1 / 2), (1, 1 / 5), (None, 1)])
def test_the_own_damping_falls_from_step_to_step(halving, left):
    """The fifth estimate, the same as the first, is damped by what is left."""
    y = matrix(3)
    of = ncg.kronecker(**SETTINGS | {"damping_halving": halving, "refresh": 4})
    state, r = None, matrix(4)
    for _ in range(5):
        state, _ = updated(y=y, state=state, of=of)
    np.testing.assert_allclose(
        of.apply(state, jnp.asarray(r), 0.0),
        expected_image(y, r, 0.0, own=DAMPING * left),
        rtol=1e-5,
    )


def test_leaves_without_elements_take_part():
    params = {
        "none": jnp.zeros((3, 0)),
        "some": jnp.ones((3,)),
        "no rows": jnp.zeros((0, 3)),
    }
    state = KRONECKER.init(params)
    state, _ = KRONECKER.update(
        state, lambda v: v, params, jnp.zeros(()), jax.random.key(0), 0
    )
    image = KRONECKER.apply(state, params, jnp.ones(()))
    assert jax.tree.map(jnp.shape, image) == jax.tree.map(jnp.shape, params)
    assert jnp.all(image["some"] > 0)


@pytest.mark.parametrize("damping", [0.0, 0.1])
def test_the_root_applied_twice(damping):
    a = symmetric(np.linspace(-1, 3, SIZE))
    m = dense(updated(a, damping=damping)[0])
    state, _ = updated(a, damping=damping, of=ROOTED)
    root = dense(state, of=ROOTED.sqrt)
    np.testing.assert_allclose(root, root.T, atol=1e-10)
    np.testing.assert_allclose(root @ root, m, rtol=1e-8, atol=1e-8 * m.max())
    np.testing.assert_allclose(dense(state, of=ROOTED.apply), root @ root, rtol=1e-10)
    assert np.linalg.eigvalsh(root)[0] > 0


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_first_estimate_that_failed_is_tried_again(bad):
    state, products = updated(y=bad, damping=0.5)
    assert (int(state.steps), int(products)) == (0, 4)
    np.testing.assert_allclose(dense(state), 2 * np.eye(SIZE), rtol=1e-12)
    y = matrix(0)
    state, products = updated(y=y, state=state)
    assert (int(state.steps), int(products)) == (1, 4)
    assert_trees_close(state, updated(y=y)[0], rtol=1e-12)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_products_that_are_not_finite_keep_the_factors(bad):
    state, _ = updated(y=matrix(0))
    y = matrix(1)
    y[2, 1] = bad
    kept, products = updated(y=y, state=state)
    assert (int(kept.steps), int(products)) == (2, 2)
    assert_trees_equal(kept.factors, state.factors)


# A spectrum up to 100, whose fourth power at a scale of 2^27 is beyond float32.
@pytest.mark.parametrize("scale", [2.0**-27, 2.0**27], ids=["1e-8", "1e8"])
def test_it_does_not_know_the_scale(scale):
    a = product_matrix(
        symmetric(np.geomspace(10, 1, M)), symmetric(np.geomspace(10, 1, N), 1)
    )
    like = jnp.zeros((M, N), jnp.float32)
    m, scaled = (
        dense(updated(c * a, dtype=jnp.float32, damping=c * 0.5)[0], like)
        for c in (1, scale)
    )
    assert np.linalg.eigvalsh(m)[0] > 1e-3
    np.testing.assert_allclose(scale * scaled, m, atol=1e-5 * np.abs(m).max())


# Any tree.


def leaves(dtype=jnp.float64):
    """Real leaves in ``dtype`` whose sides are up to and above a ``max_size`` of 4."""
    return {
        "bias": jnp.zeros(4, dtype),
        "complex": jnp.zeros((6, 2), complex),
        "kernel": jnp.zeros((1, 2, 2, 3), dtype),
        "long": jnp.zeros(7, dtype),
        "scalar": jnp.zeros((), dtype),
        "wide": jnp.zeros((2, 5), dtype),
    }


def typed(tree):
    return jax.tree.map(lambda x: (x.shape, x.dtype), tree)


def test_the_shapes_of_the_state():
    factors = KRONECKER.init(leaves()).factors
    by_name = {k: [tree[k] for tree in factors] for k in leaves()}
    shapes = {k: [x.shape for x in f] for k, f in by_name.items()}
    assert shapes == {
        # left, right, left_inverse, right_inverse
        "bias": [(4, 4), (1, 1)] * 2,
        "complex": [(6,), (2, 2)] * 2,
        "kernel": [(4, 4), (3, 3)] * 2,
        "long": [(7,), (1, 1)] * 2,
        "scalar": [(1, 1), (1, 1)] * 2,
        "wide": [(2, 2), (5,)] * 2,
    }
    dtypes = {k: {x.dtype.name for x in f} for k, f in by_name.items()}
    assert dtypes.pop("complex") == {"complex128"}
    assert set.union(*dtypes.values()) == {"float64"}


def test_every_leaf_is_folded_to_a_matrix():
    like = leaves()
    treedef = jax.tree.structure(like)

    def random(seed):
        flat = [
            matrix(seed + i, x.shape)
            + (1j * matrix(seed - i, x.shape) if jnp.iscomplexobj(x) else 0)
            for i, x in enumerate(jax.tree.leaves(like))
        ]
        return treedef.unflatten(flat)

    ys, r = random(10), random(30)

    damping = 0.1

    @partial(jax.jit, static_argnums=0)
    def run(of, key):
        count = jnp.zeros((), jnp.int32)
        state, _ = of.update(of.init(like), lambda v: ys, like, damping, key, count)
        return state, of.apply(state, r, damping)

    state, image = run(KRONECKER, jax.random.key(0))
    twice = run(ROOTED, jax.random.key(0))[1]
    expected = jax.tree.map(
        lambda y, x: expected_image(np.asarray(y), np.asarray(x), damping, 4), ys, r
    )
    # A zero eigenvalue is rounded, and then its root taken.
    assert_trees_close(image, expected, rtol=1e-5, atol=1e-5)
    assert_trees_close(twice, image, rtol=1e-10)
    assert typed(state) == typed(KRONECKER.init(like))
    assert typed(image) == typed(like)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_the_state_keeps_its_shapes_and_dtypes(dtype):
    params = leaves(dtype)
    start = KRONECKER.init(params)
    narrow = [{k: x for k, x in t.items() if k != "complex"} for t in start.factors]
    assert {x.dtype.name for x in jax.tree.leaves(narrow)} == {"float32"}
    grads = pytree.widen(params)

    def run(state, key):
        def body(state, key):
            # The transform widens the vectors that the product of narrow ones takes.
            product = pytree.in_dtypes_of(params, lambda v: v)
            return KRONECKER.update(state, product, grads, 0.0, key, 0)

        state, products = jax.lax.scan(body, state, jax.random.split(key, 4))
        return state, products, KRONECKER.apply(state, grads, 0.1)

    state, products, image = jax.eval_shape(run, start, jax.random.key(0))
    assert typed(state) == typed(start)
    assert products.shape == (4,)
    assert typed(image) == typed(grads)


def test_init_works_on_abstract_parameters():
    params = leaves(jnp.bfloat16)
    abstract = jax.eval_shape(lambda: params)
    assert_trees_equal(KRONECKER.init(abstract), KRONECKER.init(params))


# What it costs and what it buys.


@pytest.mark.parametrize(
    ("share", "counted"),
    [(None, [4, 2, 2]), (1.0, [4, 2, 2]), (0.25, [16, 8, 8])],
)
def test_products_are_counted_when_spent(share, counted):
    calls = []

    def product(v):
        jax.debug.callback(lambda _: calls.append(1), v[0])
        return v

    matvec = product if share is None else SampledProduct(product, share)
    like = jnp.zeros(5)
    step = jax.jit(
        lambda state, key: KRONECKER.update(state, matvec, like, 0.0, key, 0)
    )
    state, total = KRONECKER.init(like), 0
    for expected in counted:
        state, products = step(state, jax.random.key(0))
        jax.effects_barrier()
        total += expected
        assert (int(products), len(calls)) == (expected, total)


def test_at_least_one_product():
    preconditioner = ncg.kronecker(first_probes=1, probes=1, fraction=0.01)
    assert preconditioner.fraction == 0.01
    like = jnp.zeros(1)
    start = preconditioner.init(like)
    products = jax.jit(
        lambda state: preconditioner.update(
            state, lambda v: v, like, 0.0, jax.random.key(0), 0
        )[1]
    )
    assert products(start) == 1
    assert products(start._replace(steps=jnp.int32(1))) == 1


def autoencoder(inputs=8, width=6, examples=100):
    """Jacobian and residuals of an 8-6-8 network on inputs of decaying variance."""
    rng = np.random.default_rng(0)
    basis, _ = np.linalg.qr(rng.normal(size=(inputs, inputs)))
    x = rng.normal(size=(examples, inputs)) * np.geomspace(1, 0.01, inputs) @ basis.T
    params = {
        "encoder": jnp.asarray(rng.normal(size=(inputs, width)) / inputs**0.5),
        "decoder": jnp.asarray(rng.normal(size=(width, inputs)) / width**0.5),
    }
    vec, unravel = ravel_pytree(params)

    def residuals(vec):
        p = unravel(vec)
        return (jnp.tanh(x @ p["encoder"]) @ p["decoder"] - x).ravel() / examples**0.5

    return params, *jax.jit(lambda v: (jax.jacobian(residuals)(v), residuals(v)))(vec)


def test_conjugate_gradients_take_a_third_of_the_iterations():
    params, jacobian, residuals = autoencoder()
    _, unravel = ravel_pytree(params)
    a, b = np.asarray(jacobian.T @ jacobian), -np.asarray(jacobian.T @ residuals)
    damping = jnp.float64(1e-4)
    preconditioner = ncg.kronecker(first_probes=16, fraction=1.0)

    def product(v):
        return unravel(a @ ravel_pytree(v)[0])

    @jax.jit
    def run(key):
        state, _ = preconditioner.update(
            preconditioner.init(params), product, params, damping, key, 0
        )
        return ncg.solvers.conjugate_gradient(
            product,
            unravel(b),
            damping,
            maxiter=3,
            tolerance=0.0,
            precondition=lambda r: preconditioner.apply(state, r, damping),
        ).model_decrease

    def decrease(basis):
        """The most that the model falls within a space."""
        projected = basis.T @ (a + damping * np.eye(len(b))) @ basis
        return basis.T @ b @ np.linalg.solve(projected, basis.T @ b) / 2

    best = decrease(np.eye(len(b)))
    ours, plain = run(jax.random.key(0)), decrease(krylov(a, b, 9))
    assert plain < 0.99 * best < ours < best  # in a third of the iterations


# Ensembles.


def ranks_of_decomposed(jaxpr):
    """The ranks of the operands of all eigendecompositions in ``jaxpr``."""
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "eigh":
            yield eqn.invars[0].aval.ndim
        for sub in jax.tree.leaves(list(eqn.params.values())):
            sub = getattr(sub, "jaxpr", sub)
            if hasattr(sub, "eqns"):
                yield from ranks_of_decomposed(sub)


def ensemble():
    operators = np.stack([symmetric(np.linspace(0.1, k, SIZE), k) for k in (1, 2, 5)])
    ys = np.zeros((3, M, N))
    keys = jax.random.split(jax.random.key(0), 3)
    return jnp.asarray(operators), jnp.asarray(ys), keys


def member_update(state, a, y, key):
    return affine_update(KRONECKER, state, a, y, jnp.float64(0.1), key)


def test_an_ensemble_never_decomposes_a_batch_of_matrices():
    batched = jax.make_jaxpr(jax.vmap(jnp.linalg.eigh))(jnp.zeros((3, 2, 2)))
    assert list(ranks_of_decomposed(batched.jaxpr)) == [3]
    operators, ys, keys = ensemble()
    states = jax.vmap(KRONECKER.init)(ys)
    step = jax.make_jaxpr(jax.vmap(member_update))(states, operators, ys, keys)
    assert list(ranks_of_decomposed(step.jaxpr)) == [2, 2]


def test_an_ensemble_equals_separate_updates():
    operators, ys, keys = ensemble()
    mapped = jax.jit(jax.vmap(member_update))
    failing = ys.at[1].set(jnp.nan)  # at the first step, of one member
    together = jax.vmap(KRONECKER.init)(ys)
    separate = [KRONECKER.init(y) for y in ys]
    for y, counted in ((failing, [4, 4, 4]), (ys, [2, 4, 2])):
        together, products = mapped(together, operators, y, keys)
        assert products.tolist() == counted
        for i, state in enumerate(separate):
            state, alone = jax.jit(member_update)(state, operators[i], y[i], keys[i])
            assert alone == counted[i]
            member = jax.tree.map(lambda x, i=i: x[i], together)
            assert member.steps == state.steps
            np.testing.assert_allclose(dense(member), dense(state), 1e-9)
            separate[i] = state


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"decay": 1.0}, ValueError, r"kronecker: decay must be .*\[0, 1\)"),
        ({"decay": np.nan}, ValueError, "kronecker: decay .* got nan"),
        ({"decay": "0.9"}, TypeError, "kronecker: decay must be a number"),
        ({"refresh": 0}, ValueError, "kronecker: refresh must be .*schedule, got 0"),
        ({"probes": 0}, ValueError, "kronecker: probes"),
        ({"probes": 2.0}, TypeError, "kronecker: probes must be an integer"),
        ({"first_probes": 0}, ValueError, "kronecker: first_probes"),
        ({"fraction": 0.0}, ValueError, r"kronecker: fraction must be .*\(0, 1\]"),
        ({"fraction": 1.5}, ValueError, "kronecker: fraction .* got 1.5"),
        ({"damping": -0.1}, ValueError, "kronecker: damping"),
        ({"max_size": 0}, ValueError, "kronecker: max_size"),
    ],
)
def test_errors(settings, error, message):
    with pytest.raises(error, match=message):
        ncg.kronecker(**settings)
