import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint
import pytest
from oracles import (
    assert_trees_close,
    assert_trees_equal,
    dense_gradient,
    dense_hessian,
    flat,
    make_step,
    rosenbrock,
    symmetric,
    tiny_net,
    train,
    vector,
)

import ncg_optax as ncg
from ncg_optax import Status

START = jnp.array([-1.2, 1.0])
EXACT = ncg.cg(maxiter=60, rtol=1e-13, forcing=None)


def squares(w):
    return jnp.sum(w**2)


def update(tx, loss, params, grads=None, state=None, **extra):
    """One jitted update; returns updates, state and info."""
    grads = jax.grad(loss)(params) if grads is None else grads
    state = tx.init(params) if state is None else state
    updates, state = jax.jit(
        lambda g, s, p: tx.update(g, s, p, value_fn=loss, **extra)
    )(grads, state, params)
    return updates, state, ncg.get_info(state)


# One step against the dense one.


@pytest.mark.parametrize("damping", [0.0, 0.3])
@pytest.mark.parametrize("solver", [EXACT, ncg.minres(maxiter=60, rtol=1e-13)])
def test_a_step_on_a_quadratic_is_the_damped_newton_step(damping, solver):
    with jax.enable_x64(True):
        a, b, w = symmetric([0.5, 1.0, 2.0, 6.0]), vector(4), jnp.asarray(vector(4, 2))
        tx = ncg.newton_cg(damping=damping, solver=solver, linesearch=None)
        updates, _, info = update(tx, lambda w: w @ a @ w / 2 - b @ w, w)
        expected = -np.linalg.solve(a + damping * np.eye(4), a @ w - b)
        np.testing.assert_allclose(updates, expected, rtol=1e-9)
        assert info.status == Status.NOT_EVALUATED and info.next_loss == 0
        assert info.solver_status == Status.RESIDUAL_CONVERGED


def test_a_step_on_a_net_is_the_damped_newton_step_and_fully_measured():
    with jax.enable_x64(True):
        params, loss = tiny_net(jnp.float64)
        g, h = dense_gradient(loss, params), dense_hessian(loss, params)
        assert np.linalg.eigvalsh(h).min() < 0
        damping = 0.5 - np.linalg.eigvalsh(h).min()
        # The loss is looked at, but the full step is what counts.
        tx = ncg.newton_cg(damping=damping, solver=EXACT, linesearch=ncg.armijo())
        updates, _, info = update(tx, loss, params)

        d = -np.linalg.solve(h + damping * np.eye(g.size), g)
        np.testing.assert_allclose(flat(updates), d, rtol=1e-8)
        after = loss(optax.apply_updates(params, updates))
        predicted = -(g @ d + d @ h @ d / 2)
        expected = {
            "status": Status.ACCEPTED,
            "solver_status": Status.RESIDUAL_CONVERGED,
            "loss": loss(params),
            "next_loss": after,
            "gradient_norm": np.linalg.norm(g),
            "damping": damping,
            "products": info.cg_iterations,
            "evaluations": 1,
            "gradient_equivalents": 1 + 1.5 * info.products + 1 / 3,
            "predicted_reduction": predicted,
            "actual_reduction": loss(params) - after,
            "reduction_ratio": (loss(params) - after) / predicted,
            "step_size": 1.0,
            "curvature": d @ h @ d / (d @ d),
        }
        for name, value in expected.items():
            np.testing.assert_allclose(
                getattr(info, name), value, rtol=1e-7, err_msg=name
            )
        assert info.residual < 1e-12
        assert 0 < info.cg_iterations <= 20


def test_the_predicted_reduction_is_that_of_a_shortened_step():
    with jax.enable_x64(True):
        w = jnp.array([1.0])
        tx = ncg.newton_cg(damping=0.0)
        loss = lambda w: jnp.sum(jnp.sqrt(1 + 4 * w**2))  # noqa: E731
        updates, _, info = update(tx, loss, w)
        g, h = 4 / 5**0.5, 4 / 5**1.5
        step = float(updates[0])
        assert info.status == Status.SHORTENED and 0 < info.step_size < 1
        np.testing.assert_allclose(step, -info.step_size * g / h, rtol=1e-10)
        np.testing.assert_allclose(
            info.predicted_reduction, -(g * step + h * step**2 / 2), rtol=1e-8
        )
        assert info.evaluations >= 2


def test_scale_by_newton_cg_is_the_bare_direction():
    settings = dict(damping=0.1, linesearch=None)
    bare, _, _ = update(ncg.scale_by_newton_cg(**settings), squares, START)
    for rate, factor in ((0.5, 0.5), (None, 1.0)):
        updates, _, _ = update(ncg.newton_cg(rate, **settings), squares, START)
        np.testing.assert_allclose(updates, -factor * bare, rtol=1e-6)


@pytest.mark.parametrize("what", ["damping", "learning_rate"])
def test_schedules_are_functions_of_the_step_count(what):
    schedule = lambda count: 0.5 / (1 + count)  # noqa: E731
    settings = {"damping": 0.0, "linesearch": None, what: schedule}
    tx = ncg.newton_cg(**settings)
    step, w, state = make_step(tx, squares), START, None
    state = tx.init(w)
    for count in range(3):
        new, state = step(w, state, {})
        rate = schedule(count) if what == "learning_rate" else 1.0
        damping = schedule(count) if what == "damping" else 0.0
        np.testing.assert_allclose(new, w - rate * 2 * w / (2 + damping), rtol=1e-5)
        assert ncg.get_info(state).damping == damping
        w = new


def test_a_preconditioner_is_applied():
    with jax.enable_x64(True):
        diag = jnp.array([1.0, 1e2, 1e4, 1e6])

        class Exact(ncg.preconditioners.Preconditioner):
            def update(self, state, product, grads, damping, key, count):
                return state, 3

            def apply(self, state, r, damping):
                return r / (diag + damping)

        tx = ncg.newton_cg(damping=0.5, preconditioner=Exact(), solver=EXACT)
        updates, _, info = update(tx, lambda w: diag @ w**2 / 2, jnp.ones(4))
        np.testing.assert_allclose(updates, -diag / (diag + 0.5), rtol=1e-12)
        assert (int(info.cg_iterations), int(info.products)) == (1, 4)


# Masks and odd leaves.


def test_masked_training_is_training_of_the_sub_problem():
    with jax.enable_x64(True):
        params, loss = tiny_net(jnp.float64)
        mask = {"hidden": {"w": False, "b": True}, "out": True}
        masked, state = train(ncg.newton_cg(mask=mask), loss, params, 3)

        def frozen_weights(part):
            hidden = {"w": params["hidden"]["w"], "b": part["b"]}
            return loss({"hidden": hidden, "out": part["out"]})

        part = {"b": params["hidden"]["b"], "out": params["out"]}
        alone, alone_state = train(ncg.newton_cg(), frozen_weights, part, 3)
        np.testing.assert_array_equal(masked["hidden"]["w"], params["hidden"]["w"])
        ours = {"b": masked["hidden"]["b"], "out": masked["out"]}
        assert_trees_close(ours, alone, rtol=1e-8)
        info, expected = ncg.get_info(state), ncg.get_info(alone_state)
        np.testing.assert_allclose(
            info.gradient_norm, expected.gradient_norm, rtol=1e-6
        )
        assert info.products == expected.products


@pytest.mark.parametrize("kind", ["float0", "integer"])
def test_integer_leaves_are_frozen_by_the_mask(kind):
    loss = lambda p: jnp.sum(p["n"] * p["w"] ** 2)  # noqa: E731
    tx = ncg.newton_cg(mask={"w": True, "n": False}, damping=0.0)

    @jax.jit
    def step(params):
        grads = jax.grad(loss, allow_int=True)(params)
        if kind == "integer":
            grads["n"] = jnp.zeros_like(params["n"])
        updates, _ = tx.update(grads, tx.init(params), params, value_fn=loss)
        return optax.apply_updates(params, updates)

    params = {"w": START, "n": jnp.array([3, 4])}
    after = step(params)
    np.testing.assert_allclose(after["w"], 0.0, atol=1e-5)
    assert after["n"].dtype == params["n"].dtype
    np.testing.assert_array_equal(after["n"], params["n"])


def test_none_leaves_are_passed_through():
    params = {"w": START, "unused": None}
    tx = ncg.newton_cg(solver=ncg.cg(warm_start=0.5))
    trained, _ = train(tx, lambda p: rosenbrock(p["w"]), params, 3)
    alone, _ = train(tx, rosenbrock, START, 3)
    assert trained["unused"] is None
    np.testing.assert_allclose(trained["w"], alone, rtol=1e-5)


def test_mixed_dtypes_are_kept():
    params = {"half": jnp.ones(2, jnp.bfloat16), "single": jnp.ones(2)}

    def loss(p):
        return jnp.sum(
            (p["half"].astype(jnp.float32) - 0.5) ** 2 + (p["single"] - p["half"]) ** 2
        )

    tx = ncg.newton_cg(solver=ncg.cg(warm_start=0.5))
    updates, _ = jax.eval_shape(
        lambda p: tx.update(p, tx.init(p), p, value_fn=loss), params
    )
    assert updates["half"].dtype == jnp.bfloat16
    assert updates["single"].dtype == jnp.float32
    trained, state = train(tx, loss, params, 10)
    assert ncg.get_info(state).loss.dtype == jnp.float32
    np.testing.assert_allclose(np.float32(trained["half"]), 0.5, atol=1e-2)
    np.testing.assert_allclose(
        trained["single"], np.float32(trained["half"]), atol=1e-2
    )


def test_bfloat16_parameters_converge():
    params, loss = tiny_net(jnp.bfloat16)
    single, single_loss = tiny_net()
    trained, state = train(
        ncg.newton_cg(curvature=ncg.gauss_newton()), loss, params, 20
    )
    assert all(x.dtype == jnp.bfloat16 for x in jax.tree.leaves(trained))
    assert {x.dtype for x in jax.tree.leaves(state)} <= {
        jnp.dtype("float32"),
        jnp.dtype("int32"),
    }
    reached = single_loss(jax.tree.map(lambda x: x.astype(jnp.float32), trained))
    assert reached < 0.5 * single_loss(single)


def test_complex_parameters_converge():
    target = jnp.array([1.0 + 2.0j, -0.5j])

    def loss(z):
        return jnp.sum(jnp.abs(z - target) ** 2 + 0.5 * jnp.abs(z - target) ** 4)

    z, state = train(ncg.newton_cg(), loss, jnp.zeros(2, jnp.complex64), 10)
    assert z.dtype == jnp.complex64
    assert not jnp.iscomplexobj(ncg.get_info(state).loss)
    np.testing.assert_allclose(z, target, atol=1e-4)


# What the loss sees.


def test_batch_statistics_and_dropout_keys_go_through_update_by_name():
    x, y = jnp.asarray(vector(8), jnp.float32), jnp.float32(0.5)

    def loss(params, batch_stats, x, y, dropout_key, unused=None):
        keep = jax.random.bernoulli(dropout_key, 0.5, x.shape)
        mean = 0.9 * batch_stats["mean"] + 0.1 * jnp.mean(x)
        error = jnp.mean(keep * (params["w"] * (x - mean) + params["b"] - y) ** 2)
        return error, {"mean": mean}

    params = {"w": jnp.float32(0.0), "b": jnp.float32(0.0)}
    extra = dict(
        batch_stats={"mean": jnp.float32(0.2)}, x=x, y=y, dropout_key=jax.random.key(1)
    )
    gradient = jax.jit(jax.grad(loss, has_aux=True))
    grads, _ = gradient(params, **extra)
    tx = ncg.newton_cg(damping=0.0, solver=ncg.cg(maxiter=5, rtol=1e-6, forcing=None))
    updates, state = jax.jit(
        lambda g, s, p, extra: tx.update(
            g, s, p, value=0.0, grad=g, value_fn=loss, epoch=3, **extra
        )
    )(grads, tx.init(params), params, extra)
    after = optax.apply_updates(params, updates)
    # The loss is a quadratic: one Newton step solves it, for this mask of dropout.
    np.testing.assert_allclose(flat(gradient(after, **extra)[0]), 0.0, atol=1e-5)
    info = ncg.get_info(state)
    for measured, where in ((info.loss, params), (info.next_loss, after)):
        np.testing.assert_allclose(
            measured, jax.jit(loss)(where, **extra)[0], rtol=1e-5
        )


def test_a_composite_loss_with_aux():
    params, loss = tiny_net(inputs=1, width=1)
    with_aux = ncg.CompositeLoss(
        lambda params, x: (loss.model_fn(params, x), {"batch": x.shape}),
        loss.loss_fn,
        has_aux=True,
    )
    tx = ncg.newton_cg(curvature=ncg.gauss_newton())
    grads = jax.jit(jax.grad(loss))(params)
    expected, _, _ = update(tx, loss, params, grads)
    updates, _, info = update(tx, with_aux, params, grads, **loss.data)
    assert info.status == Status.ACCEPTED
    assert_trees_close(updates, expected, rtol=1e-5)


# Rejections.


FAULTS = {
    "loss": lambda w: squares(w) + jnp.nan,
    "infinite loss": lambda w: squares(w) + jnp.inf,
    "gradient": lambda w: squares(w) * jnp.nan,
    # At START the gradient is finite and the second derivative is not.
    "curvature": lambda w: squares(w) + jnp.sum(jnp.abs(w - START) ** 1.5),
}
BRANCHES = [squares, *FAULTS.values()]


SETTINGS = {
    "newton_cg": dict(),
    "minres": dict(solver=ncg.minres()),
    "steihaug": dict(solver=ncg.steihaug(), linesearch=None),
    "warm start": dict(solver=ncg.cg(warm_start=0.9), linesearch=None),
    "momentum": dict(solver=ncg.quadratic_momentum(), linesearch=None),
    "quasi_newton": dict(solver=ncg.quasi_newton()),
    "averaged": dict(solver=ncg.averaged_gradient(0.5), linesearch=None),
}


@pytest.fixture(scope="module", params=SETTINGS)
def guarded(request):
    """A jitted update of any of the losses, and its initial state."""
    rule = ncg.levenberg_marquardt(initial=1.0)
    tx = ncg.newton_cg(damping=rule, **SETTINGS[request.param])

    @jax.jit
    def step(w, state, branch):
        loss = lambda w: jax.lax.switch(branch, BRANCHES, w)  # noqa: E731
        return tx.update(jax.grad(loss)(w), state, w, value_fn=loss)

    return step, tx.init(START)


@pytest.fixture(scope="module")
def faulty(guarded):
    """The update after a good one, for each fault."""
    step, start = guarded
    _, before = step(START, start, 0)
    return {name: step(START, before, i) for i, name in enumerate(FAULTS, start=1)}


def damping_of(state):
    leaves = jax.tree.leaves(
        state,
        is_leaf=lambda x: isinstance(x, ncg.globalization.LevenbergMarquardtState),
    )
    return next(
        x.damping
        for x in leaves
        if isinstance(x, ncg.globalization.LevenbergMarquardtState)
    )


BAD_BATCHES = [name for name in FAULTS if name != "curvature"]


@pytest.mark.parametrize("fault", BAD_BATCHES)
def test_a_batch_that_is_not_finite_changes_nothing(guarded, faulty, fault):
    updates, state = faulty[fault]
    info = ncg.get_info(state)
    np.testing.assert_array_equal(updates, 0.0)
    assert info.step_size == 0
    assert info.status == Status.REJECTED_NON_FINITE
    assert "parameters stay" in ncg.explain(info.status)
    step, start = guarded
    _, before = step(START, start, 0)
    same = {"count": before[0].count, "info": before[0].info}
    assert state[0].count == 2
    assert_trees_equal(state[0]._replace(**same), before[0])


def test_a_curvature_that_is_not_finite_makes_a_gradient_step(guarded):
    """At once with a line search, else as soon as damping or radius allow it."""
    step, state = guarded
    if isinstance(state[0].solver, optax.EmaState):  # its directions are not checked
        updates, state = step(START, state, 1 + list(FAULTS).index("curvature"))
        np.testing.assert_array_equal(updates, 0.0)
        assert ncg.get_info(state).status == Status.REJECTED_NON_FINITE
        return
    for _ in range(6):
        updates, state = step(START, state, 1 + list(FAULTS).index("curvature"))
        info = ncg.get_info(state)
        assert info.solver_status == Status.SOLVER_NON_FINITE
        if info.status == Status.NON_FINITE_CURVATURE:
            break
        assert info.status == Status.REJECTED_NO_DECREASE
    assert info.status == Status.NON_FINITE_CURVATURE
    assert info.next_loss < info.loss
    gradient = jax.grad(FAULTS["curvature"])(START)
    cosine = -gradient @ updates / jnp.linalg.norm(gradient) / jnp.linalg.norm(updates)
    np.testing.assert_allclose(cosine, 1, rtol=1e-5)


@pytest.mark.parametrize("fault", FAULTS)
def test_the_run_goes_on_after_a_non_finite_step(guarded, faulty, fault):
    step, (_, state), w = guarded[0], faulty[fault], START
    for _ in range(12):
        updates, state = step(w, state, 0)
        w = optax.apply_updates(w, updates)
    assert squares(w) < 1e-2 * squares(START)


def test_a_step_that_finds_no_decrease_is_rejected():
    uphill = -jax.grad(squares)(START)
    tx = ncg.newton_cg(linesearch=ncg.armijo(maxiter=4))
    updates, state, info = update(tx, squares, START, grads=uphill)
    np.testing.assert_array_equal(updates, 0.0)
    assert info.status == Status.REJECTED_NO_DECREASE
    assert info.next_loss == info.loss == squares(START)
    assert (float(info.actual_reduction), int(info.evaluations)) == (0.0, 4)
    assert damping_of(state) > info.damping


def test_a_zero_gradient_is_a_stationary_point():
    updates, _, info = update(ncg.newton_cg(), squares, jnp.zeros(2))
    np.testing.assert_array_equal(updates, 0.0)
    assert info.status == Status.ZERO_GRADIENT
    assert info.solver_status == Status.ZERO_RIGHT_HAND_SIDE


def test_a_zero_gradient_does_not_hide_a_loss_that_is_not_finite():
    infinite = lambda w: squares(w) + jnp.inf  # noqa: E731
    _, _, info = update(ncg.newton_cg(), infinite, jnp.zeros(2))
    assert info.status == Status.REJECTED_NON_FINITE


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_a_value_fn_that_ignores_its_parameters_is_diagnosed(settings):
    tx = ncg.newton_cg(**settings)
    updates, state, info = update(tx, lambda w: squares(START), START, grads=START)
    assert info.solver_status == Status.ZERO_CURVATURE
    assert "value_fn" in ncg.explain(info.solver_status)
    assert np.isfinite(updates).all()
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(state))


def test_a_concave_loss_is_descended():
    updates, _, info = update(ncg.newton_cg(), lambda w: -squares(w), START)
    assert info.solver_status == Status.NEGATIVE_CURVATURE
    assert START @ updates > 0
    assert info.curvature < 0
    assert info.next_loss < info.loss


# The state.


@pytest.mark.parametrize(
    "wrap",
    [
        lambda tx: optax.chain(optax.clip(1e9), tx, optax.scale(1.0)),
        lambda tx: optax.MultiSteps(tx, 1).gradient_transformation(),
        lambda tx: optax.inject_hyperparams(
            lambda learning_rate: ncg.newton_cg(learning_rate)
        )(1.0),
    ],
    ids=["chain", "MultiSteps", "inject_hyperparams"],
)
def test_get_info_looks_through_wrappers(wrap):
    tx = wrap(ncg.newton_cg())
    assert ncg.get_info(tx.init(START)).status == Status.NOT_STARTED
    _, _, info = update(tx, squares, START)
    assert info.status == Status.ACCEPTED
    assert info.loss == squares(START)


CONFIGURATIONS = {
    "newton_cg": lambda: ncg.newton_cg(),
    "schedules": lambda: ncg.newton_cg(
        optax.linear_schedule(1, 0.5, 9), damping=optax.constant_schedule(0.1)
    ),
    "poster": lambda: ncg.newton_cg(0.1, damping=0.1, linesearch=None),
    "hessian_free": lambda: ncg.hessian_free(),
    "stochastic_hessian_free": lambda: ncg.stochastic_hessian_free(),
    "unpreconditioned": lambda: ncg.hessian_free(preconditioner=None),
    "steihaug": lambda: ncg.newton_cg(
        solver=ncg.steihaug(), damping=0.0, linesearch=None
    ),
    "minres": lambda: ncg.newton_cg(solver=ncg.minres()),
    "momentum": lambda: ncg.newton_cg(solver=ncg.quadratic_momentum(ncg.cg(maxiter=2))),
    "quasi_newton": lambda: ncg.newton_cg(solver=ncg.quasi_newton(ncg.cg(maxiter=2))),
}


@pytest.fixture(scope="module")
def configured(request):
    """A transform, its jitted step for a scaled loss, and a list of its traces."""
    _, loss = tiny_net()
    tx, traces = CONFIGURATIONS[request.param](), []
    scaled = ncg.CompositeLoss(
        loss.model_fn, lambda outputs, y, scale: scale * loss.loss_fn(outputs, y)
    ).bind(**loss.data)

    @jax.jit
    def step(params, state, scale):
        traces.append(request.param)
        grads = jax.grad(scaled)(params, scale=scale)
        updates, state = tx.update(grads, state, params, value_fn=scaled, scale=scale)
        return optax.apply_updates(params, updates), state

    return tx, step, traces


def types(tree):
    return jax.tree.map(lambda x: (x.shape, x.dtype, x.weak_type), tree)


@pytest.mark.parametrize("configured", CONFIGURATIONS, indirect=True)
def test_a_jitted_step_is_traced_once_and_keeps_the_types_of_the_state(configured):
    tx, step, traces = configured
    params, _ = tiny_net()
    state = tx.init(params)
    before = types(state)
    for _ in range(5):
        params, state = step(params, state, jnp.float32(1.0))
        assert types(state) == before
    assert len(traces) == 1


def iterates(configured, scale, steps):
    tx, step, _ = configured
    params, _ = tiny_net()
    state, trajectory = tx.init(params), [flat(params)]
    for _ in range(steps):
        params, state = step(params, state, jnp.float32(scale))
        trajectory.append(flat(params))
    return trajectory


# Powers of two near 1e-8 and 1e8 scale without rounding, which would grow on the way;
# eigendecompositions, those of the Kronecker factors, round all the same.
@pytest.mark.parametrize(
    ("configured", "steps", "tolerance"),
    [
        ("newton_cg", 10, 1e-5),
        ("unpreconditioned", 10, 1e-5),
        ("minres", 10, 1e-5),
        ("steihaug", 10, 1e-5),
        ("momentum", 10, 1e-5),
        ("hessian_free", 1, 1e-3),
    ],
    indirect=["configured"],
)
@pytest.mark.parametrize("scale", [2.0**-27, 2.0**27], ids=["1e-8", "1e8"])
def test_the_iterates_do_not_know_the_scale_of_the_loss(
    configured, steps, tolerance, scale
):
    reference = iterates(configured, 1.0, steps)
    assert np.linalg.norm(reference[-1] - reference[0]) > 0.1
    for ours, theirs in zip(iterates(configured, scale, steps), reference, strict=True):
        assert np.linalg.norm(ours - theirs) <= tolerance * np.linalg.norm(theirs)


@pytest.mark.parametrize("make", CONFIGURATIONS.values(), ids=CONFIGURATIONS)
def test_init_works_on_abstract_parameters(make):
    params, _ = tiny_net()
    tx = make()
    assert_trees_equal(tx.init(jax.eval_shape(lambda: params)), tx.init(params))


def test_no_field_of_the_state_clashes_with_optax():
    state = ncg.hessian_free().init(START)
    for name in ("value", "grad", "learning_rate"):
        assert optax.tree.get(state, name) is None


def test_inject_hyperparams_needs_no_static_args():
    plain, _ = train(ncg.newton_cg(0.5, damping=0.2), rosenbrock, START, 4)
    injected = optax.inject_hyperparams(ncg.newton_cg)(0.5, damping=0.2)
    state = injected.init(START)
    assert state.hyperparams["learning_rate"] == 0.5
    assert state.hyperparams["damping"] == np.float32(0.2)
    params, _ = train(injected, rosenbrock, START, 4)
    np.testing.assert_allclose(params, plain, rtol=1e-5)


def test_inject_hyperparams_of_the_defaults(net_run):
    _, loss, _, expected, _ = net_run
    params, _ = one_layer()
    injected, _ = train(optax.inject_hyperparams(ncg.hessian_free)(), loss, params, 3)
    assert_trees_close(injected, expected, rtol=1e-3)


def test_injected_hyperparams_can_be_changed_on_the_way():
    tx = optax.inject_hyperparams(ncg.newton_cg)(1.0, damping=0.0, linesearch=None)
    state = tx.init(START)
    state.hyperparams["learning_rate"] = jnp.float32(0.25)
    updates, _, _ = update(tx, squares, START, state=state)
    np.testing.assert_allclose(updates, -0.25 * START, rtol=1e-6)


# Repetition, resumption, transformations.


def one_layer():
    """A single matrix: the fewest Kronecker factors to compile."""
    x, w = (
        jnp.float32(symmetric([1.0, 2.0, 3.0])),
        jnp.float32(symmetric([1.0, 2.0, 0.5], 1)),
    )
    loss = ncg.CompositeLoss(
        lambda w: jnp.tanh(x @ w), lambda outputs: jnp.mean((outputs - 0.3) ** 2)
    )
    return w, loss


@pytest.fixture(scope="module")
def net_run():
    """Parameters, the jitted step and the state after three steps of hessian_free."""
    params, loss = one_layer()
    tx = ncg.hessian_free()
    step, state = make_step(tx, loss), tx.init(params)
    for _ in range(3):
        params, state = step(params, state, {})
    return tx, loss, step, params, state


def continued(step, params, state, steps=3):
    for _ in range(steps):
        params, state = step(params, state, {})
    return params, state


def test_the_same_run_gives_the_same_bits(net_run):
    tx, loss, step, params, state = net_run
    start, _ = one_layer()
    assert_trees_equal(continued(step, start, tx.init(start)), (params, state))
    assert_trees_equal(train(ncg.hessian_free(), loss, start, 3), (params, state))


def test_flax_serialization_resumes_bit_for_bit(net_run):
    tx, _, step, params, state = net_run
    saved = flax.serialization.to_bytes((params, state))
    target = jax.tree.map(jnp.zeros_like, params), tx.init(params)
    restored = jax.tree.map(jnp.asarray, flax.serialization.from_bytes(target, saved))
    assert_trees_equal(restored, (params, state))
    assert_trees_equal(continued(step, *restored), continued(step, params, state))


def test_orbax_resumes_bit_for_bit(net_run, tmp_path):
    tx, _, step, params, state = net_run
    with orbax.checkpoint.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "run", (params, state))
        checkpointer.wait_until_finished()
        target = jax.eval_shape(lambda: (params, tx.init(params)))
        restored = checkpointer.restore(tmp_path / "run", target)
    assert_trees_equal(restored, (params, state))
    assert_trees_equal(continued(step, *restored), continued(step, params, state))


@pytest.fixture(scope="module")
def valley():
    """newton_cg and its jitted step on the function of Rosenbrock."""
    tx = ncg.newton_cg()
    return tx, make_step(tx, rosenbrock)


def test_scan_equals_a_loop(valley):
    tx, step = valley
    start = START, tx.init(START)
    scanned, _ = jax.lax.scan(lambda c, _: (step(*c, {}), None), start, length=5)
    looped = continued(step, *start, steps=5)
    np.testing.assert_allclose(scanned[0], looped[0], rtol=1e-3)
    assert ncg.get_info(scanned[1]).status == ncg.get_info(looped[1]).status


def test_vmap_over_an_ensemble_equals_separate_runs(valley):
    tx, step = valley
    starts = jnp.array([[-1.2, 1.0], [0.5, -0.5], [2.0, 2.0]])
    mapped = jax.jit(jax.vmap(lambda w, s: step(w, s, {})))
    members, states = starts, jax.vmap(tx.init)(starts)
    for _ in range(5):
        members, states = mapped(members, states)
    alone = [continued(step, w, tx.init(w), 5) for w in starts]
    np.testing.assert_allclose(members, np.stack([w for w, _ in alone]), rtol=1e-3)
    iterations = ncg.get_info(states).cg_iterations
    assert iterations.tolist() == [int(ncg.get_info(s).cg_iterations) for _, s in alone]


def test_a_loss_of_minus_infinity_is_no_success():
    loss = lambda w: jnp.where(w > 0.5, w**2, -jnp.inf)  # noqa: E731
    for linesearch in (None, ncg.armijo(), ncg.safeguard()):
        tx = ncg.newton_cg(linesearch=linesearch)
        updates, _, info = update(tx, loss, jnp.array(1.0), grads=jnp.array(2.0))
        assert jnp.isfinite(info.actual_reduction)
        assert jnp.isfinite(info.next_loss)
        assert loss(1.0 + updates) > 0


def test_a_step_too_long_for_float16_is_rejected():
    loss = lambda w: 1e-6 * jnp.sum((w.astype(jnp.float32) - 3e5) ** 2)  # noqa: E731
    tx = ncg.newton_cg(damping=0.0, linesearch=None)
    updates, _, info = update(tx, loss, jnp.zeros(2, jnp.float16))
    np.testing.assert_array_equal(updates, 0)
    assert info.status == Status.REJECTED_NON_FINITE


def test_frozen_numbers_may_be_pythons():
    params = {"w": jnp.ones(2), "n": 3}
    tx = ncg.newton_cg(mask={"w": True, "n": False})
    loss = lambda p: jnp.sum((p["w"] - p["n"]) ** 2)  # noqa: E731
    grads = jax.grad(loss, allow_int=True)(params)
    updates, _ = tx.update(grads, tx.init(params), params, value_fn=loss)
    np.testing.assert_allclose(updates["w"], 2.0, rtol=1e-3)
    assert updates["n"] == 0


@pytest.mark.parametrize(
    "search",
    [optax.scale_by_backtracking_linesearch(20), optax.scale_by_zoom_linesearch(20)],
    ids=["backtracking", "zoom"],
)
def test_optaxs_line_searches_chain_behind(search):
    tx = optax.chain(
        ncg.scale_by_newton_cg(damping=1e-3, linesearch=None), optax.scale(-1.0), search
    )
    w, _ = train(tx, rosenbrock, START, 60)
    np.testing.assert_allclose(w, 1.0, atol=1e-2)
