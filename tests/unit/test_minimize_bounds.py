"""Minimisation within bounds, against closed forms, a dense oracle and scipy."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.optimize
from oracles import rosenbrock, symmetric, vector

import ncg_optax as ncg
from ncg_optax import Status
from ncg_optax.minimization.box import as_box
from ncg_optax.minimization.projected_newton import projected_newton

pytestmark = pytest.mark.usefixtures("x64")

SIZE = 5


def quadratic(w, a, b):
    return w @ a @ w / 2 - b @ w


@pytest.fixture(scope="module")
def minimize_quadratic(x64):
    """Compiled once for all matrices, right-hand sides and bounds."""

    @jax.jit
    def solve(start, low, high, a, b):
        return ncg.minimize(
            quadratic, start, bounds=(low, high), gtol=1e-9, maxiter=100, a=a, b=b
        )

    return solve


def bounded_minimum(a, b, low, high):
    """The minimum of a convex quadratic: the best of all sets of active bounds."""
    best = (np.inf, None)
    for sides in itertools.product((0, 1, 2), repeat=len(b)):
        held = np.array([k > 0 for k in sides])
        w = np.where(np.array(sides) == 1, low, high)
        free = ~held
        rhs = b[free] - a[np.ix_(free, held)] @ w[held]
        w[free] = np.linalg.solve(a[np.ix_(free, free)], rhs)
        if np.all((w >= low) & (w <= high)):
            best = min(best, (w @ a @ w / 2 - b @ w, tuple(w)))
    return np.array(best[1])


@pytest.mark.parametrize("seed", range(8))
def test_a_convex_quadratic(minimize_quadratic, seed):
    rng = np.random.default_rng(seed)
    a = symmetric(np.geomspace(0.01, 10, SIZE), seed)
    b, low = rng.normal(size=SIZE), -rng.uniform(size=SIZE)
    high = low + rng.uniform(0.1, 2, size=SIZE)
    start = rng.normal(size=SIZE)
    w, _, result = minimize_quadratic(start, low, high, a, b)
    assert result.status == Status.CONVERGED_GRADIENT and result.converged
    np.testing.assert_allclose(w, bounded_minimum(a, b, low, high), atol=1e-7)
    assert np.all((w >= low) & (w <= high))


@pytest.fixture(scope="module")
def minimize_waves(x64):
    def waves(w, a, b):
        return jnp.sum(jnp.sin(3 * w)) + w @ a @ w / 2 - b @ w

    @jax.jit
    def solve(start, low, high, a, b):
        bounds = (low, high)
        w, _, result = ncg.minimize(
            waves, start, bounds=bounds, gtol=1e-8, maxiter=100, a=a, b=b
        )
        return w, result, jax.grad(waves)(w, a, b), jax.hessian(waves)(w, a, b)

    return solve


@pytest.mark.parametrize("seed", range(20))
def test_a_function_that_is_not_convex(minimize_waves, seed):
    rng = np.random.default_rng(seed)
    a, b = symmetric(rng.normal(size=SIZE), seed), rng.normal(size=SIZE)
    low, high = -rng.uniform(1, 3, size=SIZE), rng.uniform(1, 3, size=SIZE)
    start = rng.uniform(low, high)
    w, result, gradient, hessian = minimize_waves(start, low, high, a, b)
    assert result.status == Status.CONVERGED_GRADIENT
    assert np.abs(w - np.clip(w - gradient, low, high)).max() <= 1e-8
    # A minimum on the face of the parameters that are not at a bound.
    free = (w > low) & (w < high)
    if free.any():
        assert np.linalg.eigvalsh(hessian[np.ix_(free, free)]).min() > -1e-6


def test_a_bound_that_newtons_direction_crosses_does_not_stop_it():
    """Along the bound, the gradient points inside and Newton's direction outside."""
    w, _, result = ncg.minimize(
        rosenbrock,
        jnp.array([-1.2, 1.0]),
        bounds=(None, jnp.array([0.5, jnp.inf])),
        gtol=1e-8,
    )
    assert result.converged
    np.testing.assert_allclose(w, [0.5, 0.25], atol=1e-9)
    assert w[0] == 0.5
    assert result.gradient_norm <= 1e-8


def test_projecting_a_step_is_not_enough():
    """Where a step and then a projection ends is no minimum."""
    a, b = np.array([[1.0, 0.9], [0.9, 1.0]]), np.array([1.0, 0.0])
    w, _, _ = ncg.minimize(
        quadratic, jnp.zeros(2), bounds=(0.0, None), gtol=1e-9, a=a, b=b
    )
    np.testing.assert_allclose(w, [1, 0], atol=1e-9)
    free = np.linalg.solve(a, b).clip(0)
    assert quadratic(free, a, b) > quadratic(w, a, b) + 0.1


def test_negative_curvature_ends_at_bounds():
    w, _, result = ncg.minimize(
        lambda w: -jnp.sum(w**2) + w[0], jnp.array([0.1, 0.2]), bounds=(-1.0, 2.0)
    )
    assert result.converged
    assert set(np.abs(w).tolist()) <= {1.0, 2.0}


def test_a_saddle_within_bounds_is_left():
    saddle = lambda w: w[0] ** 2 - w[1] ** 2 + w[1] ** 4  # noqa: E731
    w, _, result = ncg.minimize(saddle, jnp.zeros(2), bounds=(-0.5, 0.5))
    assert result.converged
    np.testing.assert_allclose(np.abs(w), [0, 0.5], atol=1e-8)


def test_trees_with_numbers_arrays_and_none():
    target = {"a": jnp.array([2.0, -2.0]), "b": jnp.array(3.0)}

    def loss(w):
        return optax.tree.norm(jax.tree.map(jnp.subtract, w, target)) ** 2

    start = {"a": jnp.full(2, 5.0), "b": jnp.array(-7.0)}
    bounds = ({"a": -1.0, "b": -jnp.inf}, {"a": jnp.array([1.0, 0.0]), "b": 1.0})
    w, _, result = ncg.minimize(loss, start, bounds=bounds)
    assert result.converged
    np.testing.assert_allclose(w["a"], [1, -1])
    np.testing.assert_allclose(w["b"], 1)


def test_equal_bounds_fix_a_parameter():
    w, _, result = ncg.minimize(
        rosenbrock,
        jnp.array([0.0, 0.0]),
        bounds=(jnp.array([0.3, -9]), jnp.array([0.3, 9])),
        gtol=1e-9,
    )
    assert result.converged
    np.testing.assert_allclose(w, [0.3, 0.09], atol=1e-9)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_other_dtypes(dtype):
    w, _, _ = ncg.minimize(
        lambda w: jnp.sum((w - 2) ** 2).astype(jnp.float32),
        jnp.zeros(3, dtype),
        bounds=(None, jnp.array([1, 3, 3], dtype)),
    )
    assert w.dtype == dtype
    np.testing.assert_allclose(w.astype(jnp.float32), [1, 2, 2], rtol=1e-2)


def test_agrees_with_scipy_on_a_function_of_many_variables():
    """A chained Rosenbrock function with bounds that cut off its minimum."""
    n = 30
    low = np.where(np.arange(n) % 3 == 0, 0.2, -2.0)
    high = np.where(np.arange(n) % 4 == 1, 0.6, 2.0)
    start = np.clip(np.full(n, -1.0), low, high)
    w, _, result = ncg.minimize(
        rosenbrock, jnp.asarray(start), bounds=(low, high), gtol=1e-7
    )
    assert result.converged
    theirs = scipy.optimize.minimize(
        jax.jit(jax.value_and_grad(rosenbrock)),
        start,
        jac=True,
        method="L-BFGS-B",
        bounds=list(zip(low, high, strict=True)),
        options={"ftol": 0, "gtol": 1e-7, "maxfun": 10**5, "maxiter": 10**5},
    )
    assert result.value <= theirs.fun + 1e-8
    gradient = jax.grad(rosenbrock)(w)
    assert np.abs(w - np.clip(w - gradient, low, high)).max() <= 1e-7


@pytest.mark.parametrize(
    "bounds, error, sentence",
    [
        (3, TypeError, r"bounds must be a pair \(low, high\).*got int"),
        ((0.0,), TypeError, "bounds must be a pair"),
        ((1.0, 0.0), ValueError, "low <= high"),
        ((np.nan, 1.0), ValueError, "no NaN"),
        ((np.zeros(3), 1.0), ValueError, r"low has shape \(3,\).*\(2,\)"),
        (({"a": 0.0}, 1.0), (TypeError, ValueError), r"bounds\[low\]"),
    ],
)
def test_wrong_bounds(bounds, error, sentence):
    with pytest.raises(error, match=sentence):
        ncg.minimize(rosenbrock, jnp.zeros(2), bounds=bounds)


def test_an_optimizer_and_complex_parameters_have_no_bounds():
    with pytest.raises(ValueError, match="optimizer must be None"):
        ncg.minimize(rosenbrock, jnp.zeros(2), ncg.newton_cg(), bounds=(0.0, 1.0))
    with pytest.raises(TypeError, match="real parameters"):
        ncg.minimize(
            lambda z: jnp.sum(jnp.abs(z) ** 2),
            jnp.zeros(2, complex),
            bounds=(0.0, 1.0),
        )


def test_the_projection_and_the_first_bound():
    x = vector(4, seed=1)
    box = as_box((-0.5, np.array([0.5, 1.0, 2.0, np.inf])), jnp.asarray(x))
    np.testing.assert_array_equal(box.project(x), np.clip(x, box.low, box.high))
    start = jnp.zeros(4)
    end = box.first_bound(start, jnp.array([1.0, -1.0, 0.0, 3.0]))
    np.testing.assert_allclose(end, [0.5, -0.5, 0.0, 1.5])
    inside = box.first_bound(start, jnp.array([0.1, 0.0, 0.0, 3.0]))
    np.testing.assert_allclose(inside, [0.1, 0.0, 0.0, 3.0])


def test_products_are_counted():
    w = jnp.array([0.5])
    loss = lambda w: jnp.sum((w - 3) ** 2)  # noqa: E731
    tx, g = projected_newton(as_box((0.0, 1.0), w)), jax.grad(loss)(w)
    updates, state = tx.update(g, tx.init(w), w, value=loss(w), value_fn=loss, grad=g)
    np.testing.assert_array_equal(updates, 0.5)
    assert state.info.products == 2  # of the solve, and of the step to the bound


def test_a_gradient_that_is_small_beside_the_parameters_is_seen():
    def loss(w):
        return jnp.sum(0.01 * (w - 1e6) ** 2)

    start = jnp.full(2, 1e6 - 1, jnp.float32)
    w, _, result = ncg.minimize(loss, start, bounds=(0.0, None))
    np.testing.assert_array_equal(w, 1e6)
    assert result.iterations > 0


@pytest.mark.parametrize(
    "f, bounds, start, lowest",
    [
        (lambda w: -(w @ w), (0.0, 1.0), [0.0], -1.0),
        (lambda w: (w[0] * w[1] - 1) ** 2, (0.0, np.inf), [0.0, 0.0], 0.0),
        (lambda w: -w[0] * w[1], (-1.0, 0.0), [0.0, 0.0], -1.0),
        # Minima: the negative curvature leads out of the box.
        (lambda w: w[0] * w[1], (0.0, 1.0), [0.0, 0.0], 0.0),
        (lambda w: w[0] ** 2 - w[1] ** 2, (0.0, np.array([1, 0])), [0.5, 0.0], 0.0),
    ],
)
def test_a_stationary_point_at_bounds_is_left_if_it_is_no_minimum(
    f, bounds, start, lowest
):
    w, _, result = ncg.minimize(f, np.array(start), bounds=bounds, gtol=1e-7)
    assert result.status == Status.CONVERGED_GRADIENT
    np.testing.assert_allclose(result.value, lowest, atol=1e-8)
