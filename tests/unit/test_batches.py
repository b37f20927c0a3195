"""Curvature on a part of the data, and microbatches."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import ncg_optax as ncg
from ncg_optax.curvature.sampling.every_kth import every_kth
from ncg_optax.curvature.sampling.microbatches import in_microbatches
from ncg_optax.losses.objective import as_objective


def composite(examples=8):
    x = jax.random.normal(jax.random.key(0), (examples, 3))
    y = jnp.sin(x[:, 0])
    model = lambda w, x: jnp.tanh(x @ w)  # noqa: E731
    loss = ncg.CompositeLoss(model, lambda z, y, scale: scale * jnp.mean((z - y) ** 2))
    return loss.bind(x=x, y=y, scale=jnp.array(2.0))


W = jnp.array([0.3, -0.2, 0.5])


def test_a_stride_takes_every_kth_example():
    objective = as_objective(composite(10), {})
    sample = every_kth(objective, W, 0.25, min_examples=1, offset=jnp.array(2))
    x = objective.data["x"]
    np.testing.assert_array_equal(sample.objective.data["x"], x[2:8:4])
    assert sample.share == 0.2  # the remainder waits for its turn
    assert sample.objective.data["scale"] == 2.0


@pytest.mark.parametrize(("examples", "piece"), [(10, None), (23, None), (23, 3)])
def test_every_example_has_its_turn(examples, piece):
    objective = as_objective(composite(examples), {})
    x = objective.data["x"]
    seen = set()
    for offset in range(60):
        sample = every_kth(objective, W, 0.25, 1, jnp.array(offset), piece)
        rows = sample.objective.data["x"][:, 0]
        seen |= set(map(float, rows))
        assert piece is None or len(rows) % piece == 0
    assert seen == set(map(float, x[:, 0]))


def test_a_sample_is_made_of_whole_microbatches():
    # A third of 32 is 10 examples, of which microbatches of 4 take 8.
    loss = composite(32)
    for grow_below in (None, 0.5):
        sampling = ncg.sampling(1 / 3, 4, min_examples=1, grow_below=grow_below)
        tx = ncg.newton_cg(
            curvature=ncg.gauss_newton(),
            preconditioner=ncg.kronecker(fraction=1 / 5),
            sampling=sampling,
        )
        updates, state = jax.jit(functools.partial(updates_of, tx, loss))()
        assert ncg.get_info(state).curvature_share == 8 / 32
        assert jnp.all(jnp.isfinite(updates))


@pytest.mark.parametrize("at_least", [6, 100])
def test_small_batches_are_not_split(at_least):
    objective = as_objective(composite(10), {})
    sample = every_kth(objective, W, 0.25, at_least, jnp.array(0))
    assert sample.objective is objective
    assert sample.share == 1.0


def test_a_closure_is_not_split():
    loss = composite()
    objective = as_objective(lambda w: loss(w), {})
    assert every_kth(objective, W, 0.25, 1, 0).objective is objective


def two_kinds_of_points(inside, border, broadcast=False):
    """A loss like that of a physics-informed network: one target for two inputs."""

    def model(w, points):
        return jnp.concatenate([jnp.tanh(x @ w) for x in points])

    def loss(z, y):
        return jnp.mean((z[:, None] - y) ** 2 if broadcast else (z - y) ** 2)

    keys = jax.random.split(jax.random.key(1), 2)
    points = [
        jax.random.normal(key, (n, 3))
        for key, n in zip(keys, (inside, border), strict=True)
    ]
    return ncg.CompositeLoss(model, loss).bind(
        points=points, y=jnp.ones(inside + border)
    )


@pytest.mark.parametrize("rows", [{"x": 4, "y": 1}, {"x": 4}])
def test_a_curvature_batch_of_several_lengths(rows):
    loss = composite()
    batch = {name: loss.data[name][:n] for name, n in rows.items()}
    with pytest.raises(ValueError, match="same number of rows in all arrays"):
        updates_of(ncg.newton_cg(), loss, curvature_batch=batch)


@pytest.mark.parametrize("broadcast", [False, True])
def test_examples_of_several_kinds_are_not_split(broadcast):
    # Cutting the target alone is an error, or worse: it broadcasts.
    objective = as_objective(two_kinds_of_points(12, 4, broadcast), {})
    assert every_kth(objective, W, 0.25, 1, 0).objective is objective


def test_the_preset_takes_examples_of_several_kinds():
    loss = two_kinds_of_points(2000, 100)
    _, state = jax.jit(lambda: updates_of(ncg.hessian_free(), loss))()
    info = ncg.get_info(state)
    assert info.batch_products == info.products
    assert info.actual_reduction > 0


def test_outputs_with_several_rows_an_example_are_split():
    x = jax.random.normal(jax.random.key(0), (8, 5, 3))
    loss = ncg.CompositeLoss(
        lambda w, x: jnp.tanh(x @ w).reshape(-1),
        lambda z, y: jnp.mean((z - y.reshape(-1)) ** 2),
    ).bind(x=x, y=jnp.zeros((8, 5)))
    sample = every_kth(as_objective(loss, {}), W, 0.25, 1, 0)
    assert sample.share == 0.25


def with_lookup(table, ids):
    return ncg.CompositeLoss(
        lambda w, table, ids: jnp.tanh(table[ids] @ w),
        lambda z, y: jnp.mean((z - y) ** 2),
    ).bind(table=table, ids=ids, y=jnp.ones(len(ids)))


def test_a_table_longer_than_the_batch_is_no_batch():
    table = jax.random.normal(jax.random.key(0), (32, 3))
    loss = with_lookup(table, jnp.arange(24, 32))
    objective = as_objective(loss, {})
    assert every_kth(objective, W, 0.25, 1, 0).objective is objective
    # Rows of a shorter table would be others, and the loss another number.
    tx = ncg.newton_cg(sampling=ncg.sampling(microbatch_size=8))
    with pytest.raises(ValueError, match="close over an array that is no data"):
        updates_of(tx, loss)


@pytest.mark.parametrize("size", [7, 8, 16])
def test_a_penalty_on_parameters_of_any_length(size):
    # Of the length of the batch, twice that, or another: they are no outputs.
    def model(w, x):
        return {"outputs": jnp.tanh(x @ w[:3]), "weights": w}

    def loss(z, y):
        return jnp.mean((z["outputs"] - y) ** 2) + 0.1 * jnp.sum(z["weights"] ** 2)

    w = jnp.linspace(-0.5, 0.5, size)
    x = jax.random.normal(jax.random.key(0), (8, 3))
    loss = ncg.CompositeLoss(model, loss).bind(x=x, y=x[:, 0])
    sample = every_kth(as_objective(loss, {}), w, 0.25, 1, 1)
    assert sample.share == 0.25
    whole = as_objective(loss, {})
    value = in_microbatches(whole, 2).value(w)
    np.testing.assert_allclose(value, whole.value(w), rtol=1e-6)


def test_long_outputs_are_not_broadcast_against_a_single_example():
    loss = ncg.CompositeLoss(
        lambda w, x: (jnp.tanh(x @ w), jnp.ones(8)),  # the target is in a closure
        lambda z: jnp.mean((z[0] - z[1]) ** 2),
    ).bind(x=jax.random.normal(jax.random.key(0), (8, 3)))
    objective = as_objective(loss, {})
    assert every_kth(objective, W, 1 / 8, 1, 0).objective is objective


def updates_of(tx, loss, **extra):
    grads = jax.grad(loss)(W)
    return tx.update(grads, tx.init(W), W, value_fn=loss, **extra)


def test_curvature_batch_replaces_the_data_of_the_curvature_alone():
    loss, few = composite(8), composite(4)
    tx = ncg.newton_cg(
        curvature=ncg.gauss_newton(),
        solver=ncg.cg(rtol=1e-6, forcing=None),
        damping=0.1,
        linesearch=None,
    )
    batch = {name: few.data[name] for name in ("x", "y")}
    updates, _ = updates_of(tx, loss, curvature_batch=batch)
    product = ncg.curvature.curvature_product(ncg.gauss_newton(), few, W)
    b = jax.vmap(product)(jnp.eye(3)) + 0.1 * jnp.eye(3)
    expected = -jnp.linalg.solve(b, jax.grad(loss)(W))
    np.testing.assert_allclose(updates, expected, rtol=1e-4)


@pytest.mark.parametrize(("examples", "at_least"), [(2048, 512), (64, 16)])
def test_a_fraction_costs_its_share_and_keeps_the_loss_of_the_batch(examples, at_least):
    loss = composite(examples)
    sampling = ncg.sampling(0.25, min_examples=at_least)
    tx = ncg.newton_cg(curvature=ncg.gauss_newton(), sampling=sampling)
    _, state = updates_of(tx, loss)
    info = ncg.get_info(state)
    np.testing.assert_allclose(info.loss, loss(W), rtol=1e-6)
    expected = 1 + 1.2 * info.products / 4 + (info.evaluations + 0.25) / 3
    np.testing.assert_allclose(info.gradient_equivalents, expected, rtol=1e-5)


def test_a_search_on_the_sample_sees_its_rise_added_to_the_loss_of_the_batch():
    loss = composite(2048)

    class FullStep(ncg.globalization.LineSearch):
        def __init__(self, on_sample):
            self.on_sample = on_sample

        def search(self, line):
            full = jnp.ones((), line.loss.dtype)
            loss_at = line.sample_loss_at if self.on_sample else line.loss_at
            share = line.sample_share if self.on_sample else 1.0
            return ncg.globalization.SearchResult(
                full, loss_at(full), jnp.array(1), jnp.array(True), share
            )

    infos = []
    for on_sample in (True, False):
        tx = ncg.newton_cg(
            curvature=ncg.gauss_newton(),
            sampling=ncg.sampling(0.25),
            linesearch=FullStep(on_sample),
        )
        updates, state = updates_of(tx, loss)
        infos.append(ncg.get_info(state))
    sample = ncg.CompositeLoss(loss.model, loss.loss).bind(
        **{k: v[::4] if v.shape[:1] == (2048,) else v for k, v in loss.data.items()}
    )
    end = W + updates
    expected = loss(W) + sample(end) - sample(W)
    np.testing.assert_allclose(infos[0].next_loss, expected, rtol=1e-5)
    np.testing.assert_allclose(infos[1].next_loss, loss(end), rtol=1e-5)
    assert abs(expected - loss(end)) > 1e-3 * loss(end)
    # One looks at a quarter of the examples. Both linearise that as well.
    spent = [float(info.batch_evaluations) for info in infos]
    np.testing.assert_allclose(spent, [0.25 + 0.25, 1 + 0.25])


def test_samples_rotate():
    loss = composite(2048)
    tx = ncg.newton_cg(curvature=ncg.gauss_newton(), sampling=ncg.sampling(0.25))
    grads, state = jax.grad(loss)(W), tx.init(W)
    first, new = tx.update(grads, state, W, value_fn=loss)
    state = (state[0]._replace(count=new[0].count), *state[1:])
    second, _ = tx.update(grads, state, W, value_fn=loss)
    assert jnp.any(first != second)


@pytest.mark.parametrize("curvature", [ncg.hessian(), ncg.gauss_newton()])
def test_microbatches_change_nothing(curvature):
    loss = composite(8)
    whole, _ = updates_of(ncg.newton_cg(curvature=curvature), loss)
    tx = ncg.newton_cg(curvature=curvature, sampling=ncg.sampling(microbatch_size=2))
    pieces, _ = jax.jit(lambda: updates_of(tx, loss))()
    np.testing.assert_allclose(pieces, whole, rtol=1e-4)


def test_microbatches_bound_the_memory():
    loss = composite(1 << 16)

    def temporary(size):
        tx = ncg.newton_cg(
            curvature=ncg.gauss_newton(), sampling=ncg.sampling(microbatch_size=size)
        )
        update = jax.jit(
            lambda grads, state, w, x, y: tx.update(
                grads, state, w, value_fn=loss, x=x, y=y
            )
        )
        data = loss.data["x"], loss.data["y"]
        compiled = update.lower(W, tx.init(W), W, *data).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert temporary(1 << 10) < temporary(None) / 4


def test_a_minibatch_loop_with_the_preset():
    loss = composite(64)
    tx = ncg.hessian_free()
    state, w = tx.init(W), W

    @jax.jit
    def step(w, state, x, y):
        grads = jax.grad(loss)(w, x=x, y=y)
        updates, state = tx.update(grads, state, w, value_fn=loss, x=x, y=y)
        return optax.apply_updates(w, updates), state

    x, y = loss.data["x"], loss.data["y"]
    for i in range(12):
        rows = slice(16 * (i % 4), 16 * (i % 4) + 16)
        w, state = step(w, state, x[rows], y[rows])
    assert loss(w) < 0.5 * loss(W)


@pytest.mark.parametrize(
    ("batch", "error", "match"),
    [
        ([1], TypeError, "must be a dict"),
        ({"z": W}, ValueError, "no data argument 'z'"),
        ({"x": jnp.ones((4, 5))}, ValueError, "'x' must have the structure"),
    ],
)
def test_bad_curvature_batches(batch, error, match):
    with pytest.raises(error, match=match):
        updates_of(ncg.newton_cg(), composite(), curvature_batch=batch)


@pytest.mark.parametrize("broadcast", [False, True])
def test_examples_of_several_kinds_are_no_microbatches(broadcast):
    tx = ncg.newton_cg(sampling=ncg.sampling(microbatch_size=4))
    with pytest.raises(ValueError, match="does not work on 4 of its 16 examples"):
        updates_of(tx, two_kinds_of_points(12, 4, broadcast))


def test_bad_sizes():
    three = ncg.newton_cg(sampling=ncg.sampling(microbatch_size=3))
    with pytest.raises(ValueError, match="must divide the number of examples"):
        updates_of(three, composite(8))
    loss = composite()
    with pytest.raises(ValueError, match="microbatch_size needs to see the data"):
        updates_of(three, lambda w: loss(w))
    with pytest.raises(ValueError, match="curvature_fraction"):
        ncg.sampling(curvature_fraction=0.0)
    with pytest.raises(ValueError, match="min_examples"):
        ncg.sampling(min_examples=0)


def test_min_examples_keeps_the_batch_whole():
    """A quarter of 64 examples is fewer than 48, and so is a half."""
    loss, costs = composite(64), {}
    for at_least in (16, 48):
        sampling = ncg.sampling(0.25, min_examples=at_least)
        tx = ncg.newton_cg(curvature=ncg.gauss_newton(), sampling=sampling)
        info = ncg.get_info(updates_of(tx, loss)[1])
        costs[at_least] = info.batch_products / info.products
    assert costs == {16: pytest.approx(0.25), 48: pytest.approx(1.0)}
