"""Recipes that the documentation gives: models of other libraries, chains, schedules.

What optax's wrappers do with our transforms is in tests/contract/test_wrappers.py, Flax
in test_with_flax.py.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optimistix
import pytest

import ncg_optax as ncg

X = jax.random.normal(jax.random.key(0), (16, 3))
Y = jnp.sin(X @ jnp.array([1.0, -0.5, 0.3]))
BATCH = {"x": X, "y": Y}


def squares(outputs, y):
    return jnp.mean((outputs - y) ** 2)


def hidden(params, x):
    return jnp.tanh(x @ params["body"]["w"] + params["body"]["b"])


def network(params, x):
    return hidden(params, x) @ params["head"]["w"] + params["head"]["b"]


def start():
    return {
        "body": {"w": jax.random.normal(jax.random.key(1), (3, 4)), "b": jnp.zeros(4)},
        "head": {"w": jnp.full(4, 0.1), "b": jnp.zeros(())},
    }


LOSS = ncg.CompositeLoss(network, squares)
GAUSS_NEWTON = ncg.newton_cg(curvature=ncg.gauss_newton())


def in_head(params):
    """The mask of the last layer, by path."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: path[0].key == "head", params
    )


def in_body(params):
    return jax.tree.map(lambda head: not head, in_head(params))


def make_step(tx, loss=LOSS, **batch):
    @jax.jit
    def step(params, state):
        value, grads = jax.value_and_grad(loss)(params, **batch)
        updates, state = tx.update(
            grads, state, params, value=value, grad=grads, value_fn=loss, **batch
        )
        return optax.apply_updates(params, updates), state, value

    return step


def run(tx, steps, params=None, loss=LOSS, **batch):
    """Parameters, state and losses before each step."""
    params = start() if params is None else params
    batch = batch or (BATCH if loss is LOSS else {})
    step, state, values = make_step(tx, loss, **batch), tx.init(params), []
    for _ in range(steps):
        params, state, value = step(params, state)
        values.append(float(value))
    return params, state, values


def assert_close(a, b, rtol=1e-4, atol=1e-6):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=atol), a, b
    )


class Layer(NamedTuple):
    w: jax.Array
    b: jax.Array


class TestModels:
    def test_a_pytree_of_everything(self):
        def model(params, x):
            for layer in params["layers"]:
                x = jnp.tanh(x @ layer.w + layer.b)
            return params["scale"][0] * jnp.sum(x, axis=1)

        keys = jax.random.split(jax.random.key(2), 2)
        params = {
            "layers": [
                Layer(jax.random.normal(keys[0], (3, 4)), jnp.zeros(4)),
                Layer(jax.random.normal(keys[1], (4, 2)), jnp.zeros(2)),
            ],
            "scale": (jnp.array(0.5), None),
        }
        after, _, values = run(
            GAUSS_NEWTON, 15, params, ncg.CompositeLoss(model, squares), **BATCH
        )
        assert values[-1] < 0.1 * values[0]
        assert jax.tree.structure(after) == jax.tree.structure(params)
        assert isinstance(after["layers"][0], Layer)

    def test_init_and_apply_with_state_and_a_key(self):
        """Haiku's transform_with_state: dropout and a running mean, by hand."""

        def init(rng, x):
            del x
            w = jax.random.normal(rng, (3, 4))
            params = {"linear": {"w": w}, "linear_1": {"w": jnp.full(4, 0.1)}}
            return params, {"batch_norm": {"mean": jnp.zeros(4)}}

        def apply(params, state, rng, x):
            x = x @ params["linear"]["w"]
            mean = jnp.mean(x, axis=0)
            keep = jax.random.bernoulli(rng, 0.9, x.shape)
            out = jnp.tanh(x - mean) * keep @ params["linear_1"]["w"]
            old = state["batch_norm"]["mean"]
            return out, {"batch_norm": {"mean": 0.9 * old + 0.1 * mean}}

        params, net_state = init(jax.random.key(3), X)
        tx = GAUSS_NEWTON

        @jax.jit
        def step(params, opt_state, net_state, rng):
            # Bound by hand: `state` is an argument of update, and neither is a part of
            # the batch. All evaluations of a step drop the same units.
            bound = ncg.CompositeLoss(
                functools.partial(apply, state=net_state, rng=rng), squares, True
            )
            (value, net_state), grads = jax.value_and_grad(bound, has_aux=True)(
                params, **BATCH
            )
            updates, opt_state = tx.update(
                grads, opt_state, params, value_fn=bound, **BATCH
            )
            params = optax.apply_updates(params, updates)
            return params, opt_state, net_state, value

        opt_state, values = tx.init(params), []
        for i in range(10):
            rng = jax.random.fold_in(jax.random.key(4), i)
            outputs, new_state = apply(params, net_state, rng, X)
            params, opt_state, net_state, seen = step(params, opt_state, net_state, rng)
            values.append(float(seen))
            np.testing.assert_allclose(seen, squares(outputs, Y), rtol=1e-5)
            np.testing.assert_allclose(ncg.get_info(opt_state).loss, seen, rtol=1e-5)
            assert_close(net_state, new_state)
        assert np.mean(values[-3:]) < 0.5 * values[0]

    def test_an_argument_called_state_is_explained(self):
        loss = ncg.CompositeLoss(lambda params, state, x: x @ params["w"], squares)
        with pytest.raises(TypeError, match="state: reserved by optax, rename"):
            loss({"w": jnp.ones(3)}, state={}, **BATCH)

    def test_none_leaves_by_hand(self):
        """Equinox's way: what is not trained is None in the tree that is."""
        model = {"w": jnp.full(3, 0.1), "b": jnp.zeros(()), "activation": jnp.tanh}
        params = {**model, "activation": None}

        def loss(params):
            return squares(model["activation"](X @ params["w"] + params["b"]), Y)

        tx = ncg.newton_cg(solver=ncg.cg(warm_start=0.5))
        after, _, values = run(tx, 10, params, loss)
        assert values[-1] < 0.2 * values[0]
        assert after["activation"] is None


class TestEquinox:
    @pytest.fixture
    def eqx(self):
        return pytest.importorskip("equinox")

    @staticmethod
    def mlp(eqx):
        return eqx.nn.MLP(3, "scalar", 4, 1, activation=jnp.tanh, key=jax.random.key(0))

    @staticmethod
    def composite(eqx, static):
        return ncg.CompositeLoss(
            lambda params, x: jax.vmap(eqx.combine(params, static))(x), squares
        )

    def test_partition_and_combine(self, eqx):
        params, static = eqx.partition(self.mlp(eqx), eqx.is_inexact_array)
        loss = self.composite(eqx, static)
        after, state, values = run(GAUSS_NEWTON, 10, params, loss, **BATCH)
        assert values[-1] < 0.2 * values[0]
        structure = functools.partial(jax.tree.structure, is_leaf=lambda x: x is None)
        assert structure(after) == structure(params)
        model = eqx.combine(after, static)
        np.testing.assert_allclose(
            squares(jax.vmap(model)(X), Y), ncg.get_info(state).next_loss, rtol=1e-4
        )

    def test_the_last_layer(self, eqx):
        model = self.mlp(eqx)
        frozen = jax.tree.map(lambda _: False, model)
        spec = eqx.tree_at(
            lambda m: (m.layers[-1].weight, m.layers[-1].bias), frozen, (True, True)
        )
        params, static = eqx.partition(model, spec)
        loss = self.composite(eqx, static)
        tx = ncg.newton_cg(curvature=ncg.gauss_newton(), damping=0.0)
        after, _, values = run(tx, 2, params, loss, **BATCH)
        trained = eqx.combine(after, static)
        assert values[1] < values[0]
        assert_close(trained.layers[0].weight, model.layers[0].weight, rtol=0, atol=0)
        assert len(jax.tree.leaves(after)) == 2


class TestOptimistix:
    def test_gauss_newton_is_explained(self):
        # OptaxMinimiser hands over a function of its own making.
        solver = optimistix.OptaxMinimiser(ncg.hessian_free(), rtol=1e-6, atol=1e-6)
        loss = LOSS.bind(**BATCH)
        with pytest.raises(TypeError, match="CompositeLoss"):
            optimistix.minimise(lambda p, _: loss(p), solver, start())


def least_squares(params):
    """The best last layer for the hidden units as they are."""
    features = jnp.column_stack([hidden(params, X), jnp.ones(len(X))])
    return jnp.linalg.lstsq(features, Y)[0]


class TestSubsets:
    EXACT = dict(
        curvature=ncg.gauss_newton(), damping=0.0, solver=ncg.cg(maxiter=20, rtol=1e-6)
    )

    def test_the_last_layer_of_a_network(self):
        params, _, _ = run(ncg.newton_cg(mask=in_head, **self.EXACT), 1)
        best = least_squares(start())
        np.testing.assert_allclose(params["head"]["w"], best[:4], rtol=1e-2)
        np.testing.assert_allclose(params["head"]["b"], best[4], rtol=1e-2)
        assert_close(params["body"], start()["body"], rtol=0, atol=0)

    def test_freezing_behind_changes_another_step(self):
        # optax.transforms.freeze zeroes updates of a system solved for all leaves: the
        # others do not know. mask= solves the right one.
        tx = optax.chain(
            ncg.newton_cg(**self.EXACT), optax.transforms.freeze(in_body(start()))
        )
        params, _, _ = run(tx, 1)
        assert_close(params["body"], start()["body"], rtol=0, atol=0)
        masked, _, _ = run(ncg.newton_cg(mask=in_head, **self.EXACT), 1)
        assert LOSS(masked, **BATCH) < LOSS(params, **BATCH)

    def test_newton_for_the_head_and_adam_for_the_body(self):
        """optax.partition cannot do this: add the updates of two optimizers."""
        newton = ncg.newton_cg(mask=in_head, curvature=ncg.gauss_newton())
        adam = optax.partition(
            {True: optax.set_to_zero(), False: optax.adam(0.02)}, in_head
        )

        def init(params):
            return newton.init(params), adam.init(params)

        def update(grads, state, params=None, **extra):
            head, newton_state = newton.update(grads, state[0], params, **extra)
            body, adam_state = adam.update(grads, state[1], params)
            return jax.tree.map(jnp.add, head, body), (newton_state, adam_state)

        both = optax.GradientTransformationExtraArgs(init, update)
        step, params, losses = make_step(both, **BATCH), start(), []
        first, state, _ = step(params, both.init(params))
        alone, _, _ = run(newton, 1)
        assert_close(first["head"], alone["head"])
        moved = jnp.abs(first["body"]["w"] - params["body"]["w"])
        np.testing.assert_allclose(moved, 0.02, rtol=1e-3)  # Adam's first step

        params = first
        for _ in range(30):
            params, state, value = step(params, state)
            losses.append(float(value))
        assert losses[-1] < 0.5 * losses[0]


class TestWeightDecay:
    RATE, DECAY = 0.5, 0.1

    def test_decoupled(self):
        tx = optax.chain(
            ncg.scale_by_newton_cg(),
            optax.add_decayed_weights(self.DECAY, mask=in_body),
            optax.scale_by_learning_rate(self.RATE),
        )
        params, _, _ = run(tx, 1)
        plain, _, _ = run(ncg.newton_cg(self.RATE), 1)
        expected = jax.tree.map(
            lambda after, before, body: after - self.RATE * self.DECAY * before * body,
            plain,
            start(),
            in_body(start()),
        )
        assert_close(params, expected, rtol=1e-3, atol=1e-5)

    def test_as_a_part_of_the_loss(self):
        """The curvature sees it: one step to the solution of ridge regression."""

        def model(params, x):
            return network(params, x), params["head"]["w"]

        def penalised(outputs, y):
            predicted, weights = outputs
            return squares(predicted, y) + self.DECAY * jnp.sum(weights**2)

        tx = ncg.newton_cg(mask=in_head, **TestSubsets.EXACT)
        params, _, _ = run(tx, 1, loss=ncg.CompositeLoss(model, penalised), **BATCH)
        features = np.column_stack([hidden(start(), X), np.ones(len(X))])
        ridge = len(X) * self.DECAY * np.diag([1, 1, 1, 1, 0])
        best = np.linalg.solve(features.T @ features + ridge, features.T @ Y)
        np.testing.assert_allclose(params["head"]["w"], best[:4], rtol=1e-2, atol=1e-4)
        np.testing.assert_allclose(params["head"]["b"], best[4], rtol=1e-2, atol=1e-4)


class TestChains:
    def test_clipping_the_step(self):
        tx = optax.chain(ncg.newton_cg(), optax.clip_by_global_norm(0.01))
        params, _, _ = run(tx, 1)
        step = jax.tree.map(jnp.subtract, params, start())
        np.testing.assert_allclose(optax.tree.norm(step), 0.01, rtol=1e-3)

    def test_clipping_the_gradient(self):
        """It shortens the step likewise, but misleads the reduction ratio.

        The prediction is made of the clipped gradient: on a quadratic function, where
        the ratio should be 1, that of a tenth of the step is 19.
        """
        w = jnp.array([3.0, -4.0])
        # The gradient has norm 10.
        tx = optax.chain(optax.clip_by_global_norm(1.0), ncg.newton_cg(damping=0.0))
        after, state, _ = run(tx, 1, w, lambda w: jnp.sum(w**2))
        np.testing.assert_allclose(after, 0.9 * w, rtol=1e-4)
        ratio = ncg.get_info(state).reduction_ratio
        np.testing.assert_allclose(ratio, 19.0, rtol=1e-3)

    def test_trust_ratio(self):
        """LAMB's scaling behind: steps as long as the weights of each leaf."""
        tx = optax.chain(
            ncg.scale_by_newton_cg(),
            optax.scale_by_trust_ratio(),
            optax.scale_by_learning_rate(0.1),
        )
        params, _, _ = run(tx, 1)
        for part in ("body", "head"):
            before = start()[part]["w"]
            step = params[part]["w"] - before
            length = jnp.linalg.norm(step.ravel()) / jnp.linalg.norm(before.ravel())
            np.testing.assert_allclose(length, 0.1, rtol=1e-3)

    def test_sgd_first(self):
        tx = ncg.switch_after(5, optax.sgd(0.1, momentum=0.9), GAUSS_NEWTON)
        params, state, values = run(tx, 15)
        sgd, _, by_sgd = run(optax.sgd(0.1, momentum=0.9), 15)
        np.testing.assert_allclose(values[:6], by_sgd[:6], rtol=1e-4)
        assert LOSS(params, **BATCH) < 0.1 * LOSS(sgd, **BATCH)
        assert ncg.get_info(state).products > 0


def cyclic(base, peak, steps, mode="triangular", gamma=1.0):
    """Cyclic learning rates (Smith 2017), a function of the step count."""

    def schedule(count):
        cycle = count // (2 * steps)
        height = 1 - jnp.abs(count % (2 * steps) - steps) / steps
        shrink = {
            "triangular": 1.0,
            "triangular2": 0.5**cycle,
            "exp_range": gamma**count,
        }[mode]
        return base + (peak - base) * height * shrink

    return schedule


def reference(count, base, peak, steps, mode, gamma):
    """That of the poster, the Keras callback CyclicLR."""
    cycle = np.floor(1 + count / (2 * steps))
    x = np.abs(count / steps - 2 * cycle + 1)
    scale = {
        "triangular": lambda: 1.0,
        "triangular2": lambda: 1 / 2.0 ** (cycle - 1),
        "exp_range": lambda: gamma**count,
    }[mode]()
    return base + (peak - base) * max(0, 1 - x) * scale


class TestCyclicLearningRates:
    @pytest.mark.parametrize("mode", ["triangular", "triangular2", "exp_range"])
    def test_as_the_poster(self, mode):
        schedule = cyclic(0.1, 0.9, 3, mode, gamma=0.8)
        expected = [reference(t, 0.1, 0.9, 3, mode, 0.8) for t in range(20)]
        np.testing.assert_allclose(jax.vmap(schedule)(jnp.arange(20)), expected, 1e-5)

    def test_of_optax_parts(self):
        # For a known number of cycles: straight lines, joined.
        lines = [
            optax.linear_schedule(0.1, 0.9, 3),
            optax.linear_schedule(0.9, 0.1, 3),
            optax.linear_schedule(0.1, 0.5, 3),
            optax.linear_schedule(0.5, 0.1, 3),
        ]
        joined = optax.join_schedules(lines, [3, 6, 9])
        counts = jnp.arange(12)
        expected = jax.vmap(cyclic(0.1, 0.9, 3, "triangular2"))(counts)
        np.testing.assert_allclose(jax.vmap(joined)(counts), expected, rtol=1e-5)

    def test_on_the_step(self):
        # On a quadratic function the undamped step goes the learning rate's share of
        # the way.
        schedule = cyclic(0.1, 0.9, 2, "triangular2")
        tx = ncg.newton_cg(schedule, damping=0.0, linesearch=None)
        w = jnp.array([3.0, -2.0])
        after, _, _ = run(tx, 6, w, lambda w: jnp.sum(jnp.array([1.0, 5.0]) * w**2))
        left = np.prod([1 - float(schedule(t)) for t in range(6)])
        np.testing.assert_allclose(after, left * w, rtol=1e-3)
