"""Flax linen and nnx, and models that are partitioned by None leaves."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import ncg_optax as ncg

linen = pytest.importorskip("flax.linen")
nnx = pytest.importorskip("flax.nnx")
train_state = pytest.importorskip("flax.training.train_state")

X = jax.random.normal(jax.random.key(0), (16, 3))
Y = jnp.sin(X @ jnp.array([1.0, -0.5, 0.3]))


def squares(outputs, y):
    return jnp.mean((outputs[:, 0] - y) ** 2)


class TrainState(train_state.TrainState):
    """The recipe: hands extra arguments to the optimizer."""

    def apply_gradients(self, *, grads, extra=None, **changes):
        updates, opt_state = self.tx.update(
            grads, self.opt_state, self.params, **(extra or {})
        )
        params = optax.apply_updates(self.params, updates)
        return self.replace(
            step=self.step + 1, params=params, opt_state=opt_state, **changes
        )


class Network(linen.Module):
    normalize: bool = False

    @linen.compact
    def __call__(self, x, train=True):
        x = linen.Dense(4)(x)
        if self.normalize:
            x = linen.BatchNorm(use_running_average=not train, momentum=0.5)(x)
        return linen.Dense(1)(jnp.tanh(x))


class TestLinen:
    @pytest.mark.parametrize("tx", [ncg.newton_cg(), ncg.hessian_free()])
    def test_train_state(self, tx):
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
            bound = loss.bind(x=x, y=y)
            value, grads = jax.value_and_grad(bound)(state.params)
            extra = {"value": value, "grad": grads, "value_fn": bound}
            return state.apply_gradients(grads=grads, extra=extra), value

        values = []
        for _ in range(15):
            state, value = step(state, X, Y)
            values.append(value)
        assert values[-1] < 0.05 * values[0]
        assert state.step == 15
        assert ncg.get_info(state.opt_state).products > 0

    @pytest.mark.parametrize("composite", [False, True], ids=["plain", "composite"])
    def test_batch_norm_by_aux(self, composite):
        network = Network(normalize=True)
        variables = network.init(jax.random.key(1), X)
        params, stats = variables["params"], variables["batch_stats"]

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
        tx = ncg.newton_cg(curvature=curvature)

        @jax.jit
        def step(params, state, stats):
            batch = {"batch_stats": stats, "x": X, "y": Y}
            (value, new_stats), grads = jax.value_and_grad(loss, has_aux=True)(
                params, **batch
            )
            updates, state = tx.update(grads, state, params, value_fn=loss, **batch)
            return optax.apply_updates(params, updates), state, new_stats, value

        state, values, first_stats = tx.init(params), [], stats
        for _ in range(15):
            params, state, stats, value = step(params, state, stats)
            values.append(value)
        assert values[-1] < 0.1 * values[0]
        changed = jax.tree.map(lambda a, b: np.any(a != b), stats, first_stats)
        assert all(jax.tree.leaves(changed))


class Net(nnx.Module):
    def __init__(self, rngs, extras):
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


class TestNnx:
    @staticmethod
    def step(model, optimizer):
        graphdef, params, rest = nnx.split(model, optimizer.wrt, ...)
        rest = nnx.as_pure(rest)

        def value_fn(p):
            return squares(nnx.merge(graphdef, p, rest, copy=True)(X), Y)

        wrt = nnx.DiffState(0, optimizer.wrt)
        value, grads = nnx.value_and_grad(lambda m: squares(m(X), Y), argnums=wrt)(
            model
        )
        optimizer.update(model, grads, value=value, grad=grads, value_fn=value_fn)
        return value

    @pytest.mark.parametrize("extras", [False, True], ids=["plain", "norm and dropout"])
    def test_optimizer(self, extras):
        model = Net(nnx.Rngs(0, dropout=1), extras)
        optimizer = nnx.Optimizer(model, ncg.newton_cg(), wrt=nnx.Param)
        before = np.asarray(model.norm.mean[...]) if extras else None
        step = nnx.jit(self.step)
        values = [float(step(model, optimizer)) for _ in range(15)]
        # Dropout draws another mask at each step.
        assert values[-1] < (0.6 if extras else 0.05) * values[0]
        info = ncg.get_info(optimizer.opt_state)
        assert nnx.as_pure(info.products) > 0
        if extras:
            assert np.all(np.asarray(model.norm.mean[...]) != before)

    def test_a_subset_of_the_weights(self):
        model = Net(nnx.Rngs(0), extras=False)
        wrt = nnx.All(nnx.Param, nnx.PathContains("last"))
        optimizer = nnx.Optimizer(model, ncg.newton_cg(), wrt=wrt)
        first = np.asarray(model.first.kernel[...])
        last = np.asarray(model.last.kernel[...])
        values = [float(nnx.jit(self.step)(model, optimizer)) for _ in range(2)]
        assert values[1] < values[0]
        assert np.all(np.asarray(model.first.kernel[...]) == first)
        assert np.all(np.asarray(model.last.kernel[...]) != last)


def linear_in_none_tree(model, x):
    return model["activation"](x @ model["w"] + model["b"])


class TestNoneLeaves:
    """Equinox's way: what is not trained is None in the tree that is."""

    def test_by_hand(self):
        model = {"w": jnp.full((3, 1), 0.1), "b": jnp.zeros(1), "activation": jnp.tanh}
        params = {**model, "activation": None}

        def value_fn(params):
            whole = {**params, "activation": model["activation"]}
            return squares(linear_in_none_tree(whole, X), Y)

        self.descends(value_fn, params)

    def test_equinox(self):
        eqx = pytest.importorskip("equinox")
        model = eqx.nn.MLP(3, 1, 4, 1, activation=jnp.tanh, key=jax.random.key(0))
        params, static = eqx.partition(model, eqx.is_inexact_array)

        def value_fn(params):
            return squares(jax.vmap(eqx.combine(params, static))(X), Y)

        self.descends(value_fn, params)

    @staticmethod
    def descends(value_fn, params):
        tx = ncg.newton_cg(solver=ncg.cg(warm_start=0.5))

        @jax.jit
        def step(params, state):
            value, grads = jax.value_and_grad(value_fn)(params)
            updates, state = tx.update(grads, state, params, value_fn=value_fn)
            return optax.apply_updates(params, updates), state, value

        state, values = tx.init(params), []
        structure = functools.partial(jax.tree.structure, is_leaf=lambda x: x is None)
        for _ in range(10):
            after, state, value = step(params, state)
            assert structure(after) == structure(params)
            params = after
            values.append(value)
        assert values[-1] < 0.2 * values[0]
