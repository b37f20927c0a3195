"""make_train_step on four devices, against the plain loop on one."""

import functools
import logging

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from mappings import (
    AXIS,
    DEVICES,
    largest_difference,
    make_loss,
    mean_squares,
    mesh,
    model_fn,
    place,
    problem,
)

import ncg_optax as ncg
from ncg_optax import parallel

STEPS = 4
OPTIMIZERS = {
    "newton_cg": lambda: ncg.newton_cg(solver=ncg.cg(maxiter=8, warm_start=0.9)),
    "hessian_free": ncg.hessian_free,
    "residual_space": lambda: ncg.newton_cg(
        curvature=ncg.gauss_newton(), solver=ncg.residual_space()
    ),
    "switch_after": lambda: ncg.switch_after(2, optax.sgd(0.1), ncg.newton_cg()),
    "clipped": lambda: optax.chain(
        optax.clip_by_global_norm(0.5), ncg.newton_cg(curvature=ncg.gauss_newton())
    ),
    "adam": lambda: optax.adam(1e-2),
}


def one_device():
    return jax.make_mesh((1,), (AXIS,), (AxisType.Auto,), devices=jax.devices()[:1])


def explicit():
    return jax.make_mesh((DEVICES,), (AXIS,), (AxisType.Explicit,))


MESHES = {
    "one device": one_device,
    "all devices": lambda: None,
    "explicit axes": explicit,
    "two axes": lambda: mesh((2, 2), (AXIS, "model")),
}


def train(step, tx, params, batch, steps=STEPS, **extra):
    """The parameters after each step, the last state and metrics."""
    state, trajectory = tx.init(params), []
    for _ in range(steps):
        params, state, metrics = step(params, state, batch, **extra)
        trajectory.append(jax.device_get(params))
    return trajectory, state, metrics


def small_batch(dtype=jnp.float64):
    params, x, y = jax.tree.map(lambda a: a.astype(dtype), problem())
    return params, {"x": x, "y": y}


@functools.cache
def plain_loop(optimizer):
    """The parameters after each step of the loop that everybody writes, one device."""
    tx, loss = optax.with_extra_args_support(OPTIMIZERS[optimizer]()), make_loss()
    params, batch = small_batch()

    @jax.jit
    def step(params, state):
        value, grads = jax.value_and_grad(loss)(params, **batch)
        updates, state = tx.update(
            grads, state, params, value=value, value_fn=loss, **batch
        )
        return optax.apply_updates(params, updates), state

    state, trajectory = tx.init(params), []
    for _ in range(STEPS):
        params, state = step(params, state)
        trajectory.append(jax.device_get(params))
    return trajectory


@pytest.mark.parametrize(
    "optimizer, mesh_name",
    [("newton_cg", name) for name in MESHES]
    + [(name, "all devices") for name in OPTIMIZERS if name != "newton_cg"],
)
def test_equals_the_loop_on_one_device(optimizer, mesh_name):
    tx = OPTIMIZERS[optimizer]()
    step = ncg.make_train_step(make_loss(), tx, MESHES[mesh_name]())
    trajectory, _, metrics = train(step, tx, *small_batch())
    expected = plain_loop(optimizer)
    # Eigendecompositions of nearly singular factors amplify rounding.
    factorised = optimizer in ("hessian_free", "residual_space")
    tolerance = 1e-10 if factorised else 1e-12
    assert largest_difference(trajectory, expected) < tolerance
    assert largest_difference(expected[0], expected[-1]) > 1e-3
    before = make_loss()(expected[-2], **small_batch()[1])
    assert abs(metrics.loss - before) < 1e-12
    assert (metrics.info is None) == (optimizer == "adam")


def test_float32():
    tx = ncg.newton_cg(curvature=ncg.gauss_newton(), damping=1e-2)
    params, batch = small_batch(jnp.float32)
    runs = [
        train(ncg.make_train_step(make_loss(), tx, mesh), tx, params, batch)[0]
        for mesh in (one_device(), None)
    ]
    assert largest_difference(*runs) < 1e-5
    assert all(x.dtype == np.float32 for x in jax.tree.leaves(runs))


def test_an_average_by_the_user_does_no_harm():
    tx = OPTIMIZERS["newton_cg"]()
    step = ncg.make_train_step(make_loss((AXIS,)), tx)
    trajectory, _, _ = train(step, tx, *small_batch())
    assert largest_difference(trajectory, plain_loop("newton_cg")) < 1e-12


def test_an_optimizer_that_names_the_axis_does_the_same():
    tx = ncg.newton_cg(solver=ncg.cg(maxiter=8, warm_start=0.9), axis_name=AXIS)
    trajectory, _, _ = train(ncg.make_train_step(make_loss(), tx), tx, *small_batch())
    assert largest_difference(trajectory, plain_loop("newton_cg")) < 1e-12


def test_replicas_stay_bit_identical():
    tx = ncg.hessian_free()
    step = ncg.make_train_step(make_loss(), tx)
    params, batch = small_batch(jnp.float32)
    state = tx.init(params)
    for _ in range(200):
        params, state, metrics = step(params, state, batch)
    assert metrics.loss < 0.1 * make_loss()(problem()[0], **batch)
    for leaf in jax.tree.leaves((params, state, metrics)):
        replicas = [np.asarray(shard.data) for shard in leaf.addressable_shards]
        assert len(replicas) == DEVICES
        assert len({replica.tobytes() for replica in replicas}) == 1


def test_the_step_is_compiled_once(caplog):
    caplog.set_level(logging.INFO, "ncg_optax")
    tx = ncg.newton_cg()
    step = ncg.make_train_step(make_loss(), tx)
    train(step, tx, *small_batch())
    compilations = [r for r in caplog.records if r.name == "ncg_optax"]
    assert len(compilations) == 2  # one, with a message before and after it


def test_steps_inside_a_scan():
    tx = OPTIMIZERS["newton_cg"]()
    step = ncg.make_train_step(make_loss(), tx)
    params, batch = small_batch()
    batch = parallel.shard_batch(batch, step.mesh)
    start = parallel.replicate((params, tx.init(params)), step.mesh)

    @jax.jit
    def run(carry, batch):
        def body(carry, _):
            params, state, metrics = step(*carry, batch)
            return (params, state), params

        return jax.lax.scan(body, carry, length=STEPS)[1]

    trajectory = run(start, batch)
    for i, expected in enumerate(plain_loop("newton_cg")):
        now = jax.tree.map(lambda a, i=i: a[i], trajectory)
        assert largest_difference(now, expected) < 1e-12


class TestHandingOver:
    """How batch, extra arguments and aux reach the loss, and come back."""

    tx = ncg.newton_cg(damping=1.0)

    def step(self, value_fn, batch, tx=None, has_aux=False, **extra):
        params, _ = small_batch()
        tx = tx or self.tx
        step = ncg.make_train_step(value_fn, tx, has_aux=has_aux)
        params, _, metrics = step(params, tx.init(params), batch, **extra)
        return params, metrics

    def expected(self):
        params, batch = small_batch()
        loss = make_loss().bind(**batch)
        updates, _ = self.tx.update(
            jax.grad(loss)(params), self.tx.init(params), params, value_fn=loss
        )
        return optax.apply_updates(params, updates)

    def test_a_tuple_goes_to_the_second_argument(self):
        _, batch = small_batch()
        loss = lambda p, data: mean_squares(model_fn(p, data[0]), data[1])  # noqa: E731
        params, _ = self.step(loss, (batch["x"], batch["y"]))
        assert largest_difference(params, self.expected()) < 1e-12

    def test_a_dictionary_is_spread_or_goes_there_too(self):
        _, batch = small_batch()
        whole = lambda p, batch: make_loss()(p, **batch)  # noqa: E731
        spread = lambda p, x, y=None: make_loss()(p, x=x, y=y)  # noqa: E731
        batch["unused"] = batch["y"]
        params, _ = self.step(whole, batch)
        assert largest_difference(params, self.expected()) < 1e-12
        with pytest.warns(UserWarning, match="no function takes the argument unused"):
            params, _ = self.step(spread, batch)
        assert largest_difference(params, self.expected()) < 1e-12

    def test_a_key_and_an_aux(self):
        """Dropout: each device draws its noise from the same key."""
        _, batch = small_batch()

        def loss(params, x, y, key, scale):
            keep = jax.random.bernoulli(key, 0.5, x.shape)
            aux = {
                "mean": jnp.mean(x, axis=0),
                "key": jax.random.fold_in(key, 1),
                "count": jnp.asarray(3),
            }
            return scale * mean_squares(model_fn(params, x * keep), y), aux

        key = jax.random.key(7)
        params, metrics = self.step(loss, batch, has_aux=True, key=key, scale=2.0)
        assert largest_difference(metrics.aux["mean"], batch["x"].mean(0)) < 1e-14
        assert metrics.aux["count"] == 3 and metrics.aux["count"].dtype == jnp.int64
        assert metrics.aux["key"] == jax.random.fold_in(key, 1)
        keep = jax.random.bernoulli(key, 0.5, (16 // DEVICES, 3))
        x = batch["x"] * jnp.tile(keep, (DEVICES, 1))
        value = 2 * mean_squares(model_fn(small_batch()[0], x), batch["y"])
        assert abs(metrics.loss - value) < 1e-12

    def test_what_is_no_batch_is_not_sampled(self):
        """An extra argument that is longer than the batch."""
        _, batch = small_batch()
        table = jnp.ones((5000, 3))
        loss = ncg.CompositeLoss(
            lambda p, x, table: model_fn(p, x * table[:4096].mean(0)), mean_squares
        )
        tx = ncg.newton_cg(
            curvature=ncg.gauss_newton(),
            damping=1.0,
            sampling=ncg.sampling(1 / 2, microbatch_size=2),
        )
        params, metrics = self.step(loss, batch, tx, table=table)
        expected, _ = self.step(make_loss(), batch, tx)
        assert largest_difference(params, expected) < 1e-12

    def test_aux_must_be_announced(self):
        _, batch = small_batch()
        with pytest.raises(TypeError, match="has_aux=True"):
            self.step(lambda p, x, y: (make_loss()(p, x=x, y=y), {"a": 1.0}), batch)


def test_the_sample_does_not_depend_on_the_number_of_devices():
    params, x, y = problem(4096)
    batch = {"x": x, "y": y}
    tx = ncg.newton_cg(
        curvature=ncg.gauss_newton(), damping=0.1, sampling=ncg.sampling(1 / 4)
    )
    runs = [
        train(ncg.make_train_step(make_loss(), tx, mesh), tx, params, batch, 2)
        for mesh in (one_device(), None)
    ]
    assert largest_difference(runs[0][0], runs[1][0]) < 1e-12
    for _, _, metrics in runs:
        info = metrics.info
        assert info.batch_products == pytest.approx(float(info.products) / 4)


def test_microbatches():
    params, batch = small_batch()
    loss = lambda p, x, y: (make_loss()(p, x=x, y=y), jnp.mean(x))  # noqa: E731
    runs = []
    for size in (None, 2):
        tx = ncg.newton_cg(damping=0.1, sampling=ncg.sampling(microbatch_size=size))
        step = ncg.make_train_step(loss, tx, has_aux=True, microbatch_size=size)
        runs.append(train(step, tx, params, batch))
    assert largest_difference(runs[0][0], runs[1][0]) < 1e-12
    assert runs[0][2].aux == pytest.approx(float(runs[1][2].aux), rel=1e-12)


def test_products_in_bfloat16():
    tx = ncg.newton_cg(curvature=ncg.gauss_newton(), damping=1e-2)
    params, batch = small_batch(jnp.float32)
    runs = {}
    for dtype in (None, jnp.bfloat16):
        step = ncg.make_train_step(make_loss(), tx, product_dtype=dtype)
        program = step.lower(params, tx.init(params), batch).as_text()
        assert ("bf16" in program) == (dtype is not None)
        runs[dtype] = train(step, tx, params, batch)
    assert 0 < largest_difference(runs[None][0], runs[jnp.bfloat16][0]) < 0.1
    for _, state, metrics in runs.values():
        assert metrics.loss < 0.5 * make_loss()(params, **batch)
        assert {x.dtype.name for x in jax.tree.leaves(state)} == {"float32", "int32"}


@pytest.mark.parametrize("dtype", [None, jnp.bfloat16])
def test_complex_parameters(dtype):
    """Their gradients are conjugated, as optax wants them."""
    x = jnp.exp(1j * jnp.arange(8.0))

    def loss(params, x):
        w, b = params["w"], params["b"]
        return jnp.mean(jnp.abs(x * w - 2j * x + b - 3) ** 2)

    params = {"w": jnp.array(1.0 + 1j), "b": jnp.zeros(())}
    for tx, steps in ((ncg.newton_cg(), 8), (optax.adam(0.1), 200)):
        step = ncg.make_train_step(loss, tx, product_dtype=dtype)
        trajectory, _, metrics = train(step, tx, params, {"x": x}, steps)
        assert metrics.loss < 1e-3
        assert abs(trajectory[-1]["w"] - 2j) < 0.05
        assert abs(trajectory[-1]["b"] - 3) < 0.05


class TestMemory:
    def test_what_the_caller_passed_first_is_not_taken(self):
        tx = ncg.newton_cg()
        step = ncg.make_train_step(make_loss(), tx)
        params, batch = small_batch()
        state = tx.init(params)
        once = step(params, state, batch)
        again = step(params, state, batch)
        assert largest_difference(once[0], again[0]) == 0

    @pytest.mark.parametrize("donate", [True, False])
    def test_donation(self, donate):
        tx = ncg.newton_cg()
        step = ncg.make_train_step(make_loss(), tx, donate=donate)
        params, batch = small_batch()
        params, state, _ = step(params, tx.init(params), batch)
        step(params, state, batch)
        # What a step does not read, as the measurements of the last, is left alone.
        leaves = jax.tree.leaves((params, state[0].damping, state[0].solver))
        assert {leaf.is_deleted() for leaf in leaves} == {donate}

    def test_the_first_state_can_be_donated_by_hand(self):
        """No two leaves of it share memory."""
        tx = ncg.hessian_free()
        state = tx.init(problem()[0])
        copied = jax.jit(lambda s: jax.tree.map(lambda x: x + 1, s), donate_argnums=0)
        jax.block_until_ready(copied(state))


class TestShardedParameters:
    """Over a second mesh axis, as for models that do not fit one device."""

    SPECS = {  # noqa: RUF012
        "w1": P(None, "model"),
        "b1": P("model"),
        "w2": P("model"),
        "b2": P(),
    }
    OPTIMIZERS = {  # noqa: RUF012
        "cg": {"solver": ncg.cg(maxiter=5, warm_start=0.5)},
        "minres": {"solver": ncg.minres(maxiter=5)},
        "jacobi": {"preconditioner": ncg.jacobi()},
        "nystrom": {"preconditioner": ncg.nystrom(3)},
        "kronecker": {"preconditioner": ncg.kronecker()},
    }

    @staticmethod
    def problem():
        keys = jax.random.split(jax.random.key(0), 3)
        params = {
            "w1": 0.3 * jax.random.normal(keys[0], (3, 16)),
            "b1": jnp.zeros(16),
            "w2": 0.3 * jax.random.normal(keys[1], (16, 2)),
            "b2": jnp.zeros(2),
        }
        x = jax.random.normal(keys[2], (64, 3))
        return params, {"x": x, "y": jnp.sin(2 * x[:, :2])}

    @staticmethod
    def loss():
        def model(p, x):
            return jnp.tanh(x @ p["w1"] + p["b1"]) @ p["w2"] + p["b2"]

        return ncg.CompositeLoss(model, mean_squares)

    def optimizer(self, name):
        return ncg.newton_cg(
            curvature=ncg.gauss_newton(), damping=1e-2, **self.OPTIMIZERS[name]
        )

    @pytest.mark.parametrize("name", OPTIMIZERS)
    def test_steps(self, name):
        tx = self.optimizer(name)
        params, batch = self.problem()
        devices = mesh((2, 2), (AXIS, "model"))

        def placed():
            start, _ = self.problem()
            return {k: place(v, devices, self.SPECS[k]) for k, v in start.items()}

        sharded = placed()
        step = ncg.make_train_step(self.loss(), tx, devices)
        program = step.lower(sharded, tx.init(sharded), batch).compile().as_text()
        # No device ever holds a whole leaf that is sharded, but for the factors of
        # kronecker, which mix the rows of a leaf.
        assert ("all-gather" in program) == (name == "kronecker")
        trajectory, state, _ = train(step, tx, sharded, batch)
        alone = ncg.make_train_step(self.loss(), tx, one_device())
        expected, _, _ = train(alone, tx, params, batch)
        # Eigendecompositions of nearly singular factors amplify rounding.
        tolerance = 1e-8 if name == "kronecker" else 1e-12
        assert largest_difference(trajectory, expected) < tolerance

        after, _, _ = step(placed(), tx.init(sharded), batch)
        for k, leaf in after.items():
            assert leaf.sharding.is_equivalent_to(
                NamedSharding(devices, self.SPECS[k]), leaf.ndim
            )
        # What the state holds for each sharded side is sharded as well.
        wide = [x for x in jax.tree.leaves(state) if x.ndim > 1 and 16 in x.shape]
        assert len(wide) > 0 or name == "minres"
        assert all(not x.sharding.is_fully_replicated for x in wide)


class TestErrors:
    def make(self, **settings):
        return ncg.make_train_step(make_loss(), ncg.newton_cg(), **settings)

    def test_unknown_axis(self):
        with pytest.raises(ValueError, match="'batch'; the mesh has 'data'"):
            self.make(mesh=mesh(), axis_name="batch")

    def test_no_mesh(self):
        with pytest.raises(TypeError, match="mesh must be a jax.sharding.Mesh, got 4"):
            self.make(mesh=4)

    def test_no_function(self):
        with pytest.raises(TypeError, match="value_fn must be a function"):
            ncg.make_train_step(3.0, ncg.newton_cg())

    @pytest.mark.parametrize("dtype", [jnp.int8, bool])
    def test_a_product_dtype_without_fractions(self, dtype):
        with pytest.raises(TypeError, match="product_dtype must be a floating-point"):
            self.make(product_dtype=dtype)

    def test_no_optimizer(self):
        with pytest.raises(TypeError, match="make_train_step: tx"):
            ncg.make_train_step(make_loss(), 0.1)

    @pytest.mark.parametrize("rows", [18, 2])
    def test_rows_that_cannot_be_shared(self, rows):
        params, _ = small_batch()
        batch = {"x": np.ones((rows, 3)), "y": np.ones((rows, 2))}
        sentence = rf"batch\['x'\] has {rows} rows, which the 4 devices of mesh axis "
        with pytest.raises(ValueError, match=sentence):
            self.make()(params, ncg.newton_cg().init(params), batch)

    @pytest.mark.parametrize("stray", [1.0, jax.random.key(0)], ids=["number", "key"])
    def test_a_batch_without_rows(self, stray):
        params, batch = small_batch()
        with pytest.raises(ValueError, match=r"batch\['z'\] has no axis over the ex"):
            self.make()(params, ncg.newton_cg().init(params), {**batch, "z": stray})


class TestSummedLoss:
    """Whoever sums over the devices instead of averaging is told so."""

    @pytest.mark.parametrize("summed", [True, False])
    def test_by_the_status(self, summed):
        tx = ncg.newton_cg(axis_name=AXIS)
        reduce = jax.lax.psum if summed else jax.lax.pmean
        params, batch = small_batch()

        def step(params, x, y):
            loss = make_loss().bind(x=x, y=y)
            value, grads = reduce(jax.value_and_grad(loss)(params), AXIS)
            updates, state = tx.update(
                grads, tx.init(params), params, value=value, grad=grads, value_fn=loss
            )
            return updates, ncg.get_info(state)

        updates, info = jax.pmap(step, axis_name=AXIS, in_axes=(None, 0, 0))(
            params, batch["x"].reshape(4, 4, 3), batch["y"].reshape(4, 4, 2)
        )
        told = np.all(info.status == ncg.Status.SUMMED_LOSS)
        assert told == summed
        stays = all(not np.any(u) for u in jax.tree.leaves(updates))
        assert stays == summed
        assert "averaged" in ncg.explain(ncg.Status.SUMMED_LOSS)


# optax's line searches call the loss that the step passes to the optimizer.


def gradient_of_value_fn():
    """An optimizer whose update is the gradient of ``value_fn``."""

    def update(grads, state, params, *, value_fn, **extra):
        del grads, extra
        value, grads = jax.value_and_grad(value_fn)(params)
        return grads, {"value": value, "norm": optax.tree.norm(grads)}

    zero = {"value": jnp.zeros(()), "norm": jnp.zeros(())}
    return optax.GradientTransformationExtraArgs(lambda params: zero, update)


def test_the_loss_that_the_optimizer_gets_has_the_gradient_of_the_whole_batch():
    params, batch = small_batch()
    step = ncg.make_train_step(make_loss(), gradient_of_value_fn(), donate=False)
    new, state, metrics = step(params, {"value": 0.0, "norm": 0.0}, batch)
    grads = jax.grad(make_loss())(params, **batch)
    expected = optax.apply_updates(params, grads)
    assert largest_difference(jax.device_get(new), expected) < 1e-12
    norms = [float(x.data) for x in state["norm"].addressable_shards]
    assert len(set(norms)) == 1  # on all devices
    np.testing.assert_allclose(state["value"], metrics.loss, rtol=1e-14)


@pytest.mark.parametrize("search", ["backtracking", "zoom"])
def test_a_line_search_of_optax_behind_the_bare_transformation(search):
    # With local gradients the devices leave the loop of the zoom search at different
    # trials, and wait for each other for ever.
    searches = {
        "backtracking": optax.scale_by_backtracking_linesearch(20),
        "zoom": optax.scale_by_zoom_linesearch(max_linesearch_steps=20),
    }
    tx = optax.chain(
        ncg.scale_by_newton_cg(damping=1e-3, linesearch=None),
        optax.scale(-1.0),
        searches[search],
    )
    params, batch = small_batch()
    runs = [
        train(ncg.make_train_step(make_loss(), tx, m), tx, params, batch, steps=5)
        for m in (one_device(), None)
    ]
    (alone, _, _), (shared, _, metrics) = runs
    assert largest_difference(alone[-1], shared[-1]) < 1e-8
    assert metrics.loss < make_loss()(params, **batch)
