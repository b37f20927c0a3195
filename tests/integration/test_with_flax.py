"""ncg_optax.flax: linen's TrainState, losses of nnx modules."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import ncg_optax as ncg

linen = pytest.importorskip("flax.linen")
nnx = pytest.importorskip("flax.nnx")
serialization = pytest.importorskip("flax.serialization")
flax_state = pytest.importorskip("flax.training.train_state")

from ncg_optax.flax import FunctionalLoss, TrainState, functional_loss  # noqa: E402

X = jax.random.normal(jax.random.key(0), (16, 3))
Y = jnp.sin(X @ jnp.array([1.0, -0.5, 0.3]))


def squares(outputs, y):
    return jnp.mean((outputs[:, 0] - y) ** 2)


def assert_same(a, b, rtol=0):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol), a, b)


class Network(linen.Module):
    normalize: bool = False

    @linen.compact
    def __call__(self, x):
        x = linen.Dense(4)(x)
        if self.normalize:
            x = linen.BatchNorm(use_running_average=False, momentum=0.5)(x)
        return linen.Dense(1)(jnp.tanh(x))


class WithStats(TrainState):
    batch_stats: dict


def recording(seen):
    """An optimizer that only notes its extra arguments."""

    def update(updates, state, params=None, **extra):
        seen.append(extra)
        return jax.tree.map(lambda g: -g, updates), state

    return optax.GradientTransformationExtraArgs(lambda params: (), update)


def small_state(tx, cls=TrainState, **fields):
    return cls.create(apply_fn=None, params={"w": jnp.ones(2)}, tx=tx, **fields)


GRADS = {"w": jnp.array([0.5, -0.5])}


class TestTrainState:
    @pytest.mark.parametrize("tx", [ncg.newton_cg(), ncg.hessian_free()])
    def test_trains(self, tx):
        network = Network()
        state = TrainState.create(
            apply_fn=network.apply,
            params=network.init(jax.random.key(1), X)["params"],
            tx=tx,
        )
        loss = ncg.CompositeLoss(
            lambda params, x: network.apply({"params": params}, x), squares
        )

        @jax.jit
        def step(state, x, y):
            value, grads = jax.value_and_grad(loss)(state.params, x=x, y=y)
            state = state.apply_gradients(
                grads=grads, value=value, value_fn=loss, x=x, y=y
            )
            return state, value

        values = []
        for _ in range(15):
            state, value = step(state, X, Y)
            values.append(value)
        assert values[-1] < 0.05 * values[0]
        assert state.step == 15
        assert ncg.get_info(state.opt_state).products > 0

    @pytest.mark.parametrize("composite", [False, True], ids=["plain", "composite"])
    def test_batch_norm(self, composite):
        network = Network(normalize=True)
        variables = network.init(jax.random.key(1), X)

        def model(params, batch_stats, x):
            outputs, new = network.apply(
                {"params": params, "batch_stats": batch_stats},
                x,
                mutable=["batch_stats"],
            )
            return outputs, new["batch_stats"]

        def plain(params, batch_stats, x, y):
            outputs, new_stats = model(params, batch_stats, x)
            return squares(outputs, y), new_stats

        loss, curvature = plain, ncg.hessian()
        if composite:
            loss = ncg.CompositeLoss(model, squares, has_aux=True)
            curvature = ncg.gauss_newton()
        state = WithStats.create(
            apply_fn=network.apply, tx=ncg.newton_cg(curvature=curvature), **variables
        )

        @jax.jit
        def step(state, x, y):
            (value, stats), grads = jax.value_and_grad(loss, has_aux=True)(
                state.params, batch_stats=state.batch_stats, x=x, y=y
            )
            state = state.apply_gradients(
                grads=grads, value_fn=loss, x=x, y=y, batch_stats=stats
            )
            return state, value

        values = []
        for _ in range(15):
            state, value = step(state, X, Y)
            values.append(value)
        assert values[-1] < 0.1 * values[0]
        changed = jax.tree.map(
            lambda a, b: np.any(a != b), state.batch_stats, variables["batch_stats"]
        )
        assert all(jax.tree.leaves(changed))

    def test_fields_are_replaced_and_the_rest_goes_to_the_optimizer(self):
        seen = []
        state = small_state(recording(seen), WithStats, batch_stats={"mean": 1.0})

        def value_fn(params, batch_stats, step, x):
            return jnp.sum(params["w"]) + batch_stats["mean"] + step + x

        new = state.apply_gradients(
            grads=GRADS, value=3.0, value_fn=value_fn, x=7.0, batch_stats={"mean": 2.0}
        )
        assert new.batch_stats == {"mean": 2.0}
        assert new.step == 1
        assert_same(new.params, {"w": jnp.array([0.5, 1.5])})
        # The optimizer's loss is that of before the step, without further arguments.
        (extra,) = seen
        assert {n: v for n, v in extra.items() if n != "value_fn"} == {
            "value": 3.0,
            "x": 7.0,
        }
        assert extra["value_fn"](state.params, x=7.0) == 2.0 + 1.0 + 0 + 7.0

    def test_what_is_bound_already_stays(self):
        seen = []
        state = small_state(recording(seen), WithStats, batch_stats=jnp.array(1.0))
        loss = ncg.CompositeLoss(
            lambda params, batch_stats, x: params["w"] * batch_stats * x,
            lambda outputs: jnp.sum(outputs),
        )
        for value_fn, expected in (
            (loss, 2.0),
            (loss.bind(batch_stats=jnp.array(5.0)), 10.0),
        ):
            state.apply_gradients(grads=GRADS, value_fn=value_fn)
            assert isinstance(seen[-1]["value_fn"], ncg.CompositeLoss)
            assert seen[-1]["value_fn"](state.params, x=1.0) == expected

    def test_statistics_are_no_examples(self):
        # As data, 8 statistics would be taken for the examples, of which there are 4.
        seen = []
        stats = jnp.ones(8)
        state = small_state(recording(seen), WithStats, batch_stats=stats)
        state.apply_gradients(
            grads=GRADS, value_fn=lambda p, batch_stats, x: 0.0, x=jnp.ones(4)
        )
        assert "batch_stats" not in seen[0]

    @pytest.mark.parametrize(
        "tx",
        [
            optax.adam(0.1),
            # One without extra arguments.
            optax.GradientTransformation(
                lambda params: (), lambda g, state, params=None: (g, state)
            ),
        ],
        ids=["adam", "no extra arguments"],
    )
    def test_other_optimizers_do_as_in_flax(self, tx):
        ours, theirs = small_state(tx), small_state(tx, flax_state.TrainState)
        for _ in range(2):
            ours = ours.apply_gradients(
                grads=GRADS, value=1.0, value_fn=lambda p: 1.0, x=X
            )
            theirs = theirs.apply_gradients(grads=GRADS)
        assert_same(ours.params, theirs.params)
        assert_same(ours.opt_state, theirs.opt_state)
        assert ours.tx is tx

    def test_optax_line_search(self):
        tx = optax.chain(
            optax.sgd(1.0),
            optax.scale_by_backtracking_linesearch(9, decrease_factor=0.3),
        )
        state = small_state(tx, WithStats, batch_stats=jnp.array(10.0))

        def loss(params, batch_stats, x):
            return jnp.sum(batch_stats * (params["w"] - x) ** 2)

        value, grads = jax.value_and_grad(loss)(
            state.params, state.batch_stats, X[0, 0]
        )
        new = jax.jit(
            lambda: (
                state.apply_gradients(
                    grads=grads, value=value, grad=grads, value_fn=loss, x=X[0, 0]
                ).params
            )
        )()
        assert loss(new, state.batch_stats, X[0, 0]) < 0.9 * value

    def test_the_optimizer_can_be_replaced(self):
        other = optax.adam(0.1)
        state = small_state(optax.sgd(1.0))
        new = state.apply_gradients(
            grads=GRADS, tx=other, value_fn=lambda params: jnp.sum(params["w"])
        )
        assert new.tx is other
        assert_same(new.params, {"w": jnp.array([0.5, 1.5])})  # by the first

    def test_overwrite_with_gradient(self):
        # Flax's scales of fp8 layers, which the optimizer must not see.
        name = "_overwrite_with_gradient"
        state = TrainState.create(
            apply_fn=None,
            params={"params": {"w": jnp.ones(2)}, name: {"scale": jnp.ones(1)}},
            tx=optax.sgd(1.0),
        )
        new = state.apply_gradients(
            grads={"params": GRADS, name: {"scale": jnp.full(1, 3.0)}}, value=1.0
        )
        assert new.params[name]["scale"] == 3.0
        assert_same(new.params["params"], {"w": jnp.array([0.5, 1.5])})

    def test_opens_what_flax_stored(self):
        theirs = small_state(optax.adam(0.1), flax_state.TrainState)
        theirs = theirs.apply_gradients(grads=GRADS)
        ours = serialization.from_bytes(
            small_state(optax.adam(0.1)), serialization.to_bytes(theirs)
        )
        assert ours.step == 1
        assert_same(ours.params, theirs.params)

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            ({"params": {}}, "WithStats.apply_gradients computes step, params.*params"),
            ({"step": 3}, "got step: if it is an argument of value_fn, rename it"),
            ({"batch_stat": 0.0}, "batch_stat,.* did you mean batch_stats"),
        ],
        ids=lambda x: next(iter(x)) if isinstance(x, dict) else "",
    )
    def test_errors(self, given, message):
        state = small_state(optax.sgd(1.0), WithStats, batch_stats=0.0)
        with pytest.raises(TypeError, match=message):
            state.apply_gradients(grads=GRADS, **given)

    def test_an_argument_of_the_loss_may_be_like_a_field(self):
        seen = []
        state = small_state(recording(seen), WithStats, batch_stats=0.0)
        state.apply_gradients(
            grads=GRADS, batch_stat=1.0, value_fn=lambda params, batch_stat: batch_stat
        )
        assert seen[0]["batch_stat"] == 1.0


class Net(nnx.Module):
    def __init__(self, rngs, extras=False):
        self.first = nnx.Linear(3, 4, rngs=rngs)
        self.norm = nnx.BatchNorm(4, rngs=rngs) if extras else None
        self.dropout = nnx.Dropout(0.2, rngs=rngs) if extras else None
        self.last = nnx.Linear(4, 1, rngs=rngs)

    def __call__(self, x):
        x = self.first(x)
        x = self.norm(x) if self.norm is not None else x
        x = jnp.tanh(x)
        x = self.dropout(x) if self.dropout is not None else x
        return self.last(x)


def plain_loss(model, x, y):
    return squares(model(x), y)


COMPOSITE = ncg.CompositeLoss(lambda model, x: model(x), squares)


def train_step(model, optimizer, loss):
    value_fn, params, _ = functional_loss(model, loss, wrt=optimizer.wrt)
    (value, rest), grads = jax.value_and_grad(value_fn, has_aux=True)(params, x=X, y=Y)
    optimizer.update(model, grads, value=value, grad=grads, value_fn=value_fn, x=X, y=Y)
    nnx.update(model, rest)
    return value


jitted_step = nnx.jit(train_step, static_argnums=2)


def draws(model):
    """How many masks the module's dropout has drawn."""
    return int(model.dropout.rngs.count[...])


class TestFunctionalLoss:
    @pytest.mark.parametrize(
        ("loss", "extras"),
        [(plain_loss, False), (plain_loss, True), (COMPOSITE, True)],
        ids=["plain", "norm and dropout", "composite, norm and dropout"],
    )
    def test_optimizer(self, loss, extras):
        model = Net(nnx.Rngs(0, dropout=1), extras)
        curvature = ncg.gauss_newton() if loss is COMPOSITE else ncg.hessian()
        tx = ncg.newton_cg(curvature=curvature)
        optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
        before = np.asarray(model.norm.mean[...]) if extras else None
        values = [float(jitted_step(model, optimizer, loss)) for _ in range(15)]
        # Dropout draws another mask at each step.
        assert values[-1] < (0.6 if extras else 0.05) * values[0]
        info = ncg.get_info(optimizer.opt_state)
        assert nnx.as_pure(info.products) > 0
        # The optimizer saw the loss that the gradient is of, noise included.
        np.testing.assert_allclose(nnx.as_pure(info.loss), values[-1], rtol=1e-5)
        if extras:
            assert np.all(np.asarray(model.norm.mean[...]) != before)
            assert draws(model) == 15

    def test_hessian_free_in_an_optimizer(self):
        model = Net(nnx.Rngs(0))
        optimizer = nnx.Optimizer(model, ncg.hessian_free(), wrt=nnx.Param)
        values = [float(jitted_step(model, optimizer, COMPOSITE)) for _ in range(5)]
        assert values[-1] < 0.5 * values[0]

    def test_eager_is_jitted(self):
        tx = ncg.newton_cg(damping=1.0, solver=ncg.cg(maxiter=2), linesearch=None)
        ends = []
        for step in (train_step, jitted_step):
            model = Net(nnx.Rngs(0, dropout=1), extras=True)
            step(model, nnx.Optimizer(model, tx, wrt=nnx.Param), plain_loss)
            assert draws(model) == 1
            ends.append(nnx.as_pure(nnx.state(model, nnx.Param, nnx.BatchStat)))
        start = Net(nnx.Rngs(0, dropout=1), extras=True)
        assert np.all(ends[0][0]["last"]["kernel"] != start.last.kernel[...])
        for eager, jitted in zip(*ends, strict=True):
            jax.tree.map(
                lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5),
                eager,
                jitted,
            )

    def test_a_subset_of_the_weights(self):
        model = Net(nnx.Rngs(0))
        wrt = nnx.All(nnx.Param, nnx.PathContains("last"))
        optimizer = nnx.Optimizer(model, ncg.newton_cg(), wrt=wrt)
        first = np.asarray(model.first.kernel[...])
        last = np.asarray(model.last.kernel[...])
        values = [float(jitted_step(model, optimizer, plain_loss)) for _ in range(2)]
        assert values[1] < values[0]
        assert np.all(np.asarray(model.first.kernel[...]) == first)
        assert np.all(np.asarray(model.last.kernel[...]) != last)

    def test_noise_is_fixed_until_the_module_is_updated(self):
        model = Net(nnx.Rngs(0, dropout=1), extras=True)
        value_fn, params, rest = functional_loss(model, plain_loss)
        value, new_rest = value_fn(params, x=X, y=Y)
        assert value == value_fn(params, x=X, y=Y)[0]
        assert value == value_fn(params, X, Y, rest=rest)[0]
        assert value != value_fn(params, x=X, y=Y, rest=new_rest)[0]
        assert draws(model) == 0
        nnx.update(model, new_rest)
        assert draws(model) == 1
        value_fn, params, _ = functional_loss(model, plain_loss)
        assert value != value_fn(params, x=X, y=Y)[0]

    def test_with_make_train_step(self):
        class Normalized(nnx.Module):
            def __init__(self, rngs):
                self.norm = nnx.BatchNorm(3, rngs=rngs)
                self.dropout = nnx.Dropout(0.1, rngs=rngs)
                self.last = nnx.Linear(3, 1, rngs=rngs)

            def __call__(self, x):
                return self.last(self.dropout(self.norm(x)))

        model = Normalized(nnx.Rngs(0, dropout=1))
        tx = ncg.newton_cg(curvature=ncg.gauss_newton(), damping=0.0)
        value_fn, params, rest = functional_loss(model, COMPOSITE)
        step = ncg.make_train_step(value_fn, tx, has_aux=True)
        state, values = tx.init(params), []
        for _ in range(3):
            params, state, metrics = step(params, state, {"x": X, "y": Y}, rest=rest)
            rest = metrics.aux
            values.append(metrics.loss)
        nnx.update(model, params, rest)
        # Three steps of a running mean that forgets one hundredth a step.
        mean = (1 - 0.99**3) * jnp.mean(X, axis=0)
        np.testing.assert_allclose(model.norm.mean[...], mean, rtol=1e-3)
        assert draws(model) == 3
        assert values[-1] < 0.3 * values[0]
        model.eval()
        assert model(X).shape == (16, 1)

    def test_optax_line_search(self):
        model = Net(nnx.Rngs(0, dropout=1), extras=True)
        tx = optax.chain(
            optax.sgd(10.0),
            optax.scale_by_backtracking_linesearch(9, decrease_factor=0.3),
        )
        optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)

        @nnx.jit
        def step(model, optimizer):
            value_fn, params, _ = functional_loss(model, plain_loss)
            loss = lambda p: value_fn(p, x=X, y=Y)[0]  # noqa: E731
            value, grads = jax.value_and_grad(loss)(params)
            optimizer.update(model, grads, value=value, grad=grads, value_fn=loss)
            return value, loss(nnx.state(model, nnx.Param))

        value, after = step(model, optimizer)
        assert after < value

    def test_aux_of_the_loss(self):
        model = Net(nnx.Rngs(0, dropout=1), extras=True)

        def with_aux(model, x):
            outputs = model(x)
            return outputs, {"largest": jnp.max(outputs)}

        def plain(model, x, y):
            outputs, aux = with_aux(model, x)
            return squares(outputs, y), aux

        composite = ncg.CompositeLoss(with_aux, squares, has_aux=True)
        results = []
        for loss in (plain, composite.bind(y=Y)):
            value_fn, params, rest = functional_loss(model, loss)
            batch = {"x": X} if loss is not plain else {"x": X, "y": Y}
            value, (new_rest, aux) = value_fn(params, **batch)
            assert jax.tree.structure(new_rest) == jax.tree.structure(rest)
            assert new_rest["dropout"]["rngs"]["count"] == 1
            results.append((value, aux["largest"]))
        assert results[0] == results[1]
        assert isinstance(value_fn, ncg.CompositeLoss)

    @pytest.mark.filterwarnings("ignore:.*sow.*:DeprecationWarning")
    def test_variables_created_during_a_call_are_dropped(self):
        class Sowing(nnx.Module):
            def __init__(self, rngs):
                self.last = nnx.Linear(3, 1, rngs=rngs)

            def __call__(self, x):
                self.sow(nnx.Intermediate, "inputs", x)
                return self.last(x)

        model = Sowing(nnx.Rngs(0))
        value_fn, params, rest = functional_loss(model, plain_loss)
        _, new_rest = value_fn(params, x=X, y=Y)
        assert jax.tree.structure(new_rest) == jax.tree.structure(rest)
        nnx.update(model, new_rest)

    def test_tied_weights_are_one_parameter(self):
        class Tied(nnx.Module):
            def __init__(self, rngs):
                self.first = nnx.Linear(3, 3, use_bias=False, rngs=rngs)
                self.second = nnx.Linear(3, 3, use_bias=False, rngs=rngs)
                self.second.kernel = self.first.kernel

            def __call__(self, x):
                return self.second(self.first(x))

        model = Tied(nnx.Rngs(0))
        value_fn, params, _ = functional_loss(model, plain_loss)
        (grad,) = jax.tree.leaves(jax.grad(lambda p: value_fn(p, X, Y)[0])(params))
        kernel = model.first.kernel[...]
        expected = jax.grad(lambda k: squares(X @ k @ k, Y))(kernel)
        np.testing.assert_allclose(grad, expected, rtol=1e-4, atol=1e-6)

    def test_what_it_returns(self):
        model = Net(nnx.Rngs(0))
        result = functional_loss(model, COMPOSITE)
        assert isinstance(result, FunctionalLoss)
        assert set(result.params) == {"first", "last"}
        assert dataclasses.replace(result.value_fn).has_aux
        assert not result.rest

    @pytest.mark.parametrize(
        ("arguments", "error", "message"),
        [
            ((jnp.ones(2), plain_loss), TypeError, r"model must be a flax.nnx.Module"),
            ((Net(nnx.Rngs(0)), 3.0), TypeError, r"loss must be a function.*got 3\.0"),
            (
                (Net(nnx.Rngs(0)), lambda model, rest: 0.0),
                TypeError,
                r"rest must not be the name of an argument.*\(model, rest\)",
            ),
            (
                (
                    Net(nnx.Rngs(0)),
                    ncg.CompositeLoss(lambda m, x: x, lambda outputs, params: 0.0),
                ),
                TypeError,
                r"params must not be the name of an argument",
            ),
        ],
        ids=["model", "loss", "rest", "params"],
    )
    def test_errors(self, arguments, error, message):
        with pytest.raises(error, match=message):
            functional_loss(*arguments)

    def test_a_filter_that_matches_nothing(self):
        with pytest.raises(ValueError, match="wrt must match a variable.*BatchStat"):
            functional_loss(Net(nnx.Rngs(0)), plain_loss, wrt=nnx.BatchStat)
