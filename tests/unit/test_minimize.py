import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.optimize
from oracles import rosenbrock, symmetric, vector

import ncg_optax as ncg
from ncg_optax import Status
from ncg_optax.losses.objective import as_objective
from ncg_optax.minimization.saddle import leave_saddle
from ncg_optax.step.info import first_info

pytestmark = pytest.mark.usefixtures("x64")


def quartic(w, squares, quartics):
    """The sum of ``a w^2 + b w^4``, by coordinate, and something to be dropped."""
    return jnp.sum(squares * w**2 + quartics * w**4), {"aux": w}


@pytest.fixture(scope="module")
def minimize_quartic(x64):
    """Compiled once for all starts and coefficients."""

    @jax.jit
    def solve(start, squares, quartics):
        return ncg.minimize(
            quartic, start, maxiter=50, gtol=1e-6, squares=squares, quartics=quartics
        )

    def run(start, squares, quartics):
        arrays = (jnp.asarray(x, jnp.float64) for x in (start, squares, quartics))
        params, _, result = solve(*arrays)
        return np.asarray(params), result

    return run


def quadratic(w, a, b):
    return w @ a @ w / 2 - b @ w


def booth(w):
    return (w[0] + 2 * w[1] - 7) ** 2 + (2 * w[0] + w[1] - 5) ** 2


def beale(w):
    x, y = w
    return (
        (1.5 - x + x * y) ** 2
        + (2.25 - x + x * y**2) ** 2
        + (2.625 - x + x * y**3) ** 2
    )


PROBLEMS = {
    "rosenbrock": (rosenbrock, [-1.2, 1.0]),
    "booth": (booth, [0.0, 0.0]),
    "beale": (beale, [1.0, 1.0]),
}


def problem(w, which):
    return jax.lax.switch(which, [f for f, _ in PROBLEMS.values()], w)


@pytest.fixture(scope="module")
def minimize_problem(x64):
    return jax.jit(lambda w, which: ncg.minimize(problem, w, gtol=1e-8, which=which))


@pytest.mark.parametrize("which", range(len(PROBLEMS)), ids=PROBLEMS)
def test_agrees_with_scipy(minimize_problem, which):
    f, start = list(PROBLEMS.values())[which]
    w, _, result = minimize_problem(jnp.array(start), which)
    value_and_grad = jax.jit(jax.value_and_grad(f))
    theirs = scipy.optimize.minimize(
        value_and_grad, start, jac=True, method="BFGS", options={"gtol": 1e-8}
    )
    assert result.converged and result.status == Status.CONVERGED_GRADIENT
    np.testing.assert_allclose(w, theirs.x, atol=1e-6)
    value, grad = value_and_grad(w)
    np.testing.assert_allclose(result.value, value, atol=1e-14)
    np.testing.assert_allclose(result.gradient_norm, np.abs(grad).max(), atol=1e-12)
    assert result.gradient_norm <= 1e-8


def test_a_quadratic_takes_one_step_of_n_products():
    a, b = symmetric([1.0, 2.0, 4.0, 7.0]), vector(4)
    exact = ncg.newton_cg(
        damping=0.0, solver=ncg.cg(maxiter=4, rtol=0.0, forcing=None), linesearch=None
    )
    w, _, result = ncg.minimize(
        quadratic, jnp.zeros(4), exact, gtol=1e-9, check_curvature=False, a=a, b=b
    )
    np.testing.assert_allclose(w, np.linalg.solve(a, b), rtol=1e-10)
    assert result.converged
    assert (int(result.iterations), int(result.products)) == (1, 4)
    assert result.evaluations == 0
    assert result.gradient_equivalents == 1 + 4 * 1.5 + 1


def test_the_cost_is_the_sum_over_the_steps():
    w, state, total = jnp.array([-1.2, 1.0]), None, np.zeros(2, int)
    tx = ncg.newton_cg()
    state = tx.init(w)

    @jax.jit
    def step(w, state):
        value, grad = jax.value_and_grad(rosenbrock)(w)
        updates, state = tx.update(grad, state, w, value=value, value_fn=rosenbrock)
        return optax.apply_updates(w, updates), state

    for _ in range(7):
        w, state = step(w, state)
        info = ncg.get_info(state)
        total += int(info.products), int(info.evaluations)
    _, _, result = ncg.minimize(
        rosenbrock, jnp.array([-1.2, 1.0]), tx, maxiter=7, check_curvature=False
    )
    products, evaluations = total
    assert result.iterations == 7
    assert (int(result.products), int(result.evaluations)) == (products, evaluations)
    # Seven steps and the gradient at the end.
    np.testing.assert_allclose(
        result.gradient_equivalents, 8 + 1.5 * products + evaluations / 3, rtol=1e-6
    )


@pytest.mark.parametrize("curvature", [1e-1, 1e-3])
def test_a_saddle_is_left_whatever_random_vector_the_search_begins_with(curvature):
    def lopsided(w):  # rises along one half of the second axis, falls along the other
        along = w[1] + 2 * w[0]
        return 1.0 + w[0] ** 2 - curvature * along**2 + 50 * along**3 + 1e6 * along**4

    saddle = jnp.zeros(2)
    for count in range(8):
        loss, value = as_objective(lopsided, {}), jnp.ones(())
        left = leave_saddle(loss, saddle, value, saddle, jnp.asarray(count))
        assert left.status == Status.RUNNING
        assert lopsided(left.params) < 1.0


@pytest.mark.parametrize("start", [[-1.2, 1.0], [0.0, 0.0], [3.0, 1.0]])
def test_a_loss_of_which_rounding_hides_the_last_digits(start):
    """The loss is a difference of large numbers; its gradient has all digits."""
    scales = 1e7 * jnp.sqrt(jnp.arange(2.0, 40.0))

    def cancelling(w):
        large = scales * (1 + w[0] * w[1])
        return 0.3 + jnp.mean((rosenbrock(w) + large) - large)

    w, _, result = ncg.minimize(cancelling, jnp.array(start), gtol=1e-10)
    assert result.converged
    np.testing.assert_allclose(w, 1.0, atol=1e-9)


@pytest.mark.parametrize("noise", [1e-13, 1e-12])
def test_a_noisy_loss_does_not_stop_it_above_gtol(noise):
    """At points of the same loss, but for the noise, the gradient decides."""

    def quartic(w):
        phase = jnp.sum(w * jnp.array([1.0, 1.7, 2.3]))
        error = jax.lax.stop_gradient(jnp.sin(1e9 * phase))
        return 1 + jnp.sum((w - 1) ** 4) + noise * error

    starts = jax.random.normal(jax.random.key(1), (16, 3))
    run = jax.vmap(lambda w: ncg.minimize(quartic, w, gtol=1e-10)[2])
    result = run(starts)
    assert result.converged.all()
    assert (result.gradient_norm <= 1e-10).all()


def test_the_rounding_of_a_large_loss_is_not_that_of_a_small_one():
    """The best point is kept, though a rise far above it was larger than the last."""
    points = jnp.array([999.0, -0.17, 0.0])

    def init(w):
        return jnp.zeros((), int), first_info(w.dtype)

    def update(grads, state, w):
        count, info = state
        rise = jnp.where(count == 0, 0.01, 0.0)  # of a loss near 1e9
        status = jnp.asarray(Status.ACCEPTED, jnp.int32)
        info = info._replace(status=status, actual_reduction=-rise)
        return points[count] - w, (count + 1, info)

    tx = optax.GradientTransformation(init, update)
    cubic = lambda w: 1.005 + w**3  # noqa: E731
    w, _, result = ncg.minimize(cubic, jnp.array(1e3), tx, check_curvature=False)
    np.testing.assert_allclose(w, -0.17)
    assert result.iterations == 3
    assert result.status == Status.STALLED


def test_a_noisy_loss_does_not_keep_it_going():
    def noisy(w):
        error = jax.lax.stop_gradient(jnp.sin(1e9 * jnp.sum(w)))
        return 1 + jnp.sum((w - 1) ** 4) + 2e-11 * error

    starts = jax.random.normal(jax.random.key(1), (32, 3))
    result = jax.vmap(lambda w: ncg.minimize(noisy, w, gtol=1e-30)[2])(starts)
    assert (result.status == Status.STALLED).all()


def test_a_saddle_is_left(minimize_quartic):
    w, result = minimize_quartic([0.0, 0.0], [1.0, -1.0], [0.0, 1.0])
    assert result.status == Status.CONVERGED_GRADIENT
    np.testing.assert_allclose(np.abs(w), [0.0, np.sqrt(0.5)], atol=1e-5)
    np.testing.assert_allclose(result.value, -0.25, atol=1e-9)
    assert result.gradient_equivalents > result.iterations + 1


def test_a_maximum_is_left(minimize_quartic):
    w, result = minimize_quartic([0.0, 0.0], [-1.0, -2.0], [1.0, 1.0])
    assert result.converged
    np.testing.assert_allclose(np.abs(w), [np.sqrt(0.5), 1.0], atol=1e-5)


def test_a_start_on_the_stable_manifold_of_a_saddle_reaches_a_minimum(minimize_quartic):
    w, result = minimize_quartic([1.0, 0.0], [1.0, -1.0], [0.0, 1.0])
    assert result.converged
    np.testing.assert_allclose(result.value, -0.25, atol=1e-9)


@pytest.mark.parametrize("start", [[0.0, 0.0], [1.0, 0.0], [0.3, 0.1]])
def test_an_unbounded_saddle_is_not_reported_as_solved(minimize_quartic, start):
    _, result = minimize_quartic(start, [1.0, -1.0], [0.0, 0.0])
    assert not result.converged
    assert result.status in (Status.MAX_STEPS, Status.DIVERGED)


def test_a_minimum_is_confirmed_without_a_step(minimize_quartic):
    w, result = minimize_quartic([0.0, 0.0], [1.0, 3.0], [1.0, 1.0])
    assert result.status == Status.CONVERGED_GRADIENT
    assert (int(result.iterations), w.any()) == (0, False)


def test_without_the_check_a_saddle_is_a_stationary_point():
    w, _, result = ncg.minimize(
        lambda w: w[0] ** 2 - w[1] ** 2, jnp.zeros(2), check_curvature=False
    )
    assert result.converged and not w.any()
    assert result.products == 0


def test_a_descent_out_of_a_stationary_point_counts_towards_maxiter():
    # Every point is taken for stationary, and there is always a way down.
    _, _, result = ncg.minimize(
        lambda w: -jnp.sum(w**2), jnp.zeros(1), maxiter=3, gtol=1e200
    )
    assert not result.converged
    assert result.status == Status.MAX_STEPS
    assert result.iterations <= 3


@pytest.fixture(scope="module")
def confirm(x64):
    """Minimisation of ``x^2 + a y^2 + y^4`` in no steps."""

    @jax.jit
    def solve(start, a):
        squares, quartics = jnp.array([1.0, a]), jnp.array([0.0, 1.0])
        return ncg.minimize(
            quartic, start, maxiter=0, squares=squares, quartics=quartics
        )

    return solve


@pytest.mark.parametrize("start", [[1.0, 1.0], [0.0, 0.0]], ids=["slope", "saddle"])
def test_no_step_is_taken_with_maxiter_zero(confirm, start):
    w, _, result = confirm(jnp.array(start), -1.0)
    assert not result.converged
    assert result.iterations == 0
    np.testing.assert_array_equal(w, start)


def test_maxiter_zero_reports_a_minimum_at_the_start(confirm):
    _, _, result = confirm(jnp.zeros(2), 1.0)
    assert result.status == Status.CONVERGED_GRADIENT


def minimize_slowly(**settings):
    sgd = optax.sgd(0.1)
    return ncg.minimize(
        lambda w: jnp.sum(w**2) + 1.0,
        jnp.ones(2),
        sgd,
        check_curvature=False,
        **settings,
    )


def test_gtol_bounds_the_largest_entry_of_the_gradient():
    w, _, result = minimize_slowly(gtol=1e-3)
    assert result.status == Status.CONVERGED_GRADIENT
    # The gradient shrinks by 0.8 a step from 2.
    assert result.iterations == np.ceil(np.log(1e-3 / 2) / np.log(0.8))
    np.testing.assert_allclose(result.gradient_norm, 2 * np.abs(w).max(), rtol=1e-12)


def test_ftol_bounds_the_relative_decrease_of_a_step():
    w, _, result = minimize_slowly(gtol=0.0, ftol=1e-3)
    assert result.status == Status.CONVERGED_VALUE and result.converged
    last = float(result.value)
    before = 1.0 + float(np.sum((w / 0.8) ** 2))
    assert 0 < before - last <= 1e-3 * before
    assert (before - last) / 0.64 > 1e-3 * before


def test_maxiter_is_reported():
    _, _, result = minimize_slowly(maxiter=5)
    assert result.status == Status.MAX_STEPS and not result.converged
    assert result.iterations == 5


def test_other_optimizers_cost_their_gradients():
    _, _, result = minimize_slowly(maxiter=5)
    assert (int(result.products), int(result.evaluations)) == (0, 0)
    assert result.gradient_equivalents == 6


def test_a_solve_without_progress_stops():
    _, _, result = ncg.minimize(
        lambda w: jnp.sum(w), jnp.ones(2), optax.set_to_zero(), check_curvature=False
    )
    assert result.status == Status.STALLED and not result.converged


@pytest.mark.parametrize(
    "f", [lambda w: jnp.sum(w) * jnp.nan, lambda w: jnp.sum(jnp.log(w))]
)
def test_a_non_finite_start_is_diverged(f):
    start = -jnp.ones(2)
    w, _, result = ncg.minimize(f, start, maxiter=5, check_curvature=False)
    assert result.status == Status.DIVERGED and not result.converged
    assert result.iterations == 0
    np.testing.assert_array_equal(w, start)


@pytest.mark.parametrize(
    "optimizer", [optax.adam(0.1), optax.lbfgs()], ids=["adam", "lbfgs"]
)
def test_optaxs_own_optimizers_work(optimizer):
    w, _, result = ncg.minimize(booth, jnp.zeros(2), optimizer, maxiter=2000, gtol=1e-4)
    assert result.converged
    np.testing.assert_allclose(w, [1.0, 3.0], atol=1e-4)


def test_a_composite_loss_with_data_by_keyword():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(8, 3)), rng.normal(size=8)
    loss = ncg.CompositeLoss(
        lambda w, x: x @ w, lambda out, y: jnp.mean((out - y) ** 2)
    )
    w, _, result = ncg.minimize(
        loss,
        jnp.zeros(3),
        ncg.newton_cg(curvature=ncg.gauss_newton()),
        gtol=1e-9,
        x=jnp.asarray(x),
        y=jnp.asarray(y),
    )
    assert result.converged
    np.testing.assert_allclose(w, np.linalg.lstsq(x, y, rcond=None)[0], atol=1e-7)


def test_complex_parameters():
    target = jnp.array([1.0 + 2.0j, -0.5j])

    def f(z):
        return jnp.sum(
            jnp.abs(z - target) ** 2 * (1 + jnp.abs(z) ** 2 * jnp.array([0.0, 1.0]))
        )

    z, _, result = ncg.minimize(f, jnp.zeros(2, complex), gtol=1e-8)
    assert result.converged
    np.testing.assert_allclose(z, target, atol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize(
    ("f", "least"),
    [
        (lambda w: jnp.sum((w - 1) ** 2), 0.0),
        (lambda w: w[0] ** 2 - w[1] ** 2 + w[1] ** 4, -0.25),
    ],
    ids=["minimum", "saddle"],
)
def test_a_loss_of_low_precision(f, least, dtype):
    w, _, result = ncg.minimize(f, jnp.zeros(2, dtype), gtol=1e-2)
    assert w.dtype == result.value.dtype == dtype
    assert result.converged
    np.testing.assert_allclose(float(result.value), least, atol=1e-2)


def test_starts_can_be_mapped_over():
    starts = jnp.array([[-1.2, 1.0], [0.0, 0.0], [2.0, -1.0]])
    solve = lambda w: ncg.minimize(rosenbrock, w, gtol=1e-8, maxiter=100)  # noqa: E731
    w, _, result = jax.jit(jax.vmap(solve))(starts)
    assert result.converged.all()
    np.testing.assert_allclose(w, 1.0, atol=1e-6)
    assert len(set(result.iterations.tolist())) > 1
