"""Faults that were found in runs: each is a small input that failed once."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import ncg_optax as ncg
from ncg_optax import Status
from ncg_optax.preconditioners import kronecker_factors

GAUSS_NEWTON = ncg.gauss_newton()
RULE = ncg.levenberg_marquardt(initial=1.0)


def make_step(tx, loss):
    @jax.jit
    def step(w, state, **data):
        grads = jax.tree.map(jnp.conj, jax.grad(loss)(w, **data))
        updates, state = tx.update(grads, state, w, value_fn=loss, **data)
        return optax.apply_updates(w, updates), state

    return step


def run(tx, loss, w, steps):
    step, state, statuses = make_step(tx, loss), tx.init(w), []
    for _ in range(steps):
        w, state = step(w, state)
        statuses.append(Status(int(ncg.get_info(state).status)))
    return w, state, statuses


# Leaves of several dtypes.

DTYPES = ["float16", "bfloat16", "float32", "float64", "complex64", "complex128"]
OPTIMIZERS = {
    "jacobi": dict(preconditioner=ncg.jacobi()),
    "squared gradients": dict(preconditioner=ncg.jacobi("gradient")),
    "nystrom": dict(preconditioner=ncg.nystrom(3)),
    "kronecker": dict(preconditioner=ncg.kronecker()),
    "roots": dict(
        preconditioner=ncg.compose(ncg.kronecker(with_sqrt=True), ncg.nystrom(2))
    ),
    "warm start": dict(solver=ncg.cg(warm_start=0.9, maxiter=5)),
    "minres": dict(solver=ncg.minres()),
    "steihaug": dict(solver=ncg.steihaug(), damping=0.0, linesearch=None),
    "momentum": dict(solver=ncg.quadratic_momentum(), linesearch=None),
    "secant pairs": dict(solver=ncg.quasi_newton()),
    "averaged": dict(solver=ncg.averaged_gradient(), linesearch=None),
    "residual space": dict(solver=ncg.residual_space(momentum=0.5)),
    "hessian_free": None,
    "stochastic_hessian_free": None,
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_leaves_of_all_dtypes_are_trained_together(name):
    def model(params):
        distances = [jnp.abs(w - 3) if jnp.iscomplexobj(w) else w - 3 for w in params]
        return jnp.concatenate([x.astype(jnp.float64).ravel() for x in distances])

    with jax.enable_x64(True):
        # What works on the residuals takes real parameters.
        dtypes = DTYPES[:4] if name == "residual space" else DTYPES
        shapes = [(2, 3), (4,)] * 3
        params = [jnp.ones(s, d) for s, d in zip(shapes, dtypes, strict=False)]
        loss = ncg.CompositeLoss(model, lambda outputs: jnp.mean(outputs**2))
        settings = OPTIMIZERS[name]
        if settings is None:
            tx = getattr(ncg, name)()
        else:
            tx = ncg.newton_cg(curvature=GAUSS_NEWTON, **settings)
        new, _, _ = run(tx, loss, params, 3)
        assert [x.dtype for x in new] == dtypes
        assert loss(new) < loss(params)


# Batches that are not finite.


def test_a_trust_region_outlasts_batches_that_are_not_finite():
    loss = lambda w, bad: jnp.sum((w - 3.0) ** 2) + bad  # noqa: E731
    tx = ncg.newton_cg(solver=ncg.steihaug(), damping=0.0, linesearch=None)
    step, w = make_step(tx, loss), jnp.zeros(2)
    state = tx.init(w)
    for _ in range(31):
        w, state = step(w, state, bad=jnp.nan)
    for _ in range(4):
        w, state = step(w, state, bad=0.0)
    np.testing.assert_allclose(w, 3, rtol=1e-6)


def test_batches_that_are_not_finite_hardly_slow_down_a_run():
    loss = ncg.CompositeLoss(
        lambda w: w - 3.0, lambda outputs, bad: jnp.mean(outputs**2) + bad
    )
    tx = ncg.stochastic_hessian_free()
    step, needed = make_step(tx, loss), []
    for faults in (0, 10):
        w = jnp.zeros(2)
        state = tx.init(w)
        for _ in range(faults):
            w, state = step(w, state, bad=jnp.nan)
        count = 0
        while loss(w, bad=0.0) > 1e-2 and count < 100:
            w, state = step(w, state, bad=0.0)
            count += 1
        needed.append(count)
    assert needed[1] <= 2 * needed[0] < 100


def test_the_gradient_of_a_batch_with_an_infinite_loss_is_not_averaged():
    # The gradient is finite but huge.
    loss = lambda w, bad: jnp.sum((w - 3.0) ** 2) + bad * jnp.sum(w)  # noqa: E731
    outlier = lambda w, bad: loss(w, bad) + jnp.where(bad > 0, jnp.inf, 0)  # noqa: E731
    tx = ncg.newton_cg(0.5, solver=ncg.averaged_gradient(), linesearch=None)
    step, ends = make_step(tx, outlier), []
    for first in ([], [3e19]):
        w = jnp.zeros(2)
        state = tx.init(w)
        for bad in [*first, *[0.0] * 10]:
            w, state = step(w, state, bad=bad)
        ends.append(w)
    np.testing.assert_array_equal(*ends)


# Curvature that is not finite where the gradient is.


def root_loss(w):
    return jnp.abs(w[0]) ** 1.5 + (w[1] - 3) ** 2  # f'' is infinite at w[0] = 0


@pytest.mark.parametrize(
    "settings",
    [
        dict(),
        dict(preconditioner=ncg.kronecker()),
        dict(solver=ncg.minres()),
        dict(solver=ncg.steihaug(), damping=0.0, linesearch=None),
        dict(solver=ncg.quasi_newton()),
    ],
    ids=lambda settings: str(settings.get("solver", settings)),
)
def test_a_hessian_that_is_not_finite_does_not_stop_a_run(settings):
    w, _, statuses = run(ncg.newton_cg(**settings), root_loss, jnp.zeros(2), 10)
    np.testing.assert_allclose(w, [0, 3], atol=1e-3)
    assert statuses[0] == Status.NON_FINITE_CURVATURE


def test_a_gauss_newton_matrix_that_is_not_finite_does_not_stop_a_run():
    loss = ncg.CompositeLoss(
        lambda w: w - jnp.array([0.0, 3.0]), lambda z: jnp.sum(jnp.abs(z) ** 1.5)
    )
    w, _, _ = run(ncg.hessian_free(), loss, jnp.zeros(2), 30)
    np.testing.assert_allclose(w, [0, 3], atol=1e-2)


def test_without_a_look_at_the_loss_there_is_no_step_of_unknown_length():
    tx = ncg.newton_cg(damping=1.0, linesearch=None)
    w, _, statuses = run(tx, root_loss, jnp.zeros(2), 2)
    np.testing.assert_array_equal(w, 0)
    assert set(statuses) == {Status.REJECTED_NON_FINITE}


# Decompositions that fail.


def test_a_failed_decomposition_keeps_the_last_eigenvectors(monkeypatch):
    fails = {"now": False}

    def orthonormal(x):
        basis, _ = jnp.linalg.qr(x)
        return basis * jnp.nan if fails["now"] else basis

    monkeypatch.setattr(kronecker_factors, "_orthonormal", orthonormal)
    preconditioner, params = ncg.kronecker(refresh=1), jnp.ones((3, 2))
    state, bases = preconditioner.init(params), []
    for count in range(3):
        fails["now"] = count == 1
        state, _ = preconditioner.update(
            state,
            lambda v: jnp.arange(3.0)[:, None] * v + jnp.ones((3, 2)),
            params,
            jnp.float32(0.1),
            jax.random.key(count),
            jnp.int32(count),
        )
        bases.append(np.asarray(state.left.basis))
        (sides,) = preconditioner.prepare(state, jnp.float32(0.1))
        assert np.isfinite(sides.left).all() and np.isfinite(sides.right).all()
    np.testing.assert_array_equal(bases[1], bases[0])
    assert np.any(bases[2] != bases[1])


# Damping at its bounds.


@pytest.mark.parametrize("settings", [dict(minimum=0.0), dict(initial=1e-28)])
def test_damping_comes_back_from_the_smallest_number(settings):
    rule = ncg.levenberg_marquardt(**settings)
    _, state, _ = rule.value(rule.init("float32"), 0, lambda: jnp.float32(1.0))

    def outcome(accepted):
        one = jnp.float32(1.0)
        return ncg.globalization.Outcome(one, one, 0 * one, one * accepted, accepted)

    for _ in range(100):
        state = rule.update(state, outcome(jnp.array(True)))
    lowest = state.damping
    for _ in range(5):
        state = rule.update(state, outcome(jnp.array(False)))
    assert state.damping > 10 * lowest


def test_damping_stays_finite():
    rule = ncg.levenberg_marquardt(initial=1e30)
    state = rule.init("float32")
    rejected = ncg.globalization.Outcome(
        *map(jnp.float32, (1, -1, 0, 0)), jnp.array(False)
    )
    for _ in range(50):
        state = rule.update(state, rejected)
    assert jnp.isfinite(state.damping)


# Statuses that were not true.


def test_no_step_is_accepted_whose_trials_are_all_nan():
    hole = lambda w: jnp.where(jnp.all(w == 1.0), jnp.sum(w**2), jnp.nan)  # noqa: E731
    w, state, statuses = run(ncg.newton_cg(damping=1.0), hole, jnp.ones(2), 1)
    np.testing.assert_array_equal(w, 1)
    assert statuses == [Status.REJECTED_NO_DECREASE]


def test_a_shortened_step_lowers_the_loss():
    # The negative gradient: every step leads uphill.
    loss = lambda w: jnp.sum(jnp.cosh(w - 1)) + 3  # noqa: E731
    tx, w = ncg.newton_cg(), jnp.zeros(2)
    update = jax.jit(lambda g, s: tx.update(g, s, w, value_fn=loss))
    updates, state = update(-jax.grad(loss)(w), tx.init(w))
    np.testing.assert_array_equal(updates, 0)
    assert ncg.get_info(state).status == Status.REJECTED_NO_DECREASE


# minimize.


def test_a_rise_is_no_convergence():
    loss = lambda w: jnp.log1p(w**2)  # noqa: E731
    tx = ncg.newton_cg(damping=0.0, linesearch=None)
    _, _, result = ncg.minimize(loss, jnp.array(0.9), tx, ftol=1e-3, maxiter=3)
    assert not result.converged


def test_an_infinite_gradient_is_no_lack_of_steps():
    _, _, result = ncg.minimize(lambda w: jnp.sum(w) * jnp.inf, jnp.ones(1), maxiter=0)
    assert result.status == Status.DIVERGED


# Numbers of NumPy.


def test_counts_may_be_numbers_of_numpy():
    assert ncg.cg(maxiter=np.int64(5)).maxiter == 5
    assert ncg.minres(np.int32(7)).maxiter == 7


def test_a_rate_of_numpy_does_not_widen_the_updates():
    w = jnp.ones(2, jnp.bfloat16)
    tx = ncg.newton_cg(np.float32(0.5))
    loss = lambda w: jnp.sum(w.astype(jnp.float32) ** 2)  # noqa: E731
    updates, _ = tx.update(jax.grad(loss)(w), tx.init(w), w, value_fn=loss)
    assert updates.dtype == jnp.bfloat16


# Gradients of another function.

SHIFTED = {
    "quadratic": (lambda w: jnp.sum((w - 1.0) ** 2) + 3.0, jnp.zeros(2)),
    "rosenbrock": (
        lambda w: 100 * (w[1] - w[0] ** 2) ** 2 + (1 - w[0]) ** 2 + 5.0,
        jnp.array([-1.2, 1.0]),
    ),
}


@pytest.mark.parametrize("problem", SHIFTED)
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"linesearch": None},
        {"solver": ncg.steihaug(), "damping": 0.0, "linesearch": None},
    ],
    ids=["armijo", "single trial", "trust region"],
)
def test_steps_that_raise_the_loss_by_rounding_are_rejected_if_they_are_short(
    problem, settings
):
    # Damping or the trust region shortens them until each rise was within rounding, and
    # the loss rose by it for ever.
    loss, w = SHIFTED[problem]
    tx, first = ncg.newton_cg(**settings), loss(w)
    state = tx.init(w)

    @jax.jit
    def step(w, state):
        wrong = -jax.grad(loss)(w)
        updates, state = tx.update(wrong, state, w, value_fn=loss)
        return optax.apply_updates(w, updates), state

    for _ in range(60):
        new, state = step(w, state)
        if jnp.all(new == w):
            assert ncg.get_info(state).status == Status.REJECTED_NO_DECREASE
        w = new
    assert loss(w) <= first


def test_a_step_that_is_too_short_to_move_is_rejected():
    # The damping falls nevertheless, until the steps are long enough.
    loss = lambda w: jnp.sum((w - 2.0) ** 2)  # noqa: E731
    tx = ncg.newton_cg(damping=ncg.levenberg_marquardt(initial=1e12))
    w, _, statuses = run(tx, loss, jnp.ones(2), 30)
    assert statuses[0] == Status.REJECTED_NO_DECREASE
    assert Status.ACCEPTED in statuses
    np.testing.assert_allclose(w, 2.0, rtol=1e-5)


# Found by tests/unit/test_properties.py.


@pytest.mark.parametrize("factor", [1e-29, 1e29])
def test_the_norm_of_a_gradient_whose_square_is_out_of_range(factor):
    loss = ncg.CompositeLoss(lambda w: w - 3.0, lambda z: factor * jnp.mean(z**2))
    tx = ncg.newton_cg(solver=ncg.residual_space(), curvature=GAUSS_NEWTON)
    _, state, _ = run(tx, loss, jnp.zeros(2), 1)
    info = ncg.get_info(state)
    np.testing.assert_allclose(info.gradient_norm, factor * 18**0.5, rtol=1e-5)
    assert np.isfinite(info.residual)
    assert info.solver_status == Status.RESIDUAL_CONVERGED


def test_a_gradient_is_not_zero_because_the_slope_underflows():
    loss = lambda w: 1e-22 * jnp.sum((w - 3.0) ** 2)  # noqa: E731
    tx = ncg.newton_cg(damping=1e-3, linesearch=None)
    w, _, statuses = run(tx, loss, jnp.zeros(2), 1)
    assert jnp.all(w > 0)
    assert statuses == [Status.NOT_EVALUATED]


@pytest.mark.parametrize("factor", [1e-25, 1e25])
def test_curvature_whose_square_is_out_of_range(factor):
    diagonal = factor * jnp.array([1.0, 2.0])
    result = ncg.solvers.conjugate_gradient(
        lambda v: diagonal * v, jnp.ones(2), maxiter=5, tolerance=1e-5
    )
    assert result.status == Status.RESIDUAL_CONVERGED
    np.testing.assert_allclose(result.solution * factor, [1.0, 0.5], rtol=1e-5)


def test_the_decrease_of_the_model_after_a_start_that_is_far_off():
    # The curvature along the direction is computed from it.
    diagonal, b = jnp.array([1e7, 3e6, 1e3]), jnp.array([100.0, -50.0, 20.0])
    start = jnp.array([1.0, -1.0, 1.0])
    result = ncg.solvers.conjugate_gradient(
        lambda v: diagonal * v, b, maxiter=10, tolerance=1.0, x0=start
    )
    x, a = (np.float64(v) for v in (result.solution, diagonal))
    expected = np.float64(b) @ x - 0.5 * x @ (a * x)
    np.testing.assert_allclose(result.model_decrease, expected, rtol=1e-3)


def test_the_loss_after_a_step_is_that_of_the_rounded_parameters():
    loss = lambda w: jnp.sum((w.astype("float32") - jnp.pi) ** 4)  # noqa: E731
    tx, w = ncg.newton_cg(), jnp.linspace(-3, 9, 20, dtype=jnp.bfloat16)
    step, state = make_step(tx, loss), tx.init(w)
    for _ in range(5):
        w, state = step(w, state)
        np.testing.assert_allclose(ncg.get_info(state).next_loss, loss(w), rtol=1e-5)


# Found by tests/unit/test_fault_matrix.py.


@pytest.mark.parametrize("damage", [jnp.nan, jnp.inf])
def test_damping_that_is_not_finite_is_that_of_the_first_step(damage):
    rule = ncg.levenberg_marquardt()
    state = ncg.globalization.LevenbergMarquardtState(*map(jnp.float32, (damage, 2)))
    damping, state, products = rule.value(state, 3, lambda: jnp.float32(1.0))
    assert damping == state.damping == 2.0
    assert products == 0


def test_a_trust_region_comes_back_after_trials_that_are_not_finite():
    solver = ncg.steihaug(radius=2.0)
    state = solver.init(jnp.zeros(2))
    rejected = ncg.globalization.Outcome(
        *map(jnp.float32, (1, 0, 0, 0)), jnp.array(False)
    )
    for _ in range(200):
        state = solver.update(state, rejected)
    assert 0 < state.radius < 1e-10
    good = ncg.globalization.Outcome(*map(jnp.float32, (1, 1, 0, 1)), jnp.array(True))
    for _ in range(47):
        state = solver.update(state._replace(length=state.radius), good)
    assert state.radius >= 2.0


def test_a_warm_start_that_rises_is_not_kept():
    # Along negative curvature it grew from solve to solve until it overflowed.
    solver, b = ncg.cg(maxiter=3, warm_start=0.9, forcing=None), jnp.array([1.0, 1e-3])
    model = ncg.solvers.Model(b, 0.0, lambda v: jnp.array([1.0, -1.0]) * v)
    state = solver.init(b)._replace(previous=jnp.array([5.0, 1e5]))
    result, state = solver.solve(model, state)
    assert jnp.vdot(model.rhs, result.solution) <= 0
    np.testing.assert_array_equal(state.previous, 0)


def test_a_gradient_with_a_product_that_is_not_finite_is_not_averaged():
    solver, rhs = ncg.averaged_gradient(), jnp.ones(2)
    model = ncg.solvers.Model(-rhs, 1.0, lambda v: v * jnp.nan)
    before = solver.init(rhs)
    result, state = solver.solve(model, before)
    assert result.status == Status.SOLVER_NON_FINITE
    jax.tree.map(np.testing.assert_array_equal, state, before)


def test_a_preconditioner_that_gives_zero_is_no_zero_gradient():
    solver, rhs = ncg.averaged_gradient(), jnp.ones(2)
    model = ncg.solvers.Model(-rhs, 1.0, lambda v: v, precondition=lambda r: 0 * r)
    result, _ = solver.solve(model, solver.init(rhs))
    assert result.status == Status.INDEFINITE_PRECONDITIONER


@pytest.mark.parametrize(
    ("field", "settings"),
    [
        ("solver", dict(solver=ncg.quasi_newton(ncg.cg(2)))),
        ("solver", dict(solver=ncg.averaged_gradient(), linesearch=None, damping=1.0)),
        ("preconditioner", dict(preconditioner=ncg.kronecker())),
        ("preconditioner", dict(preconditioner=ncg.jacobi("gradient"))),
    ],
    ids=["secant pairs", "averaged", "kronecker", "jacobi"],
)
@pytest.mark.parametrize("damage", [jnp.nan, jnp.inf])
def test_a_damaged_state_costs_one_step(field, settings, damage):
    loss = lambda w: jnp.sum((w - 3.0) ** 4)  # noqa: E731
    tx, w = ncg.newton_cg(**settings), jnp.ones((2, 3))
    step, state = make_step(tx, loss), tx.init(w)
    for _ in range(2):
        w, state = step(w, state)

    def damaged(x):
        return jnp.full_like(x, damage) if x.dtype == jnp.float32 and x.ndim else x

    own = jax.tree.map(damaged, getattr(state[0], field))
    state = (state[0]._replace(**{field: own}), *state[1:])
    w, state = step(w, state)
    assert jnp.isfinite(w).all()
    reached = loss(w)
    for _ in range(3):
        w, state = step(w, state)
    assert loss(w) < 0.8 * reached
    for x in jax.tree.leaves(getattr(state[0], field)):
        assert jnp.isfinite(x).all()


def test_a_damaged_state_of_kronecker_adam_moves_nothing():
    loss = lambda w: jnp.sum((w - 3.0) ** 2)  # noqa: E731
    tx, w = ncg.kronecker_adam(0.1), jnp.ones((2, 3))
    step, state = make_step(tx, loss), tx.init(w)
    state = jax.tree.map(lambda x: x * jnp.nan if x.ndim else x, state)
    new, state = step(w, state)
    np.testing.assert_array_equal(new, w)
    assert ncg.get_info(state).status == Status.REJECTED_NON_FINITE
    for _ in range(5):
        new, state = step(new, state)
    assert loss(new) < loss(w)


def test_a_product_that_is_not_finite_does_not_raise_the_damping():
    tx = ncg.newton_cg(
        solver=ncg.averaged_gradient(), linesearch=ncg.safeguard(), damping=RULE
    )
    root = lambda w: jnp.sum(jnp.abs(w) ** 1.5 + w)  # noqa: E731
    _, state, statuses = run(tx, root, jnp.zeros(2), 3)
    assert set(statuses) == {Status.REJECTED_NON_FINITE}
    assert state[0].damping.damping == 1.0


# Axes and arrays that are not what they are taken for.

SERIES = jnp.ones((64, 8, 2))  # time, examples, features


def of_series(w, x):
    return jnp.tanh(x @ w).mean(0)


@pytest.mark.parametrize("plain", [True, False])
def test_series_with_time_first_are_noticed(plain):
    square = lambda z, y: jnp.mean((z - y) ** 2)  # noqa: E731
    loss, curvature = ncg.CompositeLoss(of_series, square), GAUSS_NEWTON
    if plain:
        loss = lambda w, x, y: square(of_series(w, x), y)  # noqa: E731
        curvature = ncg.hessian()
    tx = ncg.newton_cg(
        curvature=curvature, sampling=ncg.sampling(1 / 4, min_examples=4)
    )
    w, y = jnp.ones(2), jnp.zeros(8)

    def update(x, y):
        grads = jax.grad(loss)(w, x, y) if plain else jax.grad(loss)(w, x=x, y=y)
        tx.update(grads, tx.init(w), w, value_fn=loss, x=x, y=y)

    first = r"the first axis of x, of shape \(64, 8, 2\), is taken for the examples"
    with pytest.warns(UserWarning, match=first):
        jax.eval_shape(update, SERIES, y)
    jax.eval_shape(update, jnp.ones((2, 64, 2)), jnp.zeros(64))  # no warning


def test_an_array_of_statuses_is_refused_with_what_to_do():
    statuses = jax.vmap(lambda i: i)(jnp.full((3,), int(Status.ACCEPTED)))
    with pytest.raises(TypeError, match=r"an array of shape \(3,\), as jax.vmap"):
        ncg.explain(statuses)
    assert {ncg.explain(code) for code in statuses} == {ncg.explain(Status.ACCEPTED)}


def test_a_model_with_functions_among_its_leaves_gets_a_hint():
    with pytest.raises(TypeError, match="params, static = eqx.partition"):
        ncg.newton_cg().init({"w": jnp.ones(2), "activation": jnp.tanh})
