"""`kronecker_adam` against its equations in NumPy, and what one batch may do to it."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import ncg_optax as ncg
from ncg_optax.minibatch.clipping import clipped
from ncg_optax.minibatch.eigenbasis import Side, Turned, refreshed

pytestmark = pytest.mark.usefixtures("x64")

SHAPES = {"w": (4, 3), "k": (2, 2, 3), "v": (3,), "s": (), "empty": (0, 2)}


def normal(seed, shapes=SHAPES, dtype=float):
    keys = jax.random.split(jax.random.key(seed), len(shapes))
    return {
        name: jax.random.normal(key, shape, dtype)
        for key, (name, shape) in zip(keys, shapes.items(), strict=True)
    }


def batch_loss(params, seed):
    """A convex loss that differs from batch to batch, with a gradient in all leaves."""
    away = jax.tree.map(lambda p, g: p - 1 + 0.5 * g, params, normal(seed))
    return sum(jnp.sum(jnp.log(jnp.cosh(x))) for x in jax.tree.leaves(away))


def make_step(tx, loss=batch_loss):
    @jax.jit
    def step(params, state, seed):
        value, grads = jax.value_and_grad(loss)(params, seed)
        updates, state = tx.update(grads, state, params, value=value)
        return optax.apply_updates(params, updates), state

    return step


def run(tx, steps, params=None, step=None):
    """The parameters after each step, and the state after the last one."""
    params = normal(0) if params is None else params
    step, state, path = step or make_step(tx), tx.init(params), []
    for seed in range(1, steps + 1):
        params, state = step(params, state, seed)
        path.append(params)
    return path, state


def assert_close(tree, other, rtol=1e-9, atol=1e-12):
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=atol),
        jax.tree.map(np.asarray, tree),
        jax.tree.map(np.asarray, other),
    )


class Plain:
    """The equations of the docstrings for real leaves, one matrix after the other."""

    def __init__(self, params, rate, block_size=256):
        self.rate, self.block_size, self.t, self.level = rate, block_size, 0, 0.0
        self.d, self.r, self.refreshes = 3e-4, 0.0, 0
        self.x = {k: np.asarray(x, float) for k, x in params.items()}
        self.start = {k: x.copy() for k, x in self.x.items()}
        self.average = {k: 0 * x for k, x in self.x.items()}
        self.leaf = {}
        for name, x in self.x.items():
            m, n = shape = self.matrix(x).shape
            zero = np.zeros(shape)
            is_rotated = min(shape) > 1
            self.leaf[name] = {"rotated": is_rotated, "m": zero, "v": zero, "s": zero}
            self.leaf[name] |= {"L": np.zeros((m, m)), "R": np.zeros((n, n))}
            self.leaf[name] |= {"QL": np.eye(m), "QR": np.eye(n)}

    def matrix(self, x):
        columns = x.shape[-1] if x.ndim > 1 else 1
        return x.reshape(x.size // columns if columns else 0, columns)

    def step(self, grads):
        t = self.t
        grads = {k: np.asarray(g, float) for k, g in grads.items()}
        norm = np.sqrt(sum(np.sum(g**2) for g in grads.values()))
        ratio = min(1, 3 * self.level / norm) if t else 1
        self.level += max(0.1, 1 / (t + 1)) * (ratio * norm - self.level)
        factor = ratio**2
        due = t % (2 if t < 20 else 10) == 0
        if self.rate is None:
            rate = min(self.d, np.sqrt(0.01 * self.d)) / np.sqrt(1 + t / 300)
        else:
            rate = self.rate * min((t + 1) / 20, 1)
        size, inner = 0.0, 0.0
        before = {k: x.copy() for k, x in self.x.items()}
        for name, f in self.leaf.items():
            g = self.matrix(factor * grads[name])
            if due and f["rotated"]:
                self.refresh(f, g)
            turned = f["QL"].T @ g @ f["QR"]
            f["m"] = f["m"] + max(0.1, 1 / (t + 1)) * (turned - f["m"])
            f["v"] = f["v"] + max(0.05, 1 / (t + 1)) * (turned**2 - f["v"])
            f["s"] = 0.9995 * f["s"] + 0.0005 * self.d**2 * turned
            size += np.abs(f["s"]).sum()
            x = self.matrix(before[name])
            inner += np.sum(g * (self.matrix(self.start[name]) - x))
            if g.size:
                root = np.sqrt(f["v"]) + 1e-6 * np.sqrt(f["v"].sum())
                moved = f["QL"] @ (f["m"] / root) @ f["QR"].T
                self.x[name] = (x - rate * moved).reshape(before[name].shape)
        self.r = 0.9995 * self.r + 0.0005 * self.d**2 * inner
        self.d = max(self.d, self.r / size)
        self.refreshes += due
        self.average = self.averaged(before)
        self.t += 1

    def refresh(self, f, g):
        w = max(0.1, 1 / (self.refreshes + 1))
        unit = g / np.linalg.norm(g)
        f["L"] = (1 - w) * f["L"] + w * unit @ unit.T
        f["R"] = (1 - w) * f["R"] + w * unit.T @ unit
        old = f["QL"], f["QR"]
        for a, b in (("L", "QL"), ("R", "QR")):
            f[b] = f[b].copy()
            for block in self.blocks(len(f[a])):
                gram = f[a][block, block]
                # The last block may be shorter: its shift is that of the others' size.
                size = self.blocks(len(f[a]))[0].stop
                shift = 1e-3 * np.trace(gram) / size * np.eye(len(gram))
                for _ in range(1 if self.refreshes else 4):
                    new = np.linalg.qr((gram + shift) @ f[b][block, block])[0]
                    f[b][block, block] = new
        left, right = f["QL"].T @ old[0], old[1].T @ f["QR"]
        f["m"], f["s"] = left @ f["m"] @ right, left @ f["s"] @ right
        f["v"] = left**2 @ f["v"] @ right**2

    def blocks(self, k):
        """Slices of a side of length k: as few blocks of equal length as possible."""
        size = -(-k // -(-k // self.block_size))
        return [slice(i, min(i + size, k)) for i in range(0, k, size)]

    def averaged(self, params):
        w = 9 / (max(self.t - 1, 0) + 9)
        return {k: a + w * (params[k] - a) for k, a in self.average.items()}


@pytest.mark.parametrize("rate", [None, 0.05])
def test_steps_are_those_of_the_equations(rate):
    tx, params = ncg.kronecker_adam(rate), normal(0)
    plain, step, state = Plain(params, rate), make_step(tx), tx.init(params)
    for seed in range(1, 33):
        plain.step(jax.grad(batch_loss)(params, seed))
        params, state = step(params, state, seed)
        assert_close(params, plain.x, rtol=1e-7, atol=1e-7)
    averaged = plain.averaged(plain.x)
    assert_close(ncg.averaged_params(state, params), averaged, rtol=1e-7, atol=1e-7)
    if rate is None:
        assert_close(state.distance.estimate, plain.d, rtol=1e-6)
        assert plain.d > 0.01  # it has been found


@pytest.mark.parametrize("rate", [None, 0.05])
def test_long_sides_have_a_basis_for_each_block(rate):
    """Sides of 7 and 5 in three and two blocks, the last of which are shorter."""
    shapes = {"w": (7, 5), "k": (2, 2, 3), "v": (3,)}

    def loss(params, seed):
        away = jax.tree.map(lambda p, g: p - 1 + 0.5 * g, params, normal(seed, shapes))
        return sum(jnp.sum(jnp.log(jnp.cosh(x))) for x in jax.tree.leaves(away))

    bases = ncg.minibatch.eigenbases(block_size=3)
    tx, params = ncg.kronecker_adam(rate, bases=bases), normal(0, shapes)
    plain, step, state = Plain(params, rate, 3), make_step(tx, loss), tx.init(params)
    for seed in range(1, 33):
        plain.step(jax.grad(loss)(params, seed))
        params, state = step(params, state, seed)
        assert_close(params, plain.x, rtol=1e-7, atol=1e-7)
    assert state.bases.left.gram["w"].shape == (3, 3, 3)
    assert state.bases.right.gram["w"].shape == (2, 3, 3)


def test_a_product_that_is_not_finite_changes_no_block():
    """Nor does the gradient that came with it, as for a side that is not cut."""
    shapes = {"w": (10, 3)}
    gradient = normal(1, shapes)
    product = {"w": normal(2, shapes)["w"].at[1, 1].set(jnp.nan)}
    for block_size in (None, 4):
        part = ncg.minibatch.eigenbases(block_size=block_size)
        first, _ = refreshed(part.init(gradient), [gradient], Turned((), gradient))
        after, _ = refreshed(first, [gradient, product], Turned((), gradient))
        assert_close(after.left.gram, first.left.gram)
        assert_close(after.right.gram, first.right.gram)
        assert jax.tree.all(jax.tree.map(lambda x: jnp.all(jnp.isfinite(x)), after))


def test_a_state_with_other_blocks_is_refused():
    params = normal(0)
    state = ncg.kronecker_adam().init(params)
    tx = ncg.kronecker_adam(bases=ncg.minibatch.eigenbases(block_size=2))
    with pytest.raises(ValueError, match=r"state.bases does not fit .*\(2, 2, 2\)"):
        tx.update(params, state, params)


def test_the_basis_is_followed_when_the_axes_are_turned():
    """Parameters, gradients and first bases in other axes give the steps in those."""
    q, r = (np.linalg.qr(np.asarray(normal(i, {"w": (k, k)})["w"]))[0]
            for i, k in ((5, 4), (6, 3)))  # fmt: skip

    def loss(w, seed):
        return batch_loss(
            {"w": w, **{k: v for k, v in normal(0).items() if k != "w"}}, seed
        )

    tx, w = ncg.kronecker_adam(0.05), normal(0)["w"]
    state = tx.init(w)
    left, right = (jnp.asarray(x) for x in (q, r))
    turned = state._replace(
        bases=state.bases._replace(
            left=Side(state.bases.left.gram, left),
            right=Side(state.bases.right.gram, right),
        )
    )
    one = make_step(tx, loss)
    other = make_step(tx, lambda x, seed: loss(q.T @ x @ r, seed))
    x = left @ w @ right.T
    for seed in range(1, 25):
        w, state = one(w, state, seed)
        x, turned = other(x, turned, seed)
    np.testing.assert_allclose(q.T @ x @ r, w, rtol=1e-7, atol=1e-9)


def test_the_start_and_the_average_are_found_at_the_first_step():
    """A state made before the weights were loaded is as good."""
    tx, loaded = ncg.kronecker_adam(), normal(3)
    step = make_step(tx)
    results = [
        step(loaded, tx.init(made_for), 1)
        for made_for in (loaded, normal(0), jax.eval_shape(lambda: loaded))
    ]
    for other in results[1:]:
        assert_close(other, results[0], rtol=0, atol=0)
    assert_close(ncg.averaged_params(tx.init(loaded), loaded), loaded, rtol=0, atol=0)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda tx: optax.chain(tx, optax.scale(0.5)),
        lambda tx: optax.apply_if_finite(tx, 3),
        lambda tx: optax.MultiSteps(tx, 1),
        lambda tx: ncg.switch_after(0, optax.sgd(0.1), tx),
    ],
    ids=["chain", "apply_if_finite", "MultiSteps", "switch_after"],
)
def test_the_average_is_of_the_parameters_as_they_are(wrap):
    path, state = run(wrap(ncg.kronecker_adam(0.1)), 5)
    weights = [9 / (t - 1 + 9) for t in range(1, 6)]
    average = normal(0)
    for w, params in zip(weights, path, strict=True):
        average = jax.tree.map(lambda a, x, w=w: a + w * (x - a), average, params)
    assert_close(ncg.averaged_params(state, path[-1]), average)


def test_a_restored_average_goes_on():
    tx = ncg.kronecker_adam()
    step = make_step(tx)
    path, state = run(tx, 12, step=step)
    other = ncg.kronecker_adam().init(normal(7))
    leaves = jax.tree.map(np.asarray, jax.tree.leaves(state))
    restored = jax.tree.structure(other).unflatten(leaves)
    results = [step(path[-1], s, 13) for s in (state, restored)]
    averages = [ncg.averaged_params(s, p) for p, s in results]
    assert_close(averages[0], averages[1], rtol=0, atol=0)


def test_averaged_params_names_what_is_wrong():
    params = normal(0)
    state = ncg.kronecker_adam().init(params)
    with pytest.raises(ValueError, match=r"expected one KroneckerAdamState.*found 0"):
        ncg.averaged_params(optax.adam(0.1).init(params), params)
    with pytest.raises(ValueError, match="found 2"):
        ncg.averaged_params((state, state), params)
    with pytest.raises(ValueError, match=r"they have no leaf \['k'\]"):
        ncg.averaged_params(state, {k: x for k, x in params.items() if k != "k"})
    with pytest.raises(ValueError, match=r"params\['v'\] has shape \(4,\)"):
        ncg.averaged_params(state, params | {"v": jnp.ones(4)})


# One batch


def regression(params, x, y):
    hidden = jnp.tanh(x @ params["w"] + params["b"])
    return jnp.mean((hidden @ params["v"] - y) ** 2)


def regression_batch(seed):
    x = jax.random.normal(jax.random.key(seed), (60, 4))
    noise = jax.random.normal(jax.random.key(1000 + seed), (60,))
    return x, jnp.tanh(x[:, 0] - x[:, 1]) + 0.3 * noise


def regression_run(tx, steps, outlier_at, label):
    """Losses of all batches at the average and at the iterate after each step."""
    shapes = {"w": (4, 8), "b": (8,), "v": (8,)}
    params = jax.tree.map(lambda x: x / 2, normal(1, shapes))
    x, y = map(jnp.concatenate, zip(*map(regression_batch, range(20)), strict=True))

    def body(carry, t):
        params, state = carry
        xb, yb = regression_batch(t)
        yb = yb.at[0].set(jnp.where(t == outlier_at, label, yb[0]))
        value, grads = jax.value_and_grad(regression)(params, xb, yb)
        updates, state = tx.update(grads, state, params, value=value)
        params = optax.apply_updates(params, updates)
        average = ncg.averaged_params(state, params)
        seen = regression(average, x, y), regression(params, x, y)
        return (params, state), (*seen, ncg.get_info(state))

    carry = params, tx.init(params)
    return jax.jit(lambda: jax.lax.scan(body, carry, jnp.arange(steps)))()[1]


@pytest.mark.parametrize("rate", [None, 0.02])
@pytest.mark.parametrize("outlier_at", [30, 200])
def test_an_outlier_costs_at_most_ten_steps(rate, outlier_at):
    tx, steps = ncg.kronecker_adam(rate), outlier_at + 40
    plain, _, _ = regression_run(tx, steps, -1, 1e4)
    hit, iterate, info = regression_run(tx, steps, outlier_at, 1e4)
    after = np.arange(outlier_at + 11, steps)
    assert np.all(hit[after] <= 1.05 * plain[after - 10])
    assert np.all(iterate[after] < 2 * iterate[outlier_at - 1] + 0.01)
    codes = info.status
    assert codes[outlier_at] == ncg.Status.CLIPPED_GRADIENT
    assert np.sum(codes == ncg.Status.CLIPPED_GRADIENT) < 4
    assert info.clipping[outlier_at] < 1e-2
    assert np.all(info.clipping[codes == ncg.Status.NOT_EVALUATED] == 1)


@pytest.mark.parametrize("rate", [None, 0.02])
def test_a_first_batch_that_is_an_outlier_costs_at_most_ten_steps(rate):
    tx, steps = ncg.kronecker_adam(rate), 300
    plain, _, _ = regression_run(tx, steps, -1, 1e4)
    hit, _, info = regression_run(tx, steps, 0, 1e4)
    after = np.arange(11, steps)
    assert np.all(hit[after] <= 1.05 * plain[after - 10])
    assert info.gradient_norm[0] > 100 * info.gradient_norm[1]
    # The usual norm is that of the second batch.
    assert info.usual_norm[2] == pytest.approx(info.gradient_norm[1])
    assert not np.any(info.status[:50] == ncg.Status.CLIPPED_GRADIENT)


def test_nothing_of_a_first_outlier_is_left_in_the_moments():
    tx, params = ncg.kronecker_adam(0.01), {"w": jnp.ones((3, 2)), "b": jnp.ones(2)}
    usual = jax.tree.map(
        lambda x: jnp.cos(jnp.arange(x.size) + 1.0).reshape(x.shape), params
    )
    huge = jax.tree.map(lambda x: 1e10 * x, usual)
    step, state = jax.jit(tx.update), tx.init(params)
    plain = step(usual, state, params)[1]
    after = step(usual, step(huge, state, params)[1], params)[1]
    # The eigenbases may differ, but not these sums.
    for x, y in zip(
        *map(jax.tree.leaves, (after.moments.square, plain.moments.square)), strict=True
    ):
        np.testing.assert_allclose(jnp.sum(x), jnp.sum(y), rtol=1e-4)
    np.testing.assert_allclose(after.usual_norm, plain.usual_norm, rtol=1e-6)


# After 0 and 8 steps the bases are due.
@pytest.mark.parametrize("steps", [0, 7, 8])
@pytest.mark.parametrize("where", ["gradient", "loss"])
def test_a_batch_that_is_not_finite_changes_nothing(where, steps):
    tx = ncg.kronecker_adam()
    path, state = run(tx, steps)
    params = [normal(0), *path][-1]
    grads = jax.grad(batch_loss)(params, 8)
    value = batch_loss(params, 8)
    if where == "gradient":
        grads["w"] = grads["w"].at[1, 2].set(jnp.inf)
    else:
        value = jnp.nan
    updates, after = jax.jit(tx.update)(grads, state, params, value=value)
    assert all(np.all(u == 0) for u in jax.tree.leaves(updates))
    info = ncg.get_info(after)
    assert info.status == ncg.Status.REJECTED_NON_FINITE
    assert info.learning_rate == 0
    assert after.count == steps + 1 and after.steps == steps
    kept = after._replace(count=state.count, info=state.info)
    assert_close(kept, state, rtol=0, atol=0)
    # The next step is the one that would have been taken without the batch.
    step = make_step(tx)
    results = [step(params, s, 9)[0] for s in (state, after)]
    assert_close(results[0], results[1], rtol=0, atol=0)


def test_a_rejected_batch_after_an_outlier_changes_nothing():
    # A usual gradient would begin again, without the moments of the outlier.
    tx, (params, usual) = ncg.kronecker_adam(), (normal(0), normal(1))
    outlier = jax.tree.map(lambda g: 1e4 * g, usual)
    _, state = jax.jit(tx.update)(outlier, tx.init(params), params)
    _, after = jax.jit(tx.update)(usual, state, params, value=jnp.nan)
    kept = after._replace(count=state.count, info=state.info)
    assert_close(kept, state, rtol=0, atol=0)


def test_zero_gradients_have_their_own_status():
    tx, params = ncg.kronecker_adam(0.1), normal(0)
    zero = jax.tree.map(jnp.zeros_like, params)
    state = tx.init(params)
    for _ in range(2):
        updates, state = tx.update(zero, state, params)
        assert all(np.all(u == 0) for u in jax.tree.leaves(updates))
    assert ncg.get_info(state).status == ncg.Status.ZERO_GRADIENT


@pytest.mark.parametrize(
    ("level", "norm", "steps", "expected"),
    [
        (0.01, 0.5, 20, (0.06**2, 0.012)),
        (0.0, 2.0, 3, (1.0, 0.5)),  # after gradients of zero
    ],
)
def test_the_factor_and_the_usual_norm(level, norm, steps, expected):
    found = clipped(*map(jnp.asarray, (level, norm, steps)))
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_a_lasting_rise_of_the_norm_is_followed():
    level = jnp.array(1.0)
    for steps in range(1, 60):
        factor, level = clipped(level, jnp.array(100.0), jnp.array(steps))
    assert factor == 1
    np.testing.assert_allclose(level, 100, rtol=0.1)


# Parameters of all kinds


@pytest.mark.parametrize("factor", [1e-8, 1e8])
def test_the_scale_of_the_loss_does_not_matter(factor):
    tx = ncg.kronecker_adam()
    scaled = make_step(tx, lambda params, seed: factor * batch_loss(params, seed))
    assert_close(run(tx, 15, step=scaled)[0][-1], run(tx, 15)[0][-1], rtol=1e-6)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "complex64"])
def test_dtypes(dtype):
    shapes = {"w": (4, 3), "v": (3,)}
    params = normal(0, shapes, dtype)

    def loss(params, seed):
        noise = normal(seed, shapes, dtype)
        away = jax.tree.map(lambda p, g: p - 1 + 0.1 * g, params, noise)
        return sum(jnp.sum(jnp.abs(x) ** 2) for x in jax.tree.leaves(away)).astype(
            "float32"
        )

    tx = ncg.kronecker_adam(0.1)

    @jax.jit
    def step(params, state, seed):
        grads = jax.tree.map(jnp.conj, jax.grad(loss)(params, seed))
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), updates, state

    state = tx.init(params)
    kinds = jax.tree.map(jax.typeof, state)
    now = params
    for seed in range(1, 80):
        now, updates, state = step(now, state, seed)
    assert jax.tree.map(jax.typeof, state) == kinds
    assert {x.dtype for x in jax.tree.leaves(updates)} == {jnp.dtype(dtype)}
    average = ncg.averaged_params(state, now)
    assert {x.dtype for x in jax.tree.leaves(average)} == {jnp.dtype(dtype)}
    assert loss(average, 0) < 0.05 * loss(params, 0)


def test_a_complex_leaf_with_real_numbers_makes_the_steps_of_a_real_one():
    tx, params = ncg.kronecker_adam(), normal(0)
    as_complex = jax.tree.map(lambda x: x.astype(complex), params)
    states = [tx.init(params), tx.init(as_complex)]
    for seed in range(1, 12):
        grads = jax.grad(batch_loss)(params, seed)
        updates, states[0] = tx.update(grads, states[0], params)
        others, states[1] = tx.update(
            jax.tree.map(lambda x: x.astype(complex), grads), states[1], as_complex
        )
        assert_close(others, updates)
        params = optax.apply_updates(params, updates)
        as_complex = optax.apply_updates(as_complex, others)


def test_unrotated_leaves_are_those_of_adam():
    """With one step per average, moments of vectors are Adam's, bias corrected."""
    vectors = {"v": (3,), "s": ()}
    tx, params = ncg.kronecker_adam(optax.constant_schedule(0.1)), normal(0, vectors)
    updates, _ = tx.update(normal(1, vectors), tx.init(params), params)
    jax.tree.map(
        lambda u, g: np.testing.assert_allclose(u, -0.1 * np.sign(g), rtol=1e-5),
        updates,
        normal(1, vectors),
    )


def test_rounding_errors_make_no_steps():
    """All of the gradient is along one direction: the others are rounding errors."""
    gradient = jnp.outer(jnp.arange(1.0, 41), jnp.ones(30)).astype("float32")
    tx, w = ncg.kronecker_adam(optax.constant_schedule(1.0)), jnp.zeros_like(gradient)
    update, _ = tx.update(gradient, tx.init(w), w)
    expected = -gradient / jnp.linalg.norm(gradient)
    np.testing.assert_allclose(jnp.vdot(update, expected), 1, rtol=0.01)
    assert jnp.linalg.norm(update - expected) < 1


def test_long_sides_have_no_basis():
    state = ncg.kronecker_adam(bases=ncg.minibatch.eigenbases(3)).init(normal(0))
    grams = {k: x.shape for k, x in state.bases.left.gram.items()}
    assert grams == {"w": (), "k": (), "v": (), "s": (), "empty": ()}
    assert state.bases.right.basis["w"].shape == (3, 3)


@pytest.mark.parametrize("block_size", [None, 2])
def test_mapped_optimizers_make_their_own_steps(block_size):
    tx = ncg.kronecker_adam(bases=ncg.minibatch.eigenbases(block_size=block_size))
    step = make_step(tx)
    starts = [normal(0), normal(9)]
    together = jax.tree.map(lambda *x: jnp.stack(x), *starts)
    states = jax.vmap(tx.init)(together)
    for seed in range(1, 14):
        together, states = jax.vmap(step, (0, 0, None))(together, states, seed)
    average = jax.vmap(ncg.averaged_params)(states, together)
    for i, params in enumerate(starts):
        path, state = run(tx, 13, params, step)
        assert_close(jax.tree.map(lambda x, i=i: x[i], together), path[-1], rtol=1e-7)
        alone = ncg.averaged_params(state, path[-1])
        assert_close(jax.tree.map(lambda x, i=i: x[i], average), alone, rtol=1e-7)


# Subsets of the leaves

MASK = {"w": True, "k": False, "v": True, "s": False, "empty": False}


def masked(tx):
    frozen = {k: not m for k, m in MASK.items()}
    return optax.chain(
        optax.masked(tx, MASK), optax.masked(optax.set_to_zero(), frozen)
    )


@pytest.mark.parametrize(
    "tx",
    [
        ncg.kronecker_adam(mask=MASK),
        masked(ncg.kronecker_adam()),
        optax.partition({True: ncg.kronecker_adam(), False: optax.set_to_zero()}, MASK),
    ],
    ids=["mask", "masked", "partition"],
)
def test_masks(tx):
    path, state = run(tx, 6)
    params, start = path[-1], normal(0)
    small = {k: x for k, x in start.items() if MASK[k]}
    alone, alone_state = run(
        ncg.kronecker_adam(),
        6,
        small,
        make_step(ncg.kronecker_adam(), lambda p, seed: batch_loss(start | p, seed)),
    )
    average = ncg.averaged_params(state, params)
    expected = ncg.averaged_params(alone_state, alone[-1])
    for name in start:
        wanted = alone[-1][name] if MASK[name] else start[name]
        np.testing.assert_allclose(params[name], wanted, rtol=1e-9)
        if MASK[name]:
            np.testing.assert_allclose(average[name], expected[name], rtol=1e-9)
        else:
            assert average[name] is params[name]


# Curvature products

LOSS = ncg.CompositeLoss(
    lambda p, x: jnp.tanh(x @ p["w"]) @ p["v"],
    lambda outputs, y: jnp.mean((outputs - y) ** 2),
)


def test_bases_of_curvature_products():
    """The Gram matrix after one step is that of the gradient and of one product."""
    params = normal(0, {"w": (4, 3), "v": (3,)})
    x = normal(1, {"x": (160, 4)})["x"]
    data = {"x": x, "y": jnp.sin(x[:, 0])}
    tx = ncg.kronecker_adam(curvature=ncg.gauss_newton())
    grads = jax.grad(LOSS)(params, **data)
    _, state = jax.jit(lambda g, s: tx.update(g, s, params, value_fn=LOSS, **data))(
        grads, tx.init(params)
    )
    info = ncg.get_info(state)
    assert info.products == 1
    assert 1.2 < info.gradient_equivalents < 1.4
    few = {name: x[:32] for name, x in data.items()}  # no less than 32 examples
    _, state_of_few = tx.update(grads, tx.init(params), params, value_fn=LOSS, **few)
    cost = ncg.gauss_newton().cost
    np.testing.assert_allclose(
        ncg.get_info(state_of_few).gradient_equivalents, 1 + cost, rtol=1e-6
    )
    g = grads["w"] / jnp.linalg.norm(grads["w"])
    rest = state.bases.left.gram["w"] - g @ g.T
    assert np.linalg.matrix_rank(rest, tol=1e-9) > 1
    np.testing.assert_allclose(jnp.trace(rest), 1, rtol=1e-9)
    # It is in the range of the curvature of the sample, and symmetric.
    np.testing.assert_allclose(rest, rest.T, atol=1e-12)


def test_curvature_products_need_the_loss():
    tx, params = ncg.kronecker_adam(curvature=ncg.gauss_newton()), normal(0)
    with pytest.raises(ValueError, match="kronecker_adam needs value_fn"):
        tx.update(params, tx.init(params), params)


# Wrong uses


@pytest.mark.parametrize(
    ("settings", "error", "sentence"),
    [
        ({"learning_rate": "fast"}, TypeError, "learning_rate must be a number"),
        ({"learning_rate": -1.0}, ValueError, r"learning_rate .* \[0, inf\)"),
        ({"curvature": ncg.cg()}, TypeError, "curvature must be a Curvature"),
        ({"bases": 256}, TypeError, "bases must be an eigenbases, made by minib"),
        ({"seed": 1.5}, TypeError, "seed must be an integer"),
        ({"seed": -(2**31) - 1}, ValueError, "seed must be an integer of at least"),
        ({"axis_name": 3}, TypeError, "axis_name must be the name"),
    ],
)
def test_settings(settings, error, sentence):
    with pytest.raises(error, match=sentence):
        ncg.kronecker_adam(**settings)


@pytest.mark.parametrize(("name", "least"), [("max_size", 1), ("block_size", 2)])
def test_the_longest_side_is_a_number(name, least):
    sentence = f"{name} must be an integer of at least {least}"
    with pytest.raises(ValueError, match=sentence):
        ncg.minibatch.eigenbases(**{name: least - 1})
    with pytest.raises(TypeError, match=f"{name} must be an integer"):
        ncg.minibatch.eigenbases(**{name: 2.5})


def test_arguments_of_update():
    tx, params = ncg.kronecker_adam(), normal(0)
    state = tx.init(params)
    with pytest.raises(ValueError, match="kronecker_adam needs params"):
        tx.update(params, state)
    with pytest.raises(ValueError, match="updates must have the structure of params"):
        tx.update({"w": params["w"]}, state, params)
    with pytest.raises(TypeError, match="must be the KroneckerAdamState .* tuple of"):
        tx.update(params, optax.adam(0.1).init(params), params)
    with pytest.raises(ValueError, match=r"state\.distance does not fit"):
        tx.update(params, ncg.kronecker_adam(0.1).init(params), params)
    with pytest.raises(TypeError, match="floating-point or complex, got dtype int32"):
        tx.init({"w": jnp.ones(2, jnp.int32)})


def float32_run(gradients):
    """Statuses and updates for these multiples of a vector, in float32."""
    tx, params = ncg.kronecker_adam(0.1), jnp.ones(3, jnp.float32)
    step, state, found = jax.jit(tx.update), tx.init(params), []
    for scale in gradients:
        updates, state = step(jnp.full(3, scale, jnp.float32), state, params)
        found.append((ncg.get_info(state), updates))
    return found


def test_one_exploding_batch_leaves_the_usual_norm():
    found = float32_run([1, 1, 1, 1e20, 1, 1, 100])
    statuses = [ncg.Status(int(info.status)).name for info, _ in found]
    assert statuses[3] == statuses[6] == "CLIPPED_GRADIENT"
    for info, updates in found:
        assert np.isfinite(info.usual_norm) and np.abs(updates).max() < 1


def test_gradients_whose_squares_overflow_are_rejected():
    for info, updates in float32_run([1e20, 1e20, 1e20]):
        assert info.status == ncg.Status.REJECTED_NON_FINITE
        np.testing.assert_array_equal(updates, 0)


def test_tiny_gradients_are_not_zero():
    for info, _ in float32_run([1e-24, 1e-24]):
        assert info.status != ncg.Status.ZERO_GRADIENT
        np.testing.assert_allclose(info.gradient_norm, 1e-24 * np.sqrt(3), rtol=1e-5)


def test_the_value_has_to_be_a_number():
    tx = ncg.kronecker_adam()
    with pytest.raises(TypeError, match=r"value must be .* shape \(\)"):
        tx.update(jnp.ones(3), tx.init(jnp.ones(3)), jnp.ones(3), value=jnp.ones(4))


def test_a_learning_rate_that_overflows_makes_no_step():
    tx, w = ncg.kronecker_adam(), jnp.ones(2, jnp.float32)
    state = tx.init(w)
    step = jax.jit(tx.update)
    for _ in range(150):  # unbounded below: the distance grows for ever
        updates, state = step(-2 * w, state, w)
        w = optax.apply_updates(w, updates)
    assert np.isfinite(w).all()


@pytest.mark.slow  # the default tests compile without most optimizations
@pytest.mark.parametrize("curvature", [None, ncg.gauss_newton()])
def test_what_the_bases_need_is_computed_in_the_loop_alone(curvature):
    """XLA moves what does not depend on a loop out of it, to every step."""
    tx = ncg.kronecker_adam(curvature=curvature)
    params = {"w": jnp.ones((4, 3)), "v": jnp.ones((3, 2))}
    loss = ncg.CompositeLoss(
        lambda p, x: jnp.tanh(x @ p["w"]) @ p["v"], lambda z: jnp.mean(z**2)
    ).bind(x=jnp.ones((64, 4)))

    def update(grads, state):
        return tx.update(grads, state, params, value_fn=loss)

    program = jax.jit(update).lower(params, tx.init(params)).compile().as_text()
    # Outside of loops: the computation of the entry, and the fusions that it calls.
    entry = program[program.index("\nENTRY") :]
    bodies = re.split(r"\n\n", program)
    names = re.findall(r"calls=(%[\w.-]+)", entry)
    outside = entry + "".join(b for b in bodies if b.split(" ")[0] in names)
    # Only the rotations: of a gradient and of a step, from two sides, of two leaves.
    assert len(re.findall(r" dot\(", outside)) == 8
