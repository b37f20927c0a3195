"""Our transforms inside optax's wrappers, and optax's line searches behind ours."""

import functools

import jax
import jax.flatten_util
import jax.numpy as jnp
import optax
import optax.contrib
import optimistix
import pytest

import ncg_optax as ncg


def loss(params, x, y):
    """A least-squares loss with curvature in the parameters."""
    return jnp.mean((jnp.tanh(x @ params["w"]) + params["b"] - y) ** 2)


X = jax.random.normal(jax.random.key(0), (12, 3))
Y = jnp.tanh(X @ jnp.array([0.5, -1.0, 0.3])) + 0.2
START = {"w": jnp.array([0.1, 0.1, 0.1]), "b": jnp.array(0.0)}
BATCH = {"x": X, "y": Y}


def gradient(params):
    return jax.value_and_grad(loss)(params, **BATCH)


def make_step(tx, value_fn=loss, **batch):
    @jax.jit
    def step(params, state):
        value, grads = gradient(params)
        updates, state = tx.update(
            grads, state, params, value=value, grad=grads, value_fn=value_fn, **batch
        )
        return optax.apply_updates(params, updates), state

    return step


def run(tx, steps=1, params=START, **kwargs):
    step, state = make_step(tx, **(kwargs or BATCH)), tx.init(params)
    for _ in range(steps):
        params, state = step(params, state)
    return params, state


def assert_same(a, b, rtol=1e-6):
    jax.tree.map(lambda x, y: assert_close(x, y, rtol), a, b)


def assert_close(x, y, rtol):
    assert jnp.allclose(x, y, rtol=rtol, atol=1e-7), (x, y)


def assert_solved(params):
    assert loss(params, **BATCH) < 1e-6


@pytest.fixture(scope="module")
def plain():
    """Parameters and state after two steps of the bare optimizer."""
    return run(ncg.newton_cg(), 2)


@pytest.fixture(scope="module")
def plain_step():
    """Parameters after one step of it."""
    return run(ncg.newton_cg())[0]


class TestTransparent:
    """Wrappers that must not change what the optimizer does."""

    @pytest.mark.parametrize(
        "wrap",
        [
            lambda tx: optax.chain(tx),
            lambda tx: optax.chain(optax.identity(), tx, optax.scale(1.0)),
            lambda tx: optax.named_chain(("newton", tx), ("one", optax.scale(1.0))),
            lambda tx: optax.apply_if_finite(tx, max_consecutive_errors=3),
            lambda tx: optax.chain(
                tx, optax.apply_if_finite(optax.identity(), max_consecutive_errors=3)
            ),
            lambda tx: optax.transforms.conditionally_mask(tx, lambda step: True),
            lambda tx: optax.transforms.conditionally_transform(tx, lambda step: True),
            lambda tx: optax.chain(tx, optax.contrib.reduce_on_plateau(patience=5)),
            lambda tx: optax.MultiSteps(tx, every_k_schedule=1),
            lambda tx: ncg.switch_after(0, optax.sgd(0.1), tx),
        ],
        ids=[
            "chain",
            "chain of three",
            "named_chain",
            "apply_if_finite",
            "apply_if_finite behind",
            "conditionally_mask",
            "conditionally_transform",
            "reduce_on_plateau",
            "MultiSteps",
            "switch_after",
        ],
    )
    def test_same_steps_and_readable_info(self, wrap, plain):
        params, state = run(wrap(ncg.newton_cg()), 2)
        assert_same(params, plain[0])
        info = ncg.get_info(state)
        assert_same(info, ncg.get_info(plain[1]))
        assert info.products > 0

    def test_batch_by_closure_is_the_same(self, plain):
        params, _ = run(
            ncg.newton_cg(), 2, value_fn=lambda p: loss(p, **BATCH), unknown=1.0
        )
        assert_same(params, plain[0])


class TestInjectHyperparams:
    def test_newton_cg_without_static_args(self, plain):
        injected = optax.inject_hyperparams(ncg.newton_cg)(learning_rate=1.0)
        params, state = run(injected, 2)
        assert_same(params, plain[0])
        assert set(state.hyperparams) >= {"learning_rate"}

    def test_every_component(self):
        settings = dict(
            curvature=ncg.gauss_newton(),
            solver=ncg.cg(maxiter=3, warm_start=0.5),
            preconditioner=ncg.identity(),
            linesearch=ncg.armijo(),
            mask={"w": True, "b": True},
            seed=3,
        )
        composite = ncg.CompositeLoss(
            lambda p, x: jnp.tanh(x @ p["w"]) + p["b"],
            lambda outputs, y: jnp.mean((outputs - y) ** 2),
        )
        injected = optax.inject_hyperparams(ncg.hessian_free)(1.0, **settings)
        params, _ = run(injected, 3, value_fn=composite, **BATCH)
        expected, _ = run(
            ncg.hessian_free(1.0, **settings), 3, value_fn=composite, **BATCH
        )
        assert_same(params, expected)

    @pytest.mark.parametrize("preset", [ncg.hessian_free, ncg.stochastic_hessian_free])
    def test_a_preset_as_it_comes(self, preset):
        # Traced, not run: what could fail is what the wrapper makes of the settings.
        injected = optax.inject_hyperparams(preset)()
        composite = ncg.CompositeLoss(
            lambda p, x: jnp.tanh(x @ p["w"]) + p["b"],
            lambda outputs, y: jnp.mean((outputs - y) ** 2),
        )
        state = injected.init(START)
        step = make_step(injected, composite, **BATCH)
        kinds = functools.partial(jax.tree.map, lambda x: (x.shape, x.dtype))
        after = jax.eval_shape(step, START, state)
        assert kinds(after) == kinds((START, state))

    @pytest.mark.parametrize(
        "settings",
        [
            {"solver": ncg.steihaug(), "damping": 0.0, "linesearch": None},
            {"solver": ncg.minres(), "damping": ncg.levenberg_marquardt(initial=0.1)},
            {"solver": ncg.quadratic_momentum(ncg.cg(maxiter=2)), "linesearch": None},
            {"solver": ncg.quasi_newton(ncg.cg(maxiter=2))},
            {"solver": ncg.averaged_gradient(), "damping": 0.1, "linesearch": None},
        ],
        ids=["steihaug", "minres", "momentum", "quasi_newton", "averaged"],
    )
    def test_solvers(self, settings):
        params, _ = run(optax.inject_hyperparams(ncg.newton_cg)(**settings))
        expected, _ = run(ncg.newton_cg(**settings))
        assert_same(params, expected)

    def test_hyperparameters_can_be_changed_between_steps(self):
        injected = optax.inject_hyperparams(ncg.newton_cg)(1.0, damping=0.1)
        state = injected.init(START)
        state.hyperparams["learning_rate"] = jnp.array(0.5)
        state.hyperparams["damping"] = jnp.array(2.0)
        params, _ = make_step(injected, **BATCH)(START, state)
        assert_same(params, run(ncg.newton_cg(0.5, damping=2.0))[0])

    def test_schedules(self):
        schedule = optax.linear_schedule(1.0, 0.1, 3)
        settings = dict(learning_rate=schedule, damping=schedule)
        injected = optax.inject_hyperparams(ncg.newton_cg)(**settings)
        params, state = run(injected, 3)
        assert_same(params, run(ncg.newton_cg(**settings), 3)[0])
        assert_close(state.hyperparams["damping"], schedule(2), 1e-6)

    def test_a_number_out_of_range_is_refused(self):
        injected = optax.inject_hyperparams(ncg.newton_cg)(1.0, damping=-1.0)
        with pytest.raises(ValueError, match="damping must be a number in"):
            injected.init(START)


class TestConditions:
    def test_conditionally_mask_blocks(self, plain_step):
        tx = optax.transforms.conditionally_mask(
            ncg.newton_cg(), lambda step: step >= 1
        )
        step = make_step(tx, **BATCH)
        first, state = step(START, tx.init(START))
        assert_same(first, START, rtol=0)
        assert ncg.get_info(state).products == 0
        second, state = step(first, state)
        assert_same(second, plain_step)

    def test_apply_if_finite_skips_a_bad_gradient(self):
        tx = optax.apply_if_finite(ncg.newton_cg(), max_consecutive_errors=3)
        bad = jax.tree.map(lambda p: p * jnp.nan, START)
        updates, state = jax.jit(
            lambda g, s: tx.update(g, s, START, value_fn=loss, **BATCH)
        )(bad, tx.init(START))
        assert_same(updates, jax.tree.map(jnp.zeros_like, START), rtol=0)
        assert state.notfinite_count == 1

    def test_apply_if_finite_is_not_needed(self):
        bad = jax.tree.map(lambda p: p * jnp.nan, START)
        tx = ncg.newton_cg()
        updates, state = jax.jit(
            lambda g, s: tx.update(g, s, START, value_fn=loss, **BATCH)
        )(bad, tx.init(START))
        assert_same(updates, jax.tree.map(jnp.zeros_like, START), rtol=0)
        assert ncg.get_info(state).status == ncg.Status.REJECTED_NON_FINITE


class TestAveraging:
    def test_mechanize(self):
        params, state = run(optax.contrib.mechanize(ncg.newton_cg()), 40)
        assert loss(params, **BATCH) < 0.5 * loss(START, **BATCH)
        assert ncg.get_info(state).products > 0

    def test_schedule_free(self):
        tx = optax.contrib.schedule_free(ncg.newton_cg(), learning_rate=1.0, b1=0.5)
        params, state = run(tx, 20)
        averaged = optax.contrib.schedule_free_eval_params(state, params)
        assert loss(averaged, **BATCH) < 1e-2 * loss(START, **BATCH)
        assert ncg.get_info(state).products > 0

    def test_reduce_on_plateau_reduces(self):
        tx = optax.chain(
            ncg.newton_cg(), optax.contrib.reduce_on_plateau(factor=0.5, patience=2)
        )
        _, state = run(tx, 20)  # at the minimum long before
        assert state[1].scale < 1


class TestSubsets:
    @pytest.mark.parametrize(
        "tx",
        [
            optax.masked(ncg.newton_cg(), {"w": True, "b": False}),
            optax.partition(
                {"newton": ncg.newton_cg(), "sgd": optax.sgd(0.1)},
                {"w": "newton", "b": "sgd"},
            ),
            optax.transforms.selective_transform(
                ncg.newton_cg(), freeze_mask={"w": False, "b": True}
            ),
        ],
        ids=["masked", "partition", "selective_transform"],
    )
    def test_a_clear_error(self, tx):
        with pytest.raises(TypeError, match=r"MaskedNode.*mask=\.\.\."):
            tx.init(START)

    def test_partition_of_everything_works(self, plain):
        tx = optax.partition(
            {"newton": ncg.newton_cg(), "sgd": optax.sgd(0.1)},
            {"w": "newton", "b": "newton"},
        )
        assert_same(run(tx, 2)[0], plain[0])

    def test_mask_beside_another_optimizer(self):
        mask = {"w": True, "b": False}
        tx = optax.chain(
            ncg.newton_cg(mask=mask),
            optax.masked(optax.scale(7.0), {"w": False, "b": True}),
        )
        params, _ = run(tx)
        expected, _ = run(ncg.newton_cg(mask=mask))
        assert_same(params, expected)
        assert params["b"] == START["b"]
        assert jnp.all(params["w"] != START["w"])


def bound(tx, value_fn):
    """The recipe: an optimizer that has its loss already, made inside of the step."""
    return optax.GradientTransformation(
        tx.init, functools.partial(tx.update, value_fn=value_fn)
    )


class TestWithoutExtraArguments:
    """Wrappers that do not hand on the loss, and what to do about it."""

    def test_lookahead(self, plain):
        params = optax.LookaheadParams.init_synced(START)
        wrap = functools.partial(optax.lookahead, sync_period=2, slow_step_size=0.5)
        tx = wrap(ncg.newton_cg())
        with pytest.raises(TypeError, match="unexpected keyword argument 'value_fn'"):
            tx.update(START, tx.init(params), params, value_fn=loss)

        @jax.jit
        def step(params, state, x, y):
            value_fn = functools.partial(loss, x=x, y=y)
            grads = jax.grad(value_fn)(params.fast)
            tx = wrap(bound(ncg.newton_cg(), value_fn))
            updates, state = tx.update(grads, state, params)
            return optax.apply_updates(params, updates), state

        state = tx.init(params)
        for _ in range(2):
            params, state = step(params, state, **BATCH)
        half = jax.tree.map(lambda a, b: (a + b) / 2, START, plain[0])
        assert_same(params.fast, half, rtol=1e-5)
        assert ncg.get_info(state).products > 0

    def test_sam(self):
        away = optax.chain(optax.contrib.normalize(), optax.sgd(0.01))
        wrap = functools.partial(optax.contrib.sam, adv_optimizer=away, sync_period=2)
        tx = wrap(ncg.newton_cg())
        with pytest.raises(TypeError, match="unexpected keyword argument 'value_fn'"):
            tx.update(START, tx.init(START), START, value_fn=loss)

        @jax.jit
        def step(params, state):
            value_fn = functools.partial(loss, **BATCH)
            tx = wrap(bound(ncg.newton_cg(), value_fn))
            updates, state = tx.update(jax.grad(value_fn)(params), state, params)
            return optax.apply_updates(params, updates), state

        params, state = START, tx.init(START)
        for _ in range(20):  # every other one is a Newton step
            params, state = step(params, state)
        assert loss(params, **BATCH) < 1e-2 * loss(START, **BATCH)

    def test_multi_steps_in_a_chain(self):
        inner = optax.MultiSteps(ncg.newton_cg(), 2).gradient_transformation()
        tx = optax.chain(inner, optax.identity())
        with pytest.raises(ValueError, match="newton_cg needs value_fn"):
            run(tx)

    def test_jit_of_the_update_alone(self):
        update = jax.jit(ncg.newton_cg().update)
        state = ncg.newton_cg().init(START)
        with pytest.raises(TypeError, match=r"value_fn.*"):
            update(START, state, START, value_fn=loss, **BATCH)


class TestFlatten:
    """`optax.flatten` makes one vector of the parameters, for the loss as well."""

    def test_a_loss_of_the_vector(self, plain):
        unravel = jax.flatten_util.ravel_pytree(START)[1]
        params, _ = run(
            optax.flatten(ncg.newton_cg()),
            2,
            value_fn=lambda flat, x, y: loss(unravel(flat), x, y),
            **BATCH,
        )
        assert_same(params, plain[0], rtol=1e-4)

    def test_a_loss_of_the_tree_fails(self):
        with pytest.raises(TypeError, match="idx='w'"):
            run(optax.flatten(ncg.newton_cg()))


class TestMapParams:
    """`optax.tree.map_params` finds what is shaped like the parameters in a state."""

    @pytest.mark.parametrize("mask", [None, {"w": True, "b": False}], ids=str)
    def test_maps_the_warm_start_alone(self, mask):
        tx = ncg.newton_cg(solver=ncg.cg(warm_start=0.5), mask=mask)
        _, state = run(tx)
        doubled = optax.tree.map_params(tx, lambda v: 2 * v, state)
        newton, twice = state[0], doubled[0]
        previous = newton.solver.previous
        assert jnp.any(previous["w"] != 0)
        assert_same(twice.solver.previous, jax.tree.map(lambda v: 2 * v, previous))
        kept = newton.solver._replace(previous=None)
        assert_same(twice.solver._replace(previous=None), kept, rtol=0)
        assert_same(twice._replace(solver=()), newton._replace(solver=()), rtol=0)


class TestMultiSteps:
    def test_four_equal_mini_steps_are_one_step(self, plain_step):
        tx = optax.MultiSteps(ncg.newton_cg(), every_k_schedule=4)
        step, params, state = make_step(tx, **BATCH), START, tx.init(START)
        for _ in range(3):
            params, state = step(params, state)
            assert_same(params, START, rtol=0)
        params, state = step(params, state)
        assert_same(params, plain_step, rtol=1e-5)
        assert state.gradient_step == 1


class TestLineSearches:
    # A damping that follows the steps rejects some of them. Along the zero step that is
    # left, rounding decides what backtracking does; the docs ask for a fixed damping.
    @pytest.mark.parametrize(
        "search, settings",
        [
            (
                optax.scale_by_backtracking_linesearch(max_backtracking_steps=20),
                {"damping": 1e-3},
            ),
            (optax.scale_by_zoom_linesearch(max_linesearch_steps=20), {}),
        ],
        ids=["backtracking", "zoom"],
    )
    @pytest.mark.parametrize("composite", [False, True], ids=["plain", "composite"])
    def test_behind_the_bare_transform(self, search, settings, composite):
        bare = ncg.scale_by_newton_cg(linesearch=None, **settings)
        tx = optax.chain(bare, optax.scale(-1.0), search)
        value_fn = loss
        if composite:
            value_fn = ncg.CompositeLoss(
                lambda p, x: jnp.tanh(x @ p["w"]) + p["b"],
                lambda outputs, y: jnp.mean((outputs - y) ** 2),
            )
        params, state = run(tx, 15, value_fn=value_fn, **BATCH)
        assert_solved(params)
        assert optax.tree.get(state, "learning_rate") > 0

    def test_arguments_of_ours_are_explained(self):
        # Since optax 0.2.8 its line searches refuse what value_fn does not take.
        tx = optax.chain(
            ncg.scale_by_newton_cg(linesearch=None),
            optax.scale(-1.0),
            optax.scale_by_backtracking_linesearch(3),
        )
        with pytest.raises(TypeError, match="not consumed by .*curvature_batch"):
            run(tx, curvature_batch={"x": X[:6], "y": Y[:6]}, **BATCH)

    def test_value_and_grad_from_state(self):
        tx = optax.chain(
            ncg.scale_by_newton_cg(linesearch=None),
            optax.scale(-1.0),
            optax.scale_by_backtracking_linesearch(20, store_grad=True),
        )
        value_fn = lambda p: loss(p, **BATCH)  # noqa: E731
        value_and_grad = optax.value_and_grad_from_state(value_fn)

        @jax.jit
        def step(params, state):
            value, grads = value_and_grad(params, state=state)
            updates, state = tx.update(
                grads, state, params, value=value, grad=grads, value_fn=value_fn
            )
            return optax.apply_updates(params, updates), state

        params, state = START, tx.init(START)
        for _ in range(10):
            params, state = step(params, state)
        value, grads = value_and_grad(params, state=state)
        expected = gradient(params)
        assert_same((value, grads), expected, rtol=1e-5)
        assert optax.tree.get(state, "value") == value  # it was not computed again
        assert_solved(params)

    def test_newton_cg_has_no_clashing_fields(self):
        state = ncg.newton_cg().init(START)
        for name in ("value", "grad", "learning_rate"):
            assert optax.tree.get(state, name) is None


def test_optimistix():
    solver = optimistix.OptaxMinimiser(ncg.newton_cg(), rtol=1e-6, atol=1e-6)
    solution = optimistix.minimise(lambda p, _: loss(p, **BATCH), solver, START)
    assert_solved(solution.value)
